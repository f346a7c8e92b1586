"""What the API changes: aliases from where they were seen, builds asked for once, and all in the name of who asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from reccocktail.registry.catalog.gates import Requirement
from reccocktail.server.app import API, ServerOptions

ALIASES = f"{API}/domains/skin-care/aliases"
BUILD_ALIASES = f"{API}/domains/skin-care/build-aliases"


@pytest.fixture
def ci(stocked, open_client):
    """Somebody who may read, build and promote in skin-care."""
    secret = stocked.tokens.create("ci", ["read", "build", "promote:skin-care"], lasts=None).secret
    return open_client(stocked, ServerOptions(login=True), Authorization=f"Bearer {secret}")


@pytest.fixture
def versions(stocked, make_adapter):
    """skin-care@v1 to v4."""
    base = stocked.bases.get("tiny")
    for seed in (3, 4, 5):
        folder = make_adapter(stocked.bases.folder(base), seed, r=2)
        stocked.adapters.add(folder, base=base, role="ingredient", domain="skin-care")


def _code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_an_alias_moves_from_where_it_was_seen(ci, stocked, versions):
    url = f"{ALIASES}/champion"
    assert ci.get(url).status_code == 404
    first = ci.put(url, json={"ref": "skin-care@v1"}, headers={"If-None-Match": "*"})
    assert (first.status_code, first.json()["ref"], first.json()["aliases"]) == (200, "skin-care@v1", ["champion"])
    tag = first.headers["etag"]
    seen = ci.get(url)
    assert (seen.headers["etag"], seen.json()["by"]) == (tag, "ci")
    assert _code(ci.put(url, json={"ref": "skin-care@v2"}, headers={"If-None-Match": "*"})) == (412, "precondition")
    dry = ci.put(url, json={"ref": "skin-care@v2"}, headers={"If-Match": tag}, params={"dry_run": True}).json()
    assert dry == {"dry_run": True, "from": "skin-care@v1", "to": "skin-care@v2", "changes": True, "gate": None}
    assert stocked.adapters.resolve("skin-care@champion").ref == "skin-care@v1"
    assert ci.put(url, json={"ref": "skin-care@v2"}, headers={"If-Match": tag}).status_code == 200
    assert _code(ci.put(url, json={"ref": "skin-care@v3"}, headers={"If-Match": tag})) == (412, "precondition")
    assert _code(ci.delete(url, headers={"If-Match": tag})) == (412, "precondition")
    assert stocked.events.list(limit=1)[0].created_by == "ci"
    assert ci.delete(url, params={"dry_run": True}).json()["from"] == "skin-care@v2"
    assert ci.delete(url, headers={"If-Match": ci.get(url).headers["etag"]}).status_code == 200
    for body, headers in (
        ({"ref": "spirit@v1"}, {}),
        ({"ref": "skin-care@v1"}, {"If-Match": "7"}),
        ({"ref": "a b"}, {}),
    ):
        assert ci.put(url, json=body, headers=headers).status_code == 400
    assert ci.put(f"{ALIASES}/v7", json={"ref": "skin-care@v1"}).status_code == 400
    assert ci.put(url, json={"ref": "skin-care@v1", "more": 1}).status_code == 422
    for place in ("spirit", "garden"):
        assert ci.put(f"{API}/domains/{place}/aliases/x", json={"ref": f"{place}@v1"}).status_code == 403


def test_a_closed_gate_refuses_and_says_why(ci, stocked, versions):
    ci.put(f"{ALIASES}/champion", json={"ref": "skin-care@v1"})
    stocked.gates.set("skin-care", Requirement("HR@1"), 0)
    for params in ({}, {"dry_run": True}):
        answer = ci.put(f"{ALIASES}/champion", json={"ref": "skin-care@v2"}, params=params)
        assert _code(answer) == (409, "gate")
        assert "reccocktail evaluate" in answer.json()["error"]["hint"]
    moved = ci.put(f"{ALIASES}/champion", json={"ref": "skin-care@v2", "override": "the shop is on fire"})
    assert moved.status_code == 200
    assert stocked.events.list(limit=1)[0].detail["override"] == "the shop is on fire"


def test_of_many_who_move_an_alias_at_once_none_is_lost(ci, stocked, versions):
    """Each reads, and writes what it has read about: every success follows the one before."""
    ci.put(f"{ALIASES}/shadow", json={"ref": "skin-care@v1"})

    def move(number: int) -> tuple[str, str] | None:
        seen = ci.get(f"{ALIASES}/shadow")
        to = f"skin-care@v{1 + int(seen.json()['ref'][-1]) % 4}"
        answer = ci.put(f"{ALIASES}/shadow", json={"ref": to}, headers={"If-Match": seen.headers["etag"]})
        assert answer.status_code in (200, 412)
        return (seen.json()["ref"], to) if answer.status_code == 200 else None

    with ThreadPoolExecutor(8) as pool:
        won = [each for each in pool.map(move, range(40)) if each]
    told = [event for event in stocked.events.list(limit=1000) if event.kind == "alias.moved"]
    assert sorted((event.detail["from"], event.detail["to"]) for event in told) == sorted(won)


def test_a_build_is_asked_for_once(ci, stocked):
    asked = {"domain": "skin-care", "recipe": "average", "force": True}
    first = ci.post(f"{API}/builds", json=asked, headers={"Idempotency-Key": "night-1"})
    assert (first.status_code, first.json()["created"], first.json()["created_by"]) == (202, True, "ci")
    build = first.json()["id"]
    assert first.headers["location"] == f"{API}/builds/{build}"
    assert ci.post(f"{API}/builds/{build}:cancel").json()["status"] == "cancelled"
    again = ci.post(f"{API}/builds", json=asked, headers={"Idempotency-Key": "night-1"})
    assert (again.json()["id"], again.json()["created"]) == (build, False)
    other = ci.post(f"{API}/builds", json=asked | {"force": False}, headers={"Idempotency-Key": "night-1"})
    assert _code(other) == (409, "conflict")
    assert ci.post(f"{API}/builds/{build}:retry").json()["status"] == "queued"
    same = ci.post(f"{API}/builds", json=asked)
    assert (same.status_code, same.json()["id"]) == (202, build)
    assert _code(ci.post(f"{API}/builds/{build}:retry")) == (409, "conflict")
    for body, code in (
        ({"domain": "garden"}, (404, "not_found")),
        ({"domain": "skin-care", "recipe": "/etc/passwd"}, (400, "usage")),
        ({"domain": "skin-care", "recipe": "nothing"}, (422, "recipe")),
        ({"domain": "skin-care", "wait": True}, (422, "usage")),
    ):
        assert _code(ci.post(f"{API}/builds", json=body)) == code, body


def test_a_build_is_promoted_where_its_domain_may_be(ci, stocked, open_client):
    base = stocked.bases.get("tiny")

    def built(domain: str, key: str) -> str:
        inputs = {"adapters": [], "base": {"name": "tiny", "digest": base.digest}}
        row = stocked.builds.request(domain, "tiny", key, {}, inputs).build
        stocked.builds.claim("w", build_id=row.id)
        return stocked.builds.succeed(row.id, "w", base.digest, None, None).id

    stocked.domains.add("garden")
    one, two, foreign = built("skin-care", "a"), built("skin-care", "b"), built("garden", "c")
    served = ci.post(f"{API}/builds/{one}:promote", json={"why": "first"})
    assert (served.json()["build"], served.json()["by"]) == (one, "ci")
    assert _code(ci.post(f"{API}/builds/{foreign}:promote")) == (403, "forbidden")
    url = f"{BUILD_ALIASES}/production"
    tag = ci.get(url).headers["etag"]
    assert ci.put(url, json={"build": two}, params={"dry_run": True}).json()["from"] == one
    assert ci.put(url, json={"build": two}, headers={"If-Match": tag}).json()["build"] == two
    assert _code(ci.post(f"{API}/builds/{one}:promote", headers={"If-Match": tag})) == (412, "precondition")
    assert ci.put(f"{BUILD_ALIASES}/shadow", json={"build": one}).status_code == 200
    assert ci.delete(f"{BUILD_ALIASES}/shadow").json()["build"] == one
    assert _code(ci.put(url, json={"build": foreign})) == (400, "usage")
    assert ci.post(f"{API}/builds/{one}:pin").json() == {"id": one, "pinned": True}
    assert {each["alias"] for each in ci.get(BUILD_ALIASES).json()} == {"production"}
    back = f"{API}/domains/skin-care:rollback"
    assert ci.post(back, params={"dry_run": True}).json()["to"] == one
    assert ci.get(url).json()["build"] == two
    assert ci.post(back, json={"why": "worse"}).json()["from"] == two
    assert (ci.get(url).json()["build"], stocked.serving.history("skin-care")[0].rollback) == (one, True)
    policy = f"{API}/domains/skin-care/policy"
    assert ci.patch(policy, json={"promote": "automatic"}).json() == ci.get(policy).json()
    assert ci.post(f"{API}/builds/{one}:approve").json() == {"id": one, "approved_by": ["ci"]}
    assert ci.post(f"{API}/adapters/skin-care@v1:approve").json() == {"ref": "skin-care@v1", "approved_by": ["ci"]}
    for path in (f"/builds/{foreign}:approve", "/adapters/spirit:approve", "/domains/garden:rollback"):
        assert _code(ci.post(f"{API}{path}")) == (403, "forbidden"), path
    assert _code(ci.put(f"{API}/domains/skin-care/gate", json={"approvals": 1})) == (403, "forbidden")
