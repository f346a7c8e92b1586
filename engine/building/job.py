"""One claimed build: its progress, log and outcome as they are written into the row, and its lease."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...registry import Adapter, Base, Build, Registry
from ...registry.errors import ConflictError, DatabaseError, RecCocktailError
from ...registry.signals import check
from ..coefficients import Weight
from ..recipes import Coefficient, Recipe, Role
from .retries import back_off, retry_until_available, retryable

if TYPE_CHECKING:
    from ..merging.plan import Part

LEASE_SECONDS = 60.0
NOTE_SECONDS = 1.0
LONGEST_TRACEBACK = 100  # lines
UNITS = {"adapt": "questions", "encode": "items", "merge": "bytes", "store": "bytes"}  # by stage

Progress = Callable[[str, int, int], None]
"""Receives (stage, done, total) in the stage's unit."""


@dataclass(frozen=True)
class BuildOutcome:
    """What became of a build: its row, and the error that it ended or was put back with."""

    build: Build
    error: BaseException | None = None


@dataclass(frozen=True)
class RunOptions:
    """How a worker runs builds. `worker` is the name that it claimed them by.

    With `keep_best`, Ctrl-C during the search for coefficients takes the best so far and the build continues. With `give_back`, a
    worker that is stopped returns its builds to the queue; otherwise they have failed. `threads` of a merge: by default one a core.
    """

    worker: str
    device: str
    keep_best: bool = False
    give_back: bool = False
    threads: int | None = None


class BuildJob:
    """One claimed build: what is made of it, what is said of it, and how it ended."""

    recipe: Recipe
    base: Base
    adapters: dict[Role, Adapter]
    parts: dict[Role, Part]
    coefficients: Mapping[Role, Coefficient | Weight]
    used: Sequence[Part]

    def __init__(
        self,
        registry: Registry,
        build: Build,
        options: RunOptions,
        progress: Progress,
        notify: Callable[[Build, str], None],
        on_end: Callable[[BuildOutcome], None],
    ) -> None:
        self.build = build
        self.ended: BuildOutcome | None = None
        self._registry, self._options = registry, options
        self._progress, self._notify, self._on_end = progress, notify, on_end
        self._started = time.monotonic()
        self._written = self._started
        self._lock = threading.Lock()
        self._stage: str | None = None
        self._stage_began = self._started
        self.report: dict[str, Any] = {}
        self._note(f"attempt {build.attempts} by {options.worker} on {options.device}")

    def say(self, text: str) -> None:
        self._safely(lambda: self._notify(self.build, text))
        self._note(text)

    def _safely(self, notify: Callable[[], None]) -> None:
        """A failing listener does not affect the build."""
        try:
            notify()
        except Exception as error:  # noqa: BLE001  a pipe that broke, an actor that died
            self._note(f"the listener failed: {type(error).__name__}: {error}")

    def _note(self, text: str) -> None:
        with suppress(RecCocktailError):  # a line that could not be kept is no reason to stop
            self._registry.builds.log(self.build.id, self._options.worker, text)

    def show(self, stage: str, done: int, total: int) -> None:
        """Passes progress on; a display that fails is noted once, and hears no more."""
        try:
            self._progress(stage, done, total)
        except Exception as error:  # noqa: BLE001  whatever it is, it changes nothing of the build
            self._progress = lambda *_: None
            self._note(f"progress could not be shown: {type(error).__name__}: {error}")

    def advance(self, stage: str, done: int, total: int) -> None:
        """Writes progress into the row now and then. Raises ConflictError if the build was cancelled meanwhile, and Stopped."""
        check()
        with self._lock:
            self._see(stage, done, total)
            if time.monotonic() - self._written < NOTE_SECONDS:
                return
            self._written = time.monotonic()
        try:
            self._registry.builds.progress(self.build.id, self._options.worker, done, total, stage)
        except ConflictError:
            raise
        except RecCocktailError:
            return  # a note that could not be written is no reason to stop

    def _see(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage, self._stage_began = stage, time.monotonic()
            self._note(f"{stage} begins")
        if done == total and self._stage_began:
            took = time.monotonic() - self._stage_began
            self._note(f"{stage}: {total:,} {UNITS[stage]} in {took:.1f} s")
            self._stage_began = 0.0

    def store(self, out: Path, known: Mapping[str, str] | None = None) -> str:
        """Puts the folder into the store, where `known` files have these digests already, and returns its digest."""
        total, done = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()), 0

        def advance(count: int) -> None:
            nonlocal done
            done = min(done + count, total)
            self.show("store", done, total)
            self.advance("store", done, total)

        return self._registry.store.adopt(out, known=known or {}, progress=advance).digest

    def succeeded(self, digest: str) -> None:
        worker, build = self._options.worker, self.build
        for warning in self.report.get("warnings", ()):
            self._note(f"warning: {warning}")
        self.report["seconds"] = round(time.monotonic() - self._started, 2)
        done = retry_until_available(
            lambda: self._registry.builds.succeed(build.id, worker, digest, dict(self.coefficients), self.report)
        )
        self._note(f"succeeded after {time.monotonic() - self._started:.1f} s: {digest}")
        self._end(BuildOutcome(done))

    def failed(self, error: BaseException) -> None:
        """Puts the build back or fails it; a lease that is another worker's by now, and so the row, is left alone."""
        worker, builds = self._options.worker, self._registry.builds
        stopped = not isinstance(error, Exception)
        code = getattr(error, "code", None) if isinstance(error, RecCocktailError) else None
        about = {
            "code": code or ("interrupted" if stopped else "internal"),
            "message": str(error) or ("the process was interrupted" if stopped else type(error).__name__),
        }
        row = self.build
        # without a database the lease runs out, and another takes the build over
        with suppress(ConflictError, DatabaseError):
            if stopped and self._options.give_back:
                row = retry_until_available(lambda: builds.postpone(row.id, worker, None, 0))
                self._note("the worker was stopped; the build is back in the queue")
            elif retryable(error):
                row = retry_until_available(lambda: builds.postpone(row.id, worker, about, back_off(row.attempts)))
                again = f"; to be tried again from {row.retry_at:%H:%M:%S} UTC on" if row.retry_at else "; given up"
                self._note(f"failed: {about['message']}{again}")
            else:
                row = retry_until_available(lambda: builds.fail(row.id, worker, about))
                self._note(f"failed: {about['message']}")
            if about["code"] == "internal":
                self._note_where(error)
        with suppress(DatabaseError):
            row = builds.get(row.id)
        self._end(BuildOutcome(row, error))

    def _note_where(self, error: BaseException) -> None:
        """A line of the log for each of the traceback, of a very long one the last."""
        lines = "".join(traceback.format_exception(error)).splitlines()
        for line in lines[-LONGEST_TRACEBACK:]:
            self._note(line)

    def _end(self, ended: BuildOutcome) -> None:
        self.ended = ended
        self._safely(lambda: self._on_end(ended))

    @contextmanager
    def own_failure(self) -> Iterator[None]:
        """What fails in here ends this build and no other."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  the row has it
            self.failed(error)


@contextmanager
def lease_heartbeat(registry: Registry, jobs: Sequence[BuildJob], worker: str) -> Iterator[None]:
    """Renew the leases from a thread while the work is done."""
    done = threading.Event()
    lost: set[str] = set()

    def beat() -> None:
        while not done.wait(LEASE_SECONDS / 3):
            for job in jobs:
                if job.ended is not None or job.build.id in lost:
                    continue
                try:
                    registry.builds.heartbeat(job.build.id, worker, lease_seconds=LEASE_SECONDS)
                except ConflictError:
                    lost.add(job.build.id)  # `succeed` will be refused and say so
                except RecCocktailError:
                    continue  # the database may be back before the lease ends

    thread = threading.Thread(target=beat, name=f"lease-{jobs[0].build.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
