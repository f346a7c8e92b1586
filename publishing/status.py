"""Where every domain stands, as one document: what is built, served, published, under way and out of date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.building.indexing import IndexFreshness, indexes_by_domain
from ..engine.standing_figures import StandingFigures, standing_figures
from ..registry import Build, Registry
from ..registry.catalog.evaluations import EvaluationRecord
from ..registry.catalog.gates import Gate
from ..registry.catalog.references import PERSONALISED_LORA
from .outdated import Overview, overview

STATES = ("fresh", "ready", "stale", "unbuilt", "cold", "blocked", "failed")


@dataclass(frozen=True)
class Status:
    """`entries` is plain JSON, one object for each domain; `overview` and `figures` are what it was made of."""

    entries: Sequence[Mapping[str, Any]]
    overview: Overview
    figures: Mapping[str, StandingFigures]


def status_of(registry: Registry, domain: str | None = None) -> Status:
    """Of all domains, in as many queries for many as for few, or of one. Raises NotFoundError."""
    found = overview(registry, domain)
    unsettled: dict[str, list[Build]] = {}
    for build in registry.builds.unsettled(domain):
        unsettled.setdefault(build.domain, []).append(build)
    gates = {gate.domain: gate for gate in registry.gates.list()}
    figures = standing_figures(registry, found.states, gates)
    indexes = indexes_by_domain(registry, domain)
    bundles = {row.domain: row.ref for row in registry.adapters.current(PERSONALISED_LORA)}
    entries = [
        _with_indexes(
            _with_bundle(_entry(found, name, unsettled.get(name, [])), bundles.get(name)), indexes.get(name, ())
        )
        | {"gate": _gate(gates.get(name)), "measured": _measured(figures[name])}
        for name in found.states
    ]
    return Status(entries, found, figures)


def is_in(entry: Mapping[str, Any], states: Sequence[str]) -> bool:
    """Whether a domain is in one of the STATES; `failed` means that its newest build failed, whatever its state."""
    return entry["state"] in states or ("failed" in states and entry["failed"] is not None)


def _entry(found: Overview, name: str, unsettled: Sequence[Build]) -> dict[str, Any]:
    state, last = found.states[name], found.published.get(name)
    failed = next((build for build in unsettled if build.status == "failed"), None)
    return {
        "domain": name,
        "spirit": state.spirit,
        "ingredient": state.ingredient,
        "build": state.build.id if state.build else None,
        "outcome": ((state.build.report or {}).get("outcome") if state.build else None),
        "state": state.state,
        "reasons": list(state.reasons),
        "why": state.why,
        "served": state.served and state.served.to_json(),
        "ready": state.ready.id if state.ready else None,
        "trial": state.trial.id if state.trial else None,
        "pending": [
            {"id": build.id, "status": build.status, "stage": build.stage, "done": build.done, "total": build.total}
            for build in unsettled
            if build is not failed
        ],
        # the newest build of the domain, if it failed
        "failed": failed and {"id": failed.id, "error": dict(failed.error or {})},
        "published": f"{last.repo}@{last.revision[:12]}" if last else None,
        # of all repositories that the domain was published to
        "publication": None if last is None else "stale" if name in found.behind else "fresh",
        "behind": _behind(found, name),
    }


def _behind(found: Overview, name: str) -> dict[str, Any] | None:
    """The repository that has another build than the one that is served; None without one."""
    each = found.behind.get(name)
    return each and {"repo": each.last.repo, "build": each.last.build, "serves": each.build.id}


def _with_bundle(entry: Mapping[str, Any], bundle: str | None) -> Mapping[str, Any]:
    """A domain that has a personalised LoRA and nothing to merge waits for nothing: it is cold."""
    if bundle is None or entry["ingredient"] is not None or entry["build"] is not None:
        return entry
    if entry["state"] not in ("blocked", "cold"):
        return entry
    return {
        **entry,
        "state": "cold",
        "reasons": [f"{bundle} is a personalised LoRA, which is asked as it is and never built"],
    }


def _with_indexes(entry: Mapping[str, Any], indexes: Sequence[IndexFreshness]) -> dict[str, Any]:
    """The domain's document with that of each bi-tuning's index, and its state and reasons with theirs.

    A domain that has bi-tunings and nothing to merge is in the state of its index; one that is fresh otherwise is stale with it.
    """
    found = dict(entry) | {"indexes": [_index(each) for each in indexes]}
    if not indexes:
        return found
    if entry["ingredient"] is None and entry["build"] is None and entry["state"] in ("blocked", "cold"):
        found |= {"state": "fresh", "reasons": []}
    worst = next((state for state in ("blocked", "stale") if state in {each.state for each in indexes}), "fresh")
    return found | {
        "state": worst if found["state"] == "fresh" else found["state"],
        "reasons": [*found["reasons"], *(reason for each in indexes for reason in each.reasons)],
    }


def _index(found: IndexFreshness) -> dict[str, Any]:
    return {
        "adapter": found.adapter.ref,
        "base": found.adapter.base,
        "state": found.state,
        "reasons": list(found.reasons),
        "build": found.build and found.build.id,
    }


def _gate(found: Gate | None) -> dict[str, Any] | None:
    return found and {"version": found.version, "require": found.require, "approvals": found.approvals}


def _measured(figures: StandingFigures) -> dict[str, Any]:
    """The metric that counts, and of the champion and of what is served the evaluation with that metric's interval."""

    def of(row: EvaluationRecord | None) -> dict[str, Any] | None:
        return None if row is None else row.brief() | {"figure": row.metrics.get(figures.metric)}

    return {"metric": figures.metric, "champion": of(figures.champion), "served": of(figures.served)}
