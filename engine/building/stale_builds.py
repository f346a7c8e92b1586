"""Requests for what has become stale: merges of domains and indexes of bi-tunings, once, and every now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from ...registry import Build, Registry, Request
from ...registry.errors import RecCocktailError, UnavailableError
from ..recipe_book import own_recipe
from ..recipes import Recipe
from .freshness import Freshness, freshness_by_domain
from .indexing import IndexFreshness, request_index, stale_indexes
from .planning import plan, request
from .stale_events import record_stale
from .worker_events import Notify, WorkerEvent

WATCH_SECONDS = 30.0


class StaleBuildPoller:
    """Records which domains have become stale or fresh, as events, and requests what would make them fresh, every now and then."""

    def __init__(self, registry: Registry, wanted: bool, notify: Notify) -> None:
        self._registry, self._wanted, self._notify = registry, wanted, notify
        self._looked = float("-inf")
        self._told: set[str] = set()

    def look(self) -> None:
        """Raises UnavailableError; a store that does not answer is reported, and tried again."""
        if not self._wanted or time.monotonic() - self._looked < WATCH_SECONDS:
            return
        try:
            record_stale(self._registry)
            request_what_is_stale(self._registry, self._notify, self._told)
        except UnavailableError:
            raise
        except RecCocktailError as error:
            if not error.retryable:
                raise
            self._notify(WorkerEvent("blocked", detail=f"stale domains cannot be determined now: {error}"))
        self._looked = time.monotonic()


def request_what_is_stale(
    registry: Registry, notify: Notify = lambda event: None, reported: set[str] | None = None
) -> list[Build]:
    """Builds of all domains whose inputs moved, or that were never built though there is something to mix, and stale item indexes.

    What has failed or was cancelled with these very inputs is not requested again, but reported, once per build in `reported`.
    """
    reported = set() if reported is None else reported
    return [*_requested(registry, chain(_merges(registry), _indexes(registry)), notify, reported)]


@dataclass(frozen=True)
class _Wanted:
    """A build that would make something of the domain fresh, and why. `key` and `ask` raise what `plan` and `request` do."""

    domain: str | None
    why: str
    key: Callable[[], str]
    ask: Callable[[], Request]


def _merges(registry: Registry) -> Iterator[_Wanted]:
    for domain, state in freshness_by_domain(registry).items():
        if state.state in ("stale", "unbuilt") and not state.needs_data:
            yield _merge(registry, domain, state)


def _merge(registry: Registry, domain: str, state: Freshness) -> _Wanted:
    def recipe() -> Recipe:
        return own_recipe(registry, registry.domains.get(domain).recipe)

    return _Wanted(
        domain,
        "; ".join(state.reasons) or "never built",
        lambda: plan(registry, domain, recipe()).key,
        lambda: request(registry, domain, recipe()),
    )


def _indexes(registry: Registry) -> Iterator[_Wanted]:
    for stale in stale_indexes(registry):
        yield _index(registry, stale)


def _index(registry: Registry, stale: IndexFreshness) -> _Wanted:
    why = "; ".join(stale.reasons)
    return _Wanted(stale.adapter.domain, why, lambda: stale.key or "", lambda: request_index(registry, stale.adapter))


def _requested(registry: Registry, wanted: Iterable[_Wanted], notify: Notify, reported: set[str]) -> Iterator[Build]:
    for each in wanted:
        try:
            last = registry.builds.newest_of_key(each.key())
            if last is not None and last.status in ("failed", "cancelled"):
                _report_once(last, each.domain, notify, reported)
                continue
            answered = each.ask()
        except UnavailableError:
            raise
        except RecCocktailError as error:  # it moved meanwhile
            notify(WorkerEvent("blocked", None, each.domain, f"{each.domain}: {error}"))
            continue
        if answered.created:
            notify(WorkerEvent("requested", answered.build.id, each.domain, each.why))
            yield answered.build


def _report_once(last: Build, domain: str | None, notify: Notify, reported: set[str]) -> None:
    """That what would be requested has failed or was cancelled."""
    if last.id not in reported:
        reported.add(last.id)
        why = f"{domain}: build {last.id} of the same inputs has {last.status}; `reccocktail build retry {last.id}`"
        notify(WorkerEvent("blocked", None, domain, why))
