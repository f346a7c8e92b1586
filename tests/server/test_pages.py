"""The pages in a browser: they show what is there, by keyboard, on a phone, in the dark, and accessibly."""

from __future__ import annotations

import re

from reccocktail.publishing.status import status_of
from reccocktail.server import status_cache


def test_the_overview_shows_every_domain_with_its_state(client, stocked):
    stocked.domains.add("garden", title="<b>Garden</b>")
    text = client.get("/", headers={"Accept": "text/html"}).text
    assert re.search(
        r'<th scope="row"><a href="/domains/skin-care">skin-care</a></th>\s*<td><span class="state unbuilt">', text
    )
    assert 'href="/?state=unbuilt"' in text
    only = client.get("/?state=blocked&state=cold").text
    assert "skin-care</a></th>" not in only
    assert client.get("/?state=purple").status_code == 422


def test_the_overview_in_a_browser(site, page, inaccessible):
    page.goto(site)
    assert page.get_by_role("rowheader").all_text_contents() == ["skin-care"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert inaccessible(page) == [], scheme
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("link", name="unbuilt").click()
    assert page.url.endswith("/?state=unbuilt")


def test_the_state_of_all_domains_is_computed_once_for_everybody(stocked, monkeypatch):
    moment, computed = [0.0], list[int]()
    monkeypatch.setattr(status_cache, "status_of", lambda registry: computed.append(1) or status_of(registry))
    cache = status_cache.StatusCache(stocked, clock=lambda: moment[0])
    assert cache.get() is cache.get()
    stocked.domains.add("garden")
    assert [entry["domain"] for entry in cache.get().entries] == ["garden", "skin-care"]
    assert len(computed) == 2
    moment[0] += status_cache.SECONDS + 1
    cache.get()
    assert len(computed) == 3


def test_pages_and_the_api_share_the_state_of_all_domains(client, monkeypatch):
    computed = list[int]()
    monkeypatch.setattr(status_cache, "status_of", lambda registry: computed.append(1) or status_of(registry))
    monkeypatch.setattr(status_cache, "SECONDS", float("inf"))
    assert client.get("/", headers={"Accept": "text/html"}).status_code == 200
    assert [each["domain"] for each in client.get("/api/v1/status").json()] == ["skin-care"]
    assert client.get("/api/v1/status", params={"state": "fresh"}).json() == []
    assert len(computed) == 1
