"""Carrying builds out: from claimed rows to merged checkpoints in the store.

Builds over one base that were claimed together are made in one pass over it. A failure of one of them does not affect the others; what
goes wrong with the pass makes each be tried alone. Whatever happens is written into the row, as soon as the database can be reached.
"""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...registry import Adapter, Base, Build, Registry
from ...registry.digests import digest_of_json
from ...registry.errors import ConflictError, DatabaseError, RecCocktailError, UnavailableError
from ...tasks import Question, read_questions
from ..coefficients import Weight, expand_coefficients
from ..errors import AdaptationError, MergeError
from ..merging.journal import Journal
from ..merging.provenance import write_metadata
from ..recipes import Coefficient, Recipe, Role, parse_recipe
from .planning import LABELLED, PROMPTS, called, card_facts
from .resources import expect_memory

if TYPE_CHECKING:
    from ..adapting.adapt import Adaptation
    from ..merging.plan import Mix, Part

LEASE_SECONDS = 60.0
NOTE_SECONDS = 1.0
LONGEST_TRACEBACK = 100  # lines
PATIENCE_SECONDS = 50.0  # with a database that does not answer when a build has ended: less than a lease
FIRST_BACK_OFF, LONGEST_BACK_OFF = 10.0, 600.0  # seconds
_PASSING = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.EPIPE, errno.ESTALE, errno.ENOMEM, errno.EMFILE,
}  # fmt: skip
TRAJECTORY = "adaptation.json"
UNITS = {"adapt": "prompts", "merge": "bytes", "store": "bytes"}  # by stage

Progress = Callable[[str, int, int], None]
"""Receives (stage, done, total) in the stage's unit."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class BuildOutcome:
    """What became of a build: its row, and the error that it ended or was put back with."""

    build: Build
    error: BaseException | None = None


def worker_name(token: str | None = None) -> str:
    """Host, process and thread: who holds a lease. With the `token` the process that started the worker can release its builds."""
    own = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident() % 100_000}"
    return f"{own}/{token}" if token else own


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


def run(
    registry: Registry,
    build: Build,
    options: RunOptions,
    *,
    progress: Progress,
    tell: Callable[[str], None] = lambda text: None,
) -> Build:
    """Run a build that the worker of `options` has claimed. An error is written into the row and raised again.

    A temporary error (`retryable`) returns the build to the queue, for another attempt later; any other fails it.
    """
    (ended,) = run_together(registry, [build], options, progress=progress, tell=lambda build, text: tell(text))
    if ended.error is not None:
        raise ended.error
    return ended.build


def run_together(
    registry: Registry,
    builds: Sequence[Build],
    options: RunOptions,
    *,
    progress: Progress,
    tell: Callable[[Build, str], None] = lambda build, text: None,
    ended: Callable[[BuildOutcome], None] = lambda ended: None,
) -> list[BuildOutcome]:
    """Run builds over one base that the worker of `options` has claimed, in one pass; `ended` is called as each of them ends.

    Otherwise as `run`, but that only being stopped (KeyboardInterrupt, SystemExit) is raised: errors are in the answer.
    """
    if len({build.base for build in builds}) > 1:
        raise ValueError("builds that are made together are over one base")
    jobs = [_Job(registry, build, options, progress, tell, ended) for build in builds]
    try:
        with registry.store.using(), lease_heartbeat(registry, jobs, options.worker):
            _make(registry, jobs, options)
    except BaseException as error:
        for job in jobs:
            if job.ended is None:
                job.failed(error)
        if not isinstance(error, Exception):
            raise
    return [job.ended for job in jobs if job.ended is not None]


def retryable(error: BaseException) -> bool:
    """Whether the same may succeed later or elsewhere: network, database, a full disk. A bad adapter stays bad."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return isinstance(error, RecCocktailError) and error.retryable


def back_off(attempts: int) -> float:
    """Seconds until the next attempt: twice as long each time, up to ten minutes, and a little by chance, so that not all come at once."""
    return min(FIRST_BACK_OFF * 2 ** max(0, attempts - 1), LONGEST_BACK_OFF) * random.uniform(0.8, 1.2)  # noqa: S311


def retry_until_available(ask: Callable[[], _Answer], seconds: float = PATIENCE_SECONDS) -> _Answer:
    """What the database answers, asked again while it cannot be reached: a server that restarts is back within the minute."""
    until, pause = time.monotonic() + seconds, 0.1
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() + pause > until:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


class _Job:
    """One claimed build: what is made of it, what is said of it, and how it ended."""

    def __init__(
        self,
        registry: Registry,
        build: Build,
        options: RunOptions,
        progress: Progress,
        tell: Callable[[Build, str], None],
        on_end: Callable[[BuildOutcome], None],
    ) -> None:
        self.build, self.ended = build, None
        self._registry, self._options, self._progress, self._tell, self._on_end = (
            registry, options, progress, tell, on_end,
        )  # fmt: skip
        self._started = time.monotonic()
        self._written = self._started
        self._lock = threading.Lock()
        self._stage: str | None = None
        self._stage_began = self._started
        self.report: dict[str, Any] = {}
        self._note(f"attempt {build.attempts} by {options.worker} on {options.device}")

    ended: BuildOutcome | None
    recipe: Recipe
    base: Base
    adapters: dict[Role, Adapter]
    parts: dict[Role, Part]
    coefficients: Mapping[Role, Coefficient | Weight]
    used: Sequence[Part]

    def say(self, text: str) -> None:
        self._safely(lambda: self._tell(self.build, text))
        self._note(text)

    def _safely(self, tell: Callable[[], None]) -> None:
        """A failing listener does not affect the build."""
        try:
            tell()
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
        """Writes progress into the row now and then. Raises ConflictError if the build was cancelled meanwhile."""
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
            "message": str(error) or type(error).__name__,
        }
        row = self.build
        with suppress(
            ConflictError, DatabaseError
        ):  # without a database the lease runs out, and another takes the build over
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
def lease_heartbeat(registry: Registry, jobs: Sequence[_Job], worker: str) -> Iterator[None]:
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


def _make(registry: Registry, jobs: Sequence[_Job], options: RunOptions) -> None:
    """Every job has ended afterwards."""
    model = _LoadedOnce(registry, options.device)
    for job in jobs:
        with job.own_failure():
            _prepare(registry, job)
            _find_coefficients(registry, job, options, model)
            job.used = _used(registry, job)
    model.drop()  # before memory is wanted for merging
    ready = [job for job in jobs if job.ended is None]
    together = [job for job in ready if job.recipe.output.format == "checkpoint"]
    if len(together) > 1:
        try:
            with ExitStack() as staged:
                _merge_and_store(
                    registry, together, [_staging(registry, job, staged, options) for job in together], options
                )
        except Exception as error:  # noqa: BLE001  whose fault it was is found out by trying each alone
            for job in (job for job in together if job.ended is None):
                job.say(f"is made alone, since {len(together)} builds in one pass failed: {error}")
    for job in (job for job in ready if job.ended is None):
        with job.own_failure(), ExitStack() as staged:
            _merge_and_store(registry, [job], [_staging(registry, job, staged, options)], options)


def _prepare(registry: Registry, job: _Job) -> None:
    from ..merging.plan import Part

    build = job.build
    job.recipe = parse_recipe(build.recipe, where=f"of build {build.id}")
    job.base = registry.bases.get(build.base)
    _expect(job.base.digest, build.inputs["base"]["digest"], f"base {job.base.name}")
    job.adapters = {}
    for entry in build.inputs["adapters"]:
        adapter = registry.adapters.resolve(entry["ref"], base=job.base.name)
        _expect(adapter.digest, entry["digest"], entry["ref"])
        job.adapters[entry["role"]] = adapter
    job.parts = {
        role: Part(registry.adapters.folder(adapter), registry.adapters.facts(adapter), 1.0)
        for role, adapter in job.adapters.items()
    }


def _expect(digest: str, recorded: str, what: str) -> None:
    if digest != recorded:
        raise MergeError(f"{what} is not the one that the build was requested with: {digest}, recorded {recorded}")


class _LoadedOnce:
    """The base as a model on the device, loaded for the first build that needs it and kept for the next."""

    def __init__(self, registry: Registry, device: str) -> None:
        self._registry, self._device = registry, device
        self.loaded: tuple[Any, Any] | None = None

    def load(self, base: Base) -> tuple[Any, Any]:
        from ..adapting.adapt import load_on

        if self.loaded is None:
            self.loaded = load_on(self._registry.bases.folder(base), self._device)()
        return self.loaded

    def drop(self) -> None:
        self.loaded = None


def _find_coefficients(registry: Registry, job: _Job, options: RunOptions, model: _LoadedOnce) -> None:
    if job.recipe.coefficients is not None:
        job.coefficients = job.recipe.coefficients
        return
    from ..adapting.adapt import AdaptationInput, adapt

    assert job.recipe.adaptive is not None

    def advance(done: int, total: int) -> None:
        job.show("adapt", done, total)
        job.advance("adapt", done, total)

    prompts, labelled = _prompts(registry, job.build)
    found = adapt(
        AdaptationInput(
            registry.bases.facts(job.base) if model.loaded is None else None,  # loaded, its memory is taken already
            lambda: model.load(job.base),
            job.parts,
            prompts,
            job.recipe.method,
            options.device,
            labelled,
        ),
        job.recipe.adaptive,
        keep_best=options.keep_best,
        progress=advance,
        tell=job.say,
    )
    job.coefficients = found.weights()
    job.report["adaptation"] = found.summary()
    job.report["warnings"] = list(found.warnings)
    job.report["artifact"] = _keep_trajectory(registry, job.build, found, job.report["warnings"])


def _prompts(registry: Registry, build: Build) -> tuple[list[Question], list[Question]]:
    """(prompts to adapt on, labelled validation questions to judge by), as they were when the build was requested."""
    if "data" not in build.inputs:
        return [], []
    if "prompts" not in build.inputs:
        raise AdaptationError(f"build {build.id} was requested without its prompts", hint="request it again")
    folder = registry.store.folder(build.inputs["prompts"]["digest"])
    return read_questions(folder / PROMPTS), read_questions(folder / LABELLED)


def _keep_trajectory(registry: Registry, build: Build, found: Adaptation, warnings: list[str]) -> str:
    """Store the search and its plots beside the result, not in it: the checkpoint is a function of the coefficients alone.

    A plot that cannot be drawn is a warning: what was found out costs more than a picture of it.
    """
    from ..adapting.plots import plot_all

    with registry.store.staging(f"report-{build.id}") as folder:
        if found.search != "none":
            try:
                plot_all(found, folder, title=build.domain)
            except Exception as error:  # noqa: BLE001  whatever the plotting library raises
                warnings.append(f"the search could not be plotted: {type(error).__name__}: {error}")
        (folder / TRAJECTORY).write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        return registry.store.adopt(folder).digest


def _staging(registry: Registry, job: _Job, staged: ExitStack, options: RunOptions) -> Path:
    """A folder for the result, named after what is made: a worker that takes the build over, or retries it, resumes after its finished shards."""
    work = None  # of an adapter, which is made in a moment
    if job.recipe.output.format == "checkpoint":
        about = [job.build.key, job.coefficients, options.device.partition(":")[0]]
        work = digest_of_json(about).removeprefix("sha256:")
    return staged.enter_context(registry.store.staging("build", work=work))


def _merge_and_store(registry: Registry, jobs: Sequence[_Job], folders: Sequence[Path], options: RunOptions) -> None:
    """Make the results in one pass. Metadata files and storing are done per job, where there are several."""
    known = _merge(registry, jobs, folders, options)
    for job, out, digests in zip(jobs, folders, known, strict=True):
        with ExitStack() as stack:
            if len(jobs) > 1:
                stack.enter_context(job.own_failure())
            write_metadata(
                out,
                job.recipe.resolved(job.coefficients).to_json(),
                card_facts(registry, job.build, job.coefficients, tokenizer=job.report["merge"].get("tokenizer")),
                {"base": job.base.digest} | {called(role): adapter.digest for role, adapter in job.adapters.items()},
                job.build.domain,
                known=digests,
            )
            job.succeeded(_store(registry, job, out, digests))


def _store(registry: Registry, job: _Job, out: Path, known: Mapping[str, str]) -> str:
    total, done = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()), 0

    def advance(count: int) -> None:
        nonlocal done
        done = min(done + count, total)
        job.show("store", done, total)
        job.advance("store", done, total)

    return registry.store.adopt(out, known=known, progress=advance).digest


def _merge(
    registry: Registry, jobs: Sequence[_Job], folders: Sequence[Path], options: RunOptions
) -> list[Mapping[str, str]]:
    """Digests of the weight files, for each job."""
    base = jobs[0].base
    facts, base_folder = registry.bases.facts(base), registry.bases.folder(base)
    if jobs[0].recipe.output.format == "adapter":
        from ..merging.adapter_output import write_adapter

        ((job, out),) = zip(jobs, folders, strict=True)
        written = write_adapter(facts, _mix(job, out), rank=job.recipe.output.rank, base_folder=base_folder)
        job.report["merge"] = written.summary()
        return [{}]
    from ..merging.stream import merge_all

    mixes = [_mix(job, out, Journal(out, lambda name=out.name: name)) for job, out in zip(jobs, folders, strict=True)]
    threads = options.threads or min(8, os.cpu_count() or 1)
    expect_memory(facts, mixes, threads)
    total = sum(tensor.info.nbytes for tensor in facts.tensors.values())
    reports = merge_all(
        base_folder, facts, mixes, device=options.device, threads=threads, progress=_shared(jobs, total)
    )
    for job, report in zip(jobs, reports, strict=True):
        job.report["merge"] = report.summary()
        job.report["together"] = len(jobs)
    return [report.digests for report in reports]


def _mix(job: _Job, out: Path, journal: Journal | None = None) -> Mix:
    from ..merging.plan import Mix

    recipe = job.recipe
    return Mix(job.used, out, recipe.method, recipe.options, recipe.output.dtype, journal)


def _used(registry: Registry, job: _Job) -> list[Part]:
    """The adapters with the weights that were found for them."""
    from ..merging.plan import Part

    facts = registry.bases.facts(job.base)
    return [
        Part(
            part.folder, part.facts, expand_coefficients(job.coefficients[role], part.facts, facts, role), called(role)
        )
        for role, part in job.parts.items()
    ]


def _shared(jobs: Sequence[_Job], total: int) -> Callable[[int], None]:
    """Progress of one pass for all its builds. One that is cancelled meanwhile is written to the end, unless it is the last."""
    lock = threading.Lock()
    done, gone = 0, set[str]()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            so_far = done
            jobs[0].show("merge", so_far, total)  # in order; it takes microseconds
        for job in jobs:
            if job.build.id in gone:
                continue
            try:
                job.advance("merge", so_far, total)
            except ConflictError:
                gone.add(job.build.id)
                if len(gone) == len(jobs):
                    raise

    return advance
