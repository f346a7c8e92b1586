"""What happened to adapters, and what a reference meant at a moment that has passed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from ..database.tables import AdapterRow, EventRow
from ..errors import GateError, NotFoundError, UsageError
from .annotations import Annotation, annotation_of
from .bases import find_base
from .domains import find_domain
from .events import Event, event_of
from .gates import GATINGS
from .lookup import check_kind, no_champion, ref_of
from .references import CHAMPION, LORA, Reference

ARCHIVINGS = ("adapter.archived", "adapter.restored")
KINDS = ("adapter.added", "adapter.edited", *ARCHIVINGS, "alias.set", "alias.moved", "alias.removed")


@dataclass(frozen=True)
class Past:
    """A version as it was at a moment: which aliases it had, since when it was archived, if it was, and what people had written of it."""

    row: AdapterRow
    aliases: tuple[str, ...]
    archived_at: datetime | None
    about: Annotation


def of_adapter(session: Session, adapter_id: int, limit: int, after: int | None) -> list[Event]:
    """What happened to one version, aliases that left it included; newest first."""
    here = or_(EventRow.adapter_id == adapter_id, EventRow.previous_id == adapter_id)
    return _page(session, here, limit, after)


def of_domain(session: Session, domain_id: int, base_id: int | None, limit: int, after: int | None) -> list[Event]:
    """What happened to a domain's versions and aliases; newest first."""
    here = (EventRow.domain_id == domain_id) & EventRow.kind.in_(KINDS)
    return _page(session, here if base_id is None else here & (EventRow.base_id == base_id), limit, after)


def of_alias(
    session: Session, domain_id: int, base_id: int | None, alias: str, limit: int, after: int | None
) -> list[Event]:
    """Where an alias was put, moved and removed; newest first."""
    here = (EventRow.domain_id == domain_id) & (EventRow.alias == alias)
    return _page(session, here if base_id is None else here & (EventRow.base_id == base_id), limit, after)


def _page(session: Session, here: ColumnElement[bool], limit: int, after: int | None) -> list[Event]:
    query = select(EventRow).where(here).order_by(EventRow.id.desc()).limit(limit)
    if after is not None:
        query = query.where(EventRow.id < after)
    return [event_of(row) for row in session.scalars(query)]


def find_at(session: Session, ref: Reference, base: str | None, moment: datetime, kind: str | None = None) -> Past:
    """What the reference meant then. Raises NotFoundError, WrongKindError, GateError, and UsageError for versions of several bases."""
    domain = find_domain(session, ref.name)
    if base is not None:
        bases = [find_base(session, base).id]
    else:
        bases = [*session.scalars(select(AdapterRow.base_id).where(AdapterRow.domain_id == domain.id).distinct())]
    found, refused = list[Past](), None
    for base_id in bases:
        try:
            past = _find_in(session, ref, (base_id, domain.id), moment, kind)
        except GateError as error:
            refused = error
        else:
            found += [past] if past is not None else []
    if not found:
        raise refused or NotFoundError(
            f"there was no {str(ref)!r} at {moment.isoformat()}", hint=f"reccocktail adapter log {ref.name}"
        )
    if len(found) > 1:
        names = " and ".join(sorted(past.row.base.name for past in found))
        raise UsageError(f"{str(ref)!r} meant versions for several base models: {names}", hint="say --base NAME")
    check_kind(found[0].row, kind)
    return found[0]


def _find_in(
    session: Session, ref: Reference, place: tuple[int, int], moment: datetime, kind: str | None
) -> Past | None:
    base_id, domain_id = place
    here = (EventRow.base_id == base_id, EventRow.domain_id == domain_id, EventRow.created_at <= moment)
    by_alias = select(func.max(EventRow.id)).where(*here, EventRow.alias.is_not(None)).group_by(EventRow.alias)
    by_version = select(func.max(EventRow.id)).where(*here, EventRow.kind.in_(ARCHIVINGS)).group_by(EventRow.adapter_id)
    newest = select(EventRow).where(EventRow.id.in_(by_alias.union_all(by_version)))
    aliases: dict[str, int | None] = {}
    archived: dict[int, datetime] = {}
    for event in session.scalars(newest):
        if event.alias is not None:
            aliases[event.alias] = event.adapter_id
        elif event.kind == "adapter.archived" and event.adapter_id is not None:
            archived[event.adapter_id] = event.created_at

    versions = select(AdapterRow).where(
        AdapterRow.base_id == base_id, AdapterRow.domain_id == domain_id, AdapterRow.created_at <= moment
    )
    if ref.version is not None:
        row = session.scalar(versions.where(AdapterRow.version == ref.version))
    elif ref.alias is not None:
        there = aliases.get(ref.alias)
        row = None if there is None else session.get(AdapterRow, there)
    elif (champion := aliases.get(CHAMPION)) is not None and champion not in archived:
        row = session.get(AdapterRow, champion)
    else:
        active = versions.where(AdapterRow.id.not_in(archived))
        newest = active.order_by(AdapterRow.kind != (kind or LORA), AdapterRow.version.desc())
        row = session.scalar(newest.limit(1))
        if row is not None and row.kind == LORA and kind in (None, LORA) and _was_gated(session, domain_id, moment):
            raise no_champion(ref.name, ref_of(row), row.base.name, when=f" at {moment.isoformat()}")
    if row is None:
        return None
    names = sorted(name for name, adapter_id in aliases.items() if adapter_id == row.id)
    return Past(row, tuple(names), archived.get(row.id), _about_then(session, row, moment))


def _was_gated(session: Session, domain_id: int, moment: datetime) -> bool:
    here = (EventRow.domain_id == domain_id, EventRow.kind.in_(GATINGS), EventRow.created_at <= moment)
    return session.scalar(select(EventRow.kind).where(*here).order_by(EventRow.id.desc()).limit(1)) == "domain.gated"


def _about_then(session: Session, row: AdapterRow, moment: datetime) -> Annotation:
    """What people have written of it now, without what was edited since."""
    edited = (EventRow.adapter_id == row.id, EventRow.kind == "adapter.edited", EventRow.created_at > moment)
    found = annotation_of(row)
    for detail in session.scalars(select(EventRow.detail).where(*edited).order_by(EventRow.id.desc())):
        before = {name: each["from"] for name, each in detail["changed"].items()}
        found = replace(found, **before | ({"tags": tuple(before["tags"])} if "tags" in before else {}))
    return found
