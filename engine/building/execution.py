"""Carrying builds out: from claimed rows to merged checkpoints and item indexes in the store.

Builds over one base that were claimed together are made in one pass over it. A failure of one of them does not affect the others; what
goes wrong with the pass makes each be tried alone. Whatever happens is written into the row, as soon as the database can be reached.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...registry import Base, Build, Registry
from ...registry.catalog.references import INDEX
from ...registry.digests import digest_of_json
from ...registry.errors import ConflictError
from ...tasks import Question, read_questions
from ..coefficients import expand_coefficients
from ..errors import AdaptationError, MergeError
from ..merging.journal import Journal
from ..merging.provenance import write_metadata
from ..recipes import parse_recipe
from .index_execution import make_index
from .job import BuildJob, BuildOutcome, Progress, RunOptions, lease_heartbeat
from .labels import read_labels
from .planning import LABELLED, PROMPTS, called, card_facts
from .pseudo import read_pseudo_users
from .resources import expect_memory

if TYPE_CHECKING:
    from ..adapting.adapt import Adaptation
    from ..adapting.verdict import Agreement, Verdict
    from ..merging.plan import Mix, Part

TRAJECTORY = "adaptation.json"


def worker_name(token: str | None = None) -> str:
    """Host, process and thread: who holds a lease. With the `token` the process that started the worker can release its builds."""
    own = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident() % 100_000}"
    return f"{own}/{token}" if token else own


def run(
    registry: Registry,
    build: Build,
    options: RunOptions,
    *,
    progress: Progress,
    notify: Callable[[str], None] = lambda text: None,
) -> Build:
    """Run a build that the worker of `options` has claimed. An error is written into the row and raised again.

    A temporary error (`retryable`) returns the build to the queue, for another attempt later; any other fails it.
    """
    (ended,) = run_together(registry, [build], options, progress=progress, notify=lambda build, text: notify(text))
    if ended.error is not None:
        raise ended.error
    return ended.build


def run_together(
    registry: Registry,
    builds: Sequence[Build],
    options: RunOptions,
    *,
    progress: Progress,
    notify: Callable[[Build, str], None] = lambda build, text: None,
    ended: Callable[[BuildOutcome], None] = lambda ended: None,
) -> list[BuildOutcome]:
    """Run builds over one base that the worker of `options` has claimed, in one pass; `ended` is called as each of them ends.

    Otherwise as `run`, but that only being stopped (KeyboardInterrupt, SystemExit) is raised: errors are in the answer.
    """
    if len({build.base for build in builds}) > 1:
        raise ValueError("builds that are made together are over one base")
    jobs = [BuildJob(registry, build, options, progress, notify, ended) for build in builds]
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


def _make(registry: Registry, jobs: Sequence[BuildJob], options: RunOptions) -> None:
    """Every job has ended afterwards."""
    model = _LoadedOnce(registry, options.device)
    for job in jobs:
        with job.own_failure():
            if job.build.kind == INDEX:
                make_index(registry, job, options)
                continue
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


def _prepare(registry: Registry, job: BuildJob) -> None:
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


def _find_coefficients(registry: Registry, job: BuildJob, options: RunOptions, model: _LoadedOnce) -> None:
    if job.recipe.coefficients is not None:
        job.coefficients = job.recipe.coefficients
        return
    assert job.recipe.adaptive is not None

    def advance(done: int, total: int) -> None:
        job.show("adapt", done, total)
        job.advance("adapt", done, total)

    adaptive, how = job.recipe.adaptive, {"keep_best": options.keep_best, "progress": advance, "notify": job.say}
    mixed = (
        registry.bases.facts(job.base) if model.loaded is None else None,  # loaded, its memory is taken already
        lambda: model.load(job.base),
        job.parts,
        job.recipe.method,
        options.device,
    )
    found: Adaptation | Verdict | Agreement
    if adaptive.objective == "entropy":
        from ..adapting.adapt import AdaptationInput, adapt

        found = adapt(AdaptationInput(*mixed, *_prompts(registry, job.build)), adaptive, **how)
    elif adaptive.objective == "ranking":
        from ..adapting.ranking import RankingInput, choose_mix

        found = choose_mix(RankingInput(*mixed, read_labels(registry, job.build)), adaptive, **how)
        job.report |= {"outcome": found.outcome, "win": found.win, "score": found.score}
    else:
        from ..adapting.agreement import AgreementInput, find_agreement

        found = find_agreement(AgreementInput(*mixed, *read_pseudo_users(registry, job.build)), adaptive, **how)
        job.report |= {"outcome": found.outcome, "win": found.win, "score": found.score}
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


def _keep_trajectory(
    registry: Registry, build: Build, found: Adaptation | Verdict | Agreement, warnings: list[str]
) -> str:
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


def _staging(registry: Registry, job: BuildJob, staged: ExitStack, options: RunOptions) -> Path:
    """A folder for the result, named after what is made: a worker that takes the build over, or retries it, resumes after its finished shards."""
    work = None  # of an adapter, which is made in a moment
    if job.recipe.output.format == "checkpoint":
        about = [job.build.key, job.coefficients, options.device.partition(":")[0]]
        work = digest_of_json(about).removeprefix("sha256:")
    return staged.enter_context(registry.store.staging("build", work=work))


def _merge_and_store(
    registry: Registry, jobs: Sequence[BuildJob], folders: Sequence[Path], options: RunOptions
) -> None:
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
            job.succeeded(job.store(out, digests))


def _merge(
    registry: Registry, jobs: Sequence[BuildJob], folders: Sequence[Path], options: RunOptions
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


def _mix(job: BuildJob, out: Path, journal: Journal | None = None) -> Mix:
    from ..merging.plan import Mix

    recipe = job.recipe
    return Mix(job.used, out, recipe.method, recipe.options, recipe.output.dtype, journal)


def _used(registry: Registry, job: BuildJob) -> list[Part]:
    """The adapters with the weights that were found for them."""
    from ..merging.plan import Part

    facts = registry.bases.facts(job.base)
    return [
        Part(
            part.folder, part.facts, expand_coefficients(job.coefficients[role], part.facts, facts, role), called(role)
        )
        for role, part in job.parts.items()
    ]


def _shared(jobs: Sequence[BuildJob], total: int) -> Callable[[int], None]:
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
