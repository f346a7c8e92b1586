"""Catalogues that pages search: each read once, and again when a file of the domain's data has changed."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ..engine.building.planning import data_digest
from ..engine.domain_data import NO_CATALOGUE, domain_data
from ..registry import Registry
from ..tasks import Catalogue

KEPT = 3  # catalogues in memory


class Catalogues:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Catalogue] = OrderedDict()

    def get(self, registry: Registry, domain: str) -> Catalogue:
        """Raises NotFoundError, UsageError for a domain without data, DataError."""
        data = registry.domains.get(domain).data
        with self._lock:
            key = (domain, data_digest(registry, data) if data else "")
            if key not in self._known:
                self._known[key] = Catalogue(domain_data(registry, domain, needed=NO_CATALOGUE))
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]
