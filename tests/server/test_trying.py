"""Trying a domain out from a page: what is asked, by how many at once, and what the page says of the answer."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch
from reccocktail.engine.answering import answer
from reccocktail.engine.recommending import RecommendationRequest
from reccocktail.registry.errors import NotFoundError, UsageError
from reccocktail.server import asks
from reccocktail.server.answers import failure
from reccocktail.server.app import ServerOptions, create_app
from reccocktail.server.asks import Asks
from reccocktail.server.errors import TooManyRequestsError
from reccocktail.tasks import read_domain

from .test_page_actions import HOSTILE, HTML, succeed


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr("reccocktail.engine.models.compute_dtype", lambda device: torch.float32)


@pytest.fixture
def post(client):
    """(form): the answer to the form of the page."""

    def send(**form: Any) -> Any:
        csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get("/try", headers=HTML).text)
        assert csrf
        return client.post("/try", data={"domain": "skin-care", "csrf": csrf[1]} | form, headers=HTML)

    return send


def _answered(client: Any, answer: Any) -> str:
    assert answer.status_code == 303, answer.text
    where = answer.headers["location"]
    assert client.app.state.asks.get(where.rpartition("/")[2], client.app.state.registry.actor).ended.wait(120)
    page = client.get(where, headers=HTML)
    assert page.status_code == 200
    assert "data-poll" not in page.text
    return page.text


def test_the_build_and_its_adapters_recommend_side_by_side(stocked, client, post, tmp_path):
    build = succeed(stocked)
    shop = read_domain(tmp_path / "data")
    one, two = list(shop.items.values())[:2]
    found = post(search=f"{one.title.upper()}!", history=two.title)
    assert f'value="add:{one.item_id}"' in found.text
    added = post(do=f"add:{one.item_id}", history=two.title).text
    assert re.search(r"<textarea[^>]*>\n([^<]*)</textarea>", added)[1].split("\n") == [two.title, one.title]  # pyright: ignore
    history = [two.title, one.title, HOSTILE]
    page = _answered(client, post(do="ask", history="\n".join(history), count=4))
    same = RecommendationRequest("skin-care", history=history, compare=True)
    expected = answer(stocked, same, count=4, device="cpu")
    lists = re.findall(r'<h3 id="column-\d">.*?</ol>', page, re.DOTALL)
    assert len(lists) == 3
    for text, ranked in zip(lists, expected.lists, strict=True):  # pyright: ignore
        titles = [re.sub(r"\s*<.*", "", each) for each in text.split("<li>")[1:]]
        assert titles == [item.title for item in ranked.items[:4]]
        assert f"{ranked.items[0].score:.3f}" in text
    assert build.id in lists[0]
    assert "not in the catalogue" in page
    assert "<script>alert" not in page
    assert client.get("/try/nothing").status_code == 404


def test_what_cannot_be_asked_is_refused_in_plain_words(stocked, client, post):
    for form in ({}, {"user": "a", "history": "b"}, {"history": "\n||\n"}, {"user": "a", "domain": "nowhere"}):
        refused = post(do="ask", **form)
        assert (refused.status_code in (400, 404), 'role="alert"' in refused.text) == (True, True), form
    assert post(do="add:nothing").status_code == 400
    assert post(search="x", domain="nowhere").status_code == 404
    malformed = post(do="ask", user="a", count=99)
    assert (malformed.status_code, 'value="99"' in malformed.text, 'id="count-problem"' in malformed.text) == (
        400,
        True,
        True,
    )
    assert client.post("/try", data={"do": "ask", "domain": "skin-care", "user": "a"}).status_code == 403
    page = _answered(client, post(do="ask", user=HOSTILE))  # it has no build: found out while it is answered
    assert "<strong>not_found</strong>" in page
    assert "<script>alert" not in page


def test_whoever_waits_sees_it_without_scripts_and_asks_no_third_question(client, post, monkeypatch):
    go_on = threading.Event()

    def slow(registry: Any, wanted: Any, *, bar: Any, **_: Any) -> Any:
        with bar("ranking with <b>") as progress:
            progress(3, 7)
            assert go_on.wait(60)
        raise UsageError("no more")

    monkeypatch.setattr("reccocktail.engine.answering.answer", slow)
    first, second = (post(do="ask", user="a").headers["location"] for _ in range(2))
    text = ""
    while 'max="7"' not in text:  # until its turn has come
        text = client.get(first, headers=HTML).text
        assert '<noscript><meta http-equiv="refresh"' in text
    assert "ranking with &lt;b&gt;" in text
    assert "turn 1" in client.get(second, headers=HTML).text
    third = post(do="ask", user="a")
    assert (third.status_code, "<strong>too_many_requests</strong>" in third.text) == (429, True)
    assert client.get("/healthz").status_code == 200
    go_on.set()
    for where in (first, second):
        ask = client.app.state.asks.get(where.rpartition("/")[2], client.app.state.registry.actor)
        assert ask.ended.wait(60)
        assert 'http-equiv="refresh"' not in client.get(where, headers=HTML).text


def test_a_bi_tuning_is_asked_whole(stocked, client, post, make_bi_tuning, tmp_path):
    base, shop = stocked.bases.get("tiny"), read_domain(tmp_path / "data")
    folder = make_bi_tuning(
        tmp_path / "bundle", base.digest, [*shop.items.values()][:6], model=stocked.bases.folder(base)
    )
    row = stocked.adapters.add(folder, base=base, role="ingredient", domain="skin-care")
    assert f'value="{row.ref}"' in client.get("/try?domain=skin-care", headers=HTML).text
    page = _answered(client, post(do="ask", history=next(iter(shop.items.values())).title, system=row.ref, count=3))
    assert "<dt>score</dt><dd>cosine</dd>" in page
    assert len(re.findall("<li>", page.split('id="column-1"')[1].split("</ol>")[0])) == 3


def test_only_so_many_wait_for_an_answer(monkeypatch):
    monkeypatch.setattr(asks, "KEPT", 3)
    kept, go_on, begun = Asks[str](failure), threading.Event(), threading.Event()

    def slow(ask: Any, bar: Any) -> str:
        with bar("stage") as progress:
            begun.set()
            assert go_on.wait(60)
            progress(1, 2)
        return ask.caller

    def refuse(ask: Any, bar: Any) -> str:
        raise UsageError("not so")

    def break_(ask: Any, bar: Any) -> str:
        raise ValueError("nobody's business")

    first = kept.add("anna", None, slow)
    assert begun.wait(60)
    second = kept.add("anna", None, refuse)
    assert (first.state, second.state, kept.before(second)) == ("running", "waiting", 1)
    with pytest.raises(TooManyRequestsError):
        kept.add("anna", None, slow)
    others = [kept.add(f"caller-{number // 2}", None, break_) for number in range(4)]
    with pytest.raises(TooManyRequestsError):
        kept.add("eve", None, slow)
    with pytest.raises(NotFoundError):
        kept.get(first.id, "eve")
    go_on.set()
    for each in (first, second, *others):
        assert each.ended.wait(60)
    assert (first.answer, first.done, first.stage) == ("anna", 1, "stage")
    assert (second.state, (second.error or {})["code"]) == ("failed", "usage")
    assert "business" not in str(others[0].error)
    kept.add("anna", None, refuse)
    with pytest.raises(NotFoundError):
        kept.get(first.id, "anna")  # only the newest are kept


def test_an_answer_that_nobody_will_read_is_abandoned():
    kept, go_on, begun = Asks[str](failure), threading.Event(), threading.Event()

    def slow(ask: Any, bar: Any) -> str:
        with bar("stage") as progress:
            begun.set()
            assert go_on.wait(60)
            progress(0, 1)
        return "read"

    running = kept.add("anna", None, slow)
    assert begun.wait(60)
    kept.close(0)
    go_on.set()
    assert running.ended.wait(60)
    assert running.answer is None


def test_an_answer_is_watched_by_who_asked_alone(stocked, open_client, serve, page, inaccessible, tmp_path):
    succeed(stocked)
    site = serve(create_app(stocked))
    page.goto(f"{site}/try?domain=skin-care")
    page.get_by_label("Find titles").fill(next(iter(read_domain(tmp_path / "data").items.values())).title)
    page.keyboard.press("Enter")
    page.get_by_role("button", name=re.compile("^Add")).first.press("Enter")
    assert page.locator("#history").input_value()
    page.get_by_role("button", name="Recommend").press("Enter")
    page.wait_for_selector("#answer ol", timeout=120_000)
    assert page.locator(".columns section").count() == 3
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert inaccessible(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    secret = stocked.tokens.create("eve", ["read"], lasts=None).secret
    eve = open_client(stocked, ServerOptions(login=True), Authorization=f"Bearer {secret}")
    assert eve.get(page.url.removeprefix(site)).status_code == 404
