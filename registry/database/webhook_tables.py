"""The tables of webhooks: who is told of which events, what is still to be delivered, and what came of each attempt."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .adapter_tables import DomainRow
from .columns import Root, Table, id_column, one_of

DELIVERY_STATUSES = ("pending", "delivered", "dead")


class WebhookRow(Table):
    """A target of events. `kinds` are those of `webhooks.kinds`; `domains` are ids, none for all domains.

    `secret` says where the secret is, as `env:NAME` or `file:/path`: the secret itself is in no row.
    """

    __tablename__ = "webhooks"

    id: Mapped[int] = id_column()
    name: Mapped[str] = mapped_column(unique=True)
    url: Mapped[str]
    secret: Mapped[str]
    kinds: Mapped[list[str]]
    domains: Mapped[list[int]] = mapped_column(JSON())
    allow_private: Mapped[bool]
    active: Mapped[bool]

    __table_args__ = (
        CheckConstraint("substr(secret, 1, 4) = 'env:' OR substr(secret, 1, 6) = 'file:/'", name="secret"),
    )


class WebhookDeliveryRow(Root):
    """The outbox: one event for one webhook, written by the database together with the event.

    `kind` is the webhook's word for it. While it is pending, no later one of the same webhook, domain and kind is sent. `worker`
    holds it until `lease_until`; it is not tried before `retry_at`.
    """

    __tablename__ = "webhook_deliveries"

    id: Mapped[int] = id_column()
    webhook_id: Mapped[int] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event_id: Mapped[int] = mapped_column(ForeignKey("events.id"))
    kind: Mapped[str]
    domain_id: Mapped[int] = mapped_column(ForeignKey("domains.id"))
    status: Mapped[str]
    attempts: Mapped[int]
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    retry_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    created_at: Mapped[datetime]

    webhook: Mapped[WebhookRow] = relationship(lazy="joined", innerjoin=True, viewonly=True)
    domain: Mapped[DomainRow] = relationship(lazy="joined", innerjoin=True, viewonly=True)

    __table_args__ = (
        one_of("status", DELIVERY_STATUSES),
        CheckConstraint("attempts >= 0", name="attempts"),
        CheckConstraint("(worker IS NULL) = (lease_until IS NULL)", name="lease"),
        CheckConstraint("(status = 'pending') = (finished_at IS NULL)", name="finished"),
        UniqueConstraint("webhook_id", "event_id"),
        Index(None, "event_id"),
        Index(
            "ix_webhook_deliveries_pending", "webhook_id", "domain_id", "kind", "id",
            sqlite_where=text("status = 'pending'"), postgresql_where=text("status = 'pending'"),
        ),
    )  # fmt: skip


class WebhookAttemptRow(Root):
    """One request of a delivery: what the target answered, or why it did not. `at` is when it began; the database holds that it stays so."""

    __tablename__ = "webhook_attempts"

    id: Mapped[int] = id_column()
    delivery_id: Mapped[int] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"))
    at: Mapped[datetime]
    seconds: Mapped[float]
    status_code: Mapped[int | None]
    error: Mapped[str | None]

    __table_args__ = (
        CheckConstraint(
            "(error IS NULL) = (status_code IS NOT NULL AND status_code >= 200 AND status_code <= 299)", name="error"
        ),
        Index(None, "delivery_id", "id"),
    )
