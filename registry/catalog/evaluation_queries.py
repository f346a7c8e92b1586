"""Queries that look at adapters and at what was measured of them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, case, false, func, or_, select, true
from sqlalchemy.orm import Session, aliased

from ..database.tables import (
    AdapterMetricRow,
    AdapterRow,
    AdapterWordsRow,
    BaseModelRow,
    DomainRow,
    EvaluationMetricRow,
    EvaluationRow,
)
from ..errors import NotFoundError
from .filters import MetricBound
from .references import SPIRIT

SHOWN_SPLIT = "test"  # what stands for a system in lists: its newest evaluation on this split
FEW = 2_000  # figures or versions: so many are looked at one by one in a page's time


def newest_evaluations(digests: Iterable[str]) -> Select[str, str, int, EvaluationRow]:
    """(base, domain, version, its newest evaluation on the test split of its own domain, of a spirit on any) of versions with these digests."""
    query = select(BaseModelRow.name, DomainRow.name, AdapterRow.version, EvaluationRow)
    query = query.join_from(AdapterRow, DomainRow, DomainRow.id == AdapterRow.domain_id)
    return query.where(*_measured_of(), EvaluationRow.id == _newest(), EvaluationRow.weights.in_({*digests}))


def within(bounds: Iterable[MetricBound]) -> list[ColumnElement[bool]]:
    """Conditions on AdapterRow: its figures, measured last (see `newest_evaluations`) or else registered, are within the bounds."""
    figures = [(bound, func.coalesce(_measured(bound.name), _registered(bound.name))) for bound in bounds]
    return [value.is_not(None) if bound.sign is None else bound.holds(value) for bound, value in figures]


def narrowed(session: Session, ids: Select[Any], id_: Any, bounds: Iterable[MetricBound]) -> Select[Any]:
    """The ids without those, as far as they are quickly found, that no figure within the bounds speaks for; one or two queries for each."""
    for bound in bounds:
        few = _candidates(session, bound)
        ids = ids if few is None else ids.where(id_.in_(few))
    return ids


def best_first(session: Session, ids: Select[Any], id_: Any, order: Order) -> list[int]:
    """A page of adapters' ids among `ids`, whose column is `id_` beside AdapterRow: the largest figure first, of a loss the smallest.

    Of equal figures the measured come first, the newest evaluation before all, then the registered, the newest version first.
    Raises NotFoundError where the version to start after has no such metric.
    """
    last = None if order.after is None else _last(session, order.after, order.metric)
    some = [*session.scalars(ids.order_by(None).limit(FEW + 1))]
    if len(some) <= FEW:
        found = _places(session, some, order)
    else:
        found = _best_measured(session, ids, order, last)
        least = found[-1].value if len(found) == order.limit else None
        found += _best_registered(session, ids, order, last, least)
    ahead = sorted((place for place in found if last is None or place < last), reverse=True)
    return [place.adapter for place in ahead[: order.limit]]


@dataclass(frozen=True)
class Order:
    """A page of `limit` versions for which the conditions on AdapterRow hold, by a metric, behind the version whose id is `after`."""

    metric: str
    conditions: Sequence[ColumnElement[bool]]
    after: int | None
    limit: int

    @property
    def sign(self) -> int:
        """By which figures are multiplied so that the best is the largest: a loss is the better, the smaller it is."""
        return -1 if self.metric.lower().endswith("loss") else 1

    def behind(self, value: Any, other: float) -> ColumnElement[bool]:
        """Whether the figure in the column is worse than the other."""
        return value < other if self.sign > 0 else value > other

    def not_before(self, value: Any, other: float) -> ColumnElement[bool]:
        """Whether it is worse or the same, in a form that an index is gone along by."""
        return value <= other if self.sign > 0 else value >= other

    def first(self, value: Any) -> ColumnElement[Any]:
        return value.desc() if self.sign > 0 else value.asc()


class Place(NamedTuple):
    """Where an adapter stands among the figures of a metric; `evaluation` is 0 where the figure was registered.

    `value` is the figure by the order's sign.
    """

    value: float
    evaluation: int
    adapter: int


def _newest() -> Any:
    """The id of the evaluation that stands for the adapter of the query around it, see `newest_evaluations`."""
    on_base = select(BaseModelRow.digest).where(BaseModelRow.id == AdapterRow.base_id).correlate(AdapterRow)
    newest = select(func.max(EvaluationRow.id)).where(
        EvaluationRow.weights == AdapterRow.digest,
        EvaluationRow.on_base == on_base.scalar_subquery(),
        EvaluationRow.split == SHOWN_SPLIT,
        or_(AdapterRow.role == SPIRIT, EvaluationRow.domain_id == AdapterRow.domain_id),
    )
    return newest.correlate(AdapterRow).scalar_subquery()


def _measured(metric: str) -> Any:
    row = aliased(EvaluationMetricRow)
    value = select(row.value).where(row.name == metric, row.evaluation_id == _newest())
    return value.correlate(AdapterRow).scalar_subquery()


def _registered(metric: str) -> Any:
    row = aliased(AdapterMetricRow)
    value = select(row.value).where(row.name == metric, row.adapter_id == AdapterRow.id)
    return value.correlate(AdapterRow).scalar_subquery()


def _candidates(session: Session, bound: MetricBound) -> list[int] | None:
    """The versions with any figure within the bound, be it the newest or not; None where there are more than `FEW` figures."""
    evaluated, given = EvaluationMetricRow, AdapterMetricRow
    evaluations = select(evaluated.evaluation_id).where(evaluated.name == bound.name, bound.holds(evaluated.value))
    registered = select(given.adapter_id).where(given.name == bound.name, bound.holds(given.value))
    both = (evaluations.limit(FEW + 1).subquery(), registered.limit(FEW + 1).subquery())
    counts = (select(func.count()).select_from(each).scalar_subquery() for each in both)
    if sum(session.execute(select(*counts)).one()) > FEW:
        return None
    measured = select(AdapterRow.id).where(*_measured_of(), EvaluationRow.id.in_(evaluations))
    return [*session.scalars(measured.union(registered))]


def _measured_of() -> tuple[ColumnElement[bool], ...]:
    """What ties EvaluationRow to the adapters that were measured, as the index of their digests finds them."""
    spirits = select(DomainRow.id).where(DomainRow.name == SPIRIT).scalar_subquery()
    return (
        BaseModelRow.digest == EvaluationRow.on_base,
        AdapterRow.base_id == BaseModelRow.id,
        AdapterRow.digest == EvaluationRow.weights,
        AdapterRow.domain_id.in_([EvaluationRow.domain_id, spirits]),
    )


def _last(session: Session, adapter: int, metric: str) -> Place:
    found = _places(session, [adapter], Order(metric, (), None, 1))
    if not found:
        raise NotFoundError(f"the version to start after has no metric {metric!r}")
    return found[0]


def _places(session: Session, adapters: list[int], order: Order) -> list[Place]:
    """Where these stand; those without a figure are left out."""
    query = select(AdapterRow.id, _newest(), _registered(order.metric)).where(AdapterRow.id.in_(adapters))
    rows = session.execute(query.where(*order.conditions)).all()
    row = EvaluationMetricRow  # in a query of its own: joined, PostgreSQL would read the whole table
    newest = {evaluation for _, evaluation, _ in rows if evaluation is not None}
    values = select(row.evaluation_id, row.value).where(row.name == order.metric, row.evaluation_id.in_(newest))
    measured = dict(session.execute(values).all())
    return [
        Place(order.sign * measured[evaluation], evaluation, id_)
        if evaluation in measured
        else Place(order.sign * registered, 0, id_)
        for id_, evaluation, registered in rows
        if evaluation in measured or registered is not None
    ]


def _best_measured(session: Session, ids: Select[Any], order: Order, last: Place | None) -> list[Place]:
    """The page after `last` of those that were measured: along the index of figures until it is full."""
    value, evaluation, id_ = EvaluationMetricRow.value, EvaluationMetricRow.evaluation_id, AdapterRow.id
    base, *adapter = _measured_of()
    query = (
        select(value, evaluation, id_)
        .join(EvaluationRow, EvaluationRow.id == evaluation)
        .outerjoin(BaseModelRow, base)
        .outerjoin(AdapterRow, and_(*adapter))
        .outerjoin(AdapterWordsRow, AdapterWordsRow.adapter_id == id_)
        .where(EvaluationMetricRow.name == order.metric, _checked(ids, order, evaluation == _newest()))
    )
    if last is not None:
        figure = order.sign * last.value
        worse = order.behind(value, figure)
        before = or_(worse, and_(value == figure, evaluation < last.evaluation))
        same = and_(value == figure, evaluation == last.evaluation, id_ < last.adapter)
        query = query.where(order.not_before(value, figure), or_(before, same))
    query = query.order_by(order.first(value), evaluation.desc(), id_.desc()).limit(order.limit)
    return [Place(order.sign * found, *row) for found, *row in session.execute(query)]


def _best_registered(
    session: Session, ids: Select[Any], order: Order, last: Place | None, above: float | None
) -> list[Place]:
    """The page after `last` of those of which only what was registered is known, above a value if there is one."""
    value, id_ = AdapterMetricRow.value, AdapterMetricRow.adapter_id
    query = (
        select(value, id_)
        .outerjoin(AdapterRow, AdapterRow.id == id_)
        .outerjoin(AdapterWordsRow, AdapterWordsRow.adapter_id == id_)
        .where(AdapterMetricRow.name == order.metric, _checked(ids, order, _measured(order.metric).is_(None)))
    )
    if above is not None:
        query = query.where(value > above if order.sign > 0 else value < -above)
    if last is not None:
        figure = order.sign * last.value
        query = query.where(order.not_before(value, figure))
        if not last.evaluation:
            query = query.where(or_(order.behind(value, figure), id_ < last.adapter))
    rows = session.execute(query.order_by(order.first(value), id_.desc()).limit(order.limit))
    return [Place(order.sign * found, 0, adapter) for found, adapter in rows]


def _checked(ids: Select[Any], order: Order, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """What holds for `ids` and for the page, in a form that no database goes by: it shall go by the index of figures."""
    filters = () if ids.whereclause is None else (ids.whereclause,)
    return case((and_(*filters, condition, *order.conditions), true()), else_=false())
