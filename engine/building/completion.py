"""Waits for a build: runs it in this process, or watches the worker that has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

from ...registry import Build, Registry
from ...registry.errors import ConflictError
from .execution import run, worker_name
from .job import Progress, RunOptions

POLL_SECONDS = 1.0


def _silent(stage: str, done: int, total: int) -> None:
    pass


def complete(
    registry: Registry,
    build: Build,
    *,
    device: str,
    keep_best: bool = False,
    attempt: Callable[[Build], AbstractContextManager[Progress]] = lambda build: nullcontext(_silent),
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Build:
    """The build, succeeded or cancelled: run here if it is free, else awaited from its worker.

    `attempt` is entered for each attempt made here and gives what receives its progress. A temporary failure is retried after the
    pause that its row states. Raises the error that the build failed with here, ConflictError if it failed elsewhere.
    """
    me = worker_name()
    row, waiting = build, False
    while row.status in ("queued", "running"):
        mine = registry.builds.claim(me, build_id=row.id)
        if mine is not None:
            try:
                with attempt(row) as progress:
                    return run(
                        registry, mine, RunOptions(me, device, keep_best=keep_best), progress=progress, notify=say
                    )
            except Exception as error:
                row = registry.builds.get(row.id)
                if row.status != "queued" or row.retry_at is None:
                    raise
                warn(f"build {row.id} failed: {error}")
                continue
        pause = POLL_SECONDS
        if row.status == "queued" and row.retry_at is not None and row.retry_at > (now := datetime.now(UTC)):
            pause = (row.retry_at - now).total_seconds()
            say(f"build {row.id} will be retried in {pause:.0f} s")
        elif not waiting:
            say(f"build {row.id} is with worker {row.worker}; waiting for it")
            waiting = True
        time.sleep(pause)
        row = registry.builds.get(row.id)
    if row.status == "failed":
        raise ConflictError(
            f"build {row.id} failed: {(row.error or {}).get('message')}", hint=f"reccocktail build retry {row.id}"
        )
    return row
