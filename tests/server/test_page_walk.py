"""A walk through the pages in a browser: by keyboard, in the dark, on a phone, accessibly; a build is watched to its end, a gate refuses."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from reccocktail.registry.catalog.gates import Requirement
from reccocktail.server.app import create_app
from reccocktail.server.pages.sliders import Slider

from .test_page_actions import ADAPTATION, BY_MODULE, measure, pages_of, succeed

SHOTS = os.environ.get("RECCOCKTAIL_SHOTS")  # a folder that gets a picture of every page


@pytest.fixture
def two_versions(stocked, make_adapter):
    base = stocked.bases.get("tiny")
    folder = make_adapter(stocked.bases.folder(base), 3, r=2)
    stocked.adapters.add(folder, base=base, role="ingredient", domain="skin-care")
    stocked.adapters.alias("skin-care@v1", "champion")


def _shoot(page, name):
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


@pytest.mark.slow
def test_every_page_is_accessible_and_fits_a_phone(
    stocked, serve, page, inaccessible, two_versions, loopback_hub, monkeypatch
):
    slider = Slider(date(2026, 10, 1), 58, (3, 20, 41))
    monkeypatch.setattr("reccocktail.server.pages.domains.slider_of", lambda moments: slider)
    loopback_hub.add_repo("acme/skin-care", {"notes.txt": b"theirs", "README.md": b"# theirs"}, private=True)
    report = {"adaptation": ADAPTATION | {"comparison": None}, "outcome": "mixed"}
    build = succeed(stocked, report=report, coefficients={"spirit": 0.5, "ingredient": BY_MODULE})
    measure(stocked, "skin-care@v1", [0, 1, 2, None, 0, 1] * 8, "skin-care@v1")
    measure(stocked, "skin-care@v2", [0, 0, 2, None, 0, 2] * 8, "skin-care@v2")
    site = serve(create_app(stocked))
    found = {}
    for number, path in enumerate(
        (
            *pages_of(build),
            "/domains/skin-care?day=30",
            "/compare?a=skin-care@v2&b=skin-care@v1&weights=1",
            "/recipes",
            "/recipes/default",
            "/publish?what=spirit@v1&to=acme/skin-care&replace=1",
            "/publish?what=skin-care@v1&to=acme/skin-care&replace=1",
        )
    ):
        page.set_viewport_size({"width": 1200, "height": 800})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(site + path)
            page.locator('[data-poll="1000"]').wait_for(state="detached")  # the Hub has answered
            if problems := inaccessible(page):
                found[path, scheme] = problems
            _shoot(page, f"{number:02}-{scheme}")
        page.set_viewport_size({"width": 390, "height": 844})
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            found[path, 390] = page.evaluate("document.documentElement.scrollWidth")
        _shoot(page, f"{number:02}-phone")
        assert page.locator("h1").count() == 1, path
    # the tables of a card, on the last of them, are aligned by classes
    sides = "cells => cells.map(cell => getComputedStyle(cell).textAlign)"
    assert {*page.eval_on_selector_all(".card td.right", sides)} == {"right"}
    assert found == {}


def _press_until(page, name):
    """Tab to what has the name, and Enter."""
    for _ in range(80):
        page.keyboard.press("Tab")
        text = page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        if text.strip() == name:
            with page.expect_navigation():
                page.keyboard.press("Enter")
            return
    raise AssertionError(f"{name} is not reached by keyboard at {page.url}")


@pytest.mark.slow
def test_a_gate_refuses_and_a_build_is_watched_to_its_end_by_keyboard(
    stocked, serve, browser, two_versions, inaccessible
):
    stocked.gates.set("skin-care", Requirement("HR@1"), 0)
    asked = stocked.builds.request("skin-care", "tiny", "live", {"output": {}}, {"adapters": []}).build
    site = serve(create_app(stocked))
    context = browser.new_context()
    page = context.new_page()
    page.goto(site)
    _press_until(page, "skin-care")
    _press_until(page, "Promote v2")
    assert page.locator(".warned").count() == 1
    _press_until(page, "Promote")
    assert "evaluate" in page.get_by_role("alert").text_content()
    assert stocked.adapters.resolve("skin-care@champion").ref == "skin-care@v1"
    page.goto(f"{site}/compare?a=nothing&b=/etc")  # what is wrong is beside each field, and the first one has the focus
    assert (page.locator(".problem").count(), page.evaluate("document.activeElement.id")) == (2, "a")
    assert inaccessible(page) == []
    page.goto(site)
    _press_until(page, "Queue")
    _press_until(page, f"{asked.id[:8]}…{asked.id[-4:]}")
    page.wait_for_selector("#state .queued")
    stocked.builds.claim("w", build_id=asked.id)
    stocked.builds.progress(asked.id, "w", 3, 10, "merge")
    stocked.builds.log(asked.id, "w", "<b>halfway</b>")
    page.wait_for_selector("#state progress", timeout=60_000)
    page.wait_for_selector("#lines pre:has-text('<b>halfway</b>')", timeout=60_000)
    base = stocked.bases.get("tiny")
    stocked.builds.succeed(asked.id, "w", base.digest, {"spirit": 1.0}, {})
    page.wait_for_selector("#state .succeeded", timeout=60_000)
    page.wait_for_selector("#pin", timeout=60_000)
    context.close()


def test_a_live_page_says_that_the_server_is_gone_and_recovers_with_it(stocked, served, browser):
    """As a page of its own: the browser reports the requests that fail."""
    asked = stocked.builds.request("skin-care", "tiny", "live", {"output": {}}, {"adapters": []}).build
    app = create_app(stocked)
    context = browser.new_context()
    page = context.new_page()
    with served(app) as site:
        page.goto(f"{site}/builds/{asked.id}")
        page.wait_for_selector("#state .queued")
        assert page.locator("#line").count() == 0
        app.state.ending.set()
    page.wait_for_selector("#line[role=alert]", timeout=60_000)
    stocked.builds.cancel(asked.id)
    with served(create_app(stocked), urlsplit(site).port):
        page.wait_for_selector("#state .cancelled", timeout=60_000)
        page.wait_for_selector("#line", state="detached", timeout=60_000)
    context.close()
