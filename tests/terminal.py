"""The installed command on a pseudo-terminal: what is typed, what the screen shows in the end, and how the process ended."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyte

COMMAND = Path(sys.executable).with_name("reccocktail")


def _installed(
    words: Sequence[str], streams: Sequence[int], environment: Mapping[str, str], folder: Path, survives: bool
) -> subprocess.Popen[bytes]:
    """The command as a shell starts it, with a terminal of its own."""

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if survives:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    return subprocess.Popen(
        [COMMAND, *words],
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        env=environment,
        cwd=folder,
        start_new_session=True,
        preexec_fn=take_terminal,
    )


class Terminal:
    """A command that runs on a terminal of its own, whose window somebody looks at until it is closed."""

    def __init__(
        self,
        *words: object,
        environment: Mapping[str, str],
        folder: Path,
        columns: int = 80,
        lines: int = 24,
        term: str = "xterm-256color",
        survives: bool = False,
        answers_to: Path | None = None,
        start: Callable[..., Any] | None = None,
    ) -> None:
        """`survives` is `nohup`: SIGHUP is ignored. With `answers_to`, stdout is that file. `start` is `Warm.start`, or the installed command."""
        start = start or _installed
        self._screen = pyte.Screen(columns or 80, lines or 24)
        self._stream = pyte.Stream(self._screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._lock = threading.Lock()
        self.written = ""
        self._window, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        out = inside if answers_to is None else os.open(answers_to, os.O_WRONLY | os.O_CREAT, 0o600)

        streams = (inside, out, inside)
        ours = {name: value for name, value in environment.items() if name not in ("LINES", "COLUMNS")}
        self._process = start([*map(str, words)], streams, {**ours, "TERM": term}, folder, survives)
        os.close(inside)
        if out != inside:
            os.close(out)
        self._is_closed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._is_closed.is_set():
            if not select.select([self._window], [], [], 0.05)[0]:
                continue
            try:
                data = os.read(self._window, 1 << 16)
            except OSError:  # nobody has the other end any more
                break
            text = self._decoder.decode(data)
            with self._lock:
                self.written += text
                self._stream.feed(text)
        os.close(self._window)

    @property
    def screen(self) -> list[str]:
        """The lines of the window, without the empty ones."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display if line.strip()]

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until this has been written."""
        until = time.monotonic() + seconds
        while text not in self.written:
            assert time.monotonic() < until, f"{text!r} was never written:\n{self.written}"
            assert self._process.poll() is None or text in self.written, f"it ended:\n{self.written}"
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        os.write(self._window, b"\x03")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close_window(self) -> None:
        """The terminal is gone: SIGHUP to the command, and an error for whoever writes to it."""
        self._is_closed.set()
        self._reader.join()

    def ends(self, seconds: float = 120) -> int:
        """The exit code, once all that was written has been read."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"it did not end:\n{self.written}") from None
        self._reader.join(60)
        return code
