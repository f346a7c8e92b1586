"""What people write of a domain or a version: tags, note, description, links and metrics, as one form that replaces what is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field

from ...registry import Adapter, Domain
from ...registry.catalog.annotations import Edit
from ...registry.errors import UsageError

LongText = Annotated[str, Field(max_length=2000)]


class Words(BaseModel):
    """Tags by commas; links and metrics as `NAME VALUE`, one a line. Links and metrics that are not sent stay."""

    base: Annotated[str, Field(max_length=200)] = ""
    tags: LongText = ""
    note: LongText = ""
    description: LongText = ""
    links: LongText | None = None
    metrics: LongText | None = None

    def edit(self, row: Adapter | Domain) -> Edit:
        """What makes the row say this. Raises UsageError for a line that has no value."""
        tags = [tag.strip() for tag in self.tags.split(",") if tag.strip()]
        links = row.links if self.links is None else _pairs("link", self.links)
        metrics = row.metrics if self.metrics is None else _numbers(_pairs("metric", self.metrics))
        return Edit(
            description=self.description.strip(),
            note=self.note.strip(),
            tags=tags,
            untag=[tag for tag in row.tags if tag not in tags],
            metrics=metrics,
            unmetric=[name for name in row.metrics if name not in metrics],
            links=links,
            unlink=[name for name in row.links if name not in links],
        )


def _pairs(what: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        name, _, value = line.strip().rpartition(" ")
        if not name:
            raise UsageError(f"{what} {line.strip()!r} has no value", hint=f"one {what} a line: NAME VALUE")
        found[name.strip()] = value
    return found


def _numbers(texts: Mapping[str, str]) -> dict[str, float]:
    try:
        return {name: float(text) for name, text in texts.items()}
    except ValueError as error:
        raise UsageError(f"a metric is a number: {error}", hint="one metric a line: NAME VALUE") from error
