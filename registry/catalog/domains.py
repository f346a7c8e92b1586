"""Domains: what is recommended in, and where its data, trainer and recipe are."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import DomainRow
from ..errors import NotFoundError
from ..redaction import check_no_secret, redacted
from . import events
from .events import EventIds
from .records import Record
from .references import SPIRIT, check_name, check_text, did_you_mean


@dataclass(frozen=True)
class Domain(Record):
    name: str
    title: str
    data: str | None
    trainer: str | None
    recipe: str | None
    created_at: datetime
    created_by: str


class Domains:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        name: str,
        *,
        title: str | None = None,
        data: str | None = None,
        trainer: str | None = None,
        recipe: str | None = None,
    ) -> Domain:
        """Adds the domain, or changes what is given of one that is there; None leaves a field as it is."""
        check_name("domain", name)
        fields = {"title": title and redacted(title), "data": data, "trainer": trainer, "recipe": recipe}
        given = {field: check_text(field, value) for field, value in fields.items() if value is not None}
        for field in given.keys() - {"title"}:
            check_no_secret(field, given[field])
        with self._database.writing() as session:
            lock_new_names(session)
            row = session.scalar(select(DomainRow).where(DomainRow.name == name).with_for_update(key_share=True))
            if row is None:
                row = DomainRow(name=name, role="ingredient", **fields | {"title": title or name})
                session.add(row)
                session.flush()
                events.append(session, "domain.added", name, given, EventIds(domain_id=row.id))
            elif changed := {field: value for field, value in given.items() if getattr(row, field) != value}:
                events.append(session, "domain.changed", name, changed, EventIds(domain_id=row.id))
                for field, value in changed.items():
                    setattr(row, field, value)
            return _domain(row)

    def get(self, name: str) -> Domain:
        with self._database.reading() as session:
            row = find_domain(session, name)
            if row.role == SPIRIT:
                raise NotFoundError("'spirit' names the base spirit, not a domain")
            return _domain(row)

    def list(self) -> builtins.list[Domain]:
        """By name, without the built-in one that spirits live under."""
        query = select(DomainRow).where(DomainRow.role != SPIRIT).order_by(DomainRow.name)
        with self._database.reading() as session:
            return [_domain(row) for row in session.scalars(query)]


def lock_new_names(session: Session) -> None:
    """Makes writers that are about to give a name wait for each other: there is no row yet that they could lock."""
    find_domain(session, SPIRIT, lock=True)


def find_domain(session: Session, name: str, *, lock: bool = False) -> DomainRow:
    """The row, also that of `spirit`; `lock` makes writers of its versions wait for each other."""
    query = select(DomainRow).where(DomainRow.name == name)
    # key_share: rows that merely refer to the domain can be written meanwhile
    row = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if row is None:
        near = did_you_mean(name, session.scalars(select(DomainRow.name)))
        raise NotFoundError(f"there is no domain {name!r}{near}", hint=f"run `reccocktail domain add {name}`")
    return row


def _domain(row: DomainRow) -> Domain:
    return Domain(row.name, row.title, row.data, row.trainer, row.recipe, row.created_at, row.created_by)
