"""What went into a build, down to the digests of its data, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..registry.catalog.event_text import pairs

UNKNOWN = "not recorded"


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
        yield f"recipe      {pairs(recipe)}"
    if adaptive:
        yield f"  adaptive  {pairs(adaptive)}"
    for name in ("data", "template"):
        found = lineage[name]
        none = UNKNOWN if adaptive else "not used: the coefficients are given"
        place = found and (found.get("path") or found.get("name"))
        if place and place.startswith("sha256:"):  # they were uploaded
            place = "in the store"
        yield f"{name:<11} {place}  {found['digest']}" if found else f"{name:<11} {none}"


def _brief(coefficient: Any) -> Any:
    """Hundreds of modules' coefficients are for `recipe.json`."""
    if isinstance(coefficient, (int, float)):
        return coefficient
    values = list(coefficient.values() if isinstance(coefficient, Mapping) else coefficient)
    return f"{min(values):g} to {max(values):g} over {len(values)} {'modules' if isinstance(coefficient, Mapping) else 'layers'}"
