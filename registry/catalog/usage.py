"""Where an adapter went: the builds it is in, and its own publications and those of the builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session, aliased

from ..database.tables import (
    AdapterRow,
    AliasRow,
    BuildAliasRow,
    BuildInputRow,
    BuildRow,
    DomainRow,
    PublicationRow,
    ServingPolicyRow,
    WithdrawalRow,
)
from .records import Record
from .references import CHAMPION
from .serving import PRODUCTION

NAMED = 5  # so many domains or repositories are named in a sentence


@dataclass(frozen=True)
class ReachedBuild(Record):
    """A build that an adapter is in."""

    id: str
    domain: str
    status: str
    created_at: datetime


@dataclass(frozen=True)
class ReachedPublication(Record):
    """A publication of an adapter (without a build), or of a build that it is in."""

    id: int
    build: str | None
    domain: str
    repo: str
    revision: str
    tag: str | None
    created_at: datetime


@dataclass(frozen=True)
class Reached(Record):
    """The newest builds and publications that an adapter reached, and how many there are in all."""

    builds: tuple[ReachedBuild, ...]
    build_count: int
    publications: tuple[ReachedPublication, ...]
    publication_count: int


def reached(session: Session, row: AdapterRow, limit: int) -> Reached:
    """Newest first, at most `limit` of each."""
    inputs = select(BuildInputRow.build_id).where(BuildInputRow.adapter_id == row.id)
    builds = (
        select(BuildRow.id, DomainRow.name, BuildRow.status, BuildRow.created_at)
        .join(DomainRow, DomainRow.id == BuildRow.domain_id)
        .where(BuildRow.id.in_(inputs))
        .order_by(BuildRow.id.desc())
    )
    publications = (
        select(
            PublicationRow.id, PublicationRow.build_id, DomainRow.name, PublicationRow.repo, PublicationRow.revision,
            PublicationRow.tag, PublicationRow.created_at,
        )
        .outerjoin(BuildRow, BuildRow.id == PublicationRow.build_id)
        .join(DomainRow, DomainRow.id == func.coalesce(BuildRow.domain_id, row.domain_id))
        .where(_carries(row, inputs))
        .order_by(PublicationRow.id.desc())
    )  # fmt: skip
    published = select(func.count()).select_from(PublicationRow).where(_carries(row, inputs))
    return Reached(
        builds=tuple(ReachedBuild(*found) for found in session.execute(builds.limit(limit))),
        build_count=session.scalar(select(func.count()).select_from(inputs.subquery())) or 0,
        publications=tuple(ReachedPublication(*found) for found in session.execute(publications.limit(limit))),
        publication_count=session.scalar(published) or 0,
    )


def uses(session: Session, row: AdapterRow) -> list[str]:
    """Why the version should not be archived without a second thought, as parts of a sentence."""
    found = []
    champion = select(AliasRow).where(AliasRow.adapter_id == row.id, AliasRow.name == CHAMPION)
    if session.scalar(champion) is not None:
        found.append(f"it is {CHAMPION}")
    inputs = select(BuildInputRow.build_id).where(BuildInputRow.adapter_id == row.id)

    served = (
        select(DomainRow.name, BuildAliasRow.name, BuildRow.id)
        .join(BuildRow, BuildRow.id == BuildAliasRow.build_id)
        .join(DomainRow, DomainRow.id == BuildAliasRow.domain_id)
        .outerjoin(ServingPolicyRow, ServingPolicyRow.domain_id == BuildAliasRow.domain_id)
        .where(BuildRow.id.in_(inputs), BuildAliasRow.name == func.coalesce(ServingPolicyRow.alias, PRODUCTION))
        .order_by(DomainRow.name)
    )
    found += _named("it is in", [f"{name}@{alias} ({id_})" for name, alias, id_ in session.execute(served)])

    later = aliased(PublicationRow)
    published = (
        select(PublicationRow.repo)
        .where(
            _carries(row, inputs),
            PublicationRow.id.not_in(select(WithdrawalRow.publication_id)),
            ~select(later.id).where(later.repo == PublicationRow.repo, later.id > PublicationRow.id).exists(),
        )
        .order_by(PublicationRow.repo)
    )
    return found + _named("it is published in", [*session.scalars(published)])


def _carries(row: AdapterRow, builds: Select[Any]) -> ColumnElement[bool]:
    return or_(PublicationRow.build_id.in_(builds), PublicationRow.adapter_id == row.id)


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{what} {', '.join(names[:NAMED])}{more}"]
