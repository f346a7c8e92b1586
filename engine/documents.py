"""Objects of the registry as documents: what `show` and `list` print as JSON, and an HTTP API answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..registry import Adapter, Build, Registry
from ..registry.catalog.evaluations import EvaluationFilter, EvaluationRecord, Weights, weights_of_build
from ..registry.errors import UsageError
from .building.lineage import trace

if TYPE_CHECKING:
    from .building.freshness import Freshness
    from .records import RecordedComparison

MOST_SHOWN = 10  # evaluations of one system, beside other things


def describe_adapters(registry: Registry, rows: Sequence[Adapter]) -> list[dict[str, Any]]:
    """Each with the newest evaluation on the test split of its own domain, or null."""
    measured = registry.evaluations.of_adapters(rows)
    found = [(row, measured.get((row.base, row.ref))) for row in rows]
    return [row.to_json() | {"evaluation": each and each.brief()} for row, each in found]


def describe_adapter(
    registry: Registry, row: Adapter, measured: Sequence[EvaluationRecord] | None = None
) -> dict[str, Any]:
    """A version with its evaluations, builds and publications. `measured` are `evaluations_of_adapter`, where they are known."""
    measured = evaluations_of_adapter(registry, row) if measured is None else measured
    reached = registry.adapters.reached(row)
    path = registry.store.local(row.digest)
    return row.to_json() | {
        "path": None if path is None else str(path),
        "evaluations": [each.brief() for each in measured[:MOST_SHOWN]],
        "builds": [entry.to_json() for entry in reached.builds],
        "build_count": reached.build_count,
        "publications": [entry.to_json() for entry in reached.publications],
        "publication_count": reached.publication_count,
    }


def evaluations_of_adapter(registry: Registry, row: Adapter) -> list[EvaluationRecord]:
    """The newest, one more than is shown."""
    weights = Weights(row.digest, registry.bases.get(row.base).digest)
    return registry.evaluations.list(EvaluationFilter(weights=weights), limit=MOST_SHOWN + 1)


def describe_build(
    registry: Registry, row: Build, measured: Sequence[EvaluationRecord] | None = None
) -> dict[str, Any]:
    """A build with what people wrote of it, its lineage and evaluations. `measured` are `evaluations_of_build`, where they are known."""
    measured = evaluations_of_build(registry, row) if measured is None else measured
    written = registry.edits.of_build(row.id).to_json()
    found = {"lineage": trace(registry, row), "evaluations": [each.brief() for each in measured[:MOST_SHOWN]]}
    return row.to_json() | written | found


def evaluations_of_build(registry: Registry, build: Build) -> list[EvaluationRecord]:
    """The newest evaluations of what a build made, one more than is shown; none before it has succeeded."""
    if build.digest is None:
        return []
    weights = weights_of_build(build, registry.bases.get(build.base).digest)
    return registry.evaluations.list(EvaluationFilter(weights=weights), limit=MOST_SHOWN + 1)


def describe_choice(found: Freshness) -> dict[str, Any]:
    """Which build a domain means and why."""
    return {
        "state": found.state,
        "reasons": list(found.reasons),
        "why": found.why,
        "served": found.served and found.served.to_json(),
        "ready": found.ready.id if found.ready else None,
        "trial": found.trial.id if found.trial else None,
    }


def describe_recipes(registry: Registry | None) -> list[dict[str, Any]]:
    """The registry's recipes, and those that ship, each with the domains that use it."""
    from .recipes import SHIPPED

    own = registry.recipes.list() if registry else []
    used: dict[str, list[str]] = {}
    for ref, domains in (registry.recipes.users() if registry else {}).items():
        used.setdefault(ref.partition("@")[0], []).extend(domains)
    return [
        {"name": v.name, "ref": v.ref, "summary": v.note, "digest": v.digest, "domains": sorted(used.get(v.name, []))}
        for v in own
    ] + [
        {"name": n, "ref": n, "summary": text, "digest": r.digest, "domains": used.get(n, [])}
        for n, (text, r) in SHIPPED.items()
    ]


def describe_templates(registry: Registry | None) -> list[dict[str, Any]]:
    """The registry's prompt templates, and those that ship."""
    from ..tasks import load_template, shipped_templates

    own = registry.templates.list() if registry else []
    return [{"name": v.name, "ref": v.ref, "note": v.note, "digest": v.digest} for v in own] + [
        {"name": name, "ref": name, "note": "ships", "digest": load_template(name).digest}
        for name in shipped_templates()
    ]


def describe_comparison(found: RecordedComparison, metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Two evaluations, and what A has more than B of each metric, or of these, with paired intervals. Raises UsageError for an unknown one."""
    if unknown := [name for name in metrics if name not in found.differences]:
        raise UsageError(f"no metric {unknown[0]!r} in both", hint=f"there are {', '.join(found.differences)}")
    chosen = {name: each for name, each in found.differences.items() if name in metrics or not metrics}
    return {
        "a": found.one.to_json(),
        "b": found.other.to_json(),
        "users": found.one.users,
        "differences": {name: asdict(each) for name, each in chosen.items()},
    }


def describe_difference(registry: Registry, ref: str, other: str, *, base: str | None = None) -> dict[str, Any]:
    """Two versions, in which `fields` they differ, and how far their deltas are apart. Raises what `comparing.compare` does."""
    from .comparing import compare

    rows = [registry.adapters.resolve(each, base=base) for each in (ref, other)]
    found = compare(registry, *rows)
    return {
        "one": rows[0].to_json(),
        "other": rows[1].to_json(),
        "fields": [asdict(field) for field in found.fields],
        "weights": None if found.weights is None else asdict(found.weights),
    }


def describe_verification(registry: Registry, ref: str, *, base: str | None = None) -> dict[str, Any]:
    """A version whose files were all read and inspected again. Raises StoreError, InvalidArtifactError for one that is not sound."""
    row = registry.adapters.resolve(ref, base=base, kind=None)
    registry.store.verify_tree(row.digest)
    return {"ref": row.ref, "digest": row.digest, "ok": True, "notes": [*registry.adapters.inspected(row).notes]}


def describe_ranks(registry: Registry, row: EvaluationRecord) -> dict[str, list[Any]]:
    """Each user's rank; of clicks each row's probability, label and user, who is a number."""
    from .click_records import is_of_clicks, scores_of
    from .records import ranks_of

    if not is_of_clicks(row):
        return {"user_ranks": list(ranks_of(registry, row))}
    found = scores_of(registry, row)
    both = {"row_scores": found.scores.tolist(), "row_labels": found.labels.tolist()}
    return both | {"row_users": found.users.tolist()}
