"""How far work is: what it records, and how that is written, as a bar on a terminal and as lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..registry.signals import check
from ..registry.sizes import size

QUIET_SECONDS = 10.0
"""How often work of unknown length says how far it is, where there is no terminal."""

FIRST_SECONDS = 5.0
"""How long work may last without a line, where there is no terminal: what takes seconds needs none."""

SLOW_SECONDS = 60.0
"""After how long a tenth of the way is too long to say nothing."""

RESUMED = 0.02
"""The share of the way from which a first report says what was done before, and not what took the time since the beginning."""

WIDEST_BAR, NARROWEST_BAR = 40, 5  # columns


@dataclass(frozen=True)
class State:
    """`done` of `total` units; the total is None as long as it is unknown."""

    done: int = 0
    total: int | None = None
    note: str = ""


class Bar:
    """One piece of work. The worker records its newest state, from any thread; nothing is drawn here."""

    def __init__(self, title: str, unit: str = "") -> None:
        self.title, self.unit = title, unit
        self.began = time.monotonic()
        self.state = State()
        self._adding = threading.Lock()
        self._tenths, self._last_line = 0, self.began
        self._last_seen = (0, "")
        self._start: tuple[int, float] | None = None  # how much was done when the work went on, and when

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Record the state. A Ctrl-C that Python has discarded since is raised here, if this is the main thread."""
        check()
        if self._start is None:
            resumed = total is not None and done >= RESUMED * total
            self._start = (done, time.monotonic()) if resumed else (0, self.began)
        self.state = State(done, total, note)

    def add(self, count: int, total: int | None = None) -> None:
        """So much more is done, of a total that is none too small."""
        with self._adding:
            done = self.state.done + count
            self.state = State(done, None if total is None else max(done, total))

    def milestone(self, now: float) -> str | None:
        """A line, if one is due since the last: after some seconds, each tenth of the way and each minute, or every few seconds of an unknown way."""
        state = self.state
        if state.total is None:
            if now - self._last_line < QUIET_SECONDS:
                return None
            self._last_line = now
            amount = self._amount(state.done) if state.done else "starting"
            return f"{self.title}: {amount}, {_clock(now - self.began)}"
        if now - self.began < FIRST_SECONDS:
            return None
        tenths = 10 * state.done // max(state.total, 1)
        if tenths <= self._tenths and (
            now - self._last_line < SLOW_SECONDS or (state.done, state.note) == self._last_seen
        ):
            return None
        self._tenths, self._last_line, self._last_seen = tenths, now, (state.done, state.note)
        done = size(state.done) if self.unit == "bytes" else f"{state.done}"
        return f"{self.title}: {done} of {self._amount(state.total)} {state.note}".rstrip()

    def drawn(self, width: int, now: float, *, ascii_only: bool = False) -> str:
        """One line of at most `width` columns: title, bar, share, time spent and left, note; the last go first."""
        from rich.cells import cell_len, set_cell_size

        state, spent = self.state, now - self.began
        if state.total is None:
            parts = [self._amount(state.done) if state.done else "", _clock(spent), state.note]
            return set_cell_size(_joined(self.title, *parts), min(width, cell_len(_joined(self.title, *parts))))
        share = min(1.0, max(0.0, state.done / max(state.total, 1)))
        before, since = self._start or (0, self.began)
        own = state.done - before
        left = f"left {_clock((now - since) * (state.total - state.done) / own)}" if own > 0 else "left -:--:--"
        parts = [f"{share:4.0%}", _clock(spent), left, state.note or self._rate(spent)]
        while len(parts) > 1 and cell_len(_joined(self.title, *parts)) + 1 + NARROWEST_BAR > width:
            parts.pop()
        rest = cell_len(_joined(self.title, *parts)) + 1
        bar = _bar(share, min(WIDEST_BAR, width - rest), "#-" if ascii_only else "━─")
        line = _joined(self.title, bar, *parts)
        return line if cell_len(line) <= width else set_cell_size(_joined(parts[0].strip(), self.title), max(width, 0))

    def _amount(self, count: int) -> str:
        return size(count) if self.unit == "bytes" else f"{count} {self.unit}".rstrip()

    def _rate(self, spent: float) -> str:
        return f"{size(round(self.state.done / spent))}/s" if self.unit == "bytes" and spent > 0.5 else ""


class Stages:
    """One bar after the other, as work goes through its stages; threads may report at once."""

    def __init__(self, title: str, show: Callable[[str, str], Bar], end: Callable[[Bar], None]) -> None:
        """`show` begins the bar of a stage by the title of the work, `end` ends it."""
        self.title = title
        self._show, self._end = show, end
        self._lock = threading.Lock()
        self._stage: str | None = None
        self._bar: Bar | None = None

    def update(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            bar = self._bar
            if bar is None or stage != self._stage or _begins_again(bar.state, done):
                self._close()
                self._stage, self._bar = stage, self._show(self.title, stage)
            assert self._bar is not None
            self._bar.update(done, total)

    def close(self) -> None:
        """The stage at hand has ended; the next update begins a new one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._end(self._bar)
            self._bar = None


def _begins_again(before: State, done: int) -> bool:
    """Whether the same stage is the next build's: the one before was complete."""
    return before.total is not None and before.done >= before.total and done < before.done


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _bar(share: float, columns: int, characters: str) -> str:
    full = round(share * columns)
    return characters[0] * full + characters[1] * (columns - full)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
