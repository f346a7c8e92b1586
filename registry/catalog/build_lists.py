"""Lists of builds: filtered, in one of several orders, a page at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session

from ..database.tables import BuildInputRow, BuildRow, DomainRow
from ..errors import UsageError
from .build_queries import find_build
from .domains import find_domain
from .filters import BuildFilter
from .lookup import find_adapter

_recipe = BuildRow.inputs["recipe"]["ref"].as_string()
_NEVER = datetime(1, 1, 1, tzinfo=UTC)
_ORDERS: dict[str, tuple[Any, bool]] = {
    "started": (func.coalesce(BuildRow.started_at, _NEVER, type_=BuildRow.started_at.type), True),
    "finished": (func.coalesce(BuildRow.finished_at, _NEVER, type_=BuildRow.finished_at.type), True),
    "domain": (DomainRow.name, False),
    "status": (BuildRow.status, False),
    "recipe": (func.coalesce(_recipe, ""), False),
    "requester": (BuildRow.created_by, False),
}
"""What a list may be sorted by, and whether the largest comes first. Equal ones are sorted by id, the newest first."""

CREATED = "created"
SORTS = (CREATED, *_ORDERS)


def listed(session: Session, wanted: BuildFilter, sort: str, after: str | None) -> Select[BuildRow]:
    """The builds, in this order; `after` is the id that the page before ended with.

    The place of that build in the order is the one that it has now. Raises UsageError for another order than SORTS.
    """
    query = _filtered(session, wanted)
    last = None if after is None else find_build(session, after)
    if sort == CREATED:
        query = query.order_by(BuildRow.id.desc())
        return query if last is None else query.where(BuildRow.id < last.id)
    if sort not in _ORDERS:
        raise UsageError(f"builds cannot be sorted by {sort!r}", hint=f"one of {', '.join(SORTS)}")
    value, falls = _ORDERS[sort]
    if last is not None:
        reached = select(value).select_from(BuildRow).join(DomainRow, DomainRow.id == BuildRow.domain_id)
        mark = session.scalar(reached.where(BuildRow.id == last.id))
        query = query.where(or_(value < mark if falls else value > mark, and_(value == mark, BuildRow.id < last.id)))
    query = query.join(DomainRow, DomainRow.id == BuildRow.domain_id)
    return query.order_by(value.desc() if falls else value, BuildRow.id.desc())


def _filtered(session: Session, wanted: BuildFilter) -> Select[BuildRow]:
    query = select(BuildRow)
    if wanted.domain is not None:
        query = query.where(BuildRow.domain_id == find_domain(session, wanted.domain).id)
    if wanted.kind is not None:
        query = query.where(BuildRow.kind == wanted.kind)
    if wanted.status is not None:
        query = query.where(BuildRow.status == wanted.status)
    if wanted.recipe is not None:
        versions = _recipe.startswith(f"{wanted.recipe}@", autoescape=True)
        query = query.where(or_(_recipe == wanted.recipe, versions))
    if wanted.requester is not None:
        query = query.where(BuildRow.created_by == wanted.requester)
    if wanted.since is not None:
        query = query.where(BuildRow.created_at >= wanted.since)
    if wanted.adapter is not None:
        version = find_adapter(session, wanted.adapter.ref, wanted.adapter.base).id
        inputs = select(BuildInputRow.build_id).where(BuildInputRow.adapter_id == version)
        query = query.where(BuildRow.id.in_(inputs))
    return query
