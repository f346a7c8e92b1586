"""Workers: who takes queued builds and carries them out, until they are stopped or nothing is left.

SQL owns the truth; an executor only places the work. `inline` works in this process; `process` starts worker processes on this
machine and replaces those that die. What happens is told as `Happening`s, one per change of a build's state.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from ..registry import Build, Registry
from ..registry.errors import RecCocktailError
from ..tasks import TaskError
from .builds import Progress, request, run, standings, worker_name
from .recipes import load_recipe

POLL_SECONDS = 2.0
WATCH_SECONDS = 30.0
END_SECONDS = 30.0  # for a worker process to give its build back
QUICK = 5.0  # a process that dies so soon is broken, not unlucky
BROKEN_AFTER = 3

Tell = Callable[["Happening"], None]
Silent: Progress = lambda stage, done, total: None  # noqa: E731


@dataclass(frozen=True)
class Happening:
    """A change of state: `what` is one of requested, begins, says, succeeded, failed, cancelled, postponed,
    blocked; of worker processes started, died, ended."""

    what: str
    build: str | None = None
    domain: str | None = None
    detail: str | None = None
    worker: str = field(default_factory=worker_name)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> dict:
        return {k: v for k, v in asdict(self).items() if v is not None} | {"at": self.at.isoformat()}

    def __str__(self) -> str:
        said = f"build {self.build} of {self.domain} {self.what}" if self.build else self.what
        return said + (f": {self.detail}" if self.detail else "")


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM, like Ctrl-C, ends what is being done by KeyboardInterrupt."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def inline(
    registry: Registry,
    *,
    device: str,
    once: bool,
    watch: bool = False,
    tell: Tell = lambda happening: None,
    progress: Callable[[Build], Progress] = lambda build: Silent,
) -> list[Build]:
    """Work in this process. With `once` until no build waits that could be claimed now; the builds it ended, in order.

    With `watch`, domains that are stale or were never built are requested as their inputs move. KeyboardInterrupt gives the build at
    hand back to the queue and is raised on.
    """
    me, ended = worker_name(), []
    watched = -WATCH_SECONDS
    while True:
        if watch and time.monotonic() - watched >= WATCH_SECONDS:
            request_what_is_stale(registry, tell)
            watched = time.monotonic()
        claimed = registry.builds.claim(me)
        if claimed is None:
            if once:
                return ended
            time.sleep(POLL_SECONDS)
            continue
        tell(Happening("begins", claimed.id, claimed.domain, f"attempt {claimed.attempts}", me))
        try:
            done = run(
                registry, claimed, worker=me, device=device, progress=progress(claimed), give_back=True,
                tell=lambda text, build=claimed: tell(Happening("says", build.id, build.domain, text, me)),
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  the row has it, and a worker goes on
            done = registry.builds.get(claimed.id)
            what = "postponed" if done.status == "queued" else done.status
            tell(Happening(what, done.id, done.domain, str(error) or type(error).__name__, me))
        else:
            tell(Happening("succeeded", done.id, done.domain, done.digest, me))
        ended.append(done)


def request_what_is_stale(registry: Registry, tell: Tell = lambda happening: None) -> list[Build]:
    """Builds of all domains whose inputs moved, or that were never built though there is something to mix."""
    asked = []
    for domain, state in standings(registry).items():
        if state.state not in ("stale", "unbuilt"):
            continue
        try:
            recipe = load_recipe(registry.domains.get(domain).recipe or "default")
            answered = request(registry, domain, recipe)
        except (RecCocktailError, TaskError) as error:  # it moved meanwhile
            tell(Happening("blocked", None, domain, f"{domain}: {error}"))
            continue
        if answered.created:
            why = "; ".join(state.reasons) or "never built"
            tell(Happening("requested", answered.build.id, domain, why))
            asked.append(answered.build)
    return asked


def processes(
    registry: Registry,
    *,
    count: int,
    device: str,
    once: bool,
    watch: bool = False,
    actor: str | None = None,
    tell: Tell = lambda happening: None,
) -> list[Build]:
    """Work in `count` processes of this machine, each with one build at a time and an equal share of the cores.

    One that dies is replaced, and its build freed at once rather than when its lease ends. Ctrl-C and SIGTERM let them give
    their builds back. With `once` it ends when no build waits. Raises ChildProcessError when processes cannot even start.
    """
    environment = _environment(registry, device, actor, count)
    running: list[_Child] = []
    ended: dict[str, None] = {}
    quick = 0
    watched = -WATCH_SECONDS
    lock = threading.Lock()

    def heard(happening: Happening) -> None:
        with lock:
            if happening.build and happening.what in ("succeeded", "failed", "cancelled", "postponed"):
                ended[happening.build] = None
            tell(happening)

    try:
        while True:
            if watch and time.monotonic() - watched >= WATCH_SECONDS:
                request_what_is_stale(registry, heard)
                watched = time.monotonic()
            for child in [child for child in running if not child.is_alive]:
                running.remove(child)
                if child.has_ended:  # its exit code tells of its builds, not of itself
                    continue
                is_broken = (
                    child.code is not None and child.code > 0 and child.age < QUICK
                )  # a signal came from outside
                quick = quick + 1 if is_broken else 0
                freed = registry.builds.free(child.worker, f"worker {child.worker} died ({child.ending})")
                heard(Happening("died", None, None, f"worker process {child.pid}: {child.ending}"))
                for build in freed:
                    heard(Happening("postponed" if build.status == "queued" else build.status, build.id, build.domain))
                if quick >= BROKEN_AFTER:
                    raise ChildProcessError(
                        f"{quick} worker processes died as soon as they were started: {child.last_words}"
                    )
            waiting = registry.builds.waiting()
            if once and not running and not waiting:
                break
            wanted = min(count, len(running) + waiting) if once else count
            while len(running) < wanted:
                running.append(_Child(environment, once, heard))
                heard(Happening("started", detail=f"worker process {running[-1].pid}"))
            time.sleep(0.2)
    finally:
        _end(running)
        for child in running:
            registry.builds.free(child.worker, f"worker {child.worker} was stopped")
    return [registry.builds.get(build) for build in ended]


def _environment(registry: Registry, device: str, actor: str | None, count: int) -> dict[str, str]:
    """Where the registry is goes by the environment: a command line can be read by everybody on the machine."""
    settings = registry.settings
    threads = max(1, (os.cpu_count() or 1) // count)
    own = {
        "RECCOCKTAIL_HOME": str(settings.home),
        "RECCOCKTAIL_DATABASE_URL": settings.database_url,
        "RECCOCKTAIL_STORE_URL": settings.store_url,
        "RECCOCKTAIL_DEVICE": device,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    return os.environ | own | ({"RECCOCKTAIL_AS": actor} if actor else {})


class _Child:
    """A worker process, and what it says."""

    def __init__(self, environment: Mapping[str, str], once: bool, tell: Tell) -> None:
        command = [sys.executable, "-c", "from reccocktail.cli import main; main()", "worker", "--log-json"]
        self._process = subprocess.Popen(
            [*command, *(["--once"] if once else [])],
            env=dict(environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is passed on by us, once
        )
        self._started = time.monotonic()
        self.pid = self._process.pid
        self.worker = f"{socket.gethostname()}:{self.pid}:"
        self.last_words = ""
        self.has_ended = False
        self._reader = threading.Thread(target=self._read, args=(tell,), name=f"worker-{self.pid}", daemon=True)
        self._reader.start()

    def _read(self, tell: Tell) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                said = json.loads(line)
                happening = Happening(**said | {"at": datetime.fromisoformat(said["at"])})
            except (ValueError, TypeError, KeyError):
                self.last_words = line.strip() or self.last_words
                continue
            if happening.what == "ended":
                self.has_ended = True
            else:
                tell(happening)

    @property
    def is_alive(self) -> bool:
        if self._process.poll() is None:
            return True
        self._reader.join(timeout=5)
        return False

    @property
    def code(self) -> int | None:
        return self._process.returncode

    @property
    def age(self) -> float:
        return time.monotonic() - self._started

    @property
    def ending(self) -> str:
        code = self._process.returncode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def stop(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.stop(signal.SIGTERM)
    until = time.monotonic() + END_SECONDS
    for child in children:
        child.wait(max(0.0, until - time.monotonic()))
