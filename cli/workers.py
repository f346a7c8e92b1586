"""`worker`: takes queued builds and carries them out, until it is stopped or nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import UsageError
from ..registry.signals import Stopped
from .app import App, example, json_option, pass_app
from .builds import show_builds
from .console import say, stages, warn
from .display import json_line, write

if TYPE_CHECKING:
    from ..engine.building.job import Progress
    from ..engine.building.worker_events import WorkerEvent
    from ..registry import Build, Registry
    from .bars import Stages

ENDS = ("succeeded", "failed", "cancelled", "postponed")
BAD_NEWS = ("failed", "died", "waiting", "blocked")


@click.command(
    epilog=example(
        "reccocktail worker --once",
        "reccocktail worker --executor process --workers 4 --watch",
        "reccocktail worker --executor ray --address ray://head:10001 --metrics-port 9464",
    )
)
@click.option("--once", is_flag=True, help="Stop when no build is waiting.")
@click.option(
    "--executor",
    type=click.Choice(["inline", "process", "ray"]),
    default="inline",
    show_default=True,
    help="Where builds run: in this process, in several, or on Ray.",
)
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Number of processes; default: one per core.")
@click.option(
    "--group",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Builds over one base per pass; each needs disk space.",
)
@click.option("--address", metavar="ADDRESS", help="Ray cluster. [env: RAY_ADDRESS; default: a local one]")
@click.option("--cpus", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU cores per Ray task.")
@click.option("--gpus", type=click.FloatRange(0), default=0, show_default=True, help="GPUs per Ray task.")
@click.option("--watch", is_flag=True, help="Also request builds of domains whose inputs change.")
@click.option("--log-json", is_flag=True, help="Write one JSON object per line to stderr, no progress bars.")
@click.option(
    "--metrics-port", type=click.IntRange(1, 65535), metavar="PORT", help="Serve Prometheus metrics on this port."
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address for the metrics.")
@json_option
@pass_app
def worker(
    app: App,
    once: bool,
    executor: str,
    workers: int | None,
    group: int,
    address: str | None,
    cpus: int,
    gpus: float,
    watch: bool,
    log_json: bool,
    metrics_port: int | None,
    metrics_host: str,
    as_json: bool,
) -> None:
    """Run queued builds: here, in processes, or on a cluster.

    Builds over one base are made in one pass. On Ctrl-C or SIGTERM, builds return to the queue. Temporary failures are
    retried later; an unreachable database is waited for.
    """
    if workers is not None and executor != "process":
        raise UsageError("--workers is for --executor process")
    if executor != "ray" and (address is not None or cpus != 1 or gpus):
        raise UsageError("--address, --cpus and --gpus are for --executor ray")
    metrics = None if metrics_port is None else (metrics_host, metrics_port)
    post = _Post(executor, workers, address, cpus, gpus, metrics, {"once": once, "watch": watch, "group": group})
    ears = _Ears(log_json)
    done: list[Build] = []
    is_stopped = False
    try:
        with ExitStack() as opened:
            registry = _opened(app, opened)
            try:
                done = _worked(app, registry, post, ears)
            except Stopped:
                done = [registry.builds.get(build) for build in ears.ended]
                raise
    except Stopped as error:
        if error.number != signal.SIGTERM:
            raise
        say("stopped; builds that were not finished are back in the queue")
        is_stopped = True
    if again := [row for row in done if row.status == "queued" and row.retry_at is not None]:
        first = min(row.retry_at for row in again if row.retry_at is not None)
        say(f"builds to be tried again, the first from {first:%H:%M:%S} UTC on: {len(again)}")
    if log_json:
        write(json_line(what="ended"))
    show_builds(done, as_json, empty="" if log_json or is_stopped else "no build was waiting")
    if not is_stopped and any(row.status == "failed" for row in done):
        raise click.exceptions.Exit(1)


@dataclass(frozen=True)
class _Post:
    """Where builds are made, and by whom."""

    executor: str
    workers: int | None
    address: str | None
    cpus: int
    gpus: float
    metrics: tuple[str, int] | None
    how: dict[str, Any]


def _opened(app: App, opened: ExitStack) -> Registry:
    from ..engine.building import workers as placing
    from ..engine.building.retries import retry_until_available

    # a worker process that was started by another is not to give up where that one waits
    patient = os.environ.get(placing.TOKEN)
    return opened.enter_context(retry_until_available(app.registry) if patient else app.registry())


def _worked(app: App, registry: Registry, post: _Post, ears: _Ears) -> list[Build]:
    """The builds that were ended. Raises KeyboardInterrupt, of which Stopped is one, once builds at hand are given back."""
    from ..engine.building.job import UNITS
    from ..engine.building.workers import (
        NUM_WORKERS,
        PARENT,
        TOKEN,
        Crew,
        WorkerOptions,
        inline,
        processes,
        stopped_by_signals,
    )

    with stages("build", UNITS) as ears.bars, stopped_by_signals():
        if post.metrics is not None:
            from ..engine.building.prometheus import Counters

            ears.hears.append(Counters(registry, *post.metrics).hear)
            say(f"metrics are at http://{post.metrics[0]}:{post.metrics[1]}/metrics")
        if post.executor == "process":
            options = WorkerOptions(app.settings.device, actor=app.actor, **post.how)
            return processes(registry, options, count=post.workers or os.cpu_count() or 1, notify=ears.hear)
        if post.executor == "ray":
            from ..engine.building.ray_executor import Cluster, on_ray

            options = WorkerOptions(app.settings.device, actor=app.actor, **post.how)
            return on_ray(registry, options, Cluster(post.address, post.cpus, post.gpus), notify=ears.hear)
        crew = None
        if token := os.environ.get(TOKEN):
            crew = Crew(int(os.environ.get(NUM_WORKERS, "1")), token, int(os.environ[PARENT]))
        return inline(
            registry, WorkerOptions(app.device(), **post.how), crew=crew, notify=ears.hear, progress=ears.show
        )


class _Ears:
    """What a worker hears of its builds, and how it is passed on: as JSON lines, or as words and bars."""

    bars: Stages

    def __init__(self, log_json: bool) -> None:
        self.hears: list[Callable[[WorkerEvent], None]] = []
        self.ended: dict[str, None] = {}
        self._log_json = log_json

    def hear(self, event: WorkerEvent) -> None:
        if event.build and event.what in ENDS:
            self.ended[event.build] = None
        for hear in self.hears:
            hear(event)
        if self._log_json:
            write(json_line(**event.to_json()))
            return
        if event.what != "says":
            self.bars.close()
        (warn if event.what in BAD_NEWS else say)(str(event))

    def show(self, builds: Sequence[Build]) -> Progress:
        alone = f"build {builds[0].domain}"
        self.bars.title = alone if len(builds) == 1 else f"{len(builds)} builds over {builds[0].base}"
        return self.bars.update
