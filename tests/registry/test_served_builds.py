"""Aliases of builds: what a domain serves, what is proposed to it, and what was served when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from reccocktail.registry import Base, Build, Registry
from reccocktail.registry.database.tables import now
from reccocktail.registry.errors import ConflictError, GateError, NotFoundError, UsageError

Make = Callable[..., Build]


@pytest.fixture
def make(registry: Registry, base: Base) -> Make:
    """(key, own_recipe, domain): a succeeded build; its result is the base, which is stored."""
    for name in ("beauty", "toys"):
        registry.domains.add(name)

    def made(key: str, *, own_recipe: bool | None = True, domain: str = "beauty") -> Build:
        asked = registry.builds.request(domain, base.name, key, {}, {"adapters": []}, own_recipe=own_recipe).build
        registry.builds.claim("w", build_id=asked.id)
        return registry.builds.succeed(asked.id, "w", base.digest, None, None)

    return made


def aliases(registry: Registry, domain: str = "beauty") -> dict[str, str]:
    return {each.alias: each.build for each in registry.serving.aliases(domain)}


def test_the_first_build_is_served_and_later_ones_are_proposed(registry: Registry, make: Make) -> None:
    first = make("a")
    assert aliases(registry) == {"production": first.id, "candidate": first.id}
    second = make("b")
    assert aliases(registry) == {"production": first.id, "candidate": second.id}
    moved = registry.serving.promote("beauty@candidate", why="better")
    assert (moved.alias, moved.build) == ("production", second.id)
    assert aliases(registry) == {"production": second.id, "candidate": second.id}
    (newest, *_, oldest) = registry.serving.history("beauty", alias="production")
    assert (newest.build, newest.previous, newest.why) == (second.id, first.id, "better")
    assert (oldest.build, oldest.previous) == (first.id, None)
    assert registry.serving.aliases("toys") == []


@pytest.mark.parametrize("own_recipe", [False, None])
def test_an_experiment_is_neither_served_nor_proposed(registry: Registry, make: Make, own_recipe: bool | None) -> None:
    trial = make("a", own_recipe=own_recipe)
    assert aliases(registry) == {}
    registry.builds.request(
        "beauty", "tiny", "a", {}, {"adapters": []}, own_recipe=True
    )  # the domain took its recipe over
    assert aliases(registry) == {"production": trial.id, "candidate": trial.id}


def test_going_back_to_what_was_built_before_proposes_it(registry: Registry, make: Make) -> None:
    first, second = make("a"), make("b")
    again = registry.builds.request("beauty", "tiny", "a", {}, {"adapters": []}, own_recipe=True)
    assert (again.build.id, again.created) == (first.id, False)
    assert aliases(registry)["candidate"] == first.id != second.id


def test_a_domain_may_promote_by_itself_and_serve_another_alias(registry: Registry, make: Make) -> None:
    first = make("a")
    registry.serving.set_policy("beauty", alias="live")
    assert registry.serving.served("beauty") == []
    registry.serving.set_policy("beauty", promote="automatic")
    second, third = make("b"), make("c")
    assert aliases(registry) == {"production": first.id, "candidate": third.id, "live": third.id}
    assert [each.build for each in registry.serving.served("beauty")] == [third.id]
    assert [m.build for m in registry.serving.history("beauty", alias="live")] == [third.id, second.id]
    kinds = [event.detail for event in registry.events.list(kind="domain.changed")]
    assert kinds == [
        {"served.promote": "automatic", "from": {"promote": "manual"}},
        {"served.alias": "live", "from": {"alias": "production"}},
    ]
    for wrong in ({"alias": "candidate"}, {"alias": "v3"}, {"promote": "never"}):
        with pytest.raises(UsageError):
            registry.serving.set_policy("beauty", **wrong)


def test_a_domain_with_a_gate_serves_nothing_by_itself(registry: Registry, make: Make) -> None:
    registry.domains.add("beauty")
    registry.gates.set("beauty", None, 1)
    registry.serving.set_policy("beauty", promote="automatic")
    first = make("a")
    assert aliases(registry) == {"candidate": first.id}


def test_a_rollback_passes_a_gate_only_to_what_was_served(registry: Registry, make: Make) -> None:
    first, second = make("a"), make("b")
    registry.gates.set("beauty", None, 1)
    with pytest.raises(GateError):
        registry.serving.promote(second.id, rollback=True)
    assert aliases(registry)["production"] == first.id
    registry.gates.remove("beauty")
    registry.serving.promote(second.id)
    registry.gates.set("beauty", None, 1)
    registry.serving.promote(first.id, rollback=True)
    assert aliases(registry)["production"] == first.id


def test_what_was_taken_out_of_service_stays_out_until_somebody_promotes(registry: Registry, make: Make) -> None:
    make("a")
    gone = registry.serving.remove("beauty@production")
    assert registry.serving.history("beauty", alias="production")[0].previous == gone.build
    second = make("b")
    assert aliases(registry) == {"candidate": second.id}
    assert registry.serving.promote(second.id).build == second.id


def test_only_a_succeeded_build_takes_an_alias_or_a_pin(registry: Registry, make: Make) -> None:
    make("a")
    queued = registry.builds.request("beauty", "tiny", "b", {}, {"adapters": []}).build
    registry.builds.claim("w", build_id=queued.id)
    failed = registry.builds.fail(queued.id, "w", {"code": "merge", "message": "no"})
    for change in (registry.serving.promote, registry.serving.pin, lambda id_: registry.serving.alias(id_, "shadow")):
        with pytest.raises(ConflictError):
            change(failed.id)
    with pytest.raises(UsageError):
        registry.serving.alias("beauty@production", "v1")


def test_builds_are_named_by_alias_and_by_either_end_of_their_id(registry: Registry, make: Make) -> None:
    first = make("a")
    registry.serving.alias(first.id, "shadow")
    for name in (first.id, first.id[:12], first.id[-6:], "beauty@production", "beauty@shadow"):
        assert registry.builds.get(name).id == first.id
    with pytest.raises(NotFoundError, match="did you mean 'beauty@shadow'"):
        registry.builds.get("beauty@shadw")
    with pytest.raises(UsageError):
        registry.builds.get("beauty@v1")
    with pytest.raises(NotFoundError):
        registry.builds.get(first.id[-3:] if not first.id.startswith(first.id[-3:]) else "zzz")


def test_what_was_served_at_a_moment(registry: Registry, make: Make) -> None:
    first = make("a")
    other = make("a2", domain="toys")
    between = now()
    second = make("b")
    registry.serving.promote(second.id)
    registry.serving.remove("toys@production")
    assert [(m.domain, m.build) for m in registry.serving.served_at(between)] == [
        ("beauty", first.id),
        ("toys", other.id),
    ]
    assert [(m.domain, m.build) for m in registry.serving.served_at(now())] == [("beauty", second.id)]
    assert registry.serving.served_at(first.created_at - timedelta(seconds=1)) == []
    assert [m.build for m in registry.serving.served_at(between, "toys")] == [other.id]


def test_what_is_before_passes_over_rollbacks(registry: Registry, make: Make) -> None:
    builds = [make(key) for key in "abc"]
    for each in builds[1:]:
        registry.serving.promote(each.id)
    assert registry.serving.before("beauty", "tiny") == builds[1].id
    registry.serving.promote(builds[1].id, rollback=True)
    assert registry.serving.before("beauty", "tiny") == builds[0].id
    registry.serving.promote(builds[0].id, rollback=True)
    with pytest.raises(ConflictError):
        registry.serving.before("beauty", "tiny")


def test_a_pin_is_kept_by_events_and_its_files_by_the_collection(registry: Registry, make: Make) -> None:
    first = make("a")
    assert registry.serving.pin(first.id[-8:]) == registry.serving.pin(first.id) == first.id
    assert registry.serving.pinned() == {first.id}
    assert registry.serving.marks([first.id]) == {first.id: ("candidate", "production", "pinned")}
    registry.collect(grace=timedelta(0))
    assert registry.store.has(first.digest or "")
    registry.serving.pin(first.id, undo=True)
    assert registry.serving.pinned() == set()
    assert [e.kind for e in registry.events.list(subject=first.id, limit=2)] == ["build.unpinned", "build.pinned"]
