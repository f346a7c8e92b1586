"""How often one caller may ask: a bucket that fills at a steady rate. Each instance of a server keeps its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .errors import TooManyRequestsError

REQUESTS_PER_MINUTE = 1200
LOGINS_PER_MINUTE = 20  # attempts with a token that does not hold, from one address
MOST_CALLERS = 10_000


class RateLimit:
    """`per_minute` requests of each caller, which may come at once."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_minute / 60, float(per_minute), clock
        self._left: dict[str, tuple[float, float]] = {}  # what is left of each caller's bucket, and when that was
        self._lock = threading.Lock()

    def take(self, caller: str, count: float = 1.0) -> None:
        """Raises TooManyRequestsError. With `count` 0 it only looks."""
        with self._lock:
            now = self._clock()
            left, since = self._left.pop(caller, (self._burst, now))
            left = min(self._burst, left + (now - since) * self._rate)
            if left >= 1:
                left -= count
                self._keep(caller, left, now)
                return
            self._keep(caller, left, now)
        wait = (1 - left) / self._rate
        raise TooManyRequestsError(
            f"{caller} asks too often", hint=f"again in {wait:.0f} seconds" if wait >= 1 else None
        )

    def _keep(self, caller: str, left: float, now: float) -> None:
        """The caller that was not heard of for longest makes room."""
        if len(self._left) >= MOST_CALLERS:
            self._left.pop(next(iter(self._left)))
        self._left[caller] = (left, now)
