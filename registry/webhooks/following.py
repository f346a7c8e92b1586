"""Delivering for as long as a process runs: what a worker process or a thread of a server does."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..errors import RecCocktailError
from ..signals import check
from .delivery import Deliverer
from .outbox import Delivery

POLL_SECONDS = 1.0


def follow(
    deliverer: Deliverer,
    notify: Callable[[Delivery], None],
    warn: Callable[[str], None],
    *,
    look: Callable[[], None] = lambda: None,
    ended: threading.Event | None = None,
) -> None:
    """Delivers what becomes due, until `ended` is set or KeyboardInterrupt comes. `look` is called before each look at the outbox.

    What does not pass by itself ends it; a database that restarts is waited for, and each trouble is reported once.
    """
    ended = ended or threading.Event()
    told: set[str] = set()
    while not ended.is_set():
        check()
        try:
            look()
            for done in deliverer.run():
                notify(done)
            troubles = {f"nothing is sent to {name}: {why}" for name, why in deliverer.unsigned.items()}
        except RecCocktailError as error:
            if not error.retryable:
                raise
            troubles = {str(error)}
        for trouble in sorted(troubles - told):
            warn(trouble)
        told = troubles
        ended.wait(POLL_SECONDS)
