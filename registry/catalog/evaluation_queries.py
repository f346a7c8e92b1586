"""Queries that look at adapters and at what was measured of them together."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, and_, exists, or_, select
from sqlalchemy.orm import Session, aliased

from ..database.tables import AdapterMetricRow, AdapterRow, BaseModelRow, EvaluationMetricRow, EvaluationRow
from ..errors import NotFoundError
from .filters import MetricBound
from .references import SPIRIT

SHOWN_SPLIT = "test"  # what stands for a system in lists: its newest evaluation on this split


def measured_adapters() -> tuple[Select[Any], type[EvaluationRow]]:
    """Adapter versions beside the newest evaluation of each on the test split of its own domain, of a spirit on any."""
    row, later = aliased(EvaluationRow), aliased(EvaluationRow)
    own = or_(AdapterRow.role == SPIRIT, row.domain_id == AdapterRow.domain_id)
    newer = exists().where(
        later.weights == row.weights,
        later.on_base == row.on_base,
        later.split == SHOWN_SPLIT,
        later.id > row.id,
        or_(AdapterRow.role == SPIRIT, later.domain_id == row.domain_id),
    )
    query = (
        select(AdapterRow.id)
        .join(BaseModelRow, BaseModelRow.id == AdapterRow.base_id)
        .join(row, and_(row.weights == AdapterRow.digest, row.on_base == BaseModelRow.digest, row.split == SHOWN_SPLIT))
        .where(own, ~newer)
    )
    return query, row


def figures_of_adapters(metric: str, bound: MetricBound | None = None) -> Select[int, float]:
    """(adapter id, value) of one metric, within a bound: as it was measured last, see `measured_adapters`; else as it was registered."""
    query, row = measured_adapters()
    measured = (
        query.add_columns(EvaluationMetricRow.value.label("value"))
        .join(EvaluationMetricRow, EvaluationMetricRow.evaluation_id == row.id)
        .where(EvaluationMetricRow.name == metric)
    )
    registered = select(AdapterMetricRow.adapter_id.label("id"), AdapterMetricRow.value.label("value")).where(
        AdapterMetricRow.name == metric,
        AdapterMetricRow.adapter_id.not_in(select(measured.subquery().c.id)),
    )
    if bound is not None:
        measured = measured.where(bound.holds(EvaluationMetricRow.value))
        registered = registered.where(bound.holds(AdapterMetricRow.value))
    both = measured.union_all(registered).subquery()
    return select(both.c.id, both.c.value)


def best_first(session: Session, ids: Select[Any], id_: Any, metric: str, after: int | None) -> list[int]:
    """A page of adapters' ids among `ids`, whose column is `id_`: the largest value of the metric first; `after` is one of them.

    Raises NotFoundError where `after` has no such metric.
    """
    figures = figures_of_adapters(metric).subquery()
    ids = ids.join(figures, figures.c.id == id_)
    if after is not None:
        last = session.scalar(select(figures.c.value).where(figures.c.id == after))
        if last is None:
            raise NotFoundError(f"the version to start after has no metric {metric!r}")
        ids = ids.where(or_(figures.c.value < last, and_(figures.c.value == last, id_ < after)))
    return [*session.scalars(ids.order_by(figures.c.value.desc(), id_.desc()))]
