"""On a disk without room, or without room for more files: what reads still reads, and a collection makes room."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from reccocktail.registry import Registry, Settings
from reccocktail.registry.errors import DatabaseError, StoreError

NO_GRACE = timedelta(seconds=-1)


@pytest.fixture(params=["size=8m", "nr_inodes=700"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small file system of its own, with little room or room for few files."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(place)]
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    """Until neither a byte nor a file more fits."""
    folder = disk / "fill"
    folder.mkdir()
    try:
        with (folder / "big").open("wb", buffering=0) as big:
            while os.statvfs(disk).f_bfree and big.tell() < 16 << 20:
                big.write(b"0" * 4096)
        for number in range(10_000):
            (folder / str(number)).touch()
    except OSError:
        pass


@pytest.fixture
def settings(disk: Path) -> Settings:
    return Settings.load(home=disk / "home", cwd=disk, environ={})


@pytest.fixture
def stocked(
    settings: Settings, make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> Settings:
    """A registry with a base, an adapter, a tree that no row refers to and what a killed process was writing."""
    with Registry.create(settings) as registry:
        base = registry.bases.add("tiny", make_base(tmp_path / "base"), source="tiny")
        registry.domains.add("beauty")
        registry.adapters.add(make_adapter(tmp_path / "a", seed=1), base=base, role="ingredient", domain="beauty")
        orphan = make_adapter(tmp_path / "b", seed=2)
        (orphan / "large").write_bytes(b"0" * 200_000)
        registry.store.add_folder(orphan)
    left = settings.home / "store" / "staging" / "add-dead"
    left.mkdir()
    (left / "half").write_bytes(b"0" * 100_000)
    left.with_name("add-dead.lock").touch()
    return settings


@pytest.mark.parametrize("log", ["closed", "open"])
def test_what_reads_still_reads_and_what_writes_says_what_to_do(stocked: Settings, disk: Path, log: str) -> None:
    if log == "open":  # as a process leaves it that is killed after a commit
        database = stocked.home / "registry.sqlite"
        killed = sqlite3.connect(database, isolation_level=None)
        killed.execute("CREATE TABLE more (id INTEGER)")
        copies = [(database.with_name(f"{database.name}-wal"), database.with_name("wal"))]
        for path, copy in copies:
            shutil.copy(path, copy)
        killed.close()
        for path, copy in copies:
            copy.rename(path)
    fill(disk)
    with Registry.open(stocked) as registry:
        assert [adapter.ref for adapter in registry.adapters.list()] == ["beauty@v1"]
        assert registry.builds.list() == []
        assert registry.missing() == []
        assert registry.store.verify() == []
        with pytest.raises(DatabaseError) as caught:
            registry.domains.add("toys")
        assert "store gc" in (caught.value.hint or "")


@pytest.mark.parametrize("left", [(), ("add-dead",)])
def test_a_collection_makes_room_where_there_is_none(stocked: Settings, disk: Path, left: tuple[str, ...]) -> None:
    staging = stocked.home / "store" / "staging"
    if not left:
        shutil.rmtree(staging / "add-dead")
        (staging / "add-dead.lock").unlink()
    fill(disk)
    with Registry.open(stocked) as registry:
        report = registry.collect(grace=NO_GRACE)
        assert (len(report.trees), report.staging) == (1, left)
        assert registry.store.verify() == []
        assert registry.missing() == []
    assert list(staging.iterdir()) == []
    with Registry.open(stocked) as registry:
        assert registry.domains.add("toys").name == "toys"


def test_what_does_not_fit_leaves_the_store_as_it_was(
    stocked: Settings, disk: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "c", seed=3)
    with Registry.open(stocked) as registry:
        base = registry.bases.get("tiny")
        before = registry.store.digests()
        fill(disk)
        with pytest.raises((StoreError, DatabaseError)) as caught:
            registry.adapters.add(folder, base=base, role="ingredient", domain="beauty")
        assert "store gc" in (caught.value.hint or "")
        assert registry.store.digests() == before
        assert [adapter.ref for adapter in registry.adapters.list()] == ["beauty@v1"]
    left = {path.name for path in (stocked.home / "store" / "staging").iterdir()}
    assert left == {"add-dead", "add-dead.lock"}
