"""The page that publishes: what it shows of a plan, what it sends and when, and how the Hub's refusals read."""

from __future__ import annotations

import re
from html import unescape

import pytest
from huggingface_hub import constants
from reccocktail.server.app import ServerOptions
from reccocktail.server.pages.cards import shown_card

from .test_page_actions import HOSTILE, HTML, succeed

REPO = "acme/skin-care"


def _fields(text: str) -> dict[str, str]:
    """Of the form that publishes."""
    form = re.search(r'<form method="post" action="/publish".*?</form>', text, re.DOTALL)
    assert form
    return {name: unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', form[0])}


def test_what_is_seen_is_sent_once_somebody_agrees_and_not_before(stocked, client, loopback_hub):
    stocked.domains.add("skin-care", title=HOSTILE)
    build = succeed(stocked, report={"warnings": [HOSTILE]})
    asked = f"/publish?what={build.id}&to={REPO}&license=mit&tag=v1"
    page = client.get(asked, headers=HTML).text
    assert f"{REPO}: would be made" in page
    assert "mit" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert (loopback_hub.repos, stocked.publications.list()) == ({}, [])
    form = _fields(page)
    for seen in ({"seen": ""}, {"seen": "sha256:" + "0" * 64}, {"csrf": "0" * 64}, {"tag": "v2"}):
        assert client.post("/publish", data=form | seen, headers=HTML).status_code in (403, 409), seen
    assert loopback_hub.repos == {}
    answer = client.post("/publish", data=form, headers=HTML)
    assert answer.status_code == 303
    assert 'role="status"' in client.get(answer.headers["location"], headers=HTML).text
    (row,) = stocked.publications.list()
    assert (row.repo, row.revision, row.tag) == (REPO, loopback_hub.head(REPO), "v1")
    assert "all of it, at commit" in client.get(asked, headers=HTML).text
    # somebody else adds a file: it would go only by being asked to, and that is shown as a loss
    loopback_hub.add_repo(REPO, loopback_hub.files(REPO) | {"notes <b>.txt": b"theirs"}, private=True)
    losing = client.get(f"{asked.replace('v1', 'v3')}&replace=1", headers=HTML).text
    assert re.findall(r'<tr class="lost removed"><th scope="row"><code>(.*?)</code>', losing) == ["notes &lt;b&gt;.txt"]
    assert client.post("/publish", data=form | {"replace": "1"}, headers=HTML).status_code == 409
    assert "notes <b>.txt" in loopback_hub.files(REPO)
    assert client.post("/publish", data=_fields(losing), headers=HTML).status_code == 303
    assert "notes <b>.txt" not in loopback_hub.files(REPO)
    assert client.get("/publish", headers=HTML).text.count(build.id) >= 2


def test_refusals_of_the_hub_are_in_plain_words_and_without_secrets(stocked, client, loopback_hub, monkeypatch):
    asked = f"/publish?what=skin-care@v1&to={REPO}"
    form = _fields(client.get(asked, headers=HTML).text)
    known = len(loopback_hub.requests)
    led = client.get(asked, headers=HTML | {"Sec-Fetch-Site": "cross-site"})
    assert (led.status_code, len(loopback_hub.requests)) == (200, known)  # a page elsewhere cannot make us ask the Hub
    loopback_hub.role = "read"
    for answer in (client.get(asked, headers=HTML), client.post("/publish", data=form, headers=HTML)):
        assert (answer.status_code, 'role="alert"' in answer.text) == (502, True)
        assert "<strong>hub</strong>" in answer.text
        assert loopback_hub.token not in answer.text
        assert 'aria-label="Pages"' in answer.text
    monkeypatch.delenv("HF_TOKEN")
    unknown = client.get(asked, headers=HTML)
    assert (unknown.status_code, "<strong>hub</strong>" in unknown.text) == (502, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    unreached = client.get(asked, headers=HTML)
    assert unreached.status_code == 502
    assert "not compared" in unreached.text  # files and card are shown all the same
    assert '<form method="post" action="/publish"' not in unreached.text
    assert loopback_hub.repos == {}
    for path in ("?what=skin-care@v1&to=nonsense", "?what=nothing&to=a/b", "?what=skin-care@v1&to=a/b&license=%3Cb%3E"):
        refused = client.get(f"/publish{path}", headers=HTML)
        assert (refused.status_code in (400, 404), refused.text.count('class="problem"')) == (True, 1), path
    for long in (
        client.get(f"/publish?what={'x' * 201}&tag=mine", headers=HTML),
        client.post("/publish", data=form | {"what": "x" * 201, "tag": "mine"}, headers=HTML),
    ):
        assert (long.status_code, 'id="what-problem"' in long.text) == (400, True)
        assert 'value="mine"' in long.text  # the form has what was typed


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
