"""What a domain serves: promoted, rolled back, looked at as it was, and meant by the commands that serve and publish."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def test_a_build_is_served_when_it_is_promoted_and_goes_back(built: Any) -> None:
    first = built("resolve", "skin-care", "--merged", "--json").json["build"]
    (trial,) = built("build", "request", "skin-care", "--recipe", "spirit-only", "--wait", "--json").json
    assert built("resolve", "skin-care", "--merged", "--json").json["build"] == first, "an experiment is not served"
    before = datetime.now(UTC).isoformat()

    built("build", "alias", trial["id"][-6:], "shadow")
    assert built("resolve", "skin-care@shadow", "--merged", "--json").json["build"] == trial["id"]
    assert built("build", "show", "skin-care@shadow", "--json").json["id"] == trial["id"]
    moved = built("build", "promote", "skin-care@shadow", "--why", "a test of the spirit", "--json").json
    assert (moved["build"], moved["alias"]) == (trial["id"], "production")
    assert built("resolve", "skin-care", "--merged", "--json").json["build"] == trial["id"]
    (entry,) = built("status", "skin-care", "--json").json
    assert (entry["build"], entry["state"], entry["ready"]) == (trial["id"], "ready", first)
    assert built("recommend", "skin-care", "--history", "Lumen Toner Luxe", "--json").json["build"]["id"] == trial["id"]

    planned = built("rollback", "skin-care", "--dry-run", "--json").json
    assert (planned["from"], planned["to"], planned["state"]) == (trial["id"], first, "fresh")
    assert built("resolve", "skin-care", "--merged", "--json").json["build"] == trial["id"]
    assert "recipe" in built("rollback", "skin-care", "--to", before).out
    assert built("resolve", "skin-care", "--merged", "--json").json["build"] == first

    moves = built("build", "history", "skin-care@production", "--json").json
    assert [(m["build"], m["rollback"]) for m in moves] == [(first, True), (trial["id"], False), (first, False)]
    assert moves[1]["why"] == "a test of the spirit"
    assert [m["build"] for m in built("status", "--at", moves[1]["at"], "--json").json] == [trial["id"]]
    assert [m["build"] for m in built("status", "--at", before, "--json").json] == [first]
    assert [e["subject"] for e in built("log", "--kind", "build.aliased", "--limit", "1", "--json").json] == [first]


def test_the_history_has_the_reason_whole_and_the_gate_at_80_columns(built: Any) -> None:
    (trial,) = built("build", "request", "skin-care", "--recipe", "spirit-only", "--wait", "--json").json
    built("domain", "gate", "skin-care", "--approvals", "1")
    built("domain", "gate", "skin-care", "--approvals", "2")
    why = "the spirit alone is kept until the complaints about prices of last week are understood"
    promoted = built("build", "promote", trial["id"], "--override", why)
    assert "spirit-only" in promoted.err, "by which recipe it was made"
    assert "small@v1" in promoted.err, "and which is the domain's own"
    shown = built("build", "history", "skin-care", columns=80)
    assert {*why.split()} <= {*shown.out.split()}
    assert "v2" in shown.out
    assert shown.err == ""
    log = built("domain", "gate", "skin-care", "--log", "--json").json
    assert [(each["version"], each["approvals"]) for each in log] == [(2, 2), (1, 1)]
    assert "2 approvals" in built("domain", "gate", "skin-care", "--log", columns=80).out
    (entry,) = built("status", "skin-care", "--json").json
    assert entry["gate"] == {"version": 2, "require": None, "approvals": 2}
    assert "gate v2" in built("status", "skin-care").out
    (move, *_) = built("build", "history", "skin-care@production", "--json").json
    assert (move["override"], move["gate"]) == (why, 2)


def test_what_cannot_be_served_is_refused(built: Any) -> None:
    (queued,) = built("build", "request", "skin-care", "--recipe", "average", "--force", "--json").json
    for words in (("build", "promote"), ("build", "pin"), ("rollback", "skin-care", "--to")):
        refused = built(*words, queued["id"], "--json", code=1).json
        assert refused["error"]["code"] == "conflict"
    assert built("rollback", "skin-care", "--json", code=1).json["error"]["code"] == "conflict"
    assert built("build", "alias", "skin-care@production", "--json", code=2).json["error"]["code"] == "usage"
    pinned = built("build", "pin", "skin-care@production", "--json").json
    assert pinned["pinned"] is True
    several = built("build", "pin", pinned["id"], queued["id"], "--undo", "--json", code=1).json
    assert several == [{"id": pinned["id"], "pinned": False}]


def test_a_domain_without_what_it_served_says_so_and_a_policy_is_shown(built: Any) -> None:
    gone = built("build", "alias", "skin-care@production", "--remove", "--json").json
    refused = built("resolve", "skin-care", "--merged", "--json", code=1).json["error"]
    assert refused["code"] == "not_found"
    assert gone["build"] in refused["hint"]
    assert built("build", "policy", "skin-care", "--json").json["promote"] == "manual"
    changed = built("build", "policy", "skin-care", "--promote", "automatic", "--alias", "live", "--json").json
    assert (changed["alias"], changed["promote"]) == ("live", "automatic")
