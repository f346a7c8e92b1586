"""What a file says about an object beside what it is: tags, note, description, links and metrics, which people edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..catalog.adapters import Adapter
from ..catalog.annotations import Edit
from ..catalog.bases import Base
from ..catalog.domains import Domain
from ..redaction import redacted

TEXTS, MAPPINGS = ("description", "note"), ("metrics", "links")
ABOUT = (*TEXTS, "tags", *MAPPINGS)


def about(row: Adapter | Base | Domain) -> dict[str, Any]:
    """What is not empty, as a file says it."""
    found = {name: getattr(row, name) for name in TEXTS} | {"tags": [*row.tags]}
    found |= {name: dict(getattr(row, name)) for name in MAPPINGS}
    return {name: value for name, value in found.items() if value}


def difference(
    wanted: Mapping[str, Any], row: Adapter | Base | Domain | None
) -> tuple[Edit, dict[str, tuple[Any, Any]]]:
    """The edit that brings the row to what is wanted, and what it changes; `row` is None of what is not there yet.

    Tags are wanted as a whole list. Metrics and links are those that are named: others stay. Raises UsageError for what cannot be kept.
    """
    before = {} if row is None else about(row)
    wanted = {name: redacted(value) if isinstance(value, str) else value for name, value in wanted.items()}
    changes: dict[str, tuple[Any, Any]] = {}
    edit: dict[str, Any] = {}
    for name in TEXTS:
        if name in wanted and wanted[name] != before.get(name, ""):
            edit[name], changes[name] = wanted[name], (before.get(name), wanted[name])
    if "tags" in wanted and {*wanted["tags"]} != {*before.get("tags", ())}:
        edit["tags"] = wanted["tags"]
        edit["untag"] = [tag for tag in before.get("tags", ()) if tag not in wanted["tags"]]
        changes["tags"] = (before.get("tags"), wanted["tags"])
    for name in MAPPINGS:
        there = before.get(name, {})
        if moved := {key: value for key, value in wanted.get(name, {}).items() if there.get(key) != value}:
            edit[name], changes[name] = moved, ({key: there[key] for key in moved if key in there} or None, moved)
    found = Edit(**edit)
    found.checked()
    return found, changes
