"""What differs between two versions of a recipe or a template, or between two states of a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..strict_json import shown

ABSENT = "(not there)"


def differences(before: Any, after: Any, key: str = "") -> list[dict[str, Any]]:
    """Every key whose value differs, with both values; a key that one side lacks has None there."""
    return [*_differences(before, after, key)]


def _differences(before: Any, after: Any, key: str) -> Iterator[dict[str, Any]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys((*before, *after)):
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}" if key else str(name))
    elif before != after:
        yield {"key": key, "before": before, "after": after}


def in_words(change: Mapping[str, Any]) -> str:
    was, now = (ABSENT if value is None else _plain(value) for value in (change["before"], change["after"]))
    return f"{change['key']}: {was} → {now}"


def _plain(value: Any) -> str:
    return str(value) if not isinstance(value, str) else shown(value) if "\n" in value else value
