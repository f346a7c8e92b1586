"""Being asked to end: SIGTERM, and SIGHUP of a terminal that is closed, end the work as Ctrl-C does, in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's asked the process to end."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def exit_code(error: BaseException) -> int:
    """What a shell calls the end by this signal: 128 and its number; 130 for Ctrl-C."""
    return 128 + getattr(error, "number", signal.SIGINT)


@contextmanager
def raised(numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGHUP)) -> Iterator[None]:
    """These signals raise Stopped, SIGINT KeyboardInterrupt. SIGHUP stays ignored under nohup; outside the main thread nothing happens."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
