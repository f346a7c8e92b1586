"""Evaluations and gates as both databases hold them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from reccocktail.engine.building.freshness import freshness_by_domain, freshness_of
from reccocktail.engine.building.planning import request
from reccocktail.engine.recipes import SHIPPED
from reccocktail.registry import Adapter, Base, Registry
from reccocktail.registry.catalog.evaluations import EvaluationFilter, Measurement, Weights
from reccocktail.registry.catalog.filters import AdapterFilter, MetricBound
from reccocktail.registry.catalog.gates import Passage, Requirement
from reccocktail.registry.catalog.references import Reference
from reccocktail.registry.errors import ConflictError, GateError, NotFoundError, UsageError
from reccocktail.serving.resolve import find


def record(registry: Registry, base: Base, adapter: Adapter, key: str, mean: float) -> int:
    figures = {"HR@1": mean, "log_loss": 1 - mean}
    metrics = {name: {"mean": value, "low": value, "high": value, "n": 9} for name, value in figures.items()}
    return registry.evaluations.add(
        Measurement(
            key=key, system="sha256:s", weights=Weights(adapter.digest, base.digest), label=adapter.ref, domain="beauty",
            mode="pmi", dtype="float32", task_digest="sha256:t", task={"split": "test"}, questions="sha256:q", users=9,
            metrics=metrics, detail={}, ranks=adapter.digest, version="test",
        )
    ).id  # fmt: skip


@pytest.fixture
def two(registry: Registry, add: Callable[..., Adapter]) -> list[Adapter]:
    registry.domains.add("beauty")
    return [add("beauty", 1, metrics={"HR@1": 0.9}), add("beauty", 2)]


def test_lists_go_by_the_newest_evaluation_and_else_by_what_was_registered(
    registry: Registry, base: Base, two: list[Adapter]
) -> None:
    def best(**wanted: Any) -> list[str]:
        return [row.ref for row in registry.adapters.list(AdapterFilter(**wanted), sort="HR@1")]

    assert best() == ["beauty@v1"]
    first = record(registry, base, two[1], "a", 0.95)
    assert record(registry, base, two[1], "a", 0.1) == first  # the same again changes nothing
    assert best() == ["beauty@v2", "beauty@v1"]
    second = record(registry, base, two[1], "b", 0.4)
    assert best() == ["beauty@v1", "beauty@v2"]
    assert best(metrics=[MetricBound.parse("HR@1<0.5")]) == ["beauty@v2"]
    assert registry.evaluations.of_adapters(two)["tiny", "beauty@v2"].id == second
    weights = Weights(two[1].digest, base.digest)
    assert registry.evaluations.newest([weights])[weights].id == second
    rows = registry.evaluations.list(EvaluationFilter(metrics=[MetricBound.parse("HR@1>0.5")]), sort="HR@1")
    assert [row.id for row in rows] == [first]
    after = registry.evaluations.list(sort="HR@1", after=first)
    assert [row.id for row in after] == [second]
    assert [row.id for row in registry.evaluations.list(sort="log_loss")] == [first, second]
    assert [row.id for row in registry.evaluations.list(sort="log_loss", after=first)] == [second]


def test_a_page_by_a_metric_is_the_same_however_it_is_found(
    registry: Registry, base: Base, add: Callable[..., Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.domains.add("beauty")
    given = [{"HR@1": n / 9, "log_loss": 1 - n / 9} if n % 2 else {} for n in range(8)]
    rows = [add("beauty", n, metrics=given[n], tags=["odd"] if n % 2 else []) for n in range(8)]
    rows.append(add("spirit", 9))
    figures = {row.ref: ((n / 9, 0) if n % 2 else None) for n, row in enumerate(rows)}
    for number, (n, mean) in enumerate([(1, 0.9), (0, 0.3), (2, 3 / 9), (4, 3 / 9), (8, 3 / 9), (1, 0.1), (6, 0.3)]):
        figures[rows[n].ref] = (mean, record(registry, base, rows[n], str(number), mean))
    known = {ref: (*figure, ref) for ref, figure in figures.items() if figure is not None}
    best = sorted(known, key=lambda ref: known[ref], reverse=True)
    newest = [row.ref for row in rows[::-1]]

    def pages(**wanted: Any) -> list[str]:
        seen: list[str] = []
        while found := registry.adapters.list(limit=2, after=seen[-1] if seen else None, **wanted):
            seen += [row.ref for row in found]
        return seen

    for few in (2_000, 0):  # looked at one by one, and along the index of figures
        monkeypatch.setattr("reccocktail.registry.catalog.evaluation_queries.FEW", few)
        assert pages(sort="HR@1") == best
        assert pages(sort="log_loss") == best, "the smallest is the best"
        for text, holds in {
            "HR@1>=0.3": lambda f: f >= 0.3,
            "HR@1<0.2": lambda f: f < 0.2,
            "HR@1": lambda _: True,
        }.items():
            inside = {ref for ref in known if holds(known[ref][0])}
            wanted = AdapterFilter(metrics=[MetricBound.parse(text)])
            assert pages(wanted=wanted) == [ref for ref in newest if ref in inside]
            assert pages(wanted=wanted, sort="HR@1") == [ref for ref in best if ref in inside]
        narrow = AdapterFilter(domain="beauty", base="tiny", role="ingredient", tags=["odd"], text="BEAUTY")
        assert pages(wanted=narrow, sort="HR@1") == [f"beauty@v{n}" for n in (8, 6, 4, 2)]
        assert pages(sort="MRR") == pages(wanted=AdapterFilter(metrics=[MetricBound("MRR")])) == []
        with pytest.raises(NotFoundError):
            registry.adapters.list(sort="MRR", after="beauty@v2")
    measured = registry.evaluations.of_adapters(rows)
    assert {ref: row.id for (_, ref), row in measured.items()} == {
        ref: id_ for ref, (_, id_, _) in known.items() if id_
    }


def test_the_database_keeps_evaluations_and_gates(registry: Registry, base: Base, two: list[Adapter], sql: Any) -> None:
    id_ = record(registry, base, two[0], "a", 0.5)
    other = record(registry, base, two[1], "b", 0.5)
    for statement in (
        "UPDATE evaluations SET users = 7",
        "DELETE FROM evaluations",
        "UPDATE evaluation_metrics SET value = 1",
        "DELETE FROM evaluation_metrics",
        f"INSERT INTO evaluation_metrics VALUES ('mine', {id_}, 1.0)",
        "INSERT INTO approvals (adapter_id, created_at, created_by) SELECT id, created_at, created_by FROM adapters",
    ):
        with pytest.raises(sql.refusals):
            sql(statement)

    registry.gates.set("beauty", Requirement("HR@1"), 0)
    with pytest.raises(GateError):
        registry.adapters.alias("beauty@v1", "champion")
    for passage in (Passage(None, 1, evaluation=other), Passage(None, 1, evaluation=id_ + 99), Passage(None, 1)):
        with pytest.raises(ConflictError, match="gate"):
            registry.adapters.alias("beauty@v1", "champion", passage=passage)
    with pytest.raises(ConflictError, match="meanwhile"):
        registry.adapters.alias("beauty@v1", "champion", passage=Passage("beauty@v2", 1, evaluation=id_))
    with pytest.raises(ConflictError, match="gate was changed"):
        registry.adapters.alias("beauty@v1", "champion", passage=Passage(None, evaluation=id_))
    registry.adapters.alias("beauty@v1", "champion", passage=Passage(None, 1, evaluation=id_))
    assert registry.events.list(kind="alias", limit=1)[0].detail["gate"] == 1
    for away in (registry.adapters.remove_alias, partial(registry.adapters.archive, force=True)):
        with pytest.raises(GateError):
            away("beauty@champion")
        with pytest.raises(UsageError):
            away("beauty@champion", override=" ")
    registry.adapters.archive("beauty@v1", force=True, override="it leaks")
    assert registry.events.list(kind="adapter.archived")[0].detail["override"] == "it leaks"
    registry.adapters.restore("beauty@v1")
    registry.gates.set("beauty", None, 1)
    with pytest.raises(ConflictError, match="gate"):
        registry.adapters.alias("beauty@v2", "champion", passage=Passage("beauty@v1", 2))
    with pytest.raises(ConflictError, match="cannot approve"):
        registry.gates.approve_adapter("beauty@v2")
    registry.adapters.alias("beauty@v2", "champion", passage=Passage("beauty@v1", override="must be"))
    with pytest.raises(UsageError):
        registry.gates.set("beauty", None, 0)
    assert registry.gates.remove("beauty")
    registry.adapters.alias("beauty@v1", "champion")
    kinds = [event.kind for event in registry.events.list(domain="beauty", kind="domain")]
    assert kinds == ["domain.ungated", "domain.gated", "domain.gated", "domain.added"]


def test_in_a_gated_domain_a_bare_name_means_the_champion_or_nothing(
    registry: Registry, base: Base, two: list[Adapter], add: Callable[..., Adapter]
) -> None:
    add("spirit", 3)
    bare = [Reference("beauty"), Reference("spirit")]
    registry.gates.set("beauty", None, 1)
    registry.gates.set("spirit", None, 1)
    for name, newest in (("beauty", "beauty@v2"), ("spirit", "spirit@v1")):
        for ask in (registry.adapters.resolve, registry.gates.approve_adapter, partial(find, registry)):
            for given in ({}, {"base": base.name}):
                with pytest.raises(GateError) as caught:
                    ask(name, **given)
                assert f"reccocktail adapter alias {newest} champion" in (caught.value.hint or "")
    assert registry.adapters.resolve("beauty@v2").ref == "beauty@v2"
    assert registry.adapters.current() == []
    current, held = registry.adapters.current_and_held_back()
    assert (current, [row.ref for row in held]) == ([], ["beauty@v2", "spirit@v1"])
    assert registry.adapters.digests(bare, base=base.name) == {}
    state = freshness_by_domain(registry)["beauty"]
    assert (state.state, state.ingredient) == ("blocked", None)
    assert state == freshness_of(registry, "beauty")

    passed = Passage(None, override="the first one")
    registry.adapters.alias("beauty@v1", "champion", passage=passed)
    assert registry.adapters.resolve("beauty").ref == "beauty@v1"
    with pytest.raises(GateError):
        request(registry, "beauty", SHIPPED["average"][1])
    registry.gates.remove("spirit")
    assert {row.ref for row in registry.adapters.current()} == {"spirit@v1", "beauty@v1"}
    assert [len(rows) for rows in registry.adapters.current_and_held_back()] == [2, 0]
    assert registry.adapters.digests(bare, base=base.name).keys() == {*bare}
    registry.adapters.archive("beauty@v1", force=True, override="it leaks")
    with pytest.raises(GateError):
        registry.adapters.resolve("beauty", kind=None)
    with pytest.raises(NotFoundError):
        registry.adapters.resolve("beauty", kind="bi-tuning")
    registry.gates.remove("beauty")
    assert registry.adapters.resolve("beauty").ref == "beauty@v2"


def test_what_a_gated_domain_serves_is_taken_away_only_with_an_override(
    registry: Registry, base: Base, two: list[Adapter]
) -> None:
    inputs = {"adapters": [{"ref": two[0].ref, "digest": two[0].digest}]}
    build = registry.builds.request("beauty", base.name, "k", {}, inputs, own_recipe=True).build
    registry.builds.claim("w", build_id=build.id)
    registry.builds.succeed(build.id, "w", base.digest, {}, {})
    registry.gates.set("beauty", None, 1)
    ways = [
        partial(registry.serving.set_policy, "beauty", alias="candidate-2"),  # which no build has
        partial(registry.serving.remove, "beauty@production"),
    ]
    for away in ways:
        with pytest.raises(GateError) as caught:
            away()
        assert "--override" in (caught.value.hint or "")
        assert [each.build for each in registry.serving.served("beauty")] == [build.id]
    with pytest.raises(UsageError):
        registry.serving.remove("beauty@candidate", override="it is not served")
    assert registry.serving.set_policy("beauty", promote="automatic").promote == "automatic"
    for away in ways[::-1]:
        away(override="a pause")
        if away is ways[1]:
            registry.serving.alias(build.id, "candidate-2")
    found = [e.detail for e in registry.events.list(domain="beauty", limit=3) if "override" in e.detail]
    assert [(each["override"], each["gate"]) for each in found] == [("a pause", 1)] * 2
    assert registry.serving.policy("beauty").alias == "candidate-2"


def test_a_gate_is_versioned_and_its_history_says_who_changed_it_from_what_to_what(
    registry: Registry, two: list[Adapter]
) -> None:
    first = registry.gates.set("beauty", Requirement("HR@1"), 0)
    assert registry.gates.set("beauty", Requirement("HR@1"), 0) == first
    with Registry.open(registry.settings, actor="bob") as bob:
        second = bob.gates.set("beauty", None, 2)
        bob.gates.remove("beauty")
    third = registry.gates.set("beauty", Requirement("HR@1"), 0)
    assert [each.version for each in (first, second, third)] == [1, 2, 3]
    assert (second.created_by, third.created_by) == ("bob", first.created_by)
    assert registry.gates.get("beauty") == third
    kept = {"require": first.require, "approvals": 0}
    found = [(each.version, each.by, each.approvals, each.before) for each in registry.gates.history("beauty")]
    assert found == [
        (3, first.created_by, 0, None),
        (None, "bob", None, {"require": None, "approvals": 2}),
        (2, "bob", 2, kept),
        (1, first.created_by, 0, None),
    ]
    registry.gates.set("beauty", None, 1)
