"""What the registry answers with: frozen values that know their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

NOT_IN_JSON = {"json": False}
"""Metadata of a field that describes the call rather than the record."""


@dataclass(frozen=True)
class Record:
    """A row of the registry as the rest of the program sees it; the database may have moved on since."""

    def to_json(self) -> dict[str, Any]:
        shown = (field.name for field in fields(self) if field.metadata.get("json", True))
        return {name: _plain(getattr(self, name)) for name in shown}


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
