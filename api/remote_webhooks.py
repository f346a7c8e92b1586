"""Webhooks of a server, and what became of each delivery, for who has its scope `admin`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..registry.errors import LocalOnlyError
from .connection import Connection

if TYPE_CHECKING:
    import builtins

    from ..registry.webhooks.hooks import Webhook, WebhookFields
    from ..registry.webhooks.outbox import Attempt, Delivery, DeliveryFilter


class RemoteWebhooks:
    def __init__(self, server: Connection) -> None:
        self._server = server

    def list(self) -> builtins.list[Webhook]:
        from ..registry.webhooks.hooks import Webhook

        return [Webhook.from_json(each) for each in self._server.get("/webhooks")]

    def get(self, name: str) -> Webhook:
        return _hook(self._server.get(_place(name)))

    def add(self, name: str, fields: WebhookFields) -> Webhook:
        return _hook(self._server.ask("POST", "/webhooks", json={"name": name} | _document(fields)))

    def edit(self, name: str, fields: WebhookFields) -> Webhook:
        return _hook(self._server.ask("PATCH", _place(name), json=_document(fields)))

    def remove(self, name: str) -> Webhook:
        return _hook(self._server.ask("DELETE", _place(name)))


class RemoteOutbox:
    def __init__(self, server: Connection) -> None:
        self._server = server

    def list(self, wanted: DeliveryFilter, *, limit: int = 50, after: int | None = None) -> builtins.list[Delivery]:
        found = self._server.listed(
            "/deliveries", limit=limit, after=after, webhook=wanted.webhook, status=wanted.status
        )
        return [_delivery(each) for each in found]

    def attempts(self, id_: int) -> builtins.list[Attempt]:
        from ..registry.webhooks.outbox import Attempt

        return [Attempt.from_json(each) for each in self._server.get(f"/deliveries/{id_}/attempts")]

    def dead(self, webhook: str) -> builtins.list[int]:
        found = self._server.listed("/deliveries", limit=2**31, webhook=webhook, status="dead")
        return [each["id"] for each in found]

    def redeliver(self, ids: Sequence[int]) -> builtins.list[Delivery]:
        """One by one: one that refuses leaves those before it."""
        return [_delivery(self._server.ask("POST", f"/deliveries/{id_}:redeliver")) for id_ in ids]


def _place(name: str) -> str:
    return f"/webhooks/{quote(name, safe='')}"


def _hook(document: Any) -> Webhook:
    from ..registry.webhooks.hooks import Webhook

    return Webhook.from_json(document)


def _delivery(document: Any) -> Delivery:
    from ..registry.webhooks.outbox import Delivery

    return Delivery.from_json(document)


def _document(fields: WebhookFields) -> dict[str, Any]:
    """What is given. Raises LocalOnlyError for a secret in a file, which would be one of the server."""
    if fields.secret is not None and not fields.secret.startswith("env:"):
        raise LocalOnlyError.of("--secret-file", hint="--secret-env names a variable where events are delivered")
    found = vars(fields) | {"secret": None, "secret_env": fields.secret and fields.secret.removeprefix("env:")}
    return {
        name: value if isinstance(value, str | bool) else [*value] for name, value in found.items() if value is not None
    }
