"""What surrounds pages and API: errors in one shape, headers, who may ask from where, and whether the server is well."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter
from reccocktail.registry.errors import ConflictError, RecCocktailError
from reccocktail.server.errors import STATUSES
from reccocktail.server.security import HEADERS

ROOMS = ("registry", "tasks", "networks", "engine", "publishing", "serving", "trainers", "server")


def _errors(kind: type[RecCocktailError] = RecCocktailError) -> Iterator[type[RecCocktailError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _errors(below)


def test_every_error_has_a_status_by_its_code():
    for room in ROOMS:
        folder = Path(next(iter(importlib.import_module(f"reccocktail.{room}").__path__)))
        for path in folder.rglob("*.py"):
            if re.search(r"^class \w+Error\(", path.read_text(), re.MULTILINE):
                parts = path.relative_to(folder).with_suffix("").parts
                importlib.import_module(".".join(("reccocktail", room, *(p for p in parts if p != "__init__"))))
    codes = {kind.code for kind in _errors() if kind.__module__.startswith("reccocktail.")}
    assert codes <= STATUSES.keys()
    assert {code for code in codes if STATUSES[code] >= 500} == {
        "error",
        "hub",
        "webhook",
        "provider",
        "unreachable",
        "database",
        "store",
        "no_room",
    }


def test_errors_are_answered_in_one_shape_and_without_secrets(client):
    router = APIRouter()

    @router.get("/api/v1/refused")
    def refused() -> None:
        raise ConflictError("not with hf_abcdefghijklmnopqrstuvwxyzABCDEF12", hint="take another")

    @router.get("/api/v1/broken")
    def broken() -> None:
        raise ValueError("nobody's business")

    client.app.include_router(router)
    answer = client.get("/api/v1/refused")
    assert answer.status_code == 409
    assert answer.json() == {"error": {"code": "conflict", "message": "not with [secret]", "hint": "take another"}}
    assert "/api/v1" in client.get("/else/api/v1/bases").json()["error"]["hint"]
    assert client.get("/api/v1/nothing").json()["error"]["code"] == "not_found"
    assert client.post("/api/v1/refused").json()["error"]["code"] == "method_not_allowed"
    quiet = type(client)(client.app, base_url="http://localhost", raise_server_exceptions=False)
    answer = quiet.get("/api/v1/broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "business" not in answer.text


def test_every_answer_has_the_headers_that_confine_a_page(client):
    for path in ("/", "/static/style.css", "/healthz", "/api/v1/openapi.json", "/nothing"):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS, path
    assert "unsafe-inline" not in str(HEADERS)
    page = client.get("/nothing", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert "<strong>not_found</strong>" in page.text
    gone = client.get("/try/0123", headers={"Accept": "text/html"})
    assert (gone.status_code, 'href="/try">Back to' in gone.text) == (404, True)
    # what a refused form leaves in the address bar leads to its page
    for path, above in (("/domains/skin-care/edit", "/domains/skin-care"), ("/rebuild", "/")):
        answer = client.get(path, headers={"Accept": "text/html"})
        assert (answer.status_code, answer.headers["location"]) == (303, above)


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Host": "evil.example"}, 403),  # a name that was made to mean this machine
        ("GET", {"Host": "127.0.0.1:8321"}, 200),
        ("GET", {"Host": "[::1]:8321"}, 200),
        ("POST", {"Origin": "http://evil.example"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", {"Sec-Fetch-Site": "same-site"}, 403),
        ("POST", {"Origin": "http://localhost"}, 405),
        ("GET", {"Origin": "http://evil.example"}, 200),  # it cannot read the answer
    ],
)
def test_only_pages_of_its_own_may_change_anything(client, method, headers, status):
    assert client.request(method, "/healthz", headers=headers).status_code == status


def test_health_readiness_and_metrics(client, stocked):
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"ok": True}
    stocked.builds.request("skin-care", "tiny", "key", {}, {"adapters": []})
    text = client.get("/metrics").text
    assert 'reccocktail_domains{state="stale"} 0.0' in text
    assert 'reccocktail_builds_in_registry{status="queued"} 1.0' in text
    assert "reccocktail_queue_age_seconds" in text
    (stocked.settings.home / "registry.sqlite").rename(stocked.settings.home / "away")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database")
    assert client.get("/healthz").status_code == 200


def test_rows_are_written_in_the_name_of_who_asks(stocked):
    other = stocked.acting_as("amina")
    other.domains.add("garden")
    assert stocked.events.list(limit=1)[0].created_by == other.actor == "amina"
    assert stocked.actor != "amina"
