"""What people write of a domain or a version: tags, note, description, links and metrics, as one form that replaces what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from ...registry import Adapter, Domain
from ...registry.catalog.annotations import Edit
from ...registry.errors import UsageError
from .acting import LongText, ShortText
from .forms import Problems


class Words(BaseModel):
    """Tags by commas; links and metrics as `NAME VALUE`, one a line. Links and metrics that are not sent stay."""

    base: ShortText = ""
    tags: LongText = ""
    note: LongText = ""
    description: LongText = ""
    links: LongText | None = None
    metrics: LongText | None = None

    def edit(self, row: Adapter | Domain) -> Edit:
        """What makes the row say this. Raises FormError, which says of each field what is wrong."""
        found, problems = dict[str, Any](), Problems()
        for name, read in self._fields(row).items():
            with problems.of(name):
                found[name] = read()
                Edit(**{name: found[name]}).checked()
        problems.expect_none()
        return Edit(
            **found,
            untag=[tag for tag in row.tags if tag not in found["tags"]],
            unmetric=[name for name in row.metrics if name not in found["metrics"]],
            unlink=[name for name in row.links if name not in found["links"]],
        )

    def _fields(self, row: Adapter | Domain) -> dict[str, Callable[[], Any]]:
        """How the fields of an edit are read."""
        return {
            "tags": lambda: [tag.strip() for tag in self.tags.split(",") if tag.strip()],
            "note": self.note.strip,
            "description": self.description.strip,
            "links": lambda: row.links if self.links is None else _pairs("link", self.links),
            "metrics": lambda: row.metrics if self.metrics is None else _numbers(_pairs("metric", self.metrics)),
        }


def _pairs(what: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        name, _, value = line.strip().rpartition(" ")
        if not name:
            raise UsageError(f"{what} {line.strip()!r} has no value")
        found[name.strip()] = value
    return found


def _numbers(texts: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, text in texts.items():
        try:
            found[name] = float(text)
        except ValueError:
            raise UsageError(f"metric {name!r}: {text!r} is no number") from None
    return found
