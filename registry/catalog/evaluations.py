"""Evaluations: what was measured of which system, on which questions, by whom and when. Rows are only added."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, func, or_, select, tuple_

from ..database.connection import Database
from ..database.tables import (
    EvaluationMetricRow,
    EvaluationRow,
)
from ..errors import NotFoundError
from ..redaction import redacted, redacted_values
from . import events
from .domains import find_domain
from .evaluation_queries import SHOWN_SPLIT, Order, newest_evaluations
from .events import EventIds
from .filters import MetricBound
from .records import Record
from .references import Reference

if TYPE_CHECKING:
    from .builds import Build
    from .versions import Adapter

PAIRS_AT_ONCE, DIGESTS_AT_ONCE = 400, 10_000  # databases bound the parameters of one statement


@dataclass(frozen=True)
class Weights:
    """What a system's figures follow from: a checkpoint's digest, or an adapter's and that of the base under it."""

    digest: str
    on_base: str = ""


def weights_of_build(build: Build, base_digest: str) -> Weights:
    """What a build that has succeeded made: a checkpoint, or an adapter on its base."""
    assert build.digest is not None
    is_adapter = build.recipe.get("output", {}).get("format") == "adapter"
    return Weights(build.digest, base_digest if is_adapter else "")


@dataclass(frozen=True)
class Measurement:
    """What is to be recorded. `key` names everything that decides the figures, the version of the code included.

    `questions` is a digest of users and candidates, whatever the wording; `metrics` are of name → mean, low, high, n; `ranks` is the
    digest of a tree in the store.
    """

    key: str
    system: str
    weights: Weights
    label: str
    domain: str
    mode: str
    dtype: str
    task_digest: str
    task: Mapping[str, Any]
    questions: str
    users: int
    metrics: Mapping[str, Mapping[str, float]]
    detail: Mapping[str, Any]
    ranks: str
    version: str


@dataclass(frozen=True)
class EvaluationRecord(Record):
    """One evaluation as it was recorded. `label` is what the system was called then; `weights` and `on_base` are digests."""

    id: int
    label: str
    domain: str
    split: str
    mode: str
    dtype: str
    users: int
    metrics: Mapping[str, Mapping[str, float]]
    system: str
    weights: str
    on_base: str
    task: Mapping[str, Any]
    task_digest: str
    questions: str
    detail: Mapping[str, Any]
    ranks: str
    version: str
    created_at: datetime
    created_by: str

    def mean(self, metric: str) -> float | None:
        found = self.metrics.get(metric)
        return None if found is None else found["mean"]

    def brief(self) -> dict[str, Any]:
        """As it stands inside another document; `to_json` has the rest."""
        names = ("id", "domain", "split", "mode", "users", "metrics", "created_at", "created_by")
        return {name: value for name, value in self.to_json().items() if name in names}


@dataclass(frozen=True)
class EvaluationFilter:
    """Which evaluations: every condition has to hold."""

    domain: str | None = None
    weights: Weights | None = None
    split: str | None = None
    mode: str | None = None
    metrics: Sequence[MetricBound] = ()


class Evaluations:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, measured: Measurement) -> EvaluationRecord:
        """Records it; an equal one that was recorded meanwhile is the answer. Raises NotFoundError for the domain."""
        with self._database.writing() as session:
            domain = find_domain(session, measured.domain, lock=True)
            known = session.scalar(select(EvaluationRow).where(EvaluationRow.key == measured.key))
            if known is not None:
                return _record(known)
            row = EvaluationRow(
                key=measured.key,
                system=measured.system,
                weights=measured.weights.digest,
                on_base=measured.weights.on_base,
                label=redacted(measured.label),
                domain_id=domain.id,
                split=measured.task["split"],
                mode=measured.mode,
                dtype=measured.dtype,
                task_digest=measured.task_digest,
                task=dict(measured.task),
                questions=measured.questions,
                users=measured.users,
                metrics={name: dict(interval) for name, interval in measured.metrics.items()},
                detail=redacted_values(dict(measured.detail)),
                ranks=measured.ranks,
                version=measured.version,
            )
            session.add(row)
            session.flush()
            about = {"system": row.label, "domain": domain.name, "split": row.split, "mode": row.mode}
            events.append(session, "evaluation.recorded", str(row.id), about, EventIds(domain_id=domain.id))
            return _record(row)

    def by_key(self, key: str) -> EvaluationRecord | None:
        with self._database.reading() as session:
            row = session.scalar(select(EvaluationRow).where(EvaluationRow.key == key))
            return row and _record(row)

    def get(self, id_: int) -> EvaluationRecord:
        """Raises NotFoundError."""
        with self._database.reading() as session:
            row = session.get(EvaluationRow, id_) if id_ < 1 << 63 else None
            if row is None:
                raise NotFoundError(
                    f"there is no evaluation {id_}", hint="`reccocktail evaluation list` shows all evaluations"
                )
            return _record(row)

    def list(
        self,
        wanted: EvaluationFilter | None = None,
        *,
        sort: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> builtins.list[EvaluationRecord]:
        """Newest first, or with `sort` the best in that metric first, of those that have it.

        `after` is the id of the last evaluation of the page before. Raises NotFoundError.
        """
        wanted = wanted or EvaluationFilter()
        with self._database.reading() as session:
            conditions: list[ColumnElement[bool]] = []
            if wanted.domain is not None:
                conditions.append(EvaluationRow.domain_id == find_domain(session, wanted.domain).id)
            if wanted.weights is not None:
                conditions += [
                    EvaluationRow.weights == wanted.weights.digest,
                    EvaluationRow.on_base == wanted.weights.on_base,
                ]
            if wanted.split is not None:
                conditions.append(EvaluationRow.split == wanted.split)
            if wanted.mode is not None:
                conditions.append(EvaluationRow.mode == wanted.mode)
            for bound in wanted.metrics:
                measured = select(EvaluationMetricRow.evaluation_id).where(
                    EvaluationMetricRow.name == bound.name, bound.holds(EvaluationMetricRow.value)
                )
                conditions.append(EvaluationRow.id.in_(measured))
            query = select(EvaluationRow).where(*conditions).limit(limit)
            if sort is None:
                query = query.order_by(EvaluationRow.id.desc())
                if after is not None:
                    query = query.where(EvaluationRow.id < after)
                return [_record(row) for row in session.scalars(query)]
            value, id_, order = (
                EvaluationMetricRow.value,
                EvaluationMetricRow.evaluation_id,
                Order(sort, (), after, limit),
            )
            query = query.join(EvaluationMetricRow, id_ == EvaluationRow.id).where(EvaluationMetricRow.name == sort)
            if after is not None:
                last = session.scalar(select(value).where(EvaluationMetricRow.name == sort, id_ == after))
                if last is None:
                    raise NotFoundError(f"there is no evaluation {after} with the metric {sort}")
                query = query.where(or_(order.behind(value, last), and_(value == last, id_ < after)))
            return [_record(row) for row in session.scalars(query.order_by(order.first(value), id_.desc()))]

    def newest(
        self, systems: Iterable[Weights], *, split: str = SHOWN_SPLIT, domain: str | None = None
    ) -> dict[Weights, EvaluationRecord]:
        """The newest evaluation of each system on the split, in any domain or in one; systems without one are left out.

        One query for every 400 systems.
        """
        pairs = [(system.digest, system.on_base) for system in dict.fromkeys(systems)]
        found: dict[Weights, EvaluationRecord] = {}
        with self._database.reading() as session:
            here = [EvaluationRow.split == split]
            if domain is not None:
                here.append(EvaluationRow.domain_id == find_domain(session, domain).id)
            for start in range(0, len(pairs), PAIRS_AT_ONCE):
                some = pairs[start : start + PAIRS_AT_ONCE]
                ids = (
                    select(func.max(EvaluationRow.id))
                    .where(*here, tuple_(EvaluationRow.weights, EvaluationRow.on_base).in_(some))
                    .group_by(EvaluationRow.weights, EvaluationRow.on_base)
                )
                for row in session.scalars(select(EvaluationRow).where(EvaluationRow.id.in_(ids))):
                    found[Weights(row.weights, row.on_base)] = _record(row)
        return found

    def newest_in_domains(self, systems: Iterable[Weights]) -> dict[tuple[Weights, str, str], EvaluationRecord]:
        """(system, domain, split) → the newest evaluation of the system there; one query for every 10,000 digests."""
        wanted = {*systems}
        digests = sorted({system.digest for system in wanted})
        place = (EvaluationRow.weights, EvaluationRow.on_base, EvaluationRow.domain_id, EvaluationRow.split)
        found: dict[tuple[Weights, str, str], EvaluationRecord] = {}
        with self._database.reading() as session:
            for start in range(0, len(digests), DIGESTS_AT_ONCE):
                some = EvaluationRow.weights.in_(digests[start : start + DIGESTS_AT_ONCE])
                ids = select(func.max(EvaluationRow.id)).where(some).group_by(*place)
                for row in session.scalars(select(EvaluationRow).where(EvaluationRow.id.in_(ids))):
                    if (system := Weights(row.weights, row.on_base)) in wanted:
                        found[system, row.domain.name, row.split] = _record(row)
        return found

    def of_systems(self, systems: Iterable[Weights]) -> builtins.list[EvaluationRecord]:
        """All evaluations of these systems, oldest first; a page of 1000 of the newest."""
        pairs = [(system.digest, system.on_base) for system in systems]
        named = tuple_(EvaluationRow.weights, EvaluationRow.on_base).in_(pairs)
        query = select(EvaluationRow).where(named).order_by(EvaluationRow.id.desc()).limit(1000)
        with self._database.reading() as session:
            return [_record(row) for row in session.scalars(query)][::-1]

    def of_adapters(self, adapters: Iterable[Adapter]) -> dict[tuple[str, str], EvaluationRecord]:
        """(base, reference) → the newest evaluation on the test split of the version's own domain, of a spirit on any; in one query."""
        wanted = {(each.base, each.digest) for each in adapters}
        if not wanted:
            return {}
        query = newest_evaluations(digest for _, digest in wanted)
        with self._database.reading() as session:
            return {
                (base, str(Reference(name, version=version))): _record(found)
                for base, name, version, found in session.execute(query)
                if (base, found.weights) in wanted
            }


def _record(row: EvaluationRow) -> EvaluationRecord:
    return EvaluationRecord(
        id=row.id,
        label=row.label,
        domain=row.domain.name,
        split=row.split,
        mode=row.mode,
        dtype=row.dtype,
        users=row.users,
        metrics=row.metrics,
        system=row.system,
        weights=row.weights,
        on_base=row.on_base,
        task=row.task,
        task_digest=row.task_digest,
        questions=row.questions,
        detail=row.detail,
        ranks=row.ranks,
        version=row.version,
        created_at=row.created_at,
        created_by=row.created_by,
    )
