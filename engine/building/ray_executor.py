"""The Ray executor: builds as tasks of a cluster.

Ray only places the work: a task claims its builds in SQL like any other worker, and whatever it dies of, they are freed and placed
again. A machine of the cluster needs this package, the database's URL and the store's, which come with the task; nothing is
shared but these two. A task asks for cores, GPUs, memory and, where machines offer `disk_gb`, for disk, by what its builds need.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...registry import Build, Registry, Settings
from ...registry.errors import ConflictError, UnavailableError, UsageError
from ...registry.ownership import private_folder
from .execution import worker_name
from .job import RunOptions
from .resources import Needs, needs_of
from .retries import PATIENCE_SECONDS, retry_until_available
from .stale_builds import StaleBuildPoller
from .worker_events import Notify, WorkerEvent
from .workers import BROKEN_AFTER, DatabaseOutage, WorkerOptions, given_back, run_claimed

if TYPE_CHECKING:
    import ray
    from ray.util.queue import Queue

DISK = "disk_gb"  # what a machine offers by `ray start --resources '{"disk_gb": 500}'`
REACH_SECONDS = 10.0
STOP_SECONDS = 30.0  # for tasks to give their builds back
OBJECT_STORE_BYTES = 80 << 20  # of a cluster that we start ourselves: nothing large goes through it


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and the cores and GPUs of each task. Without an address: RAY_ADDRESS, or a cluster of this machine alone."""

    address: str | None = None
    cpus: int = 1
    gpus: float = 0


def on_ray(
    registry: Registry,
    options: WorkerOptions,
    cluster: Cluster,
    *,
    notify: Notify = lambda event: None,
) -> list[Build]:
    """Run builds as tasks of a Ray cluster; up to `options.group` builds over one base are a task.

    A build that no machine of the cluster could ever hold is
    failed at once. Otherwise as `workers.processes`. Raises UsageError without Ray, for a cluster that cannot be reached, is lost or has no
    machine with so many cores and GPUs, and for an SQLite database where there are other machines, which cannot see it; ChildProcessError
    when tasks end before they have begun anything, because a machine cannot see the store, say.
    """
    ray = _connected(cluster.address)
    try:
        return _Driver(ray, registry, options, cluster, notify).work()
    except ray.exceptions.RayError as error:
        raise UsageError(
            f"the Ray cluster was lost: {_cause(error)}",
            hint="start it again, then the worker; what was being built is taken up again",
        ) from error
    finally:
        ray.shutdown()


def _connected(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"Ray is not installed: {error}", hint="pip install 'reccocktail[ray]'") from error
    wanted = address or os.environ.get("RAY_ADDRESS")
    alone = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    on_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _expect_an_answer(wanted)
        ray.init(wanted or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if wanted else alone))
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster can be reached{f' at {wanted}' if wanted else ''}: {error}",
            hint="start one with `ray start --head`, and name it as --address HOST:6379 or ray://HOST:10001",
        ) from error
    if on_main:
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place of ours
    return ray


def _expect_an_answer(address: str | None) -> None:
    """Raises OSError where no server listens: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


@dataclass
class _Task:
    """A task on the cluster, and the builds that it is to claim."""

    token: str
    builds: Sequence[Build]
    answer: ray.ObjectRef


class _Driver:
    def __init__(
        self,
        ray: Any,
        registry: Registry,
        options: WorkerOptions,
        cluster: Cluster,
        notify: Notify,
    ) -> None:
        self._ray, self._registry, self._options, self._notify = ray, registry, options, notify
        self._cpus, self._gpus = cluster.cpus, cluster.gpus
        self._expect_shared(registry.settings)
        # By value: the settings are in a task's arguments, which Ray does not show; it would show an environment.
        self._about = _Job(registry.settings, options.device, cluster.cpus, options.actor)
        self._ear = _ear()
        self._tasks: list[_Task] = []
        self._ended: dict[str, None] = {}
        self._gone: list[tuple[str, str]] = []  # (token of a task whose builds are to be freed, why)
        self._in_vain = 0  # tasks one after the other that ended before they had begun anything
        self._told: set[str] = set()
        self._placed: dict[str, None] = {}  # what was heard of them may have been lost

    def work(self) -> list[Build]:
        once = self._options.once
        outage = DatabaseOutage(self._hear, PATIENCE_SECONDS if once else None)
        watching = StaleBuildPoller(self._registry, self._options.watch, self._hear)
        try:
            while True:
                self._listen()
                self._see_to_ended_tasks()
                waiting: list[Build] = []
                with outage.wait():
                    self._free()
                    watching.look()
                    waiting = self._waiting()
                    self._place(waiting)
                if outage.is_on:
                    continue
                if once and not self._tasks and not waiting:
                    break
                if self._tasks:
                    self._ray.wait([task.answer for task in self._tasks], timeout=0.3)
                else:
                    time.sleep(0.3 if once else 1.0)
        finally:
            self._stop()
        self._listen()
        rows = [self._registry.builds.get(build) for build in {**self._ended, **self._placed}]
        return [row for row in rows if row.id in self._ended or row.finished_at is not None]

    def _expect_shared(self, settings: Settings) -> None:
        hosts = {node["NodeManagerHostname"] for node in self._ray.nodes() if node["Alive"]} | {socket.gethostname()}
        if len(hosts) < 2:
            return
        if settings.database_url.startswith("sqlite"):
            raise UsageError(
                "the registry is in an SQLite file, which the cluster's other machines cannot see",
                hint="use PostgreSQL: RECCOCKTAIL_DATABASE_URL=postgresql://…",
            )

    def _hear(self, event: WorkerEvent) -> None:
        if event.build and event.what in ("succeeded", "failed", "cancelled", "postponed"):
            self._ended[event.build] = None
        self._notify(event)

    def _listen(self) -> None:
        try:
            while waiting := self._ear.qsize():
                for message in self._ear.get_nowait_batch(waiting):
                    self._hear(WorkerEvent.from_json(message))
        except self._ray.exceptions.RayActorError:  # the machine that it was on is gone; tasks continue without it
            self._ear = _ear()

    def _see_to_ended_tasks(self) -> None:
        if not self._tasks:
            return
        ready, _ = self._ray.wait([task.answer for task in self._tasks], num_returns=len(self._tasks), timeout=0)
        for task in [task for task in self._tasks if task.answer in ready]:
            self._tasks.remove(task)
            try:
                self._ray.get(task.answer)
                self._in_vain = 0
            except Exception as error:  # noqa: BLE001  a machine that is lost, memory that ran out, whatever Ray raises
                self._hear(WorkerEvent("died", detail=f"task {task.token}: {_cause(error)}"))
                self._gone.append((task.token, _cause(error)))

    def _free(self) -> None:
        while self._gone:
            token, why = self._gone[0]
            freed = self._registry.builds.free(token, f"task {token} died ({why})")
            self._in_vain = 0 if freed else self._in_vain + 1
            for build in freed:
                what = "postponed" if build.status == "queued" else build.status
                self._hear(WorkerEvent(what, build.id, build.domain, "its task died"))
            self._gone.pop(0)
            if self._in_vain >= BROKEN_AFTER:
                raise ChildProcessError(f"{self._in_vain} tasks ended before they had begun a build: {why}")

    def _waiting(self) -> list[Build]:
        """The builds that could be claimed and are with no task of ours, the oldest first."""
        placed = {build.id for task in self._tasks for build in task.builds}
        return [build for build in self._registry.builds.claimable(limit=1000) if build.id not in placed]

    def _place(self, waiting: Sequence[Build]) -> None:
        """Tasks for all that waits, as many as the cluster has room for now and one more, so that none of it is idle."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if waiting and not self._has_room(machines):
            return
        slots = max(1, sum(int(m.get("CPU", 0)) // self._cpus for m in machines))
        left = [*waiting]
        while left and len(self._tasks) <= slots:
            share = max(1, min(self._options.group, -(-len(left) // slots)))
            first = left[0]
            # one that has been lost before may be what kills workers, and goes alone
            mates = (
                [b for b in left if b.base == first.base and not b.attempts][:share] if not first.attempts else [first]
            )
            left = [build for build in left if build not in mates]
            needs = needs_of(self._registry, mates, remote=True)
            if (why := self._never_fits(machines, needs)) is not None and len(mates) > 1:
                mates, left = mates[:1], [*mates[1:], *left]
                needs = needs_of(self._registry, mates, remote=True)
                why = self._never_fits(machines, needs)
            if why is not None:
                self._refuse(first, why)
                continue
            self._submit(mates, needs, machines)

    def _has_room(self, machines: Sequence[Mapping[str, float]]) -> bool:
        """Whether a machine has the cores and GPUs that are asked for. Raises UsageError if none has and only once is worked."""
        if any(m.get("CPU", 0) >= self._cpus and m.get("GPU", 0) >= self._gpus for m in machines):
            self._told.discard("room")
            return True
        why = f"no machine of the cluster has {self._cpus} CPU and {self._gpus:g} GPU, which each task asks for"
        if self._options.once:
            raise UsageError(why, hint="request less with --cpus and --gpus, or add machines")
        if "room" not in self._told:
            self._told.add("room")
            self._hear(WorkerEvent("blocked", detail=why))
        return False

    def _submit(self, builds: Sequence[Build], needs: Needs, machines: Sequence[Mapping[str, float]]) -> None:
        token = secrets.token_hex(8)
        self._placed |= dict.fromkeys(build.id for build in builds)
        disk = {DISK: needs.disk / 1e9} if any(DISK in machine for machine in machines) else {}
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "memory": needs.memory, "resources": disk}
        task = self._ray.remote(max_retries=0, **options)(_carry_out)  # SQL owns the truth, and we place it again
        about = replace(self._about, token=token, builds=tuple(build.id for build in builds))
        self._tasks.append(_Task(token, builds, task.remote(about, self._ear)))

    def _never_fits(self, machines: Sequence[Mapping[str, float]], needs: Needs) -> str | None:
        """Why no machine that is there could ever take it, though it were idle."""
        wanted = {"CPU": float(self._cpus), "GPU": self._gpus, "memory": float(needs.memory)}
        if any(DISK in machine for machine in machines):
            wanted[DISK] = needs.disk / 1e9
        if any(all(machine.get(name, 0.0) >= value for name, value in wanted.items()) for machine in machines):
            return None
        most = {name: max((machine.get(name, 0.0) for machine in machines), default=0.0) for name in wanted}
        return "no machine of the cluster has " + ", ".join(
            f"{_amount(name, value)} (the most is {_amount(name, most[name])})"
            for name, value in wanted.items()
            if value
        )

    def _refuse(self, build: Build, why: str) -> None:
        me = worker_name()
        claimed = self._registry.builds.claim(me, build_id=build.id)
        if claimed is None:
            return
        failed = self._registry.builds.fail(claimed.id, me, {"code": "no_room", "message": why})
        self._registry.builds.log(claimed.id, me, f"failed: {why}")
        self._hear(WorkerEvent("failed", failed.id, failed.domain, why))

    def _stop(self) -> None:
        """Tasks are asked to return their builds; what they do not return in time is released."""
        answers = [task.answer for task in self._tasks]
        try:
            for answer in answers:
                self._ray.cancel(answer)
            if answers:
                self._ray.wait(answers, num_returns=len(answers), timeout=STOP_SECONDS)
            for answer in answers:
                self._ray.cancel(answer, force=True)
        except self._ray.exceptions.RayError:
            pass  # a cluster that is gone has stopped, too
        finally:
            tokens = [task.token for task in self._tasks] + [token for token, _ in self._gone]
            with suppress(UnavailableError):  # otherwise their leases run out
                for token in tokens:
                    self._registry.builds.free(token, f"task {token} was stopped")


def _ear() -> Queue:
    """The actor that receives the tasks' events, on this machine if it is part of the cluster."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _cause(error: BaseException) -> str:
    """What went wrong in a task, in a line: Ray wraps it in its own words, with colours."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def _amount(resource: str, value: float) -> str:
    return f"{value / 1e9:.1f} GB of memory" if resource == "memory" else f"{value:g} {resource}"


@dataclass(frozen=True)
class _Job:
    """The arguments of a task. `repr` hides the settings, whose database URL may have a password."""

    settings: Settings = field(repr=False)
    device: str
    cpus: int
    actor: str | None
    token: str = ""
    builds: tuple[str, ...] = ()


def _carry_out(job: _Job, ear: Queue) -> None:
    """On a machine of the cluster: claim the builds that still wait, and make them in one pass."""
    import torch
    from ray.exceptions import RayError

    from ..models import pick_device

    torch.set_num_threads(job.cpus)
    me = worker_name(job.token)
    settings = _here(job.settings)

    device = pick_device(job.device)  # before anything is claimed

    def notify(event: WorkerEvent) -> None:
        with suppress(RayError):  # a driver that is gone, or its machine
            ear.put(event.to_json())

    with retry_until_available(lambda: Registry.open(settings, actor=job.actor)) as registry:
        claimed = []
        for build_id in job.builds:
            try:
                build = retry_until_available(lambda build_id=build_id: registry.builds.claim(me, build_id=build_id))
            except ConflictError:
                continue
            if build is not None:  # another worker may have been quicker
                claimed.append(build)
        with given_back(registry, me):
            run_claimed(registry, claimed, RunOptions(me, device, give_back=True, threads=job.cpus), notify)


def _here(settings: Settings) -> Settings:
    """The driver's settings for this machine: what lies in the driver's home lies in our own, if there is no such folder."""
    if settings.home.is_dir():
        return settings
    home = Path(os.environ.get("RECCOCKTAIL_HOME") or Path.home() / ".reccocktail")
    if settings.store_shared:
        home.mkdir(parents=True, exist_ok=True)
    else:
        private_folder(home)
    return replace(settings, home=home)
