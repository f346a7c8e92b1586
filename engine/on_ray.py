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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry import Build, Registry, Settings
from ..registry.errors import ConflictError, UnavailableError, UsageError
from .needs import Needs, needs_of
from .running import PATIENCE_SECONDS, patiently, worker_name
from .workers import GROUP, Happening, Outage, Tell, Watch, work_off

if TYPE_CHECKING:
    import ray
    from ray.util.queue import Queue

DISK = "disk_gb"  # what a machine offers by `ray start --resources '{"disk_gb": 500}'`
REACH_SECONDS = 10.0
STOP_SECONDS = 30.0  # for tasks to give their builds back
OBJECT_STORE_BYTES = 80 << 20  # of a cluster that we start ourselves: nothing large goes through it


def on_ray(
    registry: Registry,
    *,
    address: str | None = None,
    device: str = "auto",
    cpus: int = 1,
    gpus: float = 0,
    once: bool,
    watch: bool = False,
    group: int = GROUP,
    actor: str | None = None,
    tell: Tell = lambda happening: None,
) -> list[Build]:
    """Have builds carried out by tasks with `cpus` cores and `gpus` GPUs each; up to `group` builds over one base are a task.

    Without an address, RAY_ADDRESS or a cluster of this machine alone. A build that no machine of the cluster could ever hold is
    failed at once. Otherwise as `workers.processes`. Raises UsageError without Ray, for a cluster that cannot be reached, and for
    an SQLite database or a folder as store on a cluster of several machines, which the others cannot see.
    """
    ray = _connected(address)
    try:
        driver = _Driver(ray, registry, device, cpus, gpus, group, actor, tell)
        return driver.work(once=once, watch=watch)
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
        ray.init(wanted, log_to_driver=False, logging_level=logging.ERROR, **({} if wanted else alone))
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster can be reached{f' at {wanted}' if wanted else ''}: {error}",
            hint="start one with `ray start --head`, and name it as --address HOST:6379 or ray://HOST:10001",
        ) from error
    if on_main:
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place of ours
    return ray


def _expect_an_answer(address: str | None) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


@dataclass
class _Task:
    """A task on the cluster, and the builds that it is to claim."""

    token: str
    builds: Sequence[Build]
    answer: ray.ObjectRef
    placed: float = field(default_factory=time.monotonic)


class _Driver:
    def __init__(
        self,
        ray: Any,
        registry: Registry,
        device: str,
        cpus: int,
        gpus: float,
        group: int,
        actor: str | None,
        tell: Tell,
    ) -> None:
        from ray.util.queue import Queue

        self._ray, self._registry, self._group, self._tell = ray, registry, group, tell
        self._cpus, self._gpus = cpus, gpus
        self._expect_shared(registry.settings)
        # By value: what a task is told is in its arguments, which Ray shows nowhere; an environment it would show.
        self._about = _Job(registry.settings, device, cpus, actor)
        self._ear: Queue = Queue(actor_options={"num_cpus": 0})
        self._tasks: list[_Task] = []
        self._ended: dict[str, None] = {}
        self._gone: list[tuple[str, str]] = []  # (token of a task whose builds are to be freed, why)

    def work(self, *, once: bool, watch: bool) -> list[Build]:
        outage = Outage(self._hear, PATIENCE_SECONDS if once else None)
        watching = Watch(self._registry, watch, self._hear)
        try:
            while True:
                self._listen()
                self._see_to_ended_tasks()
                waiting: list[Build] = []
                with outage.waited_out():
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
        return [self._registry.builds.get(build) for build in self._ended]

    def _expect_shared(self, settings: Settings) -> None:
        hosts = {node["NodeManagerHostname"] for node in self._ray.nodes() if node["Alive"]}
        if len(hosts) < 2:
            return
        if settings.database_url.startswith("sqlite"):
            raise UsageError(
                "the registry is in an SQLite file, which the cluster's other machines cannot see",
                hint="use PostgreSQL: RECCOCKTAIL_DATABASE_URL=postgresql://…",
            )

    def _hear(self, happening: Happening) -> None:
        if happening.build and happening.what in ("succeeded", "failed", "cancelled", "postponed"):
            self._ended[happening.build] = None
        self._tell(happening)

    def _listen(self) -> None:
        while waiting := self._ear.qsize():
            for said in self._ear.get_nowait_batch(waiting):
                self._hear(Happening.from_json(said))

    def _see_to_ended_tasks(self) -> None:
        if not self._tasks:
            return
        ready, _ = self._ray.wait([task.answer for task in self._tasks], num_returns=len(self._tasks), timeout=0)
        for task in [task for task in self._tasks if task.answer in ready]:
            self._tasks.remove(task)
            try:
                self._ray.get(task.answer)
            except Exception as error:  # noqa: BLE001  a machine that is lost, memory that ran out, whatever Ray raises
                why = str(error).strip().splitlines()
                self._hear(
                    Happening("died", detail=f"task {task.token}: {type(error).__name__}: {why[0] if why else ''}")
                )
                self._gone.append((task.token, type(error).__name__))

    def _free(self) -> None:
        while self._gone:
            token, why = self._gone[0]
            for build in self._registry.builds.free(token, f"task {token} died ({why})"):
                what = "postponed" if build.status == "queued" else build.status
                self._hear(Happening(what, build.id, build.domain, "its task died"))
            self._gone.pop(0)

    def _waiting(self) -> list[Build]:
        """The builds that could be claimed and are with no task of ours, the oldest first."""
        placed = {build.id for task in self._tasks for build in task.builds}
        return [build for build in self._registry.builds.claimable(limit=1000) if build.id not in placed]

    def _place(self, waiting: Sequence[Build]) -> None:
        """Tasks for all that waits, as many as the cluster has room for now and one more, so that none of it is idle."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        slots = max(1, sum(int(m.get("CPU", 0)) // self._cpus for m in machines))
        left = [*waiting]
        while left and len(self._tasks) <= slots:
            share = max(1, min(self._group, -(-len(left) // slots)))
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

    def _submit(self, builds: Sequence[Build], needs: Needs, machines: Sequence[Mapping[str, float]]) -> None:
        token = secrets.token_hex(8)
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
        self._hear(Happening("failed", failed.id, failed.domain, why))

    def _stop(self) -> None:
        """Tasks are told to give their builds back; what they did not in time is freed."""
        for task in self._tasks:
            self._ray.cancel(task.answer)
        if self._tasks:
            answers = [task.answer for task in self._tasks]
            self._ray.wait(answers, num_returns=len(answers), timeout=STOP_SECONDS)
            for task in self._tasks:
                self._ray.cancel(task.answer, force=True)
            self._gone += [(task.token, "stopped") for task in self._tasks]
            try:
                self._free()
            except UnavailableError:
                return  # their leases run out
        self._tasks.clear()


def _amount(resource: str, value: float) -> str:
    return f"{value / 1e9:.1f} GB of memory" if resource == "memory" else f"{value:g} {resource}"


@dataclass(frozen=True)
class _Job:
    """All that a task is told. `repr` hides the settings, whose database URL may have a password."""

    settings: Settings = field(repr=False)
    device: str
    cpus: int
    actor: str | None
    token: str = ""
    builds: tuple[str, ...] = ()


def _carry_out(job: _Job, ear: Queue) -> None:
    """On a machine of the cluster: claim the builds that still wait, and make them in one pass."""
    import torch

    from .models import pick_device

    torch.set_num_threads(job.cpus)
    me = worker_name(job.token)
    settings = _here(job.settings)

    def tell(happening: Happening) -> None:
        ear.put(happening.to_json())

    with patiently(lambda: Registry.open(settings, actor=job.actor)) as registry:
        claimed = []
        for build_id in job.builds:
            try:
                build = patiently(lambda build_id=build_id: registry.builds.claim(me, build_id=build_id))
            except ConflictError:
                continue
            if build is not None:  # another worker may have been quicker
                claimed.append(build)
        if claimed:
            work_off(registry, claimed, me, pick_device(job.device), tell, threads=job.cpus)


def _here(settings: Settings) -> Settings:
    """The driver's settings for this machine: what lies in the driver's home lies in our own, if there is no such folder."""
    if settings.home.is_dir():
        return settings
    home = Path(os.environ.get("RECCOCKTAIL_HOME") or Path.home() / ".reccocktail")
    home.mkdir(parents=True, exist_ok=True)
    return replace(settings, home=home)
