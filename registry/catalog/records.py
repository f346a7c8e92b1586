"""What the registry answers with: frozen values that know their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

NOT_IN_JSON = {"json": False}
"""Metadata of a field that describes the call rather than the record."""


@dataclass(frozen=True)
class Record:
    """A row of the registry as the rest of the program sees it; the database may have moved on since."""

    def to_json(self) -> dict[str, Any]:
        shown = (field.name for field in fields(self) if field.metadata.get("json", True))
        return {name: _plain(getattr(self, name)) for name in shown}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], **rest: Any) -> Self:
        """The record again of what `to_json` gave, from a program elsewhere; `rest` has what is not in it. Keys that are unknown here are left out."""
        hints = get_type_hints(cls)
        known = {field.name for field in fields(cls) if field.metadata.get("json", True)} & document.keys()
        return cls(**{name: _typed(document[name], hints[name]) for name in known}, **rest)


def _typed(value: Any, hint: Any) -> Any:
    kinds = {hint, *get_args(hint)}
    if isinstance(value, str) and datetime in kinds:
        return datetime.fromisoformat(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    return tuple(value) if isinstance(value, list) and get_origin(hint) is tuple else value


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case Path():
            return str(value)
        case Mapping():
            return dict(value)
        case tuple():
            return list(value)
        case _:
            return value
