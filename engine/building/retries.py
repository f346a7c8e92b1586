"""Temporary failures: which errors may pass, and when to try again."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from ...registry.errors import RecCocktailError, UnavailableError

PATIENCE_SECONDS = 50.0  # with a database that does not answer when a build has ended: less than a lease
FIRST_BACK_OFF, LONGEST_BACK_OFF = 10.0, 600.0  # seconds
_PASSING = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.EPIPE, errno.ESTALE, errno.ENOMEM, errno.EMFILE,
}  # fmt: skip

_Answer = TypeVar("_Answer")


def retryable(error: BaseException) -> bool:
    """Whether the same may succeed later or elsewhere: network, database, a full disk. A bad adapter stays bad."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return isinstance(error, RecCocktailError) and error.retryable


def back_off(attempts: int) -> float:
    """Seconds until the next attempt: twice as long each time, up to ten minutes, and a little by chance, so that not all come at once."""
    return min(FIRST_BACK_OFF * 2 ** max(0, attempts - 1), LONGEST_BACK_OFF) * random.uniform(0.8, 1.2)  # noqa: S311


def retry_until_available(ask: Callable[[], _Answer], seconds: float = PATIENCE_SECONDS) -> _Answer:
    """What the database answers, asked again while it cannot be reached: a server that restarts is back within the minute."""
    until, pause = time.monotonic() + seconds, 0.1
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() + pause > until:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
