"""Pictures of a registry made for them: RECCOCKTAIL_SHOTS=FOLDER pytest tests/server/test_pictures.py. Those of docs/server.md, and of every page, wide and on a phone."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest
import torch
from reccocktail.engine.building.requesting import request_lacking
from reccocktail.registry.catalog.annotations import Edit
from reccocktail.registry.catalog.gates import Requirement
from reccocktail.server.app import create_app
from reccocktail.server.pages.sliders import Slider

from .test_page_actions import ADAPTATION, BY_MODULE, measure

SHOTS = os.environ.get("RECCOCKTAIL_SHOTS", "")
pytestmark = pytest.mark.skipif(not SHOTS, reason="RECCOCKTAIL_SHOTS names no folder for pictures")
WORKER, OTHER = "builder-1:4711:1", "builder-2:512:1"
STALE = ("board-games", "garden", "home-office", "kitchen")
BOUNDS = [
    {"parent": "spirit", "mix_mean": 0.512, "parent_mean": 0.431, "difference": 0.081, "low": 0.012},
    {"parent": "ingredient", "mix_mean": 0.512, "parent_mean": 0.497, "difference": 0.015, "low": -0.011},
]
LINES = ("adapting by ranking, 5 mixes", "chosen: spirit 0.25, ingredient 0.75", "merging 21 tensors")
REPORT = {
    "adaptation": ADAPTATION | {"comparison": ADAPTATION["comparison"] | {"bounds": BOUNDS}},
    "outcome": "mixed",
}


@pytest.fixture
def shop(stocked, make_adapter, loopback_hub, monkeypatch):
    """Six domains: one is fresh and has had another build, four are stale, one is being built; anna did it."""
    monkeypatch.setattr("reccocktail.engine.models.compute_dtype", lambda device: torch.float32)
    slider = Slider(date(2026, 10, 1), 59, (3, 20, 41))
    monkeypatch.setattr("reccocktail.server.pages.domains.slider_of", lambda moments: slider)
    loopback_hub.add_repo("acme/garden", {"notes.txt": b"theirs", "README.md": b"# theirs"}, private=True)
    registry, base = stocked.acting_as("anna"), stocked.bases.get("tiny")

    def add(seed: int, **named: str):
        return registry.adapters.add(make_adapter(registry.bases.folder(base), seed, r=2), base=base, **named)

    for number, name in enumerate((*STALE, "running")):
        registry.domains.add(name, title=name.replace("-", " ").title(), recipe="average")
        registry.adapters.alias(add(20 + number, role="ingredient", domain=name).ref, "champion")
        if name != "running":
            _built(registry, name)
    registry.adapters.alias("spirit@v1", "champion")
    registry.domains.add("skin-care", title="Skin Care", recipe="average")
    registry.adapters.alias("skin-care@v1", "champion")
    first = _built(registry, "skin-care", REPORT, {"spirit": 0.25, "ingredient": 0.75})
    add(3, role="ingredient", domain="skin-care")
    add(40, role="spirit")
    registry.adapters.alias("spirit@v2", "champion")
    registry.edits.domain("skin-care", Edit(note="the shop's largest", tags=("prod",)))
    build = _built(registry, "skin-care", REPORT, {"spirit": 0.25, "ingredient": BY_MODULE})
    registry.serving.promote(build.id, why="better on held-out users")
    measure(registry, "skin-care@v1", [0, 1, 2, None, 0, 1] * 8, "skin-care@v1")
    measure(registry, "skin-care@v2", [0, 0, 2, None, 0, 2] * 8, "skin-care@v2")
    registry.gates.set("skin-care", Requirement("NDCG@3"), 1)
    running, failed = (request_lacking(registry, name, force=True)[0].build for name in ("running", "kitchen"))
    registry.builds.claim(WORKER, build_id=running.id)
    registry.builds.progress(running.id, WORKER, 3, 10, "merge")
    registry.builds.claim(OTHER, build_id=failed.id)
    registry.builds.fail(failed.id, OTHER, {"code": "no_room", "message": "no space left on the device"})
    return registry, first, build, running


def _built(registry, name, report=None, coefficients=None):
    """A build of what the domain lacks now, which succeeds."""
    asked = request_lacking(registry, name, force=True)[0].build
    registry.builds.claim(WORKER, build_id=asked.id)
    for line in LINES:
        registry.builds.log(asked.id, WORKER, line)
    digest = registry.bases.get("tiny").digest
    return registry.builds.succeed(
        asked.id, WORKER, digest, coefficients or {"spirit": 0.5, "ingredient": 0.5}, report or {}
    )


@pytest.fixture
def shoot(shop, serve, browser):
    """(name, path): a picture of the page, wide and on a phone; `act` comes before it."""
    context, site = browser.new_context(), serve(create_app(shop[0]))
    page = context.new_page()

    def shoot_one(name, path, *, widths=(1200, 390), scheme="light", act=lambda page: None, most=20_000):
        page.emulate_media(color_scheme=scheme)
        for width in widths:
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(site + path)
            act(page)
            page.locator('[data-poll="1000"]').wait_for(state="detached", timeout=120_000)
            height = min(most, page.evaluate("document.documentElement.scrollHeight"))
            clip = {"x": 0, "y": 0, "width": width, "height": height}
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}.png", full_page=True, clip=clip)

    yield shoot_one
    context.close()


def _ask(page):
    page.fill("#history", "Aurora Cleanser Refill\nAurora Cleanser Prime")
    page.fill("#count", "3")
    page.get_by_role("button", name="Recommend").click()
    page.wait_for_url("**/try/*")


def _fill_wrongly(page):
    for summary in page.locator("summary").all():
        summary.click()
    page.fill("#metrics", "HR@1 high")
    page.fill("#links", "dashboard nowhere")
    page.fill("#note", "typed just now")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector(".problem")


def test_pictures_of_the_documentation(shop, shoot):
    _, _, build, _ = shop
    shoot("server-overview", "/", widths=(1200,))
    shoot("server-domain", "/domains/skin-care?day=41", widths=(1200,))
    shoot("server-build", f"/builds/{build.id}", widths=(1200,), scheme="dark", most=1800)
    shoot("server-publish", "/publish?what=garden@v1&to=acme/garden&replace=1", widths=(1200,), most=1700)
    shoot("server-try-phone", "/try?domain=skin-care", widths=(390,), act=_ask, most=1380)


def test_pictures_of_every_page(shop, shoot):
    _, first, build, running = shop
    for name, path in {
        "overview": "/", "domain": "/domains/skin-care", "build": f"/builds/{build.id}", "running": f"/builds/{running.id}",
        "adapter": "/adapters/skin-care@v1", "queue": "/queue", "activity": "/activity", "recipes": "/recipes",
        "recipe": "/recipes/default", "compare": "/compare?a=skin-care@v2&b=skin-care@v1&weights=1",
        "promote": "/domains/skin-care/promote?ref=skin-care@v2", "promote-build": f"/builds/{first.id}/promote",
        "rollback": "/domains/skin-care/rollback", "no-rollback": "/domains/garden/rollback",
        "publish": "/publish?what=garden@v1&to=acme/garden", "publish-build": f"/publish?what={build.id}",
        "published": "/publish", "card": "/publish?what=skin-care@v1&to=acme/skin-care", "not-there": "/domains/nowhere", "spirit": "/domains/spirit", "login": "/login?next=/queue",
        "try-form": "/try?domain=skin-care",
    }.items():  # fmt: skip
        shoot(name, path)
    shoot("try", "/try?domain=skin-care", act=_ask)
    shoot("wrong", "/domains/skin-care", act=_fill_wrongly)
