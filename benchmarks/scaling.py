"""How long 200 domains over a 7B base take on k machines: once by a formula, once simulated, and whether the two agree.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --setting 10g --machines 4 --group 1 --stages
    python benchmarks/scaling.py --setting 10g --machines 8 --up 0.6 --store 2

The formula adds up what a worker does with a group of builds, one stage after the other. The simulation knows none of those sums:
machines claim builds from one queue and do what the engine does, piece by piece, with a page cache that forgets what was used
longest ago and a store whose rate is shared fairly. It fails if the two differ by more than 5 % where the formula claims to hold:
for machines that are alike and begin together. Where a group does not fit into the page cache and the disk's reading binds, the
formula claims only to be no less than what is simulated; where machines begin one after the other or one is lost, nothing.
Nothing is measured here; `docs/scaling.md` says where the rates come from. GB are 10^9 bytes, rates are GB a second.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

LIMIT = 0.05
PIECES = 32  # of a base in the simulation; the engine's own jobs are smaller still
AHEAD = 3  # pieces read before they are mixed


def option(default: Any, about: str) -> Any:
    """A field that is an option of the command too."""
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class Plan:
    """What is to be done, and with what."""

    domains: int = option(200, "builds to be made")
    base: float = option(15.23, "GB of the base and of each result (Qwen2.5-7B: 7,615,616,512 weights of 2 bytes)")
    shards: int = option(4, "files of the base")
    adapter: float = option(0.16, "GB of an adapter")
    group: int = option(5, "builds made in one pass over the base; the worker's own default is 8")
    threads: int = option(8, "threads that merge and digest: the cores, up to 8")
    merge: float = option(0.61, "GB of results that one thread makes: reads, adds, rounds, writes into the page cache")
    sha: float = option(1.4, "GB that one thread digests by SHA-256")
    read: float = option(3.0, "of the disk")
    write: float = option(1.5, "of the disk, sustained, until the bytes are durable")
    memory: float = option(100.0, "GB of page cache")
    dirty: float = option(0.2, "share of the page cache that may wait for the disk (Linux: vm.dirty_ratio)")
    down: float = option(1.25, "of a machine's network, from the store")
    up: float = option(1.25, "of a machine's network, to the store")
    store: float = option(5.0, "of the store, for all machines together and both ways")
    client: float = option(math.inf, "of one worker's client of the store, where it is slower than the network")
    other: float = option(0.8, "seconds for each build for card, provenance, checks of values and rows")
    lease: float = option(60.0, "seconds after a worker's last sign of life until its builds are taken over")
    folder: bool = option(
        False, "the store is a folder: nothing is fetched or uploaded, read and write are a machine's share of it"
    )
    digest_twice: bool = option(False, "what if: the store digests what it is given again, with one thread")
    upload_beside: bool = option(False, "what if: a group is stored beside the next one's pass")
    adapters: bool = option(False, "what if: results are adapters, as large as spirit and ingredient together")

    @property
    def result(self) -> float:
        """GB of one result: a LoRA that equals two others side by side has the rank of both."""
        return 2 * self.adapter if self.adapters else self.base

    @property
    def files(self) -> int:
        return 1 if self.adapters else self.shards

    @property
    def digested_again(self) -> bool:
        """Whether the store finds digests itself: the merge gives it those of a checkpoint, and none of an adapter."""
        return self.digest_twice or self.adapters

    @property
    def held(self) -> int:
        """Groups of results that are on the disk at once."""
        return 2 if self.upload_beside else 1


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "office": (
        "1 Gbit/s to a store of 1 Gbit/s, SATA SSD, 64 GB",
        {"read": 0.5, "write": 0.45, "memory": 48.0, "down": 0.117, "up": 0.117, "store": 0.117, "group": 1},
    ),
    "10g": ("10 Gbit/s to a store of 40, NVMe, 128 GB", {}),
    "25g": (
        "25 Gbit/s to a store of 100, faster NVMe, 256 GB",
        {"read": 6.0, "write": 3.0, "memory": 200.0, "down": 3.1, "up": 3.1, "store": 12.5},
    ),
}


# --- by formula -----------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """Of one machine and one group: `binds` is what the seconds are spent on."""

    name: str
    gigabytes: float
    seconds: float
    binds: str


def slowest(**seconds: float) -> tuple[float, str]:
    """How long it takes where all this happens at once, and what that is spent on."""
    binds = max(seconds, key=lambda name: seconds[name])
    return seconds[binds], binds.replace("_", " ") if seconds[binds] else "-"


def fetching(plan: Plan, machines: float) -> Stage:
    """The base into a machine's cache: its files at once, digested and written as they come; the spirit after it."""
    if plan.folder:
        return Stage("fetch the base", 0, 0, "-")
    took, binds = slowest(
        network=plan.base / plan.down,
        client=plan.base / plan.client,
        store=plan.base * machines / plan.store,
        cores=plan.base / (min(4, plan.shards) * plan.sha),
        disk_write=plan.base / plan.write,
    )
    spirit, _ = one_file(plan, plan.adapter, machines)
    return Stage("fetch the base", plan.base + plan.adapter, took + spirit, binds)


def one_file(plan: Plan, size: float, machines: float) -> tuple[float, str]:
    return slowest(
        network=size / plan.down,
        client=size / plan.client,
        store=size * machines / plan.store,
        one_core=size / plan.sha,
    )


def fits(plan: Plan, count: int) -> bool:
    """Whether the page cache holds base and results of a group, so that the disk need not be read."""
    return plan.held * count * plan.result + (0 if plan.adapters else plan.base) <= plan.memory


def group_stages(plan: Plan, count: int, machines: float) -> list[Stage]:
    """What a machine does with `count` builds, one stage after the other, while `machines` do the same."""
    results = count * plan.result
    from_disk = 0.0 if fits(plan, count) else results / plan.read
    fetched = 0.0 if plan.folder else count * plan.adapter
    took, binds = one_file(plan, fetched, machines)
    stages = [Stage("fetch adapters", fetched, took, binds)]

    # Read, made and written at once. What is dirty may be written while digests are already being found.
    reading = plan.base / plan.read if from_disk and not plan.adapters else 0.0
    mixing = results / (plan.threads * plan.merge)
    merged, binds = slowest(
        disk_read=reading, cores=mixing, disk_write=(results - plan.dirty * plan.memory) / plan.write
    )
    stages.append(Stage("merge", (0 if plan.adapters else plan.base) + results, merged, binds))
    rounds = math.ceil(count * plan.files / plan.threads)  # a file is digested by one thread
    rest, binds = slowest(
        cores=rounds * plan.result / plan.files / plan.sha,
        disk_read=from_disk,
        disk_write=max(reading, mixing, results / plan.write) - merged,
    )
    stages.append(Stage("sync and digest", results, rest, binds))

    # One build after the other from here: one thread digests what has to be digested again, then up to four upload.
    if plan.digested_again:
        again, binds = slowest(one_core=results / plan.sha, disk_read=from_disk)
        stages.append(Stage("digest again", results, again, binds))
    if not plan.folder:
        just_digested = plan.digested_again and plan.result <= plan.memory
        took, binds = slowest(
            network=results / plan.up,
            client=results / plan.client,
            store=results * machines / plan.store,
            disk_read=0 if just_digested else from_disk,
        )
        stages.append(Stage("upload", results, took, binds))
    stages.append(Stage("metadata files and rows", 0, count * plan.other, "papers"))
    return stages


@dataclass
class Paper:
    """`spread` is the least it can take when machines are out of step, and some upload while others merge. `binds` is what most of
    the time is spent on; `claims` whether the seconds are the simulation's ("equal") or no less ("at most").

    `disk` is what a machine cannot do without, in GB: the base and what is being made. `disk_kept` is what it has in the end where
    nothing limits the cache.
    """

    seconds: float
    spread: float
    binds: str
    claims: str
    stages: list[Stage]
    fetched: float
    uploaded: float
    disk: float
    disk_kept: float


def on_paper(plan: Plan, machines: int) -> Paper:
    """Machines are alike, begin together and stay in step; the last round may have fewer of them."""
    whole, rest = divmod(plan.domains, plan.group)
    groups = [plan.group] * whole + [rest] * (rest > 0)
    rounds = [groups[first : first + machines] for first in range(0, len(groups), machines)]
    working = len(rounds[0])

    def total(*, in_step: bool) -> float:
        seconds = fetching(plan, working if in_step else 1).seconds
        halves = [_passed_and_stored(plan, max(each), sum(each) / max(each) if in_step else 1) for each in rounds]
        if not plan.upload_beside:
            return seconds + sum(passed + stored for passed, stored in halves)
        for (_, stored), (passed, _) in itertools.pairwise(halves):
            seconds += max(stored, passed)
        return seconds + halves[0][0] + halves[-1][1]

    fetch = fetching(plan, working)
    stages = group_stages(plan, groups[0], working)
    spent: dict[str, float] = {}
    for stage in [fetch, *stages * len(rounds)]:
        spent[stage.binds] = spent.get(stage.binds, 0.0) + stage.seconds
    uploaded = 0.0 if plan.folder else plan.domains * plan.result
    fetched = 0.0 if plan.folder else working * fetch.gigabytes + plan.domains * plan.adapter
    return Paper(
        seconds=total(in_step=True),
        spread=max(total(in_step=False), (uploaded + fetched) / plan.store),
        binds=max(spent, key=lambda name: spent[name]),
        claims="equal" if fits(plan, groups[0]) or "disk read" not in spent else "at most",
        stages=[fetch, *stages],
        fetched=fetched,
        uploaded=uploaded,
        disk=plan.base + min(plan.held, len(rounds)) * groups[0] * plan.result,
        disk_kept=plan.base + sum(each[0] for each in rounds) * plan.result,
    )


def _passed_and_stored(plan: Plan, count: int, machines: float) -> tuple[float, float]:
    """Seconds of a group until it is merged and digested, and until it is stored after that."""
    seconds = {stage.name: stage.seconds for stage in group_stages(plan, count, machines)}
    passed = seconds["fetch adapters"] + seconds["merge"] + seconds["sync and digest"]
    return passed, sum(seconds.values()) - passed


# --- the simulation's clock -----------------------------------------------------------------------------------------

Steps = Generator[object, None, None]


@dataclass(eq=False)
class Resource:
    capacity: float
    flows: set[Flow] = field(default_factory=set)
    carried: float = 0.0


@dataclass(eq=False)
class Flow:
    """Gigabytes on their way through several resources at once, at `most` so many a second."""

    left: float
    through: Sequence[Resource]
    most: float = math.inf
    rate: float = 0.0
    since: float = 0.0
    version: int = 0
    task: Task | None = None


class Signal:
    """Whoever waits for it looks again when it is given."""

    def __init__(self) -> None:
        self.waiting: list[Task] = []


@dataclass(eq=False)
class Task:
    steps: Steps
    ended: bool = False
    killed: bool = False
    end: Signal = field(default_factory=Signal)
    flow: Flow | None = None


class Clock:
    """Runs tasks. A task yields seconds to sleep, a Flow to finish, a Signal to wait for, or a Task to end."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), what))

    def start(self, steps: Steps) -> Task:
        task = Task(steps)
        self._wake(task)
        return task

    def run(self, until: Callable[[], bool]) -> None:
        while not until():
            self.now, _, what = heapq.heappop(self._due)
            what()

    def give(self, signal: Signal) -> None:
        waiting, signal.waiting = signal.waiting, []
        for task in waiting:
            self._wake(task)

    def kill(self, task: Task) -> None:
        task.killed = True
        if task.flow is not None:
            self._leave(task.flow)

    def _wake(self, task: Task, after: float = 0.0) -> None:
        self.at(self.now + after, lambda: self._go_on(task))

    def _go_on(self, task: Task) -> None:
        if task.killed:
            return
        wanted = next(task.steps, None)
        if wanted is None:
            task.ended = True
            self.give(task.end)
        elif isinstance(wanted, Flow):
            wanted.task, task.flow, wanted.since = task, wanted, self.now
            for resource in wanted.through:
                resource.flows.add(wanted)
                resource.carried += wanted.left
            self._share(wanted.through, wanted)
        elif isinstance(wanted, Signal):
            wanted.waiting.append(task)
        elif isinstance(wanted, Task) and not wanted.ended:
            wanted.end.waiting.append(task)
        else:
            self._wake(task, wanted if isinstance(wanted, float) else 0.0)

    def _arrived(self, flow: Flow, version: int) -> None:
        if flow.version == version and flow.task is not None:
            self._leave(flow)
            self._go_on(flow.task)

    def _leave(self, flow: Flow) -> None:
        flow.version += 1
        if flow.task is not None:
            flow.task.flow = None
        for resource in flow.through:
            resource.flows.discard(flow)
        self._share(flow.through)

    def _share(self, resources: Iterable[Resource], new: Flow | None = None) -> None:
        """Max-min fair rates for all flows that meet, directly or through others."""
        flows = set[Flow]() if new is None else {new}
        seen, look = set[Resource](), list(resources)
        while look:
            resource = look.pop()
            if resource not in seen:
                seen.add(resource)
                flows |= resource.flows
                look += [other for flow in resource.flows for other in flow.through]
        free = {resource: resource.capacity for resource in seen}
        sharing = {resource: len(resource.flows) for resource in seen}
        open_flows, rates = set(flows), dict[Flow, float]()
        while open_flows:
            can = {f: min([f.most, *(free[r] / sharing[r] for r in f.through)]) for f in open_flows}
            least = min(can.values())
            for flow in [flow for flow in open_flows if can[flow] <= least * (1 + 1e-9)]:
                open_flows.discard(flow)
                rates[flow] = least
                for resource in flow.through:
                    free[resource] = max(0.0, free[resource] - least)
                    sharing[resource] -= 1
        for flow, given in rates.items():
            if flow.version and math.isclose(flow.rate, given, rel_tol=1e-12):
                continue  # it arrives when it was going to
            flow.left -= flow.rate * (self.now - flow.since)
            flow.since, flow.rate, flow.version = self.now, given, flow.version + 1
            due = self.now + max(0.0, flow.left) / given
            self.at(due, lambda flow=flow, version=flow.version: self._arrived(flow, version))


# --- the simulated machines -----------------------------------------------------------------------------------------


class PageCache:
    """Forgets what was used longest ago."""

    def __init__(self, size: float) -> None:
        self._size, self._used = size, 0.0
        self._pages: OrderedDict[tuple[object, int], float] = OrderedDict()

    def has(self, page: tuple[object, int], size: float) -> bool:
        """Whether it was there; it is now."""
        hit = page in self._pages
        if hit:
            self._pages.move_to_end(page)
        else:
            self._pages[page] = size
            self._used += size
        while self._used > self._size:
            self._used -= self._pages.popitem(last=False)[1]
        return hit

    def forget(self, what: object) -> None:
        for page in [page for page in self._pages if page[0] == what]:
            self._used -= self._pages.pop(page)


class Queue:
    """The rows: who has claimed which build, and which are done."""

    def __init__(self, builds: int) -> None:
        self.waiting = deque(range(builds))
        self.lost: deque[int] = deque()
        self.held: dict[int, Machine] = {}
        self.done: list[int] = []

    def claim(self, machine: Machine, limit: int) -> list[int]:
        """Up to `limit` new builds, or one that has lost its worker, alone."""
        if self.lost:
            taken = [self.lost.popleft()]
        else:
            taken = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        self.held |= dict.fromkeys(taken, machine)
        return taken

    def finish(self, build: int) -> None:
        self.done.append(build)
        del self.held[build]


class Machine:
    """One worker that has all of a machine."""

    def __init__(self, clock: Clock, plan: Plan, queue: Queue, store: Resource) -> None:
        self._clock, self._plan, self._queue, self._store = clock, plan, queue, store
        self.read, self.write = Resource(plan.read), Resource(plan.write)
        self.down, self.up = Resource(plan.down), Resource(plan.up)
        self._cores, self._client = Resource(plan.threads * plan.merge), Resource(plan.client)
        self._cache = PageCache(plan.memory)
        self._tasks: list[Task] = []
        self.claimed_at = 0.0
        self.disk = self.most_disk = plan.base if plan.folder else 0.0

    def start(self, steps: Steps) -> Task:
        task = self._clock.start(steps)
        self._tasks = [kept for kept in self._tasks if not kept.ended] + [task]
        return task

    def die(self) -> None:
        for task in self._tasks:
            self._clock.kill(task)

    def work(self, wait: float) -> Steps:
        yield wait
        has_base, storing = self._plan.folder, None
        while True:
            builds = self._queue.claim(self, self._plan.group)
            if not builds:
                yield 2.0  # asks again, since another's builds may come back
                continue
            self.claimed_at = self._clock.now
            if not has_base:
                yield from self._fetch_base()
                has_base = True
            yield from self._fetch_adapters(len(builds))
            yield from self._pass(builds)
            if storing is not None:
                yield storing
            storing = self.start(self._store_all(builds))
            if not self._plan.upload_beside:
                yield storing

    def _fetch_base(self) -> Steps:
        size = self._plan.base / PIECES
        waiting = deque(range(self._plan.shards))

        def fetch() -> Steps:
            while waiting:
                for piece in range(waiting.popleft(), PIECES, self._plan.shards):
                    yield Flow(size, (self.down, self._client, self._store, self.write), self._plan.sha)
                    self._cache.has(("base", piece), size)

        self._keep(self._plan.base)
        yield from [self.start(fetch()) for _ in range(4)]
        yield from self._fetch_adapters(1)  # the spirit

    def _fetch_adapters(self, count: int) -> Steps:
        if not self._plan.folder:
            for _ in range(count):
                yield Flow(self._plan.adapter, (self.down, self._client, self._store), self._plan.sha)

    def _pass(self, builds: Sequence[int]) -> Steps:
        """Read, mixed and written by tasks of their own. Then each file is digested, beside what is still to be written."""
        plan, give = self._plan, self._clock.give
        old, new = plan.base / PIECES, plan.result / PIECES
        may_wait = max(plan.dirty * plan.memory, len(builds) * new)
        changed = Signal()
        done = {"read": 0, "mixed": 0, "written": 0}

        def read() -> Steps:
            for piece in range(PIECES):
                while piece - done["mixed"] >= AHEAD:
                    yield changed
                if not plan.adapters and not self._cache.has(("base", piece), old):
                    yield Flow(old, (self.read,))
                done["read"] += 1
                give(changed)

        def mix() -> Steps:
            for piece in range(PIECES):
                while done["read"] <= piece:
                    yield changed
                yield Flow(len(builds) * new, (self._cores,))
                while (piece + 1 - done["written"]) * len(builds) * new > may_wait:
                    yield changed
                for build in builds:
                    self._cache.has((build, piece), new)
                done["mixed"] += 1
                give(changed)

        def write() -> Steps:
            for piece in range(PIECES):
                while done["mixed"] <= piece:
                    yield changed
                yield Flow(len(builds) * new, (self.write,))
                done["written"] += 1
                give(changed)

        self._keep(len(builds) * plan.result)
        self.start(read())
        mixing, writing = self.start(mix()), self.start(write())
        yield mixing
        each = PIECES // plan.files
        files = deque((b, range(n * each, (n + 1) * each)) for b in builds for n in range(plan.files))

        def digest() -> Steps:
            while files:
                yield from self._digest(*files.popleft())

        yield from [self.start(digest()) for _ in range(plan.threads)]
        yield writing

    def _digest(self, build: int, pieces: Iterable[int]) -> Steps:
        for piece in pieces:
            yield Flow(self._plan.result / PIECES, self._disk_of(build, piece), self._plan.sha)

    def _disk_of(self, build: int, piece: int) -> tuple[Resource, ...]:
        """The disk, where a piece of a result has to be read from it."""
        return () if self._cache.has((build, piece), self._plan.result / PIECES) else (self.read,)

    def _store_all(self, builds: Sequence[int]) -> Steps:
        plan = self._plan
        for build in builds:
            if plan.digested_again:
                yield from self._digest(build, range(PIECES))
            if not plan.folder:
                for piece in range(PIECES):
                    through = (self.up, self._client, self._store, *self._disk_of(build, piece))
                    yield Flow(plan.result / PIECES, through)
            yield float(plan.other)
            self._queue.finish(build)
        for build in builds:
            self._cache.forget(build)
            self._keep(-plan.result)

    def _keep(self, size: float) -> None:
        self.disk += size
        self.most_disk = max(self.disk, self.most_disk)


@dataclass
class Simulated:
    """Gigabytes of all machines together; `disk` is the most that one of them held at once."""

    seconds: float
    fetched: float
    uploaded: float
    read: float
    written: float
    disk: float
    taken_over: int


def simulated(plan: Plan, machines: int, *, stagger: float = 0.0, dies_at: float | None = None) -> Simulated:
    """`stagger`: seconds between one machine's beginning and the next one's. `dies_at`: when the first is lost for good.

    Raises AssertionError if a build is not done exactly once.
    """
    clock, queue, store = Clock(), Queue(plan.domains), Resource(plan.store)
    all_machines = [Machine(clock, plan, queue, store) for _ in range(machines)]
    for number, machine in enumerate(all_machines):
        machine.start(machine.work(number * stagger))
    lost: list[int] = []

    def die() -> None:
        first = all_machines[0]
        first.die()
        lost.extend(build for build, holder in queue.held.items() if holder is first)
        beat = plan.lease / 3
        last_sign = first.claimed_at + (clock.now - first.claimed_at) // beat * beat
        clock.at(last_sign + plan.lease, lambda: queue.lost.extend(lost))

    if dies_at is not None:
        clock.at(dies_at, die)
    clock.run(lambda: len(queue.done) >= plan.domains)
    assert sorted(queue.done) == list(range(plan.domains)), "a build was not done exactly once"

    def together(carried: Callable[[Machine], Resource]) -> float:
        return sum(carried(machine).carried for machine in all_machines)

    return Simulated(
        seconds=clock.now,
        fetched=together(lambda machine: machine.down),
        uploaded=together(lambda machine: machine.up),
        read=together(lambda machine: machine.read),
        written=together(lambda machine: machine.write),
        disk=max(machine.most_disk for machine in all_machines),
        taken_over=len(lost),
    )


# --- the command ----------------------------------------------------------------------------------------------------


@dataclass
class Compared:
    """`claims`: what the paper claims of its seconds: "equal", "at most" or "nothing". `differences` are relative to it."""

    machines: int
    paper: Paper
    simulated: Simulated
    claims: str
    differences: dict[str, float]

    @property
    def agree(self) -> bool:
        if self.claims == "nothing":
            return True
        least = -math.inf if self.claims == "at most" else -LIMIT
        return least <= self.differences["seconds"] <= LIMIT and all(
            abs(difference) <= LIMIT for name, difference in self.differences.items() if name != "seconds"
        )


def compare(plan: Plan, machines: int, stagger: float, dies: float | None) -> Compared:
    paper = on_paper(plan, machines)
    dies_at = None if dies is None else dies * paper.seconds
    played = simulated(plan, machines, stagger=stagger, dies_at=dies_at)
    differences = {
        name: getattr(played, name) / getattr(paper, name) - 1
        for name in ("seconds", "fetched", "uploaded", "disk")
        if getattr(paper, name)
    }
    return Compared(machines, paper, played, "nothing" if stagger or dies else paper.claims, differences)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


HEAD = (
    f"{'machines':>8} {'formula':>10} {'simulated':>10} {'apart':>8} {'spread':>10}  {'binds':<11} {'down TB':>8} {'up TB':>6}"
    f" {'written TB':>10} {'read TB':>8} {'in use GB':>9} {'if kept':>8}"
)


def line(found: Compared) -> str:
    paper, played = found.paper, found.simulated
    notes = [
        "" if found.claims == "equal" else f"claims {found.claims}",
        f"{played.taken_over} taken over" if played.taken_over else "",
        "" if found.agree else "DISAGREE",
    ]
    verdict = "".join(f"  {note}" for note in notes if note)
    return (
        f"{found.machines:>8} {duration(paper.seconds):>10} {duration(played.seconds):>10} {found.differences['seconds']:+8.1%}"
        f" {duration(paper.spread):>10}  {paper.binds:<11} {played.fetched / 1e3:8.2f} {played.uploaded / 1e3:6.2f}"
        f" {played.written / 1e3:10.2f} {played.read / 1e3:8.2f} {paper.disk:9,.0f} {paper.disk_kept:8,.0f}{verdict}"
    )


def stage_lines(paper: Paper) -> list[str]:
    lines = [f"{'':10}{'one machine, one group':<24} {'GB':>8} {'s':>8}  binds"]
    lines += [f"{'':10}{s.name:<24} {s.gigabytes:8.2f} {s.seconds:8.1f}  {s.binds}" for s in paper.stages]
    return lines


def parsed() -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and those of them that are a plan's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=[*SETTINGS, "all"], default="all", help="the rates to begin with")
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--stages", action="store_true", help="also what one machine's group takes, stage by stage")
    parser.add_argument("--stagger", type=float, default=0.0, help="seconds between the beginnings of two machines")
    parser.add_argument("--dies", type=float, metavar="SHARE", help="after this share of the time one machine is lost")
    parser.add_argument("--json", action="store_true", help="one JSON document instead")
    rates = parser.add_argument_group("rates and sizes, instead of the setting's (GB, GB a second)")
    for each in fields(Plan):
        name = "--" + each.name.replace("_", "-")
        if each.default is False:
            rates.add_argument(name, action="store_true", default=None, help=each.metadata["help"])
        else:
            kind = int if isinstance(each.default, int) else float
            rates.add_argument(name, type=kind, help=f"{each.metadata['help']} ({each.default:g})")
    options = parser.parse_args()
    given = {each.name: getattr(options, each.name) for each in fields(Plan) if getattr(options, each.name) is not None}
    for name, value in given.items():
        if not value > 0 and not (name in ("adapter", "other", "dirty") and value == 0):
            parser.error(f"--{name} must be more than 0, not {value}")
    if not 1 <= given.get("shards", 1) <= PIECES or PIECES % given.get("shards", 1):
        parser.error(f"--shards must divide {PIECES}, into which the simulation cuts a base")
    if min(options.machines) < 1 or options.stagger < 0:
        parser.error("--machines must be at least 1, and --stagger not negative")
    if options.dies is not None and (min(options.machines) < 2 or not 0 < options.dies < 1):
        parser.error("--dies is a share between 0 and 1, and needs another of the --machines that takes over")
    return options, given


def main() -> None:
    options, given = parsed()
    answer, agree = [], True
    for setting in SETTINGS if options.setting == "all" else [options.setting]:
        about, own = SETTINGS[setting]
        plan = replace(Plan(), **own | given)
        if not options.json:
            print(f"\n{setting}: {about}; groups of {plan.group}\n{HEAD}", flush=True)
        all_found = []
        for machines in options.machines:
            found = compare(plan, machines, options.stagger, options.dies)
            all_found.append(asdict(found) | {"agree": found.agree})
            agree &= found.agree
            if not options.json:
                print(line(found), *stage_lines(found.paper) * options.stages, sep="\n", flush=True)
        answer.append({"setting": setting, "plan": asdict(plan), "found": all_found})
    if options.json:
        for each in answer:
            each["plan"]["client"] = None if math.isinf(each["plan"]["client"]) else each["plan"]["client"]
        print(json.dumps(answer, indent=1, allow_nan=False))
    if not agree:
        print(f"paper and simulation are more than {LIMIT:.0%} apart", file=sys.stderr)
    sys.exit(not agree)


if __name__ == "__main__":
    main()
