"""Results of builds that nobody needs any more: which they are, and the event by which they go.

The row of such a build stays, with `collected_at`; its files are waste for the store from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, exists, func, or_, select
from sqlalchemy.orm import aliased

from ..database.connection import Database
from ..database.tables import BuildAliasRow, BuildPinRow, BuildRow, DomainRow, PublicationRow, WithdrawalRow
from ..errors import ConflictError
from . import events
from .domains import find_domain
from .events import EventIds
from .references import MERGE


def unneeded(before: datetime) -> Select[BuildRow]:
    """Builds that succeeded before the moment, have no alias and no pin, and are neither their domain's newest for their base, or of an
    index the newest of their bi-tuning, nor what a repository on the Hub got last."""
    newer = aliased(BuildRow)
    later = or_(
        newer.finished_at > BuildRow.finished_at,
        and_(newer.finished_at == BuildRow.finished_at, newer.id > BuildRow.id),
    )
    same_place = (newer.domain_id == BuildRow.domain_id, newer.base_id == BuildRow.base_id, newer.kind == BuildRow.kind)
    same_index = newer.inputs["bundle"].as_string() == BuildRow.inputs["bundle"].as_string()
    return (
        select(BuildRow)
        .where(
            BuildRow.status == "succeeded",
            BuildRow.collected_at.is_(None),
            BuildRow.finished_at < before,
            BuildRow.id.not_in(select(BuildAliasRow.build_id)),
            BuildRow.id.not_in(select(BuildPinRow.build_id)),
            BuildRow.id.not_in(_published_last()),
            exists().where(newer.status == "succeeded", *same_place, or_(BuildRow.kind == MERGE, same_index), later),
        )
        .order_by(BuildRow.id)
    )


def _published_last() -> Select[Any]:
    last = select(func.max(PublicationRow.id)).group_by(PublicationRow.repo)
    withdrawn = select(WithdrawalRow.publication_id)
    return select(PublicationRow.build_id).where(
        PublicationRow.id.in_(last), PublicationRow.build_id.is_not(None), PublicationRow.id.not_in(withdrawn)
    )


def collect(database: Database, before: datetime, *, dry_run: bool) -> list[str]:
    """The ids of those that go, or of those that would: one transaction for each domain, in which nobody else moves its aliases and pins."""
    with database.reading() as session:
        query = unneeded(before).join(DomainRow, DomainRow.id == BuildRow.domain_id)
        found = [*session.execute(query.with_only_columns(BuildRow.id, DomainRow.name))]
    if dry_run:
        return [id_ for id_, _ in found]
    gone: list[str] = []
    for domain in dict.fromkeys(name for _, name in found):
        with database.writing() as session:
            place = find_domain(session, domain, lock=True)
            for row in session.scalars(unneeded(before).where(BuildRow.domain_id == place.id)).all():
                about = {"domain": domain, "base": row.base.name, "digest": row.digest}
                ids = EventIds(base_id=row.base_id, domain_id=row.domain_id)
                events.append(session, "build.collected", row.id, about, ids)
                gone.append(row.id)
    return gone


def request_options(inputs: Mapping[str, Any]) -> str:
    """Those of `build request` that ask for a build of these inputs again, with a space before them."""
    if "bundle" in inputs:
        return f" --adapter {inputs['adapters'][0]['ref']}"
    recipe = (inputs.get("recipe") or {}).get("ref")
    return f" --recipe {recipe}" if recipe else ""


def result_is_gone(build_id: str, domain: str, options: str, since: datetime) -> ConflictError:
    """The error for whatever needs the files of such a build; `options` of `build request`, with a space before them, ask for it again."""
    return ConflictError(
        f"the result of build {build_id} of {domain} was removed from the store at {since:%Y-%m-%d %H:%M} UTC",
        hint=f"build it again: `reccocktail build request {domain}{options} --wait`",
    )
