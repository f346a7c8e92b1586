"""Stores the adapters of a file ahead of their turn, in a few threads: hashing, checking and waiting for the disk go side by side.

Only the bytes come early. Rows are written one after the other, in the file's order, by whoever takes what was stored.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ..artifacts.sources import AdapterSource
from ..catalog.adapters import StoredAdapter
from .document import AdapterEntry

THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Ready:
    """An adapter's folder, its digest as far as it is known, what the store has of it, and what is peculiar about it if nothing is stored."""

    found: AdapterSource
    digest: str | None = None
    stored: StoredAdapter | None = None
    notes: tuple[str, ...] = ()


class Ahead:
    """`may` says whether an entry's adapter can be stored before its turn, `store` does it."""

    def __init__(
        self,
        entries: Iterable[AdapterEntry],
        may: Callable[[AdapterEntry], bool],
        store: Callable[[AdapterEntry], Ready],
    ) -> None:
        self._waiting = deque(entries)
        self._may, self._store = may, store
        self._storing: dict[int, Future[Ready]] = {}
        self._threads = ThreadPoolExecutor(THREADS)  # starts one only when there is something to do

    def take(self, entry: AdapterEntry) -> Ready | None:
        """What was stored of the entry, whose turn it is; None if it was not stored. Raises what `store` raised."""
        while self._waiting and len(self._storing) <= THREADS:  # the entry itself, and one for each thread
            following = self._waiting.popleft()
            if self._may(following):
                self._storing[id(following)] = self._threads.submit(self._store, following)
            elif following is entry:
                break
        ready = self._storing.pop(id(entry), None)
        return None if ready is None else ready.result()

    def close(self) -> None:
        """Waits for what has begun; nothing else begins."""
        self._threads.shutdown(cancel_futures=True)
