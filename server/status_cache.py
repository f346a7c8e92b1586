"""Where domains stand, for pages that many people look at: computed once for all of them, and again when anything has happened.

Every change of the registry is an event; what is none, such as the progress of a build or a data folder, is as old as SECONDS at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..publishing.status import Status, status_of
from ..registry import Registry

SECONDS = 3.0


class StatusCache:
    def __init__(self, registry: Registry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._lock = threading.Lock()
        self._known: tuple[int, float, Status] | None = None

    def get(self) -> Status:
        """Of all domains. Whoever asks meanwhile waits for the one that computes it."""
        with self._lock:
            newest = self._registry.events.list(limit=1)
            event = newest[0].id if newest else 0
            if self._known is not None and self._known[0] == event and self._clock() - self._known[1] < SECONDS:
                return self._known[2]
            found = status_of(self._registry)
            self._known = (event, self._clock(), found)
            return found
