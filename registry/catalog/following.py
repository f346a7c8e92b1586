"""Following events: each new one once, also one that appears later than those with larger ids."""

from __future__ import annotations

from typing import Unpack

from .events import Event, EventFilter, Events

LATE = 500  # ids below the newest: an event that appears later than its successors is among them


class EventFollower:
    """What the first look sees is known before the past is read, so that an event which comes between the two is new."""

    def __init__(self, events: Events, *, known: int | None = None, **wanted: Unpack[EventFilter]) -> None:
        """`known` is the id of the last event that is known; None: all that are there now are."""
        self._events, self._wanted = events, wanted
        newest = events.list(limit=1)
        last = newest[0].id if newest else 0
        self._last = last if known is None else min(known, last)
        self._seen = {event.id for event in events.newer(self._last - LATE, **wanted) if event.id <= self._last}

    def past(self, count: int) -> list[Event]:
        """The last events, oldest first; they are not new any more."""
        found = self._events.list(limit=count, **self._wanted)[::-1]
        self._seen |= {event.id for event in found}
        return found

    def new(self) -> list[Event]:
        """Those that were not given yet, oldest first."""
        found = self._events.newer(self._last - LATE, **self._wanted)
        fresh = [event for event in found if event.id not in self._seen]
        self._last = max([self._last, *(event.id for event in found)])
        self._seen = {number for number in self._seen if number > self._last - LATE} | {event.id for event in found}
        return fresh
