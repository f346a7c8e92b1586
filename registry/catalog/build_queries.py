"""The rows of builds: finding one, those that may be claimed, and the newest of a domain."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from types import EllipsisType
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.orm import Session, aliased

from ..database.tables import BuildRow, DomainRow
from ..errors import ConflictError, NotFoundError, UsageError
from .domains import find_domain
from .lookup import find_adapter


def newest_of_domain(own_recipe: bool | EllipsisType | None = ...) -> Any:
    """The id of the newest succeeded build, with that `own_recipe` if one is given, of the domain that the query around it is at."""
    other = aliased(BuildRow)
    wanted = [] if own_recipe is ... else [other.own_recipe.is_(own_recipe)]
    return (
        select(other.id)
        .where(other.domain_id == DomainRow.id, other.status == "succeeded", *wanted)
        .order_by(other.finished_at.desc(), other.id.desc())
        .limit(1)
        .correlate(DomainRow)
        .scalar_subquery()
    )


def reusable(force: bool) -> tuple[str, ...]:
    return ("queued", "running") if force else ("queued", "running", "succeeded")


def is_claimable(moment: datetime) -> ColumnElement[bool]:
    """Queued and not for later, or with a worker whose lease has run out."""
    return or_(
        and_(BuildRow.status == "queued", or_(BuildRow.retry_at.is_(None), BuildRow.retry_at <= moment)),
        and_(BuildRow.status == "running", BuildRow.lease_until < moment),
    )


def oldest_claimable(moment: datetime) -> Select[BuildRow]:
    """The query of the one to be claimed next; rows that others are claiming are passed over."""
    query = select(BuildRow).where(is_claimable(moment)).order_by(BuildRow.id).limit(1)
    return query.with_for_update(skip_locked=True, of=BuildRow)


def new_id() -> str:
    """16 hex digits that sort by time: microseconds since 1970, then 12 random bits."""
    return f"{time.time_ns() // 1000:013x}{secrets.randbits(12):03x}"


def adapter_ids(session: Session, base: str, inputs: Mapping[str, Any]) -> set[int]:
    found = set()
    for entry in inputs.get("adapters", ()):
        row = find_adapter(session, entry["ref"], base)
        if row.digest != entry["digest"]:
            raise ConflictError(f"{entry['ref']} is {row.digest}, not {entry['digest']} as requested")
        found.add(row.id)
    return found


def find_build(session: Session, build_id: str) -> BuildRow:
    begins = BuildRow.id.startswith(build_id, autoescape=True)
    rows = session.scalars(select(BuildRow).where(begins).order_by(BuildRow.id.desc()).limit(2)).all()
    if not rows or not build_id:
        raise NotFoundError(f"there is no build {build_id!r}", hint="`reccocktail build list` shows them")
    if len(rows) > 1:
        raise UsageError(f"several builds begin with {build_id!r}, among them {rows[0].id} and {rows[1].id}")
    return rows[0]


def find_build_locked(session: Session, build_id: str) -> BuildRow:
    """The build as it is once no other process can claim, report, cancel or retry it, or request another of its domain."""
    found = find_build(session, build_id)
    find_domain(session, found.domain.name, lock=True)
    return session.get_one(BuildRow, found.id, with_for_update={"of": BuildRow}, populate_existing=True)


def held_build(session: Session, build_id: str, worker: str) -> BuildRow:
    row = session.get(BuildRow, build_id, with_for_update={"of": BuildRow})
    if row is None:
        raise NotFoundError(f"there is no build {build_id!r}")
    if row.status != "running" or row.worker != worker:
        holder = f" by {row.worker}" if row.status == "running" else ""
        raise ConflictError(f"build {row.id} is {row.status}{holder}: {worker} does not hold it any more")
    return row
