"""The display of progress: whatever becomes of the terminal, the work is not failed, slowed or changed by it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyte
import pytest
from reccocktail.cli import display
from reccocktail.cli.bars import Bar
from reccocktail.cli.console import progress, say, stages, warn

UNITS = {"merge": "bytes", "store": "bytes"}


class Window:
    """Both ends of a pseudo-terminal: the inner one is this process's stderr."""

    def __init__(self, columns: int, lines: int = 24) -> None:
        self._outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.stream = os.fdopen(inner, "w", encoding="utf-8")
        self.written = b""

    take: Callable[[], None]
    """Makes it this process's stderr; called by the test, for pytest puts its own there before each."""

    def read(self) -> str:
        """All that was written, which nobody has read yet."""
        os.set_blocking(self._outer, False)
        while True:
            try:
                self.written += os.read(self._outer, 1 << 16)
            except OSError:
                return self.written.decode()

    def screen(self, columns: int = 80) -> list[str]:
        screen = pyte.Screen(columns, 24)
        pyte.Stream(screen).feed(self.read())
        return [line.rstrip() for line in screen.display if line.strip()]

    def close(self) -> None:
        os.close(self._outer)


@pytest.fixture(autouse=True)
def _usual_manner(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TERM", "xterm-256color")
    display.begin(json_lines=False)
    yield
    display.begin(json_lines=False)


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Window:
    window = Window(80)
    window.take = lambda: monkeypatch.setattr(sys, "stderr", window.stream)
    return window


def _work(threads: int = 16, updates: int = 2000) -> None:
    """Threads report at once, as those of a merge do."""
    with stages("build", UNITS) as bars, ThreadPoolExecutor(threads) as pool:
        for stage in UNITS:
            list(pool.map(lambda number, stage=stage: bars.update(stage, number, updates), range(updates)))


def test_threads_that_report_at_once_leave_a_clean_screen(window: Window) -> None:
    window.take()
    _work()
    say("done")
    assert window.screen() == ["done"]
    assert "build: store" in window.read()
    assert not display.manner.problems


def test_a_bar_is_drawn_at_a_bounded_rate(window: Window) -> None:
    window.take()
    began = time.monotonic()
    with progress("merging") as bar:
        while time.monotonic() < began + 1.0:
            bar.update(1, 10)
            bar.add(1, 10)
    most = 10 * (time.monotonic() - began) + 3  # more than a second has passed where the machine was busy
    assert 1 <= window.read().count("merging") <= most


def test_remarks_stand_above_the_bar_and_the_bar_goes_when_the_work_ends(window: Window) -> None:
    window.take()
    with progress("merging") as bar:
        for number in range(5):
            bar.update(number, 5)
            say(f"remark {number}")
            print(f"library {number}", file=sys.stderr)
            time.sleep(0.02)
    screen = [line for line in window.screen() if line.startswith("remark") or "library" in line]
    assert [line for line in screen if line.startswith("remark")] == [f"remark {number}" for number in range(5)]
    assert not [line for line in window.screen() if "merging" in line]


def test_a_terminal_that_takes_nothing_holds_up_nobody(window: Window) -> None:
    window.take()
    began = time.monotonic()
    with progress("merging", unit="bytes") as bar:
        for number in range(5000):  # far more than a terminal's buffer takes
            bar.update(number, 5000)
            say(f"remark {number} " + "x" * 70)
        spent = time.monotonic() - began
    assert spent < 60
    assert time.monotonic() - began < spent + display.PATIENCE_SECONDS + 60


def test_lines_that_a_terminal_never_took_do_not_fill_the_memory(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    window.take()
    monkeypatch.setattr(display, "MOST_WAITING", 50)
    monkeypatch.setattr(display, "PATIENCE_SECONDS", 5.0)
    with display.working():
        for number in range(3000):
            say(f"remark {number} " + "x" * 70)
        time.sleep(0.1)
        reader = threading.Thread(target=lambda: [(window.read(), time.sleep(0.02)) for _ in range(40)])
        reader.start()
    reader.join()
    assert "lines were left out" in window.read()


def test_a_terminal_that_is_closed_meanwhile_ends_the_display_and_not_the_work(window: Window) -> None:
    window.take()
    with progress("merging") as bar:
        bar.update(1, 10)
        window.close()
        for number in range(20):
            bar.update(number, 20)
            say("is not seen by anybody")
            time.sleep(0.02)
        print("a library says something", file=sys.stderr)
    warn("nor is this")
    assert [type(problem) for problem in display.manner.problems] == [OSError]


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["none at all", "closed"])
def test_without_a_stderr_work_goes_on(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    _work(4, 100)
    say("nobody hears it")


def test_a_reader_that_is_gone_ends_the_display_and_not_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr("reccocktail.cli.bars.FIRST_SECONDS", 0.0)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        _work(4, 100)
        say("nobody hears it")
        monkeypatch.undo()
    assert [type(problem) for problem in display.manner.problems] == [BrokenPipeError]


def test_whatever_drawing_raises_is_kept_and_remarks_still_come(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    window.take()
    monkeypatch.setattr(Bar, "drawn", lambda *_, **__: 1 // 0)
    with progress("merging") as bar:
        bar.update(1, 2)
        time.sleep(0.05)
        say("a remark")
    assert window.screen() == ["a remark"]
    assert [type(problem) for problem in display.manner.problems] == [ZeroDivisionError]


@pytest.mark.parametrize("columns", [0, 1, 2, 10, 40, 500])
def test_terminals_of_odd_sizes(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(columns)
    monkeypatch.setattr(sys, "stderr", window.stream)
    _work(4, 200)
    say("done")
    assert "done" in window.read()
    assert not display.manner.problems
    window.close()


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_without_a_cursor_gets_lines(term: str, window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    window.take()
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("reccocktail.cli.bars.FIRST_SECONDS", 0.0)
    _work(2, 100)
    lines = window.read().splitlines()
    assert lines[-1] == "build: store: 100 B of 100 B" or "build: store: 99 B of 100 B" in lines[-1]
    assert len(lines) <= 20
    assert "\x1b" not in window.read()


def test_elsewhere_there_are_lines_one_for_each_tenth(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reccocktail.cli.bars.FIRST_SECONDS", 0.0)
    with progress("training", unit="steps") as bar:
        for done in range(1, 1001):
            bar.update(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 10
    assert lines[-1] == "training: 1000 of 1000 steps"


def test_quiet_leaves_warnings_and_errors(window: Window) -> None:
    window.take()
    display.manner.quiet = True
    _work(2, 100)
    say("a remark")
    warn("a warning")
    assert window.read().splitlines() == ["a warning"]


def test_json_lines_hold_whatever_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    display.begin(json_lines=True)
    with display.working(), progress("merging") as bar:
        bar.update(1, 1)
        say("a remark")
        print("from a library", file=sys.stderr)
        print("half a line", end="", file=sys.stderr)
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {(each["what"], each["detail"]) for each in said} >= {("says", "a remark"), ("log", "half a line")}
    assert [each for each in said if "from a library" in each["detail"]]


def test_json_lines_hold_what_is_written_below_python(capfd: pytest.CaptureFixture[str]) -> None:
    display.begin(json_lines=True)
    with open(os.dup(2), "w") as stream:  # noqa: PTH123
        assert stream.fileno() != 2
    before = sys.stderr
    try:
        with open(2, "w", closefd=False) as stream:
            sys.stderr = stream
            with display.working():
                os.write(2, b"compiled code\n")
                os.system("echo a child >&2")
    finally:
        sys.stderr = before
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [each["detail"] for each in said] == ["compiled code", "a child"]
