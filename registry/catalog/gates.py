"""Gates: what a domain asks of a version before it becomes champion, of a build before it is served, and who approved it."""

from __future__ import annotations

import builtins
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import ApprovalRow, DomainRow, EventRow, GateRow
from ..errors import ConflictError, GateError, UsageError
from . import events
from .build_queries import find_build_locked
from .domains import find_domain
from .events import EventIds
from .lookup import find_adapter, find_adapter_locked, mark_current_spirits, ref_of
from .records import Record
from .references import CHAMPION, SPIRIT

Opponent = Literal["champion", "parents"]
SPLITS = ("test", "cold", "validation")
GATINGS = ("domain.gated", "domain.ungated")


@dataclass(frozen=True)
class Requirement:
    """In `metric`, with this confidence, not worse than `against` by more than `margin`; a negative margin asks for so much better.

    `champion` is what the alias is on now, of a build what is served now; `parents` are, of an adapter, its base model alone, and of a build
    every adapter in it alone.
    """

    metric: str
    against: Opponent = "champion"
    margin: float = 0.0
    confidence: float = 0.95
    split: str = "test"

    @classmethod
    def read(cls, given: object) -> Requirement:
        """Raises UsageError for what is no requirement."""
        hint = "write metric=NDCG@3,against=champion,margin=0.02,confidence=0.95"
        if not isinstance(given, Mapping) or not isinstance(given.get("metric"), str):
            raise UsageError("a gate's requirement names a metric", hint=hint)
        if unknown := sorted(map(str, given.keys() - cls.__dataclass_fields__.keys())):
            raise UsageError(f"a gate's requirement has no {unknown[0]!r}", hint=hint)
        try:
            numbers = {name: float(given[name]) for name in ("margin", "confidence") if name in given}
        except (TypeError, ValueError):
            raise UsageError("margin and confidence of a gate are numbers", hint=hint) from None
        found = cls(**{**given, **numbers})
        if not re.fullmatch(r"(HR|NDCG)@[1-9]\d{0,3}|MRR|AUC", found.metric):
            raise UsageError(f"no metric is called {found.metric!r}", hint="metrics are HR@k, NDCG@k, MRR and AUC")
        if found.against not in get_args(Opponent):
            raise UsageError(f"a gate compares against champion or parents, not {found.against!r}", hint=hint)
        if found.split not in SPLITS:
            raise UsageError(f"there is no split {found.split!r}", hint=f"splits are {', '.join(SPLITS)}")
        if not 0.5 <= found.confidence < 1:
            raise UsageError(f"the confidence {found.confidence:g} is not from 0.5 to below 1", hint=hint)
        if not math.isfinite(found.margin) or abs(found.margin) >= 1:
            raise UsageError(f"the margin {found.margin:g} is not between -1 and 1", hint=hint)
        return found


@dataclass(frozen=True)
class Gate(Record):
    """What a domain asks for; `require` is as in `Requirement`, `approvals` how many people besides who registered it approve.

    `version` counts the gates that the domain has had; `created_at` and `created_by` are of this one.
    """

    domain: str
    version: int
    require: Mapping[str, Any] | None
    approvals: int
    created_at: datetime
    created_by: str

    @property
    def requirement(self) -> Requirement | None:
        return None if self.require is None else Requirement.read(self.require)


@dataclass(frozen=True)
class GateChange(Record):
    """A version of a domain's gate, or its removal (then `version`, `require` and `approvals` are None); `before` is what it replaced."""

    at: datetime
    by: str
    version: int | None
    require: Mapping[str, Any] | None
    approvals: int | None
    before: Mapping[str, Any] | None


@dataclass(frozen=True)
class Passage:
    """Why something may pass a gate: `evaluation` is its own that was looked at, `against` what it was compared with; or the override.

    `champion` is what had the place when that was found out: its reference or id; `gate` is the version of the gate that was asked.
    """

    champion: str | None
    gate: int | None = None
    evaluation: int | None = None
    against: tuple[Mapping[str, Any], ...] = ()
    override: str | None = None
    require: Mapping[str, Any] | None = None

    def detail(self) -> dict[str, Any]:
        """For the event of the move."""
        found = {
            "evaluation": self.evaluation,
            "against": [dict(each) for each in self.against],
            "require": self.require,
            "override": self.override,
        }
        return {name: value for name, value in found.items() if value}


class Gates:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, domain: str) -> Gate | None:
        """Raises NotFoundError for the domain."""
        with self._database.reading() as session:
            row = session.get(GateRow, find_domain(session, domain).id)
            return row and _gate(row, domain)

    def list(self) -> builtins.list[Gate]:
        query = select(GateRow, DomainRow.name).join(DomainRow, DomainRow.id == GateRow.domain_id)
        with self._database.reading() as session:
            return [_gate(row, name) for row, name in session.execute(query.order_by(DomainRow.name))]

    def set(self, domain: str, require: Requirement | None, approvals: int) -> Gate:
        """Sets the gate, or replaces it. Raises UsageError for one that asks for nothing."""
        if require is None and approvals < 1:
            raise UsageError(
                "a gate asks for something", hint="give --require or --approvals; --remove removes the gate"
            )
        with self._database.writing() as session:
            place = find_domain(session, domain, lock=True)
            row = session.get(GateRow, place.id, populate_existing=True)
            wanted = {"require": require and asdict(require), "approvals": approvals}
            before = row and {"require": row.requirement, "approvals": row.approvals}
            if row is not None and before == wanted:
                return _gate(row, domain)
            version = 1 + _times_set(session, place.id)
            detail = {**wanted, "version": version, "from": before}
            event = events.append(session, "domain.gated", domain, detail, EventIds(domain_id=place.id))
            row = row or GateRow(domain_id=place.id)
            row.requirement, row.approvals, row.version = wanted["require"], approvals, version
            row.created_at, row.created_by = event.created_at, event.created_by
            session.add(row)
            session.flush()
            _mark_spirits(session, place)
            return _gate(row, domain)

    def remove(self, domain: str) -> bool:
        """Whether there was one."""
        with self._database.writing() as session:
            place = find_domain(session, domain, lock=True)
            row = session.get(GateRow, place.id, populate_existing=True)
            if row is not None:
                detail = {"version": row.version, "from": {"require": row.requirement, "approvals": row.approvals}}
                events.append(session, "domain.ungated", domain, detail, EventIds(domain_id=place.id))
                session.delete(row)
                _mark_spirits(session, place)
            return row is not None

    def history(self, domain: str) -> builtins.list[GateChange]:
        """Who set or removed the domain's gate, when, from what to what; newest first. Raises NotFoundError for the domain."""
        with self._database.reading() as session:
            here = (EventRow.domain_id == find_domain(session, domain).id, EventRow.kind.in_(GATINGS))
            rows = session.scalars(select(EventRow).where(*here).order_by(EventRow.id)).all()
        found: builtins.list[GateChange] = []
        version, before = 0, None
        for row in rows:
            is_set = row.kind == "domain.gated"
            version += is_set
            after = {"require": row.detail["require"], "approvals": row.detail["approvals"]} if is_set else None
            told = after or {"require": None, "approvals": None}
            found.append(GateChange(row.created_at, row.created_by, version if is_set else None, **told, before=before))
            before = after
        return found[::-1]

    def approve_adapter(self, ref: str, *, base: str | None = None) -> builtins.list[str]:
        """In the name of the registry's actor; who has approved the version so far. Raises ConflictError for who registered it."""
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            ids = EventIds(base_id=row.base_id, domain_id=row.domain_id, adapter_id=row.id)
            return _approve(
                session, ApprovalRow(adapter_id=row.id), (ref_of(row), row.created_by), "adapter.approved", ids
            )

    def approve_build(self, id_: str) -> builtins.list[str]:
        """As `approve_adapter`, of a build, which somebody requested."""
        with self._database.writing() as session:
            row = find_build_locked(session, id_)
            ids = EventIds(base_id=row.base_id, domain_id=row.domain_id)
            return _approve(session, ApprovalRow(build_id=row.id), (row.id, row.created_by), "build.approved", ids)

    def approvers(self, *, adapter: tuple[str, str] | None = None, build: str | None = None) -> builtins.list[str]:
        """Who approved the adapter, given by reference and base, or the build of the id."""
        with self._database.reading() as session:
            if adapter is None:
                return _approvers(session, ApprovalRow.build_id == build)
            return _approvers(session, ApprovalRow.adapter_id == find_adapter(session, *adapter).id)


def _mark_spirits(session: Session, place: DomainRow) -> None:
    """A gate before spirits changes which are current: those without a champion are not."""
    if place.role == SPIRIT:
        mark_current_spirits(session, place.id)


def _approve(
    session: Session, approval: ApprovalRow, subject: tuple[str, str], kind: str, about: EventIds
) -> builtins.list[str]:
    name, author = subject
    here = (
        ApprovalRow.build_id == approval.build_id
        if approval.adapter_id is None
        else ApprovalRow.adapter_id == approval.adapter_id
    )
    event = events.append(session, kind, name, {}, about)
    approval.created_by = event.created_by
    if approval.created_by == author:
        raise ConflictError(
            f"{name} is by {author}, who cannot approve it", hint="somebody else approves it, in their own name (--as)"
        )
    if approval.created_by in (known := _approvers(session, here)):
        raise ConflictError(f"{approval.created_by} has approved {name} already")
    session.add(approval)
    session.flush()
    return [*known, approval.created_by]


def _approvers(session: Session, here: ColumnElement[bool]) -> builtins.list[str]:
    return [*session.scalars(select(ApprovalRow.created_by).where(here).order_by(ApprovalRow.id))]


def detail_of_move(
    session: Session, domain_id: int, alias: str, before: str | None, passage: Passage | None
) -> dict[str, Any]:
    """What an event of `champion` has to say of the gate, in the transaction that moves it; nothing where there is none.

    `before` is the reference of what has the alias now. Raises GateError without a passage, ConflictError where it is out of date.
    """
    if alias != CHAMPION:
        return {}
    return detail_of_promotion(session, domain_id, before, passage)


def is_gated(session: Session, domain_id: int) -> bool:
    return session.get(GateRow, domain_id, populate_existing=True) is not None


def detail_of_promotion(
    session: Session, domain_id: int, before: str | None, passage: Passage | None
) -> dict[str, Any]:
    """As `detail_of_move`, of whatever is promoted: a version, or a build of the id."""
    gate = session.get(GateRow, domain_id, populate_existing=True)
    if gate is None:
        return passage.detail() if passage is not None and passage.override else {}
    if passage is None:
        raise GateError(
            "the domain has a gate, which was not asked",
            hint="`reccocktail adapter alias REF champion` and `build promote ID` ask it; `domain gate DOMAIN` shows it",
        )
    if passage.override is None and passage.champion != before:
        raise ConflictError("champion was moved meanwhile", hint="run the same command again")
    if passage.override is None and passage.gate != gate.version:
        raise ConflictError("the gate was changed meanwhile", hint="run the same command again")
    return passage.detail() | {"gate": gate.version}


def detail_of_override(
    session: Session, domain_id: int, what: str, override: str | None, *, command: str
) -> dict[str, Any]:
    """What an event has to say that takes away what a gate let through: an override where there is a gate.

    `what` says in a sentence why the gate forbids it, and `command` is what to type with `--override`. Raises GateError, UsageError.
    """
    if override is not None:
        override = checked_override(override)
    gate = session.get(GateRow, domain_id, populate_existing=True)
    if gate is None:
        return {} if override is None else {"override": override}
    if override is None:
        raise GateError(what, hint=f'{command} --override "why"')
    return {"override": override, "gate": gate.version}


def checked_override(text: str) -> str:
    """Raises UsageError for one without a reason."""
    if not text.strip():
        raise UsageError("an override needs a reason", hint='--override "why"')
    return text.strip()


def _times_set(session: Session, domain_id: int) -> int:
    here = (EventRow.domain_id == domain_id, EventRow.kind == "domain.gated")
    return session.scalar(select(func.count()).select_from(EventRow).where(*here)) or 0


def _gate(row: GateRow, domain: str) -> Gate:
    return Gate(domain, row.version, row.requirement, row.approvals, row.created_at, row.created_by)
