"""The rows of builds: finding one, those that may be claimed, and the newest of a domain."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session, aliased

from ..database.tables import BaseModelRow, BuildAliasRow, BuildRow, DomainRow
from ..errors import ConflictError, InvalidReferenceError, NotFoundError, UsageError
from .domains import find_domain
from .lookup import find_adapter
from .references import MERGE, Reference, did_you_mean

SHORTEST_END = 4
"""Characters of the end of an id that may name a build; the last characters are random, the first are the time."""


def is_stored() -> ColumnElement[bool]:
    """Succeeded, and its result was not removed because nobody needed it."""
    return and_(BuildRow.status == "succeeded", BuildRow.collected_at.is_(None))


def is_stored_merge() -> ColumnElement[bool]:
    return and_(is_stored(), BuildRow.kind == MERGE)


def newest_of_domain() -> Any:
    """The id of the newest succeeded merge of the domain that the query around it is at."""
    other = aliased(BuildRow)
    return (
        select(other.id)
        .where(other.domain_id == DomainRow.id, other.status == "succeeded", other.kind == MERGE)
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


def is_unsettled() -> ColumnElement[bool]:
    """Queued or running, or failed and its domain's newest of its kind."""
    newest = select(func.max(BuildRow.id)).group_by(BuildRow.domain_id, BuildRow.kind)
    return or_(
        BuildRow.status.in_(("queued", "running")),
        and_(BuildRow.status == "failed", BuildRow.id.in_(newest)),
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


def find_build(session: Session, build_id: str, *, base: str | None = None) -> BuildRow:
    """By its id, the beginning of it or its last characters, or by `DOMAIN@ALIAS`, where `base` tells several apart."""
    if "@" in build_id:
        return find_build_alias(session, build_id, base).build
    rows = _beginning(session, build_id) if build_id else []
    if not rows and len(build_id) >= SHORTEST_END:
        ends = BuildRow.id.endswith(build_id, autoescape=True)
        rows = session.scalars(select(BuildRow).where(ends).order_by(BuildRow.id.desc()).limit(2)).all()
    if not rows:
        raise NotFoundError(f"there is no build {build_id!r}", hint="`reccocktail build list` shows them")
    if len(rows) > 1:
        raise UsageError(
            f"several builds begin or end with {build_id!r}, among them {rows[0].id} and {rows[1].id}",
            hint="give more characters; the last ones differ most",
        )
    return rows[0]


def _beginning(session: Session, text: str) -> Sequence[BuildRow]:
    begins = BuildRow.id.startswith(text, autoescape=True)
    return session.scalars(select(BuildRow).where(begins).order_by(BuildRow.id.desc()).limit(2)).all()


def find_build_alias(session: Session, text: str, base: str | None) -> BuildAliasRow:
    """What `DOMAIN@ALIAS` means. Raises NotFoundError, InvalidReferenceError, and UsageError where it is on builds for several base models."""
    ref = Reference.parse(text)
    place = find_domain(session, ref.name)
    if ref.alias is None:
        raise InvalidReferenceError(
            f"{text!r} names no build", hint="write an id, or DOMAIN@ALIAS such as beauty@production"
        )
    here = select(BuildAliasRow).where(BuildAliasRow.domain_id == place.id)
    named = here.where(BuildAliasRow.name == ref.alias)
    if base is not None:
        named = named.where(BuildAliasRow.base_id == BaseModelRow.id, BaseModelRow.name == base)
    rows = session.scalars(named).all()
    if not rows:
        where = "" if base is None else f" for base model {base!r}"
        near = did_you_mean(ref.alias, {row.name for row in session.scalars(here)}, before=f"{ref.name}@")
        raise NotFoundError(
            f"no build has the alias {text!r}{where}{near}", hint=f"`reccocktail build history {ref.name}`"
        )
    if len(rows) > 1:
        names = " and ".join(sorted(row.build.base.name for row in rows))
        raise UsageError(f"{text!r} is on builds for several base models: {names}", hint="say --base NAME, or an id")
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
