"""What happened, in the order it happened: additions, alias moves, archivings, changes of a build's status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import EventRow, now
from ..redaction import redacted_values
from .records import Record


@dataclass(frozen=True)
class Event(Record):
    """`kind` is like `alias.moved`; `subject` is the reference, name or id that it is about."""

    id: int
    kind: str
    subject: str
    detail: Mapping[str, Any]
    created_at: datetime
    created_by: str


@dataclass(frozen=True)
class EventIds:
    """The rows that an event is about; `previous_id` is the version that an alias was on before."""

    base_id: int | None = None
    domain_id: int | None = None
    adapter_id: int | None = None
    previous_id: int | None = None
    alias: str | None = None


def append(
    session: Session,
    kind: str,
    subject: str,
    detail: Mapping[str, Any],
    about: EventIds,
) -> EventRow:
    """To be called in the transaction that makes the event true, with the domain locked.

    An event about an alias or an archiving changes the alias or the version by itself; a build's new status is taken by the
    database only if its event is there already.
    """
    row = EventRow(
        created_at=_moment(session, about),
        kind=kind,
        subject=subject,
        base_id=about.base_id,
        domain_id=about.domain_id,
        adapter_id=about.adapter_id,
        previous_id=about.previous_id,
        alias=about.alias,
        detail=redacted_values(detail),
    )
    session.add(row)
    session.flush()
    return row


def _moment(session: Session, about: EventIds) -> datetime:
    """Now, or when the alias or version last changed if a machine whose clock is ahead wrote that: time never runs backwards."""
    if about.adapter_id is None and about.alias is None:
        return now()
    newest = select(EventRow.created_at).order_by(EventRow.id.desc()).limit(1)
    here = (EventRow.base_id == about.base_id, EventRow.domain_id == about.domain_id, EventRow.alias == about.alias)
    found = session.execute(
        select(
            newest.where(*here).scalar_subquery(),
            newest.where(EventRow.adapter_id == about.adapter_id).scalar_subquery(),
        )
    ).one()
    return max([now(), *(before for before in found if before is not None)])


class Events:
    def __init__(self, database: Database) -> None:
        self._database = database

    def list(
        self, *, kind: str | None = None, subject: str | None = None, limit: int = 50, after: int | None = None
    ) -> list[Event]:
        """Newest first; `after` is the id of the last event of the page before."""
        query = select(EventRow).order_by(EventRow.id.desc()).limit(limit)
        if kind is not None:
            query = query.where(EventRow.kind == kind)
        if subject is not None:
            query = query.where(EventRow.subject == subject)
        if after is not None:
            query = query.where(EventRow.id < after)
        with self._database.reading() as session:
            return [event_of(row) for row in session.scalars(query)]


def event_of(row: EventRow) -> Event:
    return Event(row.id, row.kind, row.subject, row.detail, row.created_at, row.created_by)
