"""Webhooks: where events are sent, what became of each delivery, and sending one again. For `admin`, since events are of all domains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from ...registry.webhooks.delivery import Surroundings, expect_test
from ...registry.webhooks.hooks import Webhook, WebhookFields
from ...registry.webhooks.outbox import Attempt, Delivery, DeliveryFilter
from ..identity import Administering
from ..listing import Page
from ..models import model_of, page_of
from .adapters import Text
from .declaring import Name, router

routes = router("webhooks")
WebhookModel, DeliveryModel, AttemptModel = model_of(Webhook), model_of(Delivery), model_of(Attempt)
ShortText = Annotated[str, Field(max_length=200)]
Texts = Annotated[list[ShortText], Field(max_length=100)]
DeliveryId = Annotated[int, Path(ge=1, lt=2**62)]
Status = Literal["pending", "delivered", "dead"]


class WebhookChange(BaseModel):
    """What is left out stays. `secret_env` names the variable that has the secret where events are delivered; no secret is ever sent here."""

    model_config = ConfigDict(extra="forbid")
    url: Annotated[str, Field(max_length=2000)] | None = None
    kinds: Texts | None = None
    domains: Texts | None = None
    secret_env: ShortText | None = None
    allow_private: bool | None = None
    active: bool | None = None

    def fields(self) -> WebhookFields:
        from ...registry.webhooks.signing import reference

        secret = None if self.secret_env is None else reference(self.secret_env, None)
        given = self.model_dump(exclude={"secret_env", "name"})
        return WebhookFields(**given, secret=secret)


class NewWebhook(WebhookChange):
    name: ShortText


@routes.get("/webhooks", response_model=list[WebhookModel])
def list_webhooks(registry: Administering) -> Any:
    return [each.to_json() for each in registry.webhooks.list()]


@routes.post("/webhooks", response_model=WebhookModel, status_code=201)
def add_webhook(registry: Administering, new: NewWebhook) -> Any:
    """Events from now on are sent to it; where targets may be is looked at now and with each delivery."""
    return registry.webhooks.add(new.name, new.fields()).to_json()


@routes.get("/webhooks/{hook}", response_model=WebhookModel)
def show_webhook(registry: Administering, hook: Name) -> Any:
    return registry.webhooks.get(hook).to_json()


@routes.patch("/webhooks/{hook}", response_model=WebhookModel)
def edit_webhook(registry: Administering, hook: Name, change: WebhookChange) -> Any:
    return registry.webhooks.edit(hook, change.fields()).to_json()


@routes.delete("/webhooks/{hook}", response_model=WebhookModel)
def remove_webhook(registry: Administering, hook: Name) -> Any:
    """Takes it away with all its deliveries."""
    return registry.webhooks.remove(hook).to_json()


@routes.post("/webhooks/{hook}:test")
def test_webhook(registry: Administering, hook: Name) -> dict[str, Any]:
    """Sends a test event now; 502 where it did not arrive."""
    return expect_test(registry.webhooks.get(hook), Surroundings(reader="the server"))


@routes.get("/deliveries", response_model=page_of(DeliveryModel))
def list_deliveries(registry: Administering, page: Page, webhook: Text = None, status: Status | None = None) -> Any:
    """What became of each event for each webhook, newest first."""
    wanted = DeliveryFilter(webhook, status)
    rows = registry.outbox.list(wanted, limit=page.limit + 1, after=page.after_number)
    return page.page(rows, lambda row: row.id, lambda shown: [row.to_json() for row in shown])


@routes.get("/deliveries/{id}/attempts", response_model=list[AttemptModel])
def list_attempts(registry: Administering, id: DeliveryId) -> Any:  # noqa: A002
    return [each.to_json() for each in registry.outbox.attempts(id)]


@routes.post("/deliveries/{id}:redeliver", response_model=DeliveryModel)
def redeliver(registry: Administering, id: DeliveryId) -> Any:  # noqa: A002
    """Puts a delivery that ended back, to be sent again."""
    return registry.outbox.redeliver([id])[0].to_json()
