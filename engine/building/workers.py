"""Workers: who takes queued builds and carries them out, until they are stopped or nothing is left.

SQL owns the truth; an executor only places the work. `inline` works in this process; `process` starts worker processes on this
machine and replaces those that die; `ray` (in `on_ray`) has tasks of a cluster do it. Events are reported as `WorkerEvent`s, one per
change of a build's state. A database that cannot be reached for a while is waited for.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ...registry import Build, Registry
from ...registry.errors import RecCocktailError, UnavailableError
from ...registry.signals import check, raised
from .execution import run_together, worker_name
from .job import Progress, RunOptions
from .retries import PATIENCE_SECONDS
from .stale_builds import StaleBuildPoller
from .worker_events import Notify, WorkerEvent

POLL_SECONDS = 2.0
AWAY_SECONDS = 1.0  # between attempts to reach a database
END_SECONDS = 30.0  # for a worker process to give its builds back
LOOK_SECONDS = 0.5  # at the worker process beside a server
FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS = 1.0, 60.0  # before another takes its place, doubling
STEADY_SECONDS = 600.0  # one that lived so long was of use
BROKEN_BESIDE = 10  # so many in a row that were of none: about five minutes
BROKEN_AFTER = 3  # processes or tasks one after the other that ended before they had begun a build
GROUP = 8  # builds over one base in one pass: each is a result on the disk until all are done
TOKEN = "RECCOCKTAIL_WORKER_TOKEN"  # noqa: S105  with it the process that started a worker releases its builds
NUM_WORKERS = "RECCOCKTAIL_WORKERS"  # how many such processes there are
PARENT = "RECCOCKTAIL_WORKER_PARENT"  # the process that started it, with which it ends

Silent: Progress = lambda stage, done, total: None  # noqa: E731


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal, like Ctrl-C, end what is being done by KeyboardInterrupt."""
    with raised((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        yield


class DatabaseOutage:
    """The time in which the database cannot be reached: reported once, and waited for, at most for `patience` seconds."""

    def __init__(self, notify: Notify, patience: float | None) -> None:
        self._notify, self._patience = notify, patience
        self._since: float | None = None

    @property
    def is_on(self) -> bool:
        return self._since is not None

    @contextmanager
    def wait(self) -> Iterator[None]:
        """The block ends where the database fails; then a moment is waited. Raises UnavailableError when patience has ended."""
        try:
            yield
        except UnavailableError as error:
            if self._since is None:
                self._since = time.monotonic()
                self._notify(WorkerEvent("waiting", detail=f"the database cannot be used: {error}"))
            if self._patience is not None and time.monotonic() - self._since > self._patience:
                raise
            time.sleep(AWAY_SECONDS)
        else:
            if self._since is not None:
                self._since = None
                self._notify(WorkerEvent("back", detail="the database is reachable again"))


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker does. With `once`, it stops when no build is left that could be claimed now.

    Up to `group` builds over one base are made in one pass. With `watch`, builds of domains whose inputs change are requested, too.
    `actor` is the name that the rows and events of other processes and machines carry.
    """

    device: str
    once: bool = False
    watch: bool = False
    group: int = GROUP
    actor: str | None = None


@dataclass(frozen=True)
class Crew:
    """The worker processes that a worker is one of: how many, its own token, and the process whose end it does not outlive."""

    size: int = 1
    token: str | None = None
    parent: int | None = None


def inline(
    registry: Registry,
    options: WorkerOptions,
    *,
    crew: Crew | None = None,
    notify: Notify = lambda event: None,
    progress: Callable[[Sequence[Build]], Progress] = lambda builds: Silent,
) -> list[Build]:
    """Work in this process, as one of a `crew` if given. Returns the builds that it ended, in order.

    KeyboardInterrupt returns the builds at hand to the queue and is raised again.
    """
    crew = crew or Crew()
    me, done = worker_name(crew.token), []
    outage = DatabaseOutage(notify, PATIENCE_SECONDS if options.once else None)
    watching = StaleBuildPoller(registry, options.watch, notify)
    while crew.parent is None or os.getppid() == crew.parent:
        check()
        builds: list[Build] | None = None
        with outage.wait(), given_back(registry, me):
            if outage.is_on:  # a claim may have been made though its answer was lost
                registry.builds.free(me, f"worker {me} was not confirmed as the holder of the build")
            watching.look()
            builds = registry.builds.claim_batch(me, options.group, num_workers=crew.size)
        if builds is None:
            continue
        if not builds:
            if options.once:
                return done
            time.sleep(POLL_SECONDS)
            continue
        with given_back(registry, me):
            done += run_claimed(
                registry, builds, RunOptions(me, options.device, give_back=True), notify, progress(builds)
            )
    return done


@contextmanager
def given_back(registry: Registry, me: str) -> Iterator[None]:
    """What was claimed and could not even be begun is not left to its lease."""
    try:
        yield
    except UnavailableError:
        raise  # `inline` frees it when the database is back
    except BaseException:
        with suppress(RecCocktailError):
            registry.builds.free(me, f"worker {me} was stopped")
        raise


def run_claimed(
    registry: Registry,
    builds: Sequence[Build],
    options: RunOptions,
    notify: Notify,
    progress: Progress = Silent,
) -> list[Build]:
    """Run builds over one base that the worker of `options` has claimed, and report events; the rows afterwards."""
    me = options.worker
    for build in builds:
        together = f", in one pass with {len(builds) - 1} more" if len(builds) > 1 else ""
        notify(WorkerEvent("begins", build.id, build.domain, f"attempt {build.attempts}{together}", me))
    ended = run_together(
        registry,
        builds,
        options,
        progress=progress,
        notify=lambda build, text: notify(WorkerEvent("says", build.id, build.domain, text, me)),
        ended=lambda ended: notify(WorkerEvent.of(ended, me)),
    )
    return [each.build for each in ended]


def processes(
    registry: Registry,
    options: WorkerOptions,
    *,
    count: int,
    notify: Notify = lambda event: None,
) -> list[Build]:
    """Work in `count` processes of this machine, each with an equal share of the builds that wait and of the cores.

    One that dies is replaced, and its builds freed at once rather than when their leases end. Ctrl-C and SIGTERM let them give
    their builds back. With `once` it ends when no build waits. Raises ChildProcessError when processes cannot even start.
    """
    environment = _environment(registry, options, count)
    running: list[_Child] = []
    gone: list[_Child] = []  # whose builds are still to be freed
    ended: dict[str, None] = {}
    quick = 0
    lock = threading.Lock()

    def heard(event: WorkerEvent) -> None:
        with lock:
            if event.build and event.what in ("succeeded", "failed", "cancelled", "postponed"):
                ended[event.build] = None
            notify(event)

    outage = DatabaseOutage(heard, PATIENCE_SECONDS if options.once else None)
    watching = StaleBuildPoller(registry, options.watch, heard)
    waiting = 0
    try:
        while True:
            for child in [child for child in running if not child.is_alive]:
                running.remove(child)
                if child.has_ended:  # its exit code is about its builds, not about itself
                    continue
                gone.append(child)
                # a signal came from outside, and without a database none can start
                is_broken = (child.code or 0) > 0 and not child.has_begun and not outage.is_on
                quick = quick + 1 if is_broken else 0
                heard(WorkerEvent("died", None, None, f"worker process {child.pid}: {child.ending}"))
                if quick >= BROKEN_AFTER:
                    raise ChildProcessError(
                        f"{quick} worker processes died as soon as they were started: {child.last_words}"
                    )
            with outage.wait():
                while gone:
                    for build in registry.builds.free(gone[0].token, f"worker {gone[0].pid} died ({gone[0].ending})"):
                        what = "postponed" if build.status == "queued" else build.status
                        heard(WorkerEvent(what, build.id, build.domain, "its worker died"))
                    gone.pop(0)
                watching.look()
                waiting = registry.builds.waiting()
            if outage.is_on:
                continue
            if options.once and not running and not waiting:
                break
            wanted = min(count, len(running) + waiting) if options.once else count
            while len(running) < wanted:
                running.append(_Child(environment, options, heard))
                heard(WorkerEvent("started", detail=f"worker process {running[-1].pid}"))
            time.sleep(0.2)
    finally:
        try:
            _end(running)
        finally:  # also if a second signal arrives
            for child in running:
                child.stop(signal.SIGKILL)
            with suppress(UnavailableError):  # otherwise their leases run out
                for child in (*gone, *running):
                    registry.builds.free(child.token, f"worker {child.pid} was stopped")
    return [registry.builds.get(build) for build in ended]


@contextmanager
def one_beside(registry: Registry, options: WorkerOptions, notify: Notify) -> Iterator[None]:
    """One worker process for as long as the block lasts; then its builds go back to the queue. One that dies is replaced."""
    kept = KeptWorker(registry, options, notify)
    ended = threading.Event()
    thread = threading.Thread(target=kept.keep, args=(ended,), name="worker-keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _end([kept.child])
        kept.free("was stopped")


class KeptWorker:
    """A worker process that is started again when it ends, later each time, until BROKEN_BESIDE in a row ended before they were of use."""

    def __init__(self, registry: Registry, options: WorkerOptions, notify: Notify) -> None:
        self._registry, self._options, self._notify = registry, options, notify
        self._environment = _environment(registry, options, 1)
        self._start()

    def _start(self) -> None:
        self.child = _Child(self._environment, self._options, self._notify)
        self._since = time.monotonic()

    def keep(self, ended: threading.Event) -> None:
        """Until `ended` is set. The process that is there then is the caller's to end."""
        useless = 0
        while not ended.wait(LOOK_SECONDS):
            if self.child.is_alive:
                continue
            was_of_use = self.child.has_begun or time.monotonic() - self._since > STEADY_SECONDS
            useless = 0 if was_of_use else useless + 1
            self.free(f"died ({self.child.ending})")
            if useless >= BROKEN_BESIDE:
                self._tell("died", f"and is not started again, as {useless} in a row ended so: {self.child.last_words}")
                return
            seconds = min(FIRST_RESTART_SECONDS * 2.0 ** max(0, useless - 1), LONGEST_RESTART_SECONDS)
            self._tell("died", f"{self.child.ending}; another one is started in {seconds:g} s")
            if ended.wait(seconds):
                return
            self._start()
            self._tell("started", "in its place")

    def free(self, why: str) -> None:
        """What it had goes back to the queue; without a database, when its leases have run out."""
        with suppress(UnavailableError):
            self._registry.builds.free(self.child.token, f"worker {self.child.pid} {why}")

    def _tell(self, what: str, detail: str) -> None:
        self._notify(WorkerEvent(what, detail=f"worker process {self.child.pid}: {detail}"))


def _environment(registry: Registry, options: WorkerOptions, count: int) -> dict[str, str]:
    """Where the registry is goes by the environment: a command line can be read by everybody on the machine."""
    settings = registry.settings
    threads = max(1, (os.cpu_count() or 1) // count)
    own = {
        "RECCOCKTAIL_HOME": str(settings.home),
        "RECCOCKTAIL_DATABASE_URL": settings.database_url,
        "RECCOCKTAIL_STORE_URL": settings.store_url,
        "RECCOCKTAIL_DEVICE": options.device,
        "RECCOCKTAIL_CACHE_LIMIT": f"{settings.cache_limit}B",
        NUM_WORKERS: str(count),
        PARENT: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    return os.environ | own | ({"RECCOCKTAIL_AS": options.actor} if options.actor else {})


class _Child:
    """A worker process, and what it says."""

    def __init__(self, environment: Mapping[str, str], options: WorkerOptions, notify: Notify) -> None:
        self.token = secrets.token_hex(8)
        command = [sys.executable, "-c", "from reccocktail.cli import main; main()", "worker", "--log-json"]
        self._process = subprocess.Popen(
            [*command, "--group", str(options.group), *(["--once"] if options.once else [])],
            env={**environment, TOKEN: self.token},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is passed on by us, once
        )
        self.pid = self._process.pid
        self.last_words = ""
        self.has_begun = self.has_ended = False
        self._reader = threading.Thread(target=self._read, args=(notify,), name=f"worker-{self.pid}", daemon=True)
        self._reader.start()

    def _read(self, notify: Notify) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                message = json.loads(line)
                if message["what"] in ("error", "log"):
                    self.last_words = message["detail"]
                    continue
                event = WorkerEvent.from_json(message)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                self.last_words = line.strip() or self.last_words
                continue
            self.has_begun |= event.what == "begins"
            if event.what == "ended":
                self.has_ended = True
            else:
                notify(event)

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
