"""Waits for builds: runs them in this process, those over one base in one pass, or watches the worker that has one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime

from ...registry import Build, Registry
from ...registry.errors import ConflictError
from .execution import run, run_together, worker_name
from .job import BuildOutcome, Progress, RunOptions
from .workers import GROUP, given_back

POLL_SECONDS = 1.0


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Reports:
    """Who hears of builds that are waited for.

    `attempt` is entered for each attempt made here, with the builds of its pass, and gives what receives its progress.
    `ended` is called once for each of several builds.
    """

    attempt: Callable[[Sequence[Build]], AbstractContextManager[Progress]] = lambda builds: nullcontext(_silent)
    say: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    ended: Callable[[BuildOutcome], None] = lambda ended: None


def complete(
    registry: Registry, build: Build, *, device: str, keep_best: bool = False, reports: Reports | None = None
) -> Build:
    """The build, succeeded or cancelled: run here if it is free, else awaited from its worker.

    A temporary failure is retried after the pause that its row states. Raises the error that the build failed with here,
    ConflictError if it failed elsewhere.
    """
    reports = reports or Reports()
    me = worker_name()
    row, waiting = build, False
    while row.status in ("queued", "running"):
        mine = registry.builds.claim(me, build_id=row.id)
        if mine is not None:
            try:
                with reports.attempt([row]) as progress:
                    options = RunOptions(me, device, keep_best=keep_best)
                    return run(registry, mine, options, progress=progress, notify=reports.say)
            except Exception as error:
                row = registry.builds.get(row.id)
                if row.status != "queued" or row.retry_at is None:
                    raise
                reports.warn(f"build {row.id} failed: {error}")
                continue
        pause = POLL_SECONDS
        if row.status == "queued" and row.retry_at is not None and row.retry_at > (now := datetime.now(UTC)):
            pause = (row.retry_at - now).total_seconds()
            reports.say(f"build {row.id} will be retried in {pause:.0f} s")
        elif not waiting:
            reports.say(f"build {row.id} is with worker {row.worker}; waiting for it")
            waiting = True
        time.sleep(pause)
        row = registry.builds.get(row.id)
    if row.status == "failed":
        raise ConflictError(
            f"build {row.id} failed: {(row.error or {}).get('message')}", hint=f"reccocktail build retry {row.id}"
        )
    return row


def complete_all(
    registry: Registry,
    builds: Sequence[Build],
    *,
    device: str,
    keep_best: bool = False,
    reports: Reports | None = None,
) -> list[Build]:
    """The rows of several builds, in their order: what waits is made in passes over its base, as a worker does, up to GROUP in one.

    What a pass leaves to be retried, and what somebody else has, is then completed one by one. A failure is in the row and in what
    `ended` receives; only being stopped is raised: what is being made then has failed, what has not been begun is queued.
    """
    reports = reports or Reports()
    wanted = {build.id: build for build in builds}
    settled: set[str] = set()
    for group in _passes([*wanted.values()]):
        settled |= _make_in_one_pass(registry, group, RunOptions(worker_name(), device, keep_best=keep_best), reports)
    for build in wanted.values():
        if build.id not in settled:
            try:
                outcome = BuildOutcome(complete(registry, build, device=device, keep_best=keep_best, reports=reports))
            except Exception as error:  # noqa: BLE001  the row has it; the others are to have their turn
                outcome = BuildOutcome(registry.builds.get(build.id), error)
            reports.ended(outcome)
    rows = registry.builds.with_ids(wanted)
    return [rows[id_] for id_ in wanted]


def _passes(builds: Sequence[Build]) -> Iterator[Sequence[Build]]:
    """Builds over one base that nobody has begun yet, up to GROUP together; one that is alone over its base is in no pass."""
    fresh = [build for build in builds if build.status == "queued" and build.attempts == 0]
    for base in dict.fromkeys(build.base for build in fresh):
        here = [build for build in fresh if build.base == base]
        groups = (here[start : start + GROUP] for start in range(0, len(here), GROUP))
        yield from (group for group in groups if len(group) > 1)


def _make_in_one_pass(registry: Registry, builds: Sequence[Build], options: RunOptions, reports: Reports) -> set[str]:
    """Makes those that are still free; the ids of those that have ended for good."""
    settled: set[str] = set()

    def ended(outcome: BuildOutcome) -> None:
        row = outcome.build
        if row.status in ("queued", "running"):  # to be tried again, or with another worker by now
            reports.warn(f"build {row.id} failed: {outcome.error}")
            return
        settled.add(row.id)
        reports.ended(outcome)

    with given_back(registry, options.worker):
        claimed = (registry.builds.claim(options.worker, build_id=build.id) for build in builds)
        mine = [build for build in claimed if build is not None]
        if mine:
            if len(mine) > 1:
                reports.say(f"{len(mine)} builds over base model {mine[0].base} are made in one pass")
            with reports.attempt(mine) as progress:
                run_together(
                    registry,
                    mine,
                    options,
                    progress=progress,
                    notify=lambda build, text: reports.say(f"{build.domain}: {text}"),
                    ended=ended,
                )
    return settled
