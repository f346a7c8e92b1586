"""Policies of domains in a file: their gates, and which alias of builds they serve. They come last, when everything has its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from ..errors import RecCocktailError
from ..registry import Registry
from .document import GateWish, PolicyEntry
from .outcomes import Outcome, failure


def bring_policy(
    registry: Registry, entry: PolicyEntry, is_planned: Callable[[str], bool], *, dry_run: bool
) -> Outcome:
    """What becomes of a domain's policy. What fails changes nothing of its gate.

    `is_planned` says whether only a dry run would have the domain, and raises NotFoundError where not even that has it.
    """
    outcome = Outcome("policy", entry.name, None, "unchanged", entry.place.line)
    try:
        changes = _differences(registry, entry, is_new=is_planned(entry.name))
        if not dry_run:
            _set(registry, entry, {*changes})
    except RecCocktailError as error:
        return failure(outcome, error)
    return replace(outcome, action="changed" if changes else "unchanged", changes=changes)


def policies(registry: Registry) -> dict[str, dict[str, Any]]:
    """Of every domain that has one, as the file says it."""
    found: dict[str, dict[str, Any]] = {}
    for gate in registry.gates.list():
        found[gate.domain] = {"gate": {name: value for name, value in _of(gate).items() if value}}
    for name, policy in registry.serving.policies().items():
        found.setdefault(name, {}).update(serve=policy.alias, promote=policy.promote)
    return dict(sorted(found.items()))


def _differences(registry: Registry, entry: PolicyEntry, *, is_new: bool) -> dict[str, tuple[Any, Any]]:
    gate = None if is_new else registry.gates.get(entry.name)
    served = None if is_new else registry.serving.policy(entry.name)
    pairs = {
        "gate": (gate and _of(gate), entry.gate and _wanted(entry.gate)),
        "serve": (served and served.alias, entry.serve),
        "promote": (served and served.promote, entry.promote),
    }
    given = {"gate": entry.gate is not None, "serve": entry.serve is not None, "promote": entry.promote is not None}
    return {name: (before, after) for name, (before, after) in pairs.items() if given[name] and before != after}


def _of(gate: Any) -> dict[str, Any]:
    return {"require": gate.require and dict(gate.require), "approvals": gate.approvals}


def _wanted(gate: GateWish) -> dict[str, Any] | None:
    if gate == GateWish():
        return None
    return {"require": gate.require and asdict(gate.require), "approvals": gate.approvals}


def _set(registry: Registry, entry: PolicyEntry, changed: set[str]) -> None:
    """The alias first: a gate that is there may refuse it."""
    if changed & {"serve", "promote"}:
        registry.serving.set_policy(entry.name, alias=entry.serve, promote=entry.promote)
    if "gate" not in changed or entry.gate is None:
        return
    if entry.gate == GateWish():
        registry.gates.remove(entry.name)
    else:
        registry.gates.set(entry.name, entry.gate.require, entry.gate.approvals)
