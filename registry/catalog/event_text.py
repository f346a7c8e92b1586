"""What an event says, in a line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .events import Event
    from .serving import Move

LONG = ("digest", "key")  # of an event: for programs


def pairs(record: Mapping[str, Any]) -> str:
    """`name=value, …`, one within another in braces."""
    parts = (f"{k}={f'{{{pairs(v)}}}' if isinstance(v, Mapping) else v}" for k, v in record.items())
    return ", ".join(parts)


def changes(changed: Mapping[str, Any]) -> str:
    """What an edit made of each thing, as `note: none → good; tags: a → a, b`."""
    parts = [
        f"{name}: {_brief(each.get('from'))} → {_brief(each.get('to'))}"
        if isinstance(each, Mapping) and {"from", "to"} & each.keys()
        else pairs({name: each})
        for name, each in changed.items()
    ]
    return "; ".join(parts)


def _brief(value: Any) -> str:
    if value in (None, "", [], {}):
        return "none"
    if isinstance(value, Mapping):
        return pairs(value)
    return ", ".join(map(_brief, value)) if isinstance(value, list | tuple) else str(value)


def brief_pairs(event: Event) -> str:
    """What an event says besides its subject, short: an alias from where to where, an error's message."""
    detail = dict(event.detail)
    if event.kind.startswith("alias."):
        return "; ".join(filter(None, [f"{detail.get('from', 'none')} → {detail.get('to', 'none')}", passed(detail)]))
    if event.kind in ("build.aliased", "build.unaliased"):
        rest = {name: detail[name] for name in ("from", "rollback", "why") if name in detail}
        return "; ".join(
            filter(None, [pairs({"alias": f"{detail.get('domain')}@{detail.get('alias')}"} | rest), passed(detail)])
        )
    if isinstance(error := detail.get("error"), Mapping):
        detail["error"] = error.get("message")
    changed = detail.pop("changed", None)
    told = pairs({name: value for name, value in detail.items() if value not in (None, [], {}) and name not in LONG})
    if isinstance(changed, Mapping):
        return "; ".join(filter(None, [told, changes(changed)]))
    return ", ".join(filter(None, [told, pairs({"changed": changed}) if changed else ""]))


def passed(detail: Mapping[str, Any]) -> str:
    """By which version of its domain's gate something moved, and by which evaluation or in spite of it why; empty without a gate."""
    found = [f"gate v{detail['gate']}"] if "gate" in detail else []
    found += [f"evaluation {detail['evaluation']}"] if "evaluation" in detail else []
    found += [f"override: {detail['override']}"] if "override" in detail else []
    return ", ".join(found)


def remark(move: Move) -> str:
    """What a move of a build's alias says besides where to: that it was a rollback, why, and by which gate or in spite of it why."""
    gate = passed({name: value for name, value in move.to_json().items() if value is not None})
    return "; ".join(filter(None, ("rollback" if move.rollback else None, move.why, gate)))


def happened(event: Event) -> str:
    """What became of an adapter or an alias, what was edited, and by which gate or in spite of it why."""
    noun, _, verb = event.kind.partition(".")
    detail = event.detail
    if noun == "alias":
        alias = event.subject.partition("@")[2]
        text = f"{alias}: {detail.get('from', 'none')} → {detail.get('to', 'none')}"
    else:
        changed = detail.get("changed")
        text = f"{event.subject} {verb}" + (f": {changes(changed)}" if isinstance(changed, Mapping) else "")
    return "; ".join(filter(None, [text, passed(detail)]))
