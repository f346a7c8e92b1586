"""Commands that start at once: forked from a process that has imported the heavy libraries and done nothing else.

`import torch` takes longer than most commands. The forked process calls the console script's function with its own words,
environment, folder and streams, and is otherwise what the installed command is; trainers still get an interpreter of their own.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "sqlalchemy",
    "alembic",
    "pydantic",
    "rich.table",
    "torch",
    "peft",
    "transformers.models.llama.modeling_llama",
)
ROOMS = ("registry", "tasks", "engine", "publishing", "serving", "trainers", "cli")
LEFT_OUT = ("ray", "s3", "vllm", "postgres", "tuning")  # not always installed, or begin threads


class Warm:
    """The test's end: starts commands by asking the process that forks them."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        words = [sys.executable, __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(words, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(
        self, words: Sequence[str], streams: Sequence[int], environment: Mapping[str, str], folder: Path, survives: bool
    ) -> Fork:
        """A running command whose three standard streams are these, the first of them its terminal."""
        asked = {"words": words, "environment": dict(environment), "folder": str(folder), "survives": survives}
        return Fork(self.ask(asked, streams), self)

    def ask(self, asked: Mapping[str, Any], streams: Sequence[int] = ()) -> Any:
        socket.send_fds(self._ours, [json.dumps(asked).encode()], list(streams))
        return json.loads(self._ours.recv(1 << 16))

    def close(self) -> None:
        self._ours.close()
        self._process.wait()


class Fork:
    """What of `subprocess.Popen` a terminal needs."""

    def __init__(self, pid: int, warm: Warm) -> None:
        self.pid, self._warm = pid, warm
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._warm.ask({"poll": self.pid})
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _import_all() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    for room in ROOMS:
        package = importlib.import_module(f"reccocktail.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(word in module.name for word in LEFT_OUT):
                with suppress(ImportError):
                    importlib.import_module(module.name)


def _serve(channel: socket.socket) -> None:
    """Answer until the test's end is closed."""
    while True:
        data, streams, _, _ = socket.recv_fds(channel, 1 << 18, 3)
        if not data:
            return
        asked = json.loads(data)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            channel.send(json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode())
            continue
        pid = os.fork()
        if not pid:
            channel.close()
            _run(asked, streams)
        for stream in streams:
            os.close(stream)
        channel.send(json.dumps(pid).encode())


def _run(asked: Mapping[str, Any], streams: Sequence[int]) -> NoReturn:
    """The command, in the process that was forked for it."""
    from huggingface_hub import constants
    from reccocktail.cli import main

    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in {*streams} - {0, 1, 2}:
        os.close(stream)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if asked["survives"]:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["reccocktail", *asked["words"]]
    importlib.reload(constants)  # what the client reads from the environment when it is imported
    main()


if __name__ == "__main__":
    _import_all()
    threads = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 1  # noqa: PTH208
    assert threads == 1, f"{threads} threads: a fork would lose them"
    _serve(socket.socket(fileno=int(sys.argv[1])))
