"""When domains became stale: a state that follows from many rows, kept as events by whoever looks (`engine.building.stale_events`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import DomainRow, EventRow
from . import events
from .domains import find_domain
from .events import EventIds

STALE, FRESH = "domain.stale", "domain.fresh"


class Staleness:
    def __init__(self, database: Database) -> None:
        self._database = database

    def known(self) -> dict[str, Mapping[str, Any]]:
        """By domain, what its newest event said of those that are known to be stale."""
        newest = select(func.max(EventRow.id)).where(_is_either()).group_by(EventRow.domain_id)
        query = select(DomainRow.name, EventRow.detail).join(DomainRow, DomainRow.id == EventRow.domain_id)
        with self._database.reading() as session:
            rows = session.execute(query.where(EventRow.id.in_(newest), EventRow.kind == STALE))
            return dict(rows.tuples().all())

    def record(self, domain: str, kind: str, detail: Mapping[str, Any]) -> bool:
        """Whether that was news: of two that see the same at the same time, one records it."""
        with self._database.writing() as session:
            place = find_domain(session, domain, lock=True)
            if _last(session, place.id) == (kind, dict(detail) if kind == STALE else None):
                return False
            events.append(session, kind, domain, detail, EventIds(domain_id=place.id))
            return True


def _last(session: Session, domain_id: int) -> tuple[str, Any]:
    """The kind of the domain's newest event about it, and the detail of one that says it is stale; fresh where there is none."""
    query = select(EventRow).where(EventRow.domain_id == domain_id, _is_either()).order_by(EventRow.id.desc()).limit(1)
    row = session.scalar(query)
    return (STALE, dict(row.detail)) if row is not None and row.kind == STALE else (FRESH, None)


def _is_either() -> ColumnElement[bool]:
    return EventRow.kind.in_((STALE, FRESH))
