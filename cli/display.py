"""Stderr while work is done: one thread writes to it, and nothing that happens there reaches the work.

Workers hand over lines and record their progress, which costs microseconds; a terminal that is slow, stopped, closed or
broken affects that thread only. Whatever it raises ends the display, and is kept for `--traceback`.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .bars import Bar

TICK_SECONDS = 0.1
PATIENCE_SECONDS = 2.0  # with a terminal that takes nothing, once the work is done
MOST_WAITING = 10_000  # lines kept for a terminal that takes nothing
ERASE = "\r\x1b[K"
ECHO = 3  # columns left free for the `^C` of a terminal, which would begin a new line
NO_CURSOR = frozenset({"", "dumb", "unknown"})  # TERMs whose cursor cannot be moved


@dataclass
class Manner:
    """How this run of the command speaks on stderr, and what the display has failed with."""

    quiet: bool = False
    json_lines: bool = False
    problems: list[BaseException] = field(default_factory=list)


manner = Manner()
_display: Display | None = None


def begin(*, json_lines: bool) -> None:
    """A new run of the command."""
    global manner
    manner = Manner(json_lines=json_lines)


def write(text: str) -> None:
    """To stderr, by the display if there is one; nothing is raised where stderr cannot be written."""
    display = _display
    if display is not None:
        display.put(text)
    else:
        _safely(sys.stderr, text)


def begin_line() -> None:
    """Take away what the terminal has echoed of Ctrl-C."""
    if not manner.json_lines and _has_cursor(sys.stderr):
        write(ERASE)


def json_line(**content: Any) -> str:
    """One of the lines of --log-json; without a time of its own it is of now."""
    present = {key: value for key, value in content.items() if value is not None}
    return json.dumps({"at": datetime.now(UTC).isoformat()} | present) + "\n"


@contextmanager
def working() -> Iterator[Display]:
    """While it lasts, stderr belongs to one thread; what libraries write to `sys.stderr` goes through it as well."""
    global _display
    if _display is not None:
        yield _display
        return
    stream = sys.stderr
    display = Display(stream, may_draw=not manner.json_lines)
    proxy = _Proxy(stream, display)
    _display, sys.stderr = display, proxy
    try:
        with _caught_below_python(stream, proxy, display):
            yield display
    finally:
        proxy.end()
        if sys.stderr is proxy:
            sys.stderr = stream
        _display = None
        display.end()


class Display:
    """The thread that writes, and what waits for it: texts, bars that have ended, and the bar at hand."""

    def __init__(self, stream: Any, *, may_draw: bool = True) -> None:
        self._sink = _Sink(stream)
        self._painter = _Painter(self._sink, draws=may_draw and not manner.quiet and _has_cursor(stream))
        self._says_how_far = may_draw and not manner.quiet
        self._changed = threading.Condition()
        self._waiting: deque[str | Bar] = deque()
        self._left_out = 0
        self._bar: Bar | None = None
        self._is_ending = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        with suppress(RuntimeError):  # no more threads can be started: lines are written directly
            self._thread.start()
        if not self._thread.is_alive():
            self._has_ended = True

    def put(self, text: str) -> None:
        """Text to be written, in its turn."""
        with self._changed:
            if not self._has_ended:
                self._queue(text)
                return
        self._sink.write_safely(text)

    def show(self, bar: Bar) -> None:
        """Show this bar until it has ended."""
        if self._says_how_far:
            with self._changed:
                self._bar = bar
                self._changed.notify_all()

    def drop(self, bar: Bar) -> None:
        """The work of this bar has ended."""
        with self._changed:
            if self._bar is bar:
                self._bar = None
                self._queue(bar)

    def end(self) -> None:
        """Write what waits; a terminal that takes nothing is left after a while."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_SECONDS)

    def write_to(self, stream: Any) -> None:
        """From now on to another stream."""
        self._sink.stream = stream

    def _queue(self, item: str | Bar) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._left_out += 1
            return
        self._waiting.append(item)
        self._changed.notify_all()

    def _run(self) -> None:
        rest: list[str | Bar] = []
        painted: Bar | None = None
        try:
            while not self._has_ended:
                with self._changed:
                    if not (self._waiting or self._is_ending or self._bar is not painted):
                        self._changed.wait(TICK_SECONDS if painted else None)
                    rest, painted = self._taken(), self._bar
                    self._has_ended = self._is_ending and not rest
                self._painter.paint(rest, None if self._has_ended else painted)
                rest = []
        except BaseException as error:  # noqa: BLE001  whatever it is, the work continues
            manner.problems.append(error)
            with self._changed:
                self._has_ended = True
                rest += self._taken()
            for item in rest:
                if isinstance(item, str):
                    self._sink.write_safely(item)

    def _taken(self) -> list[str | Bar]:
        """All that waits; called with the lock."""
        taken = list(self._waiting)
        self._waiting.clear()
        if self._left_out:
            line = f"({self._left_out} lines were left out: stderr did not take them)\n"
            taken.append(json_line(what="log", detail=line.strip()) if manner.json_lines else line)
            self._left_out = 0
        return taken


class _Painter:
    """Puts texts above the bar; without a terminal, lines about how far the work is between them."""

    def __init__(self, sink: _Sink, *, draws: bool) -> None:
        self._sink, self._draws = sink, draws
        self._shown = ""  # of a bar, at the cursor
        self._begun = ""  # a line without an end, kept back while a bar is shown

    def paint(self, items: list[str | Bar], bar: Bar | None) -> None:
        now = time.monotonic()
        text = self._begun + "".join(self._text(item, now) for item in items)
        shown = ""
        if self._draws and bar is not None:
            text, self._begun = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
            shown = bar.drawn(self._sink.width() - ECHO, now, ascii_only=not self._sink.knows("━─"))
        else:
            self._begun = ""
            if bar is not None and (line := bar.milestone(now)) is not None:
                text += f"{line}\n"
        if text or shown != self._shown:
            self._sink.write((ERASE if self._shown else "") + text + shown)
        self._shown = shown

    def _text(self, item: str | Bar, now: float) -> str:
        if isinstance(item, str):
            return item
        line = None if self._draws else item.milestone(now)
        return "" if line is None else f"{line}\n"


class _Sink:
    """A stream, written to below Python's buffers: a writer that is stuck in one of those delays the end of the process."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Raises whatever the stream does."""
        handle = _handle(self.stream)
        if handle is None:
            self.stream.write(text)
            self.stream.flush()
            return
        self.stream.flush()
        data = memoryview(text.encode(self._encoding(), "backslashreplace"))
        while data:
            try:
                data = data[os.write(handle, data) :]
            except BlockingIOError:  # another program has made the terminal so
                select.select([], [handle], [], PATIENCE_SECONDS)

    def write_safely(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # closed, broken, or none at all
            self.write(text)

    def width(self) -> int:
        """Columns; 80 where that is not known."""
        handle = _handle(self.stream)
        columns = os.get_terminal_size(handle).columns if handle is not None else 0
        return columns if columns > 0 else 80

    def knows(self, characters: str) -> bool:
        try:
            characters.encode(self._encoding())
        except UnicodeEncodeError:
            return False
        return True

    def _encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"


class _Proxy(io.TextIOBase):
    """Replaces `sys.stderr` meanwhile."""

    def __init__(self, stream: Any, display: Display) -> None:
        self._stream, self._display = stream, display
        self._lines = _JsonLines(display) if manner.json_lines else None

    def write(self, text: str, /) -> int:
        if self._lines is not None:
            self._lines.feed(text)
        elif text:
            self._display.put(text)
        return len(text)

    def end(self) -> None:
        if self._lines is not None:
            self._lines.end()

    def flush(self) -> None:
        return

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return is_terminal(self._stream)

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "backslashreplace"


class _JsonLines:
    """Whatever libraries say, as objects like the others."""

    def __init__(self, display: Display) -> None:
        self._display, self._lock, self._begun = display, threading.Lock(), ""

    def feed(self, text: str) -> None:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._say(line)

    def end(self) -> None:
        with self._lock:
            line, self._begun = self._begun, ""
        self._say(line)

    def _say(self, line: str) -> None:
        if line.strip():
            self._display.put(json_line(what="log", detail=line.strip()))


@contextmanager
def _caught_below_python(stream: Any, proxy: _Proxy, display: Display) -> Iterator[None]:
    """With --log-json: what compiled code and child processes write to the handle of stderr becomes JSON lines too."""
    if not manner.json_lines or _handle(stream) != 2:
        yield
        return
    read, write_end = os.pipe()
    with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace") as real:
        display.write_to(real)
        os.dup2(write_end, 2)
        os.close(write_end)
        reader = threading.Thread(target=_pass_on, args=(read, proxy), name="stderr", daemon=True)
        reader.start()
        try:
            yield
        finally:
            os.dup2(real.fileno(), 2)  # the pipe ends here, unless a child still has it
            reader.join(PATIENCE_SECONDS)
            proxy.end()
            display.end()  # before its handle is closed
            display.write_to(stream)


def _pass_on(read: int, proxy: _Proxy) -> None:
    with os.fdopen(read, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            proxy.write(line)


def _handle(stream: Any) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # memory, closed, none
        return None


def is_terminal(stream: Any) -> bool:
    """Also of a stream that is closed, or None where the process was started without one."""
    try:
        return stream.isatty()
    except (OSError, ValueError, AttributeError):
        return False


def columns() -> int | None:
    """What COLUMNS says; None where it says nothing."""
    told = os.environ.get("COLUMNS", "")
    return int(told) or None if told.isdecimal() else None


def room(stream: Any) -> int | None:
    """Columns of a terminal, 80 where they are not known; None of what is none."""
    if not is_terminal(stream):
        return None
    try:
        return columns() or _Sink(stream).width()
    except (OSError, ValueError):  # it was closed a moment ago
        return None


def _has_cursor(stream: Any) -> bool:
    return is_terminal(stream) and os.environ.get("TERM", "") not in NO_CURSOR


def _safely(stream: Any, text: str) -> None:
    if stream is not None:
        _Sink(stream).write_safely(text)
