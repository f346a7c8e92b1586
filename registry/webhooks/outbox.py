"""The outbox: what is still to be delivered, who delivers it, and what came of each attempt.

    pending → delivered | dead        redeliver: delivered, dead → pending

The database writes a row for each event and each webhook that wants it, in the event's own transaction. Of one webhook, domain and kind
only the oldest pending row can be claimed, so that they arrive in order. A deliverer holds a row by a lease; once that has run out
another may claim it, and so a receiver may get an event twice.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.orm import Session, joinedload

from ..catalog.records import Record
from ..database.connection import Database
from ..database.tables import EventRow, WebhookAttemptRow, WebhookDeliveryRow, WebhookRow
from ..errors import ConflictError, NotFoundError
from .hooks import find_webhook

LEASE_SECONDS = 60.0
MAX_ATTEMPTS = 15
FIRST_WAIT, LONGEST_WAIT = 10.0, 6 * 3600.0  # seconds after the first failure, then twice as long each time


@dataclass(frozen=True)
class Answer:
    """What came of a request: the status code, if there was an answer, and why it is no success, if it is none."""

    status_code: int | None
    error: str | None
    seconds: float


@dataclass(frozen=True)
class Claim:
    """A delivery that somebody holds, with all that is needed to send it."""

    id: int
    webhook: str
    url: str
    secret: str
    allow_private: bool
    kind: str
    domain: str
    event_id: int
    event_kind: str
    subject: str
    detail: Mapping[str, Any]
    at: datetime
    actor: str


@dataclass(frozen=True)
class Delivery(Record):
    """One event for one webhook. `event` is the event's id, `happened` its kind in the registry's log, `subject` what it is about.

    `status_code`, `error`, `seconds` and `tried_at` are of the last attempt; `retry_at` is when the next comes, of one that failed.
    """

    id: int
    webhook: str
    event: int
    kind: str
    happened: str
    domain: str
    subject: str
    status: str
    attempts: int
    created_at: datetime
    retry_at: datetime | None
    finished_at: datetime | None
    tried_at: datetime | None = None
    status_code: int | None = None
    error: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Attempt(Record):
    """One request of a delivery."""

    at: datetime
    seconds: float
    status_code: int | None
    error: str | None


@dataclass(frozen=True)
class DeliveryFilter:
    """Which deliveries are wanted; None does not matter."""

    webhook: str | None = None
    status: str | None = None


def wait_seconds(attempts: int, share: float) -> float:
    """How long to wait after so many failed attempts: doubling up to a limit, and of it between half and all, by a share from 0 to 1."""
    return min(FIRST_WAIT * 2.0 ** (attempts - 1), LONGEST_WAIT) * (0.5 + 0.5 * share)


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def wanted_kinds(self) -> set[str]:
        """Those that an active webhook is told of."""
        with self._database.reading() as session:
            return {
                kind for kinds in session.scalars(select(WebhookRow.kinds).where(WebhookRow.active)) for kind in kinds
            }

    def secrets(self) -> dict[str, str]:
        """By webhook, where the secret of each active one is that has something to be delivered."""
        waiting = select(WebhookDeliveryRow.webhook_id).where(WebhookDeliveryRow.status == "pending")
        query = select(WebhookRow.name, WebhookRow.secret).where(WebhookRow.active, WebhookRow.id.in_(waiting))
        with self._database.reading() as session:
            return dict(session.execute(query).tuples().all())

    def claim(
        self, worker: str, limit: int, moment: datetime, webhooks: Iterable[str], lease_seconds: float = LEASE_SECONDS
    ) -> builtins.list[Claim]:
        """Up to so many deliveries of these webhooks that are due at the moment; now `worker`'s. Each webhook has its turn."""
        query = _due(moment, [*webhooks]).limit(limit).with_for_update(skip_locked=True, of=WebhookDeliveryRow)
        with self._database.writing() as session:
            rows = session.scalars(query).all()
            for row in rows:
                row.worker, row.lease_until = worker, moment + timedelta(seconds=lease_seconds)
            session.flush()
            return [_claim(session, row) for row in rows]

    def release(self, worker: str) -> None:
        """What the worker holds can be claimed by others at once."""
        held = (WebhookDeliveryRow.worker == worker, WebhookDeliveryRow.status == "pending")
        with self._database.writing() as session:
            session.execute(update(WebhookDeliveryRow).where(*held).values(worker=None, lease_until=None))

    def settle(self, claim: Claim, worker: str, moment: datetime, answer: Answer, share: float) -> Delivery | None:
        """Records the attempt that began at the moment, and with it the end of the delivery or the time of the next attempt.

        Of a delivery that somebody else claimed meanwhile only a success counts. None if the webhook is gone.
        """
        query = select(WebhookDeliveryRow).where(WebhookDeliveryRow.id == claim.id)
        with self._database.writing() as session:
            row = session.scalar(query.with_for_update(of=WebhookDeliveryRow))
            if row is None:
                return None
            tried = WebhookAttemptRow(delivery_id=row.id, at=moment, seconds=answer.seconds)
            tried.status_code, tried.error = answer.status_code, answer.error
            session.add(tried)
            session.flush()
            if row.status == "pending" and (row.worker == worker or answer.error is None):
                _move(row, answer, moment + timedelta(seconds=answer.seconds), share)
            session.flush()
            return _delivery(session, row)

    def redeliver(self, ids: Sequence[int]) -> builtins.list[Delivery]:
        """Puts deliveries that ended back, to be sent again at once. Raises NotFoundError, ConflictError for one that is pending."""
        query = select(WebhookDeliveryRow).where(WebhookDeliveryRow.id.in_(ids)).order_by(WebhookDeliveryRow.id)
        with self._database.writing() as session:
            rows = session.scalars(query.with_for_update(of=WebhookDeliveryRow)).all()
            if missing := sorted({*ids} - {row.id for row in rows}):
                raise NotFoundError(f"there is no delivery {missing[0]}", hint="`reccocktail webhook log` shows them")
            if waiting := [row.id for row in rows if row.status == "pending"]:
                raise ConflictError(
                    f"delivery {waiting[0]} is still pending", hint="`reccocktail webhook deliver` sends what is due"
                )
            for row in rows:
                row.status, row.attempts, row.retry_at, row.finished_at = "pending", 0, None, None
            session.flush()
            return [_delivery(session, row) for row in rows]

    def dead(self, webhook: str) -> builtins.list[int]:
        """The ids of all deliveries to the webhook that were given up. Raises NotFoundError."""
        with self._database.reading() as session:
            here = WebhookDeliveryRow.webhook_id == find_webhook(session, webhook).id
            return [*session.scalars(select(WebhookDeliveryRow.id).where(here, WebhookDeliveryRow.status == "dead"))]

    def list(
        self, wanted: DeliveryFilter | None = None, *, limit: int = 50, after: int | None = None
    ) -> builtins.list[Delivery]:
        """Newest first; `after` is the id of the last delivery of the page before. Raises NotFoundError for the webhook."""
        wanted = wanted or DeliveryFilter()
        query = select(WebhookDeliveryRow).order_by(WebhookDeliveryRow.id.desc()).limit(limit)
        with self._database.reading() as session:
            if wanted.webhook is not None:
                query = query.where(WebhookDeliveryRow.webhook_id == find_webhook(session, wanted.webhook).id)
            if wanted.status is not None:
                query = query.where(WebhookDeliveryRow.status == wanted.status)
            if after is not None:
                query = query.where(WebhookDeliveryRow.id < after)
            return [_delivery(session, row) for row in session.scalars(query)]

    def attempts(self, delivery: int) -> builtins.list[Attempt]:
        """All of a delivery, the first one first. Raises NotFoundError."""
        with self._database.reading() as session:
            if session.get(WebhookDeliveryRow, delivery) is None:
                raise NotFoundError(f"there is no delivery {delivery}", hint="`reccocktail webhook log` shows them")
            query = select(WebhookAttemptRow).where(WebhookAttemptRow.delivery_id == delivery)
            rows = session.scalars(query.order_by(WebhookAttemptRow.id))
            return [Attempt(row.at, row.seconds, row.status_code, row.error) for row in rows]


def _due(moment: datetime, webhooks: Sequence[str]) -> Select[WebhookDeliveryRow]:
    """The oldest pending delivery of each webhook, domain and kind, where it is due and nobody's; webhooks take turns."""
    row = WebhookDeliveryRow
    heads = select(func.min(row.id)).where(row.status == "pending").group_by(row.webhook_id, row.domain_id, row.kind)
    due = (row.id.in_(heads), *_is_free(moment), WebhookRow.active, WebhookRow.name.in_(webhooks))
    first = (func.coalesce(row.retry_at, row.created_at), row.id)
    turn = func.row_number().over(partition_by=row.webhook_id, order_by=first).label("turn")
    turns = select(row.id, turn).join(WebhookRow, WebhookRow.id == row.webhook_id).where(*due).subquery()
    query = select(row).join(turns, turns.c.id == row.id).where(*_is_free(moment))
    return query.order_by(turns.c.turn, *first).options(joinedload(row.webhook), joinedload(row.domain))


def _is_free(moment: datetime) -> tuple[ColumnElement[bool], ...]:
    row = WebhookDeliveryRow
    return (
        row.status == "pending",
        or_(row.retry_at.is_(None), row.retry_at <= moment),
        or_(row.lease_until.is_(None), row.lease_until < moment),
    )


def _move(row: WebhookDeliveryRow, answer: Answer, moment: datetime, share: float) -> None:
    """The delivery ends, or waits for another attempt."""
    row.attempts += 1
    row.worker = row.lease_until = row.retry_at = None
    if answer.error is None:
        row.status, row.finished_at = "delivered", moment
    elif row.attempts >= MAX_ATTEMPTS:
        row.status, row.finished_at = "dead", moment
    else:
        row.retry_at = moment + timedelta(seconds=wait_seconds(row.attempts, share))


def _claim(session: Session, row: WebhookDeliveryRow) -> Claim:
    event, hook = session.get_one(EventRow, row.event_id), row.webhook
    return Claim(
        row.id, hook.name, hook.url, hook.secret, hook.allow_private, row.kind, row.domain.name,
        event.id, event.kind, event.subject, event.detail, event.created_at, event.created_by,
    )  # fmt: skip


def _delivery(session: Session, row: WebhookDeliveryRow) -> Delivery:
    event = session.get_one(EventRow, row.event_id)
    query = select(WebhookAttemptRow).where(WebhookAttemptRow.delivery_id == row.id)
    last = session.scalar(query.order_by(WebhookAttemptRow.id.desc()).limit(1))
    return Delivery(
        row.id, row.webhook.name, row.event_id, row.kind, event.kind, row.domain.name, event.subject, row.status,
        row.attempts, row.created_at, row.retry_at, row.finished_at,
        last and last.at, last and last.status_code, last and last.error, last and last.seconds,
    )  # fmt: skip
