"""What went into a build, down to the digests of its data, and what happened to an adapter, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..registry import Event

UNKNOWN = "not recorded"
LONG = ("digest", "key")  # of an event: for programs


def lineage_lines(lineage: Mapping[str, Any]) -> Iterator[str]:
    """The lineage for people, a fact a line."""
    base, recipe = lineage["base"], dict(lineage["recipe"])
    if lineage["on"] is not None:
        yield f"on          build {lineage['on']}, which is frozen in the place of its base model"
    yield f"base        {base['name']}  {base['digest']}"
    yield f"  source    {base['source'] or UNKNOWN}"
    yield f"  revision  {base['revision'] or UNKNOWN}"
    for adapter in lineage["adapters"]:
        trained = [adapter["trainer"], adapter["trainer_version"]]
        origin = adapter["origin"] and ", ".join(f"{k} {v}" for k, v in adapter["origin"].items())
        yield f"{adapter['role']:<11} {adapter['ref']}  {adapter['digest']}"
        yield f"  by        {adapter['registered_by']}, {adapter['registered_at'][:16]}"
        yield f"  origin    {origin or ('trained here' if adapter['trainer'] else UNKNOWN)}"
        yield f"  trainer   {' '.join(filter(None, trained)) or UNKNOWN}"
        yield f"  template  {adapter['template'] or UNKNOWN}"
        data = [f"{entry['domain'] or UNKNOWN} {entry['digest'] or UNKNOWN}" for entry in adapter["data"]]
        for line in data or [UNKNOWN]:
            yield f"  data      {line}"
    adaptive = recipe.pop("adaptive", None)
    if "coefficients" in recipe:
        recipe["coefficients"] = {role: _brief(value) for role, value in recipe["coefficients"].items()}
    if (items := lineage["items"]) is not None:
        yield f"items       {items['count']:,}, {items['untitled']:,} without a title left out  {items['digest']}"
    else:
        yield f"recipe      {_pairs(recipe)}"
    if adaptive:
        yield f"  adaptive  {_pairs(adaptive)}"
    for name in ("data", "template"):
        found = lineage[name]
        none = UNKNOWN if adaptive else "not used: the coefficients are given"
        yield (
            f"{name:<11} {found.get('path') or found.get('name')}  {found['digest']}" if found else f"{name:<11} {none}"
        )


def _brief(coefficient: Any) -> Any:
    """Hundreds of modules' coefficients are for `recipe.json`."""
    if isinstance(coefficient, (int, float)):
        return coefficient
    values = list(coefficient.values() if isinstance(coefficient, Mapping) else coefficient)
    return f"{min(values):g} to {max(values):g} over {len(values)} {'modules' if isinstance(coefficient, Mapping) else 'layers'}"


def _pairs(record: Mapping[str, Any]) -> str:
    parts = (f"{k}={f'{{{_pairs(v)}}}' if isinstance(v, Mapping) else v}" for k, v in record.items())
    return ", ".join(parts)


def brief_pairs(event: Event) -> str:
    """What an event says besides its subject, short: an alias from where to where, an error's message."""
    detail = dict(event.detail)
    if event.kind.startswith("alias."):
        return "; ".join(filter(None, [f"{detail.get('from', 'none')} → {detail.get('to', 'none')}", passed(detail)]))
    if event.kind in ("build.aliased", "build.unaliased"):
        rest = {name: detail[name] for name in ("from", "rollback", "why") if name in detail}
        return "; ".join(
            filter(None, [_pairs({"alias": f"{detail.get('domain')}@{detail.get('alias')}"} | rest), passed(detail)])
        )
    if isinstance(error := detail.get("error"), Mapping):
        detail["error"] = error.get("message")
    return _pairs({name: value for name, value in detail.items() if value not in (None, [], {}) and name not in LONG})


def passed(detail: Mapping[str, Any]) -> str:
    """By which version of its domain's gate something moved, and by which evaluation or in spite of it why; empty without a gate."""
    found = [f"gate v{detail['gate']}"] if "gate" in detail else []
    found += [f"evaluation {detail['evaluation']}"] if "evaluation" in detail else []
    found += [f"override: {detail['override']}"] if "override" in detail else []
    return ", ".join(found)


def happened(event: Event) -> str:
    """What became of an adapter or an alias, what was edited, and by which gate or in spite of it why."""
    noun, _, verb = event.kind.partition(".")
    detail = event.detail
    if noun == "alias":
        alias = event.subject.partition("@")[2]
        text = f"{alias}: {detail.get('from', 'none')} → {detail.get('to', 'none')}"
    else:
        changed = detail.get("changed")
        text = f"{event.subject} {verb}" + (f": {_pairs(changed)}" if isinstance(changed, Mapping) else "")
    return "; ".join(filter(None, [text, passed(detail)]))
