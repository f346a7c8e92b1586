"""What happened, in the order it happened: additions, alias moves, archivings, changes of a build's status."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, Unpack

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import DomainRow, EventRow, now
from ..errors import UsageError
from ..redaction import redacted_values
from .records import Record
from .references import did_you_mean

KINDS = {
    "adapter": ("added", "approved", "edited", "archived", "restored", "published", "withdrawn"),
    "alias": ("set", "moved", "removed"),
    "base": ("added", "edited", "removed"),
    "build": (
        "queued",
        "running",
        "succeeded",
        "failed",
        "cancelled",
        "approved",
        "edited",
        "published",
        "withdrawn",
        "aliased",
        "unaliased",
        "pinned",
        "unpinned",
        "collected",
    ),
    "domain": ("added", "changed", "gated", "ungated", "edited", "renamed", "removed", "stale", "fresh"),
    "evaluation": ("recorded",),
    "recipe": ("added",),
    "template": ("added",),
    "token": ("added", "revoked"),
    "webhook": ("added", "edited", "removed"),
}
"""What an event can be about, and what can happen to it: `alias.moved` is a kind."""

ALIASINGS = ("build.aliased", "build.unaliased")
"""Events that move an alias of builds: `subject` is the build that has it now, or had it, and `detail["alias"]` the alias."""


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
    noun, _, verb = kind.partition(".")
    assert verb in KINDS[noun], kind
    row = EventRow(
        created_at=_moment(session, kind, about),
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


def _moment(session: Session, kind: str, about: EventIds) -> datetime:
    """Now, or when the alias or version last changed if a machine whose clock is ahead wrote that: time never runs backwards."""
    if kind in ALIASINGS:
        here = (EventRow.base_id == about.base_id, EventRow.domain_id == about.domain_id, EventRow.kind.in_(ALIASINGS))
        before = session.scalar(select(EventRow.created_at).where(*here).order_by(EventRow.id.desc()).limit(1))
        return max(now(), before or now())
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


class EventFilter(TypedDict, total=False):
    """Which events are wanted; what is left out does not matter.

    `kind` is a whole kind such as `alias.moved`, or what it is about (`alias`). `domain` is a domain's name, or `spirit`.
    `since` is the earliest moment.
    """

    kind: str | None
    subject: str | None
    domain: str | None
    actor: str | None
    since: datetime | None


class Events:
    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, *, limit: int = 50, after: int | None = None, **wanted: Unpack[EventFilter]) -> list[Event]:
        """Newest first; `after` is the id of the last event of the page before."""
        query = select(EventRow).where(*_conditions(wanted)).order_by(EventRow.id.desc()).limit(limit)
        if after is not None:
            query = query.where(EventRow.id < after)
        with self._database.reading() as session:
            return [event_of(row) for row in session.scalars(query)]

    def newer(self, than: int, *, limit: int = 1000, **wanted: Unpack[EventFilter]) -> builtins.list[Event]:
        """Those with a larger id, oldest first.

        On PostgreSQL a transaction that took its id first may end last, so an event can appear below one that was seen: who follows asks
        again from a little before.
        """
        query = select(EventRow).where(EventRow.id > than, *_conditions(wanted)).order_by(EventRow.id).limit(limit)
        with self._database.reading() as session:
            return [event_of(row) for row in session.scalars(query)]


def _conditions(wanted: EventFilter) -> Iterator[ColumnElement[bool]]:
    if (kind := wanted.get("kind")) is not None:
        yield EventRow.kind == kind if "." in kind else EventRow.kind.startswith(f"{kind}.", autoescape=True)
    if (subject := wanted.get("subject")) is not None:
        yield EventRow.subject == subject
    if (domain := wanted.get("domain")) is not None:
        yield EventRow.domain_id == select(DomainRow.id).where(DomainRow.name == domain).scalar_subquery()
    if (actor := wanted.get("actor")) is not None:
        yield EventRow.created_by == actor
    if (since := wanted.get("since")) is not None:
        yield EventRow.created_at >= since


def expect_kind(text: str | None) -> None:
    """Raises UsageError for a kind that no event has."""
    whole = [f"{noun}.{verb}" for noun, verbs in KINDS.items() for verb in verbs]
    if text is not None and text not in whole and text not in KINDS:
        near = did_you_mean(text, [*KINDS, *whole])
        raise UsageError(f"no event is of the kind {text!r}{near}", hint=f"kinds are {', '.join([*KINDS, *whole])}")


def event_of(row: EventRow) -> Event:
    return Event(row.id, row.kind, row.subject, row.detail, row.created_at, row.created_by)
