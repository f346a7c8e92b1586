"""Every route of the API × every scope: who lacks the scope that a route names is refused, and who has it is not."""

from __future__ import annotations

import re

import pytest
from fastapi.routing import APIRoute
from reccocktail.server.app import PAGES, ROUTES, ServerOptions
from reccocktail.server.identity import scope_of

SCOPES = ("read", "register", "build", "promote:skin-care", "publish", "admin")
EVERY = [route for router in ROUTES for route in router.routes if isinstance(route, APIRoute)]
OPEN_PAGES = {"/login", "/login/oidc", "/login/oidc/callback", "/logout"}


def _asked(route: APIRoute) -> tuple[str, str]:
    method = next(iter(route.methods - {"HEAD"}))
    path = re.sub(
        r"\{(\w+)(:path)?\}", lambda found: {"id": "7", "name": "skin-care"}.get(found[1], "nowhere"), route.path
    )
    return method, path


def _allows(scope: str, needed: str) -> bool:
    return scope in ("admin", needed) or (needed == "promote" and scope.startswith("promote:"))


@pytest.fixture
def clients(stocked, open_client):
    def client(scope: str):
        secret = stocked.tokens.create(scope.replace(":", "-"), [scope], lasts=None).secret
        return open_client(stocked, ServerOptions(login=True), Authorization=f"Bearer {secret}")

    return {scope: client(scope) for scope in SCOPES}


def test_every_route_and_page_names_a_scope():
    assert len(EVERY) >= 30
    assert [route.path for route in EVERY if scope_of(route) is None] == []
    pages = [route for router in PAGES for route in router.routes if isinstance(route, APIRoute)]
    assert {route.path for route in pages if scope_of(route) is None} == OPEN_PAGES
    assert {scope_of(route) for route in EVERY} <= {"read", "register", "build", "promote", "publish", "admin"}


def test_every_route_with_every_scope(clients, stocked, open_client):
    nobody = open_client(stocked, ServerOptions(login=True))
    wrong = []
    for route in EVERY:
        method, path = _asked(route)
        if path.endswith("/events/follow"):
            continue  # it has no end; its dependency is that of its neighbours
        assert nobody.request(method, path, json={}).status_code == 401, path
        for scope, client in clients.items():
            status = client.request(method, path, json={}).status_code
            if (status == 403) is _allows(scope, scope_of(route) or "") or status in (401, 405) or status >= 500:
                wrong.append((method, path, scope, status))
    assert wrong == []
    unnamed = clients["build"].post("/api/v1/adapters/skin-care@v1:approve").json()["error"]["message"]
    assert "the scope promote:DOMAIN" in unnamed
    refused = clients["build"].get("/api/v1/events/follow")
    assert refused.status_code == 403


def test_every_form_wants_what_the_page_gave_and_its_scope(stocked, open_client):
    forms = [
        route for router in PAGES for route in router.routes if isinstance(route, APIRoute) and "POST" in route.methods
    ]
    assert len(forms) >= 16
    local = open_client(stocked)
    reader = open_client(stocked, ServerOptions(login=True))
    secret = stocked.tokens.create("anna", ["read"], lasts=None).secret
    reader.post("/login", data={"csrf": _csrf(reader.get("/login").text), "token": secret})
    csrf = _csrf(reader.get("/recipes").text)
    wrong = []
    for route in forms:
        _, path = _asked(route)
        found = [local.post(path, data=form).status_code for form in ({}, {"csrf": "0" * 64})]
        if scope_of(route) not in (None, "read"):
            found.append(reader.post(path, data={"csrf": csrf}).status_code)
        if set(found) != {403}:
            wrong.append((path, found))
    assert wrong == []


def _csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found
    return found[1]
