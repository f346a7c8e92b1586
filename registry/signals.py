"""Being asked to end: SIGTERM, SIGHUP of a terminal that is closed, and Ctrl-C end the work by an exception, in good order.

An exception that a signal handler raises can come between any two instructions. In a database transaction that would leave a
connection with the write lock behind, so `deferred` blocks put it off to their end. Python discards what is raised in finalizers and
weak-reference callbacks; `check` raises again what was lost there.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's asked the process to end."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


class _State:
    """Of the main thread, in which alone Python runs signal handlers."""

    deferring = 0  # blocks that are open
    waiting: int | None = None  # the signal that came in one of them
    asked: int | None = None  # the last signal that asked the process to end
    discarded: int | None = None  # the last signal whose exception was raised where Python discards it


def exit_code(error: BaseException) -> int:
    """What a shell calls the end by this signal: 128 and its number; 130 for Ctrl-C."""
    return 128 + getattr(error, "number", signal.SIGINT)


@contextmanager
def raised(numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) -> Iterator[None]:
    """These signals raise Stopped, SIGINT KeyboardInterrupt. What is ignored, as under nohup, stays so, except for SIGTERM.

    Outside the main thread nothing happens.
    """
    if not _on_main_thread():
        yield
        return
    heeded = [n for n in numbers if n == signal.SIGTERM or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in heeded}
    report = sys.unraisablehook

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            _State.discarded = getattr(unraisable.exc_value, "number", signal.SIGINT)
        else:
            report(unraisable)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.waiting = _State.asked = _State.discarded = None


@contextmanager
def deferred() -> Iterator[None]:
    """A signal in the block raises at its end; a second one at once."""
    if not _on_main_thread():
        yield
        return
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
        if not _State.deferring:
            raise_waiting()


def raise_waiting() -> None:
    """Raises a signal that was put off: for a place in a `deferred` block where an exception does no harm, such as a long wait."""
    if _on_main_thread() and _State.waiting is not None:
        number, _State.waiting = _State.waiting, None
        raise _error(number)


def check() -> None:
    """Raises again if the process was asked to end and is still at work: the exception was discarded somewhere.

    Not in a `deferred` block. For loops that wait, and for whatever reports its progress.
    """
    if _State.deferring:
        return
    if _on_main_thread() and _State.discarded is not None:
        number, _State.discarded = _State.discarded, None
        raise _error(number)
    if _on_main_thread() and _State.asked is not None:
        raise Stopped(_State.asked)


def _stop(number: int, _: object) -> None:
    if number != signal.SIGINT:
        _State.asked = number
    if _State.deferring and _State.waiting is None:
        _State.waiting = number
        return
    _State.waiting = None
    raise _error(number)


def _error(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped(number)


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
