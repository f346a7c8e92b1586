"""Webhooks in a file: where events go, without secrets, which are named by the variable or file that has them.

One that is new is off unless the file says `active: true`, so that a copy of a registry does not call the targets of the original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from ..catalog.references import SPIRIT
from ..errors import RecCocktailError, UsageError
from ..registry import Registry
from ..webhooks.hooks import Webhook, WebhookFields, check_target
from ..webhooks.kinds import checked_kinds
from .document import WebhookEntry
from .outcomes import Outcome, failure, new

OFF = "it is off until `reccocktail webhook enable`"


def bring_webhook(
    registry: Registry, entry: WebhookEntry, require: Callable[[str], object], *, dry_run: bool
) -> Outcome:
    """What becomes of a webhook; `require` raises NotFoundError for a domain that there is not, nor will be."""
    outcome = Outcome("webhook", entry.name, None, "unchanged", entry.place.line)
    try:
        known = {hook.name: hook for hook in registry.webhooks.list()}.get(entry.name)
        for domain in {*(entry.fields.domains or ())} - {SPIRIT}:
            require(domain)
        fields = _wanted(entry.fields, is_new=known is None)
        if known is None:
            return _added(registry, entry.name, fields, outcome, dry_run)
        changes = _differences(known, fields)
        if changes:
            check_target(fields.url or known.url, _either(fields.allow_private, known.allow_private))
            if not dry_run:
                registry.webhooks.edit(entry.name, fields)
    except RecCocktailError as error:
        return failure(outcome, error)
    return replace(outcome, action="changed" if changes else "unchanged", changes=changes)


def webhooks(registry: Registry) -> dict[str, dict[str, Any]]:
    """All of them, as the file says it: not whether they are active."""
    return {hook.name: _said(hook) for hook in registry.webhooks.list()}


def _said(hook: Webhook) -> dict[str, Any]:
    said = {"url": hook.url, "kinds": [*hook.kinds], "domains": [*hook.domains], "secret": hook.secret}
    return {name: value for name, value in (said | {"allow_private": hook.allow_private}).items() if value}


def _wanted(fields: WebhookFields, *, is_new: bool) -> WebhookFields:
    kinds = None if fields.kinds is None and not is_new else checked_kinds(fields.kinds or ())
    return replace(fields, kinds=kinds, active=bool(fields.active) if is_new else fields.active)


def _added(registry: Registry, name: str, fields: WebhookFields, outcome: Outcome, dry_run: bool) -> Outcome:
    if fields.url is None or fields.secret is None:
        raise UsageError("a webhook that is new needs a url and a secret", hint="secret: env:VARIABLE, or file:/PATH")
    check_target(fields.url, bool(fields.allow_private))
    if not dry_run:
        registry.webhooks.add(name, fields)
    return replace(outcome, action="created", changes=new(**asdict(fields)), remarks=() if fields.active else (OFF,))


def _differences(known: Webhook, fields: WebhookFields) -> dict[str, tuple[Any, Any]]:
    before = asdict(known) | {"kinds": [*known.kinds], "domains": [*known.domains]}
    wanted = asdict(fields) | ({} if fields.domains is None else {"domains": sorted({*fields.domains})})
    return {name: (before[name], value) for name, value in wanted.items() if value not in (None, before[name])}


def _either(given: bool | None, known: bool) -> bool:
    return known if given is None else given
