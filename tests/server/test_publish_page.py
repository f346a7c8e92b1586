"""The page that publishes: what it shows of a plan, what it sends and when, and how the Hub's refusals read."""

from __future__ import annotations

import re
import threading
from html import unescape

import pytest
from huggingface_hub import constants
from reccocktail.registry.errors import HubError
from reccocktail.server.app import ServerOptions
from reccocktail.server.pages.cards import shown_card

from .test_page_actions import HOSTILE, HTML, succeed

REPO = "acme/skin-care"


def _ended(client, answer):
    """Of a page that waits for the Hub, the page once it has answered: the Hub is asked in a thread."""
    assert answer.status_code == 303, answer.text
    ask = client.app.state.hub.get(answer.headers["location"].rpartition("/")[2], client.app.state.registry.actor)
    assert ask.ended.wait(120)
    return client.get(answer.headers["location"], headers=HTML)


def _fields(text: str) -> dict[str, str]:
    """Of the form that publishes."""
    form = re.search(r'<form method="post" action="/publish".*?</form>', text, re.DOTALL)
    assert form
    return {name: unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', form[0])}


def test_what_is_seen_is_sent_once_somebody_agrees_and_not_before(stocked, client, loopback_hub):
    stocked.domains.add("skin-care", title=HOSTILE)
    build = succeed(stocked, report={"warnings": [HOSTILE]})
    asked = f"/publish?what={build.id}&to={REPO}&license=mit&tag=v1"
    page = _ended(client, client.get(asked, headers=HTML)).text
    assert f"{REPO}: would be made" in page
    assert "mit" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert (loopback_hub.repos, stocked.publications.list()) == ({}, [])
    form = _fields(page)
    assert client.post("/publish", data=form | {"csrf": "0" * 64}, headers=HTML).status_code == 403
    for seen in ({"seen": ""}, {"seen": "sha256:" + "0" * 64}, {"tag": "v2"}):
        again = _ended(client, client.post("/publish", data=form | seen, headers=HTML))
        assert ("<strong>conflict" in again.text, "data-poll" in again.text) == (True, False), seen
    assert loopback_hub.repos == {}
    answer = _ended(client, client.post("/publish", data=form, headers=HTML))
    assert answer.status_code == 303
    assert 'role="status"' in client.get(answer.headers["location"], headers=HTML).text
    (row,) = stocked.publications.list()
    assert (row.repo, row.revision, row.tag) == (REPO, loopback_hub.head(REPO), "v1")
    assert "all of it, at commit" in _ended(client, client.get(asked, headers=HTML)).text
    # somebody else adds a file: it would go only by being asked to, and that is shown as a loss
    loopback_hub.add_repo(REPO, loopback_hub.files(REPO) | {"notes <b>.txt": b"theirs"}, private=True)
    losing = _ended(client, client.get(f"{asked.replace('v1', 'v3')}&replace=1", headers=HTML)).text
    assert re.findall(r'<tr class="lost removed"><th scope="row"><code>(.*?)</code>', losing) == ["notes &lt;b&gt;.txt"]
    assert (
        "<strong>conflict" in _ended(client, client.post("/publish", data=form | {"replace": "1"}, headers=HTML)).text
    )
    assert "notes <b>.txt" in loopback_hub.files(REPO)
    assert _ended(client, client.post("/publish", data=_fields(losing), headers=HTML)).status_code == 303
    assert "notes <b>.txt" not in loopback_hub.files(REPO)
    assert client.get("/publish", headers=HTML).text.count(build.id) >= 2


def test_refusals_of_the_hub_are_in_plain_words_and_without_secrets(stocked, client, loopback_hub, monkeypatch):
    asked = f"/publish?what=skin-care@v1&to={REPO}"
    form = _fields(_ended(client, client.get(asked, headers=HTML)).text)
    known = len(loopback_hub.requests)
    led = client.get(asked, headers=HTML | {"Sec-Fetch-Site": "cross-site"})
    assert (led.status_code, len(loopback_hub.requests)) == (200, known)  # a page elsewhere cannot make us ask the Hub
    loopback_hub.role = "read"
    for begun in (client.get(asked, headers=HTML), client.post("/publish", data=form, headers=HTML)):
        answer = _ended(client, begun)
        assert (answer.status_code, 'role="alert"' in answer.text) == (200, True)
        assert "<strong>hub</strong>" in answer.text
        assert loopback_hub.token not in answer.text
        assert 'aria-label="Pages"' in answer.text
    monkeypatch.delenv("HF_TOKEN")
    assert "<strong>hub</strong>" in _ended(client, client.get(asked, headers=HTML)).text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    unreached = _ended(client, client.get(asked, headers=HTML))
    assert "--offline" not in unreached.text
    assert "not compared" in unreached.text  # files and card are shown all the same
    assert '<form method="post" action="/publish"' not in unreached.text
    assert loopback_hub.repos == {}
    assert client.get("/publish/0123", headers=HTML).status_code == 404
    for path in ("?what=skin-care@v1&to=nonsense", "?what=nothing&to=a/b", "?what=skin-care@v1&to=a/b&license=%3Cb%3E"):
        refused = client.get(f"/publish{path}", headers=HTML)
        assert (refused.status_code in (400, 404), refused.text.count('class="problem"')) == (True, 1), path
    for long in (
        client.get(f"/publish?what={'x' * 201}&tag=mine", headers=HTML),
        client.post("/publish", data=form | {"what": "x" * 201, "tag": "mine"}, headers=HTML),
    ):
        assert (long.status_code, 'id="what-problem"' in long.text) == (400, True)
        assert 'value="mine"' in long.text  # the form has what was typed


def test_the_page_waits_for_the_hub_and_nobody_else_sees_for_what(stocked, client, open_client, monkeypatch):
    answers = threading.Event()

    def planned(*given, notify, **named):
        notify("no answer; trying again in 8 s")
        assert answers.wait(120)
        raise HubError("the Hub does not answer")

    monkeypatch.setattr("reccocktail.server.pages.publishing.planned", planned)
    begun = client.get(f"/publish?what=skin-care@v1&to={REPO}", headers=HTML)
    page = client.get(begun.headers["location"], headers=HTML)
    assert (page.status_code, 'data-poll="1000"' in page.text) == (200, True)
    other = open_client(stocked.acting_as("somebody-else"))
    other.app.state.hub = client.app.state.hub
    assert other.get(begun.headers["location"], headers=HTML).status_code == 404
    answers.set()
    page = _ended(client, begun).text
    assert ("<strong>hub</strong>" in page, "data-poll" in page) == (True, False)


def test_who_may_not_publish_is_not_offered_it(stocked, open_client, loopback_hub):
    build = succeed(stocked)
    for scopes, status in ((["read"], 403), (["read", "publish"], 200)):
        secret = stocked.tokens.create(f"of-{len(scopes)}", scopes, lasts=None).secret
        client = open_client(stocked, ServerOptions(login=True), Authorization=f"Bearer {secret}")
        for path in (f"/builds/{build.id}", "/adapters/skin-care@v1"):
            assert ("/publish?what=" in client.get(path, headers=HTML).text) is (status == 200), path
        answer = client.get("/publish", headers=HTML)
        assert answer.status_code == client.get("/publish?what=skin-care@v1", headers=HTML).status_code == status
        assert ('href="/publish"' in answer.text) is (status == 200)


@pytest.mark.parametrize(
    "text", [HOSTILE, f"# {HOSTILE}", f"[x](javascript:alert(1))\n\n![{HOSTILE}](https://x/y.png)"]
)
def test_a_card_can_do_no_harm(text):
    shown = shown_card(f"---\nlicense: mit\ntitle: {HOSTILE}\n---\n{text}\n| a |\n|---|\n| [b](https://x.example) |\n")
    assert HOSTILE in shown.metadata
    for each in ("<script", "<img", "<h1", 'href="javascript'):
        assert each not in shown.body
    aligned = shown_card("| a | b | c |\n|---|---:|:---:|\n| 1 | 2 | 3 |\n").body
    assert "style=" not in aligned  # the policy of pages refuses it
    assert [aligned.count(f'class="{side}"') for side in ("right", "center")] == [2, 2]
    assert shown_card("no metadata").body == "<p>no metadata</p>\n"
