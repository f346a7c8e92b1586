"""What lists are asked for, in the words of options and of addresses: one reading for the command and the HTTP API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time

from ..registry import Adapter, Build, Registry
from ..registry.catalog.evaluations import EvaluationFilter, EvaluationRecord
from ..registry.catalog.events import EventFilter, expect_kind
from ..registry.catalog.filters import AdapterFilter, BuildFilter, MetricBound
from ..registry.catalog.references import SPIRIT
from ..registry.errors import UsageError
from ..registry.moments import moment


@dataclass(frozen=True)
class AdapterQuery:
    """Which adapter versions; `metric` are bounds such as `NDCG@3>=0.4`, `sort` is a metric."""

    domain: str | None = None
    base: str | None = None
    spirit: bool = False
    kind: str | None = None
    tag: Sequence[str] = ()
    metric: Sequence[str] = ()
    sort: str | None = None
    search: str | None = None

    def rows(self, registry: Registry, *, limit: int, after: str | None = None) -> list[Adapter]:
        """Newest first, or the largest of a metric first. Raises UsageError."""
        if self.spirit and self.domain is not None:
            raise UsageError("a spirit belongs to no domain: give --spirit or --domain, not both")
        bounds = [MetricBound.parse(bound) for bound in self.metric]
        role = "spirit" if self.spirit else None
        wanted = AdapterFilter(self.domain, self.base, role, self.kind, tuple(self.tag), bounds, self.search)
        return registry.adapters.list(wanted, sort=self.sort, limit=limit, after=after)


@dataclass(frozen=True)
class BuildQuery:
    """Which builds; `adapter` is a reference, on `base` if there are several, `since` a day or moment."""

    domain: str | None = None
    status: str | None = None
    kind: str | None = None
    recipe: str | None = None
    requester: str | None = None
    since: str | None = None
    adapter: str | None = None
    base: str | None = None
    sort: str = "created"

    def rows(self, registry: Registry, *, limit: int, after: str | None = None) -> list[Build]:
        """Newest first, or in another order. Raises UsageError, NotFoundError for the adapter."""
        if self.base is not None and self.adapter is None:
            raise UsageError("--base selects the base model of --adapter, which is missing")
        version = None if self.adapter is None else registry.adapters.resolve(self.adapter, base=self.base)
        wanted = BuildFilter(
            self.domain, self.status, self.recipe, self.requester, _begin(self.since), version, self.kind
        )
        return registry.builds.list(wanted, sort=self.sort, limit=limit, after=after)


@dataclass(frozen=True)
class EventQuery:
    """Which events; `kind` is a whole kind or what it is about, `since` a day or moment."""

    domain: str | None = None
    actor: str | None = None
    kind: str | None = None
    since: str | None = None

    def filter(self, registry: Registry) -> EventFilter:
        """Raises NotFoundError for the domain, UsageError."""
        if self.domain not in (None, SPIRIT):
            registry.domains.get(self.domain)
        expect_kind(self.kind)
        found: EventFilter = {"domain": self.domain, "actor": self.actor, "kind": self.kind}
        return found if self.since is None else found | {"since": _begin(self.since)}


@dataclass(frozen=True)
class EvaluationQuery:
    """Which evaluations; `system` is whatever `evaluate` takes."""

    domain: str | None = None
    system: str | None = None
    split: str | None = None
    score: str | None = None
    metric: Sequence[str] = ()
    sort: str | None = None
    base: str | None = None

    def rows(self, registry: Registry, *, limit: int, after: int | None = None) -> list[EvaluationRecord]:
        """Newest first, or the largest of a metric first. Raises NotFoundError for the system, UsageError."""
        from .systems import find_system  # it imports what a client of a server does not need

        weights = None if self.system is None else find_system(registry, self.system, base=self.base).weights
        bounds = [MetricBound.parse(bound) for bound in self.metric]
        wanted = EvaluationFilter(self.domain, weights, self.split, self.score, bounds)
        return registry.evaluations.list(wanted, sort=self.sort, limit=limit, after=after)


def _begin(since: str | None) -> datetime | None:
    return None if since is None else moment(since, option="--since", of_day=time.min)
