"""Adapter versions as records, and the writing of their rows, aliases and events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from ..database.tables import AdapterRow, AdapterWordsRow, AliasRow, EventRow
from ..errors import ConflictError, UsageError
from . import events
from .annotations import annotation_of, search_words
from .events import EventIds
from .expecting import Expected
from .gates import Passage, detail_of_move, detail_of_override
from .lookup import check_kind, mark_current_spirits, ref_of
from .records import NOT_IN_JSON, Record
from .references import CHAMPION, LORA, SPIRIT, Reference
from .registration import Labels
from .training import TrainingContext


@dataclass(frozen=True)
class Adapter(Record):
    """One version. `ref` is its reference by version; `domain` is None for a spirit; `bytes` counts its tensors; `kind` is `lora` for all
    that may be mixed.

    `description`, `note`, `tags`, `metrics` and `links` are what holds now: people edit them (see `Edits`). All else never changes.
    """

    ref: str
    role: str
    domain: str | None
    base: str
    version: int
    digest: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    tensors: int
    bytes: int
    metrics: Mapping[str, float]
    tags: tuple[str, ...]
    note: str | None
    context: Mapping[str, Any]
    aliases: tuple[str, ...]
    archived_at: datetime | None
    created_at: datetime
    created_by: str
    description: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    kind: str = LORA
    created: bool = field(default=False, metadata=NOT_IN_JSON)
    skipped: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)
    ignored: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)
    notes: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)

    @property
    def training(self) -> TrainingContext:
        """How it came about: its context, as far as that has the known form."""
        return TrainingContext.of(self.context)


@dataclass(frozen=True)
class AdapterAlias(Record):
    """An alias of adapters: which version has it, since which event and moment, and who put it there."""

    domain: str
    base: str
    alias: str
    ref: str
    event: int
    since: datetime
    by: str


def aliases_in(session: Session, domain: str, domain_id: int, base_id: int | None) -> list[AdapterAlias]:
    """The aliases of a domain's versions, by name and base."""
    query = (
        select(AliasRow, AdapterRow, EventRow)
        .join(AdapterRow, AdapterRow.id == AliasRow.adapter_id)
        .join(EventRow, EventRow.id == AliasRow.event_id)
        .where(AliasRow.domain_id == domain_id)
    )
    if base_id is not None:
        query = query.where(AliasRow.base_id == base_id)
    found = [
        AdapterAlias(domain, row.base.name, alias.name, ref_of(row), event.id, event.created_at, event.created_by)
        for alias, row, event in session.execute(query)
    ]
    return sorted(found, key=lambda each: (each.alias, each.base))


def set_alias(
    session: Session, row: AdapterRow, name: str, passage: Passage | None = None, expected: Expected | None = None
) -> None:
    """In a transaction that has the domain locked. Raises ConflictError for an archived version, WrongKindError for a champion
    that is no plain LoRA, GateError without what the gate asks for, PreconditionError.
    """
    if row.archived_at is not None:
        raise ConflictError(f"{ref_of(row)} is archived and takes no alias")
    if name == CHAMPION:
        check_kind(row, LORA)  # it names what is mixed
    alias = session.get(AliasRow, (row.base_id, row.domain_id, name))
    if expected is not None:
        expected.check(f"{row.domain.name}@{name}", alias and alias.event_id)
    if alias is None or alias.adapter_id != row.id:
        before = None if alias is None else session.get_one(AdapterRow, alias.adapter_id)
        more = detail_of_move(session, row.domain_id, name, ref_of(before) if before else None, passage)
        append_event(session, "alias.set" if before is None else "alias.moved", row, name, before=before, more=more)
        session.refresh(row, ["aliases"])
        mark_current_spirit(session, row)


def set_aliases(session: Session, row: AdapterRow, labels: Labels) -> tuple[str, ...]:
    """All aliases that the version then has."""
    for name in labels.aliases:
        set_alias(session, row, name)
    return tuple(alias.name for alias in row.aliases)


def detail_of_removal(session: Session, row: AdapterRow, alias: str, override: str | None) -> dict[str, Any]:
    """What the event has to say that takes the alias from the version. Raises GateError, UsageError."""
    name = row.domain.name
    if alias == CHAMPION:
        why = f"{name} has a gate, and without a champion its name would mean no version, and nothing could be built of it"
        command = f"reccocktail adapter alias {Reference(name, alias=alias)} --remove"
        return detail_of_override(session, row.domain_id, why, override, command=command)
    if override is not None:
        raise UsageError(f"only {CHAMPION} has a gate: --override is for it")
    return {}


def detail_of_archiving(session: Session, row: AdapterRow, override: str | None) -> dict[str, Any]:
    """As `detail_of_removal`, of the event that archives the version."""
    if any(alias.name == CHAMPION for alias in row.aliases):
        why = f"{row.domain.name} has a gate, and without its champion its name would mean no version, and nothing could be built of it"
        command = f"reccocktail adapter archive {ref_of(row)} --force"
        return detail_of_override(session, row.domain_id, why, override, command=command)
    if override is not None:
        raise UsageError(f"only {CHAMPION} has a gate: --override is for it")
    return {}


def insert_version(session: Session, row: AdapterRow) -> Adapter:
    """Writes the row with its words for searching, and its event."""
    session.add(row)
    session.flush()
    words = row.domain.name + search_words(row.note, row.tags)
    session.add(AdapterWordsRow(adapter_id=row.id, words=words))
    set_committed_value(row, "aliases", [])  # a new version has none, so no query is needed
    set_committed_value(row, "annotation", None)
    added = adapter_of(row)
    events.append(
        session,
        "adapter.added",
        added.ref,
        {"base": row.base.name, "digest": row.digest},
        EventIds(base_id=row.base_id, domain_id=row.domain_id, adapter_id=row.id),
    )
    mark_current_spirit(session, row)
    return added


def append_event(
    session: Session,
    kind: str,
    row: AdapterRow | None,
    alias: str | None = None,
    *,
    before: AdapterRow | None = None,
    more: Mapping[str, Any] | None = None,
) -> EventRow:
    """An event about the version, or about its alias, which was on `before`."""
    place = row or before
    assert place is not None
    detail = {"base": place.base.name, **(more or {})}
    if alias is not None:
        detail |= {"from": ref_of(before)} if before else {}
        detail |= {"to": ref_of(row)} if row else {}
    subject = ref_of(place) if alias is None else str(Reference(place.domain.name, alias=alias))
    return events.append(
        session,
        kind,
        subject,
        detail,
        EventIds(
            base_id=place.base_id,
            domain_id=place.domain_id,
            adapter_id=row.id if row else None,
            previous_id=before.id if before else None,
            alias=alias,
        ),
    )


def mark_current_spirit(session: Session, row: AdapterRow) -> None:
    """As `mark_current_spirits`, where the version is a spirit."""
    if row.role == SPIRIT:
        mark_current_spirits(session, row.domain_id)


def adapter_of(row: AdapterRow) -> Adapter:
    now = annotation_of(row)
    return Adapter(
        ref=ref_of(row),
        role=row.role,
        domain=None if row.role == SPIRIT else row.domain.name,
        base=row.base.name,
        version=row.version,
        digest=row.digest,
        rank=row.rank,
        alpha=row.alpha,
        target_modules=tuple(row.target_modules),
        tensors=row.tensors,
        bytes=row.bytes,
        metrics=now.metrics,
        tags=now.tags,
        note=now.note,
        context=row.context,
        aliases=tuple(alias.name for alias in row.aliases),
        archived_at=row.archived_at,
        created_at=row.created_at,
        created_by=row.created_by,
        description=now.description,
        links=now.links,
        kind=row.kind,
    )
