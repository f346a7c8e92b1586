"""Processes that start at once: forked from one that has imported the heavy libraries and done nothing else.

`import torch` takes longer than most commands. A forked process gets its own words, environment, folder and streams, and is
otherwise what the interpreter or the installed command would be. The test processes share one server; it ends with the last of them.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import traceback
import types
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partialmethod
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
ROOMS = ("registry", "tasks", "networks", "engine", "publishing", "serving", "trainers", "server", "cli")
LEFT_OUT = ("ray", "s3", "vllm", "postgres", "tuning")  # not always installed, or begin threads
COMMAND = Path(sys.executable).with_name("reccocktail")
CHILDREN = (
    "WARM_CHILDREN"  # where it is set in the environment of a command, its trainings are forked from the server, too
)


class Warm:
    """The test's end: starts processes by asking the one that forks them."""

    def __init__(self, place: Path) -> None:
        """Connect to the server whose socket is at `place`, and start it first if nobody has."""
        self._lock, self._place = threading.Lock(), place
        with place.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._server = _connected(place)
            except OSError:
                place.unlink(missing_ok=True)
                _start_server(place)
                self._server = _connected(place)

    def start(
        self, words: Sequence[str], streams: Sequence[int], environment: Mapping[str, str], folder: Path, survives: bool
    ) -> Fork:
        """A running command whose three standard streams are these, the first of them its terminal."""
        asked = {"words": [str(COMMAND), *words], "environment": dict(environment), "folder": str(folder)}
        numbers = {"streams": [0, 1, 2], "terminal": True, "session": True, "survives": survives}
        return Fork(self.ask(asked | numbers, streams), self)

    def popen(self, words: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
        """As `subprocess.Popen`, for this interpreter or the installed command."""
        return _WarmPopen(self, [str(word) for word in words], **options)

    def run(self, words: Sequence[object], *, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[Any]:
        """As `subprocess.run` with `capture_output` and `text`."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with self.popen(words, **streams | options) as process:
            out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(list(words), process.returncode, out, err)

    def command(self, folder: Path) -> dict[str, str]:
        """Puts a `reccocktail` into the folder, for the PATH of shell scripts; the variables that it needs."""
        script = folder / "reccocktail"
        script.write_text(f"#!{sys.executable} -IS\n" + Path(__file__).with_name("warm_client.py").read_text())
        script.chmod(0o755)
        return {"WARM_SOCKET": str(self._place), "WARM_COMMAND": str(COMMAND)}

    def module(self, parent: str = "") -> types.SimpleNamespace:
        """What may stand for `subprocess` in one of our modules: its children start warm.

        `parent` is the variable by which they know whose children they are, if they look at that.
        """

        def popen(words: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
            if parent:
                options["env"] = {**options["env"], parent: str(self.ask({"pid": True}))}
            return self.popen(words, **options)

        return types.SimpleNamespace(**vars(subprocess) | {"Popen": popen})

    def ask(self, asked: Mapping[str, Any], streams: Sequence[int] = ()) -> Any:
        with self._lock:
            try:
                socket.send_fds(self._server, [json.dumps(asked).encode()], list(streams))
                return json.loads(self._server.recv(1 << 16))
            except BaseException:  # such as a signal's: an answer that comes later is not the next question's
                with suppress(OSError):
                    fresh = _connected(self._place)
                    self._server.close()
                    self._server = fresh
                raise

    def close(self) -> None:
        self._server.close()


def _connected(place: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        server.connect(str(place))
    except BaseException:
        server.close()
        raise
    return server


def _start_server(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(place))
        listener.listen(64)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        words = [sys.executable, __file__, str(listener.fileno()), str(place)]
        subprocess.Popen(words, env=environment, pass_fds=[listener.fileno()], start_new_session=True)


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


class _WarmPopen(subprocess.Popen[Any]):
    """`subprocess.Popen` whose process is forked elsewhere; streams, waiting and signals are the standard library's."""

    def __init__(self, warm: Warm, words: list[str], **options: Any) -> None:
        self._warm = warm
        super().__init__(words, **options)

    def _execute_child(self, args: list[str], *given: Any) -> None:
        _, before, _, pass_fds, cwd, env, _, _, shell, *pipes = given[:15]
        session = given[20]  # after restore_signals, gid, gids, uid, umask
        assert not before
        assert not shell
        numbers = [0, 1, 2, *pass_fds]
        streams = [
            pipes[0] if pipes[0] != -1 else 0,
            pipes[3] if pipes[3] != -1 else 1,
            pipes[5] if pipes[5] != -1 else 2,
        ]
        asked = {
            "words": args,
            "environment": dict(os.environ if env is None else env),
            "folder": str(cwd or Path.cwd()),
            "streams": numbers,
            "session": bool(session),
        }
        self._fork = Fork(self._warm.ask(asked, [*streams, *pass_fds]), self._warm)
        self.pid, self._child_created = self._fork.pid, True
        self._close_pipe_fds(*pipes)  # pyright: ignore

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self.returncode = self._fork.poll()
        return self.returncode

    def _wait(self, timeout: float | None = None) -> int:
        self.returncode = self._fork.wait(timeout)
        return self.returncode


def _import_all() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    for room in ROOMS:
        package = importlib.import_module(f"reccocktail.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(word in module.name for word in LEFT_OUT):
                with suppress(ImportError):
                    importlib.import_module(module.name)


_codes: dict[int, int] = {}
"""Of processes that ended: who asked may have been interrupted before the answer came, and asks again."""


def _polled(pid: int) -> int | None:
    if pid not in _codes:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _codes[pid] = os.waitstatus_to_exitcode(status)
    return _codes.get(pid)


def _serve(listener: socket.socket, place: Path) -> None:
    """Answer until the last test process is gone."""
    clients: list[socket.socket] = []
    while True:
        for ready in select.select([listener, *clients], [], [])[0]:
            if ready is listener:
                clients.append(listener.accept()[0])
            elif not _answered(ready, [listener, *clients], place):
                clients.remove(ready)
                ready.close()
        if not clients:
            place.unlink(missing_ok=True)  # from now on nobody finds us, but some may be at the door
            if not select.select([listener], [], [], 0)[0]:
                return


def _answered(client: socket.socket, ours: Sequence[socket.socket], place: Path) -> bool:
    """Whether it is still there; carries out what it asks for."""
    try:
        data, streams, _, _ = socket.recv_fds(client, 1 << 18, 16)
        if not data:
            return False
        asked = json.loads(data)
        if "pid" in asked:
            client.send(json.dumps(os.getpid()).encode())
            return True
        if "poll" in asked:
            client.send(json.dumps(_polled(asked["poll"])).encode())
            return True
        pid = os.fork()
        if not pid:
            for each in ours:
                each.close()
            _run(asked, streams, place)
        for stream in streams:
            os.close(stream)
        _codes.pop(pid, None)  # the number of one that ended long ago
        client.send(json.dumps(pid).encode())
    except ConnectionError:
        return False
    return True


def _run(asked: Mapping[str, Any], streams: Sequence[int], place: Path) -> NoReturn:
    """The process that was forked."""
    from huggingface_hub import constants
    from tqdm import tqdm

    if asked["session"]:
        os.setsid()
    aside = [fcntl.fcntl(stream, fcntl.F_DUPFD, 200) for stream in streams]
    for stream in streams:
        os.close(stream)
    for number, stream in zip(asked["streams"], aside, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    if asked.get("terminal"):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if asked.get("survives"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, closefd=False, errors=errors)  # noqa: SIM115
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    importlib.reload(constants)  # what the client reads from the environment when it is imported
    if os.environ.get("TQDM_DISABLE") == "1":  # that, too
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    if os.environ.pop(CHILDREN, ""):
        from reccocktail.trainers import child

        vars(child)["subprocess"] = Warm(place).module()
    _end(_carried_out(*asked["words"]))


def _carried_out(*words: str) -> int:
    """The exit code."""
    try:
        _carry_out(*words)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return 0 if ended.code is None else ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """As the interpreter ends, but without taking every module apart, for which all their memory would be copied first."""
    threading._shutdown()  # pyright: ignore
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)  # what C code has printed
    os._exit(code & 0xFF)


def _carry_out(program: str, *words: str) -> None:
    """What the interpreter would do with these words."""
    if Path(program) == COMMAND:
        from reccocktail.cli import main

        sys.argv = [program, *words]
        main()
    assert program == sys.executable, program
    left = list(words)
    while left[0] in ("-P", "-W"):
        if left.pop(0) == "-W":
            assert left.pop(0) == "ignore::FutureWarning"
            warnings.filterwarnings("ignore", category=FutureWarning)
    sys.modules["__main__"] = types.ModuleType("__main__")
    match left:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            exec(code, vars(sys.modules["__main__"]))
        case [script, *rest]:
            sys.argv = [script, *rest]
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # this folder
    _import_all()
    threads = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 1  # noqa: PTH208
    assert threads == 1, f"{threads} threads: a fork would lose them"
    gc.collect()
    gc.freeze()  # no collection in a fork looks at, and so copies, what was imported
    _serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
