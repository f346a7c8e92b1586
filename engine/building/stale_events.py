"""Events for domains that became stale, or are so no longer: nothing writes them by itself, since what moved is elsewhere in the registry."""

from __future__ import annotations

import time

from ...registry import Registry
from ...registry.catalog.staleness import FRESH, STALE
from .freshness import Freshness, freshness_by_domain

LOOK_SECONDS = 30.0


def record_stale(registry: Registry) -> list[str]:
    """Records each domain that is stale for other reasons than its newest event says, and each that is not stale any more; the stale ones.

    What cannot be told now (`blocked`) changes nothing.
    """
    known = registry.staleness.known()
    found = []
    for domain, state in freshness_by_domain(registry).items():
        if state.state == "stale":
            detail = _detail(state)
            if known.get(domain) != detail and registry.staleness.record(domain, STALE, detail):
                found.append(domain)
        elif domain in known and state.state != "blocked":
            registry.staleness.record(domain, FRESH, {"state": state.state})
    return found


def _detail(state: Freshness) -> dict[str, object]:
    return {"reasons": [*state.reasons], "build": state.build and state.build.id}


class StaleWatch:
    """Looks every now and then, while a webhook is told of stale domains."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._looked = float("-inf")

    def look(self) -> None:
        """Raises what the registry raises."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        if STALE in self._registry.outbox.wanted_kinds():
            record_stale(self._registry)
        self._looked = time.monotonic()
