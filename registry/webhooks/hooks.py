"""Webhooks as the registry keeps them: who is told of which events, under which name."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..catalog import events
from ..catalog.domains import find_domain, lock_new_names
from ..catalog.events import EventIds
from ..catalog.records import Record
from ..catalog.references import check_name, did_you_mean
from ..database.connection import Database
from ..database.tables import DomainRow, WebhookDeliveryRow, WebhookRow
from ..errors import ConflictError, NotFoundError, UsageError
from . import targets
from .kinds import KINDS, checked_kinds


@dataclass(frozen=True)
class Webhook(Record):
    """A target of events. `secret` says where the secret is; `domains` is empty for all. `pending` and `dead` count its deliveries."""

    name: str
    url: str
    kinds: tuple[str, ...]
    domains: tuple[str, ...]
    secret: str
    allow_private: bool
    active: bool
    pending: int
    dead: int
    created_at: datetime
    created_by: str


@dataclass(frozen=True)
class WebhookFields:
    """What is given of a webhook; None leaves a field as it is, or as `add` has it: all kinds, all domains, public addresses, active."""

    url: str | None = None
    kinds: Sequence[str] | None = None
    domains: Sequence[str] | None = None
    secret: str | None = None
    allow_private: bool | None = None
    active: bool | None = None


class Webhooks:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, fields: WebhookFields, *, resolve: targets.Resolve = targets.resolve) -> Webhook:
        """Events from now on are delivered to it. Raises UsageError, WebhookTargetError, ConflictError for a name that is taken."""
        check_name("webhook", name)
        if fields.url is None or fields.secret is None:
            raise UsageError("a webhook has a URL and a secret")
        allow_private = bool(fields.allow_private)
        check_target(fields.url, allow_private, resolve)
        with self._database.writing() as session:
            lock_new_names(session)
            if session.scalar(select(WebhookRow.id).where(WebhookRow.name == name)) is not None:
                raise ConflictError(f"there is a webhook {name!r} already", hint=f"reccocktail webhook edit {name}")
            row = WebhookRow(
                name=name,
                url=fields.url,
                secret=fields.secret,
                kinds=checked_kinds(fields.kinds or ()),
                domains=_ids(session, fields.domains or ()),
                allow_private=allow_private,
                active=fields.active is not False,
            )
            session.add(row)
            session.flush()
            events.append(session, "webhook.added", name, _shown(session, row), EventIds())
            return _webhook(session, row)

    def edit(self, name: str, fields: WebhookFields, *, resolve: targets.Resolve = targets.resolve) -> Webhook:
        """Changes what is given, for what is still to be delivered too. Raises NotFoundError, and what `add` raises."""
        with self._database.reading() as session:
            row = find_webhook(session, name)
            url = row.url if fields.url is None else fields.url
            allow_private = row.allow_private if fields.allow_private is None else fields.allow_private
        if (url, allow_private) != (row.url, row.allow_private):
            check_target(url, allow_private, resolve)
        with self._database.writing() as session:
            row = find_webhook(session, name, lock=True)
            before = _shown(session, row)
            row.url, row.allow_private = url, allow_private
            row.secret = row.secret if fields.secret is None else fields.secret
            row.kinds = row.kinds if fields.kinds is None else checked_kinds(fields.kinds)
            row.domains = row.domains if fields.domains is None else _ids(session, fields.domains)
            row.active = row.active if fields.active is None else fields.active
            session.flush()
            changed = {what: value for what, value in _shown(session, row).items() if before[what] != value}
            if changed:
                about = {"changed": changed, "from": {what: before[what] for what in changed}}
                events.append(session, "webhook.edited", name, about, EventIds())
            return _webhook(session, row)

    def remove(self, name: str) -> Webhook:
        """Takes it away with all its deliveries; the answer has how many were still pending. Raises NotFoundError."""
        with self._database.writing() as session:
            row = find_webhook(session, name, lock=True)
            found = _webhook(session, row)
            events.append(session, "webhook.removed", name, {"url": row.url, "pending": found.pending}, EventIds())
            session.delete(row)
            return found

    def get(self, name: str) -> Webhook:
        """Raises NotFoundError."""
        with self._database.reading() as session:
            return _webhook(session, find_webhook(session, name))

    def list(self) -> builtins.list[Webhook]:
        with self._database.reading() as session:
            rows = session.scalars(select(WebhookRow).order_by(WebhookRow.name)).all()
            return [_webhook(session, row) for row in rows]


def find_webhook(session: Session, name: str, *, lock: bool = False) -> WebhookRow:
    query = select(WebhookRow).where(WebhookRow.name == name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        near = did_you_mean(name, session.scalars(select(WebhookRow.name)))
        raise NotFoundError(f"there is no webhook {name!r}{near}", hint="`reccocktail webhook list` shows them")
    return row


def check_target(url: str, allow_private: bool, resolve: targets.Resolve = targets.resolve) -> None:
    """Raises WebhookTargetError. What is allowed to be private need not be reachable from here."""
    target = targets.parse(url, allow_private=allow_private)
    if not allow_private:
        targets.addresses(target, allow_private=False, resolve=resolve)


def _ids(session: Session, names: Sequence[str]) -> builtins.list[int]:
    return sorted({find_domain(session, name).id for name in names})


def _names(session: Session, row: WebhookRow) -> builtins.list[str]:
    query = select(DomainRow.name).where(DomainRow.id.in_(row.domains)).order_by(DomainRow.name)
    return [*session.scalars(query)] if row.domains else []


def _shown(session: Session, row: WebhookRow) -> dict[str, Any]:
    """For events."""
    found = {"url": row.url, "kinds": [*row.kinds], "domains": _names(session, row), "secret": row.secret}
    return found | {"allow_private": row.allow_private, "active": row.active}


def _webhook(session: Session, row: WebhookRow) -> Webhook:
    counts = _counts(session, row.id)
    kinds = tuple(kind for kind in KINDS if kind in row.kinds)
    return Webhook(
        row.name, row.url, kinds, tuple(_names(session, row)), row.secret, row.allow_private, row.active,
        counts.get("pending", 0), counts.get("dead", 0), row.created_at, row.created_by,
    )  # fmt: skip


def _counts(session: Session, webhook_id: int) -> Mapping[str, int]:
    status = WebhookDeliveryRow.status
    query = select(status, func.count()).where(WebhookDeliveryRow.webhook_id == webhook_id).group_by(status)
    return dict(session.execute(query).tuples().all())
