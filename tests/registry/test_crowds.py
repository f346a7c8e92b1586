"""Many writers at once, threads and processes: versions stay gap-free, equal content has one version, every state its event."""

from __future__ import annotations

import os
import runpy
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from reccocktail.registry import Adapter, Base, Registry, Settings

WRITERS, EACH = 4, 3
SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
PROCESSES, DISTINCT, SHARED = (8, 23, 16) if SOAK else (4, 10, 8)

Member: Any = runpy.run_path(str(Path(__file__).with_name("crowd.py")))["Member"]

Sql = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def crowd(
    registry: Registry, make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> list[dict[str, Any]]:
    """What every process did of those that worked at once on two bases, two domains and the spirits of both bases."""
    for number, base in enumerate(("tiny", "other")):
        registry.bases.add(base, make_base(tmp_path / base, seed=number), source=base)
    for domain in ("beauty", "toys"):
        registry.domains.add(domain)
    targets = [(base, name) for base in ("tiny", "other") for name in ("beauty", "toys", "spirit")]

    def folder(seed: int) -> str:
        return str(make_adapter(tmp_path / "adapters" / str(seed), seed=seed))

    shared = [(*targets[seed % len(targets)], folder(seed)) for seed in range(SHARED)]
    distinct = [
        [(*targets[(number + i) % len(targets)], folder(1000 + number * DISTINCT + i)) for i in range(DISTINCT)]
        for number in range(PROCESSES)
    ]
    members = [
        Member(registry.settings, "mix", actor=f"member-{number}", seed=number, shared=shared, places=places)
        for number, places in enumerate(distinct)
    ]
    for member in members:
        member.go()
    return [member.done() for member in members]


@pytest.mark.slow
def test_a_crowd_of_processes_leaves_every_rule_whole(
    registry: Registry, crowd: list[dict[str, Any]], sql: Sql
) -> None:
    # what the processes were told is what is there, and nothing was registered twice
    created = [tuple(each) for member in crowd for each in member["created"]]
    rows = sql("SELECT b.name, d.name, a.version, a.digest FROM adapters a JOIN base_models b ON b.id = a.base_id "
               "JOIN domains d ON d.id = a.domain_id")  # fmt: skip
    assert sorted(created) == sorted(rows)
    assert len(rows) == PROCESSES * DISTINCT + SHARED
    assert not any(member["torch"] for member in crowd)

    places = defaultdict(list)
    for base, name, version, digest in rows:
        places[base, name].append((version, digest))
    for numbered in places.values():
        assert sorted(version for version, _ in numbered) == list(range(1, len(numbered) + 1))
        assert len({digest for _, digest in numbered}) == len(numbered)

    _assert_aliases_are_where_their_events_lead(sql)
    _assert_archived_are_those_whose_last_event_says_so(sql)
    _assert_every_version_has_its_event(sql)

    current = sql("SELECT b.name, a.version FROM adapters a JOIN base_models b ON b.id = a.base_id WHERE a.is_current")
    assert sorted(current) == [
        (base, registry.adapters.resolve("spirit", base=base).version) for base in ("other", "tiny")
    ]

    claims = Counter(build for member in crowd for build in member["claimed"])
    assert sum(claims.values()) > 0
    assert set(claims.values()) == {1}
    assert dict(sql("SELECT subject, count(*) FROM events WHERE kind = 'build.running' GROUP BY subject")) == claims
    assert sql("SELECT key FROM builds WHERE status IN ('queued', 'running') GROUP BY key HAVING count(*) > 1") == []
    statuses = dict(sql("SELECT id, 'build.' || status FROM builds"))
    assert statuses == dict(sql("SELECT subject, kind FROM events WHERE kind LIKE 'build.%' ORDER BY id"))

    assert registry.store.verify() == []
    assert registry.missing() == []
    assert registry.store.digests() == registry.digests()


def _assert_aliases_are_where_their_events_lead(sql: Sql) -> None:
    """Every event goes on where the one before it ended, and the last one ends where the alias is."""
    at: dict[tuple[int, int, str], int | None] = {}
    events = sql(
        "SELECT base_id, domain_id, alias, previous_id, adapter_id FROM events WHERE alias IS NOT NULL ORDER BY id"
    )
    for base, domain, alias, before, after in events:
        assert at.get((base, domain, alias)) == before
        at[base, domain, alias] = after
    there = {(base, domain, name): at for base, domain, name, at in sql("SELECT base_id, domain_id, name, adapter_id FROM aliases")}  # fmt: skip
    assert there == {place: adapter for place, adapter in at.items() if adapter is not None}
    assert there


def _assert_archived_are_those_whose_last_event_says_so(sql: Sql) -> None:
    kinds = "('adapter.archived', 'adapter.restored')"
    last = dict(sql(f"SELECT adapter_id, kind FROM events WHERE kind IN {kinds} ORDER BY id"))
    archived = {adapter for adapter, kind in last.items() if kind == "adapter.archived"}
    assert archived == {adapter for (adapter,) in sql("SELECT id FROM adapters WHERE archived_at IS NOT NULL")}
    assert archived


def _assert_every_version_has_its_event(sql: Sql) -> None:
    added = Counter(adapter for (adapter,) in sql("SELECT adapter_id FROM events WHERE kind = 'adapter.added'"))
    assert added == Counter(adapter for (adapter,) in sql("SELECT id FROM adapters"))


def test_writers_at_once_make_versions_without_gaps(
    registry: Registry, base: Base, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [[make_adapter(tmp_path / f"{w}-{i}", seed=10 * w + i) for i in range(EACH)] for w in range(WRITERS)]
    start = Barrier(WRITERS)

    def write(writer: int) -> list[Adapter]:
        with Registry.open(registry.settings, actor=f"writer-{writer}") as own:
            start.wait()
            return [own.adapters.add(folder, base=base, role="spirit") for folder in folders[writer]]

    with ThreadPoolExecutor(WRITERS) as pool:
        added = [adapter for adapters in pool.map(write, range(WRITERS)) for adapter in adapters]
    assert sorted(adapter.version for adapter in added) == list(range(1, WRITERS * EACH + 1))
    assert {adapter.created_by for adapter in added} == {f"writer-{w}" for w in range(WRITERS)}
    assert registry.adapters.resolve("spirit").version == WRITERS * EACH
    assert registry.store.verify() == []


def test_the_same_adapter_from_all_sides_is_one_version(
    registry: Registry, base: Base, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a")
    start = Barrier(WRITERS)

    def write(_: int) -> Adapter:
        start.wait()
        return registry.adapters.add(folder, base=base, role="spirit")

    with ThreadPoolExecutor(WRITERS) as pool:
        added = list(pool.map(write, range(WRITERS)))
    assert {adapter.version for adapter in added} == {1}
    assert sum(adapter.created for adapter in added) == 1


def test_each_build_is_claimed_by_one_worker(registry: Registry, base: Base) -> None:
    registry.domains.add("beauty")
    for number in range(WRITERS * EACH):
        registry.builds.request("beauty", base.name, f"key-{number}", {}, {})
    start = Barrier(WRITERS)

    def work(worker: int) -> list[str]:
        start.wait()
        claims = [registry.builds.claim(f"w{worker}") for _ in range(EACH)]
        return [build.id for build in claims if build]

    with ThreadPoolExecutor(WRITERS) as pool:
        claimed = [build for builds in pool.map(work, range(WRITERS)) for build in builds]
    assert len(set(claimed)) == len(claimed) == WRITERS * EACH


def test_a_registry_can_be_created_from_all_sides_at_once(settings: Settings) -> None:
    start = Barrier(WRITERS)

    def create(_: int) -> None:
        start.wait()
        Registry.create(settings).close()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(create, range(WRITERS)))
    with Registry.open(settings) as registry:
        assert registry.domains.list() == []
