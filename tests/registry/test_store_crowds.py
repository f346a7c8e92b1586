"""Many writers and a collector at once, and writers that are killed: no tree is ever half there."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from threading import Event

import pytest
from reccocktail.registry.errors import RecCocktailError
from reccocktail.registry.store import create_store, open_store
from reccocktail.registry.store.local import LocalStore
from reccocktail.registry.store.locks import FileLock

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
WRITERS, SECONDS, REMOVED, LOOKED = (4, 5, 20, 20) if SOAK else (3, 2, 5, 5)
ROUNDS, KILLS = (15, 25) if SOAK else (4, 8)

AT_ONCE = timedelta(seconds=-1)
GRACE = 0.3  # seconds
spawned = multiprocessing.get_context("spawn")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_store(tmp_path / "store")
    return tmp_path / "store"


def make_folder(folder: Path, text: str) -> Path:
    """Three files: one that all folders share, one that tells them apart, one of some size."""
    folder.mkdir()
    (folder / "shared").write_text("shared")
    (folder / "own").write_text(text)
    (folder / "weights").write_bytes(text.encode() * 50_000)
    return folder


def is_whole(folder: Path, text: str) -> bool:
    """Read without our code."""
    wanted = {"shared": b"shared", "own": text.encode(), "weights": text.encode() * 50_000}
    return {path.name: path.read_bytes() for path in folder.iterdir()} == wanted


def add_again_and_again(root: Path, folders: list[Path], seconds: float, seed: int) -> tuple[int, list[str]]:
    """How many trees were looked at just after they had been added, and what was wrong with them."""
    store, random, looked, wrong = open_store(root), Random(seed), 0, list[str]()
    until = time.monotonic() + seconds
    while (started := time.monotonic()) < until:
        folder = random.choice(folders)
        reason = "is not whole"
        try:
            tree = store.add_folder(folder)
            whole = is_whole(store.folder(tree.digest), folder.name)
            store.verify_tree(tree.digest)
        except (RecCocktailError, OSError) as error:
            whole, reason = False, repr(error)
        if time.monotonic() - started < GRACE / 2:  # still young, however busy the machine is
            looked += 1
            wrong += [] if whole else [f"{folder.name} {reason}"]
        time.sleep(0.005)  # a collection needs a moment in which nobody commits
    return looked, wrong


def age(store: LocalStore) -> None:
    """Makes all that is there a candidate for collection, as if days had passed."""
    for path in (*store.root.glob("blobs/sha256/*/*"), *store.root.glob("trees/*")):
        try:
            os.utime(path, (0, 0))
        except FileNotFoundError:
            continue


def test_collections_never_take_what_writers_are_putting_in(root: Path, tmp_path: Path) -> None:
    # Few of many folders are added again before they are old, so trees are listed for removal just when they come back.
    store = LocalStore(root)
    folders = [make_folder(tmp_path / f"folder-{number}", f"folder-{number}") for number in range(40)]
    kept = {store.add_folder(folder).digest for folder in folders[:3]}
    removed = 0
    with ProcessPoolExecutor(WRITERS, mp_context=spawned) as processes:
        crowd = [processes.submit(add_again_and_again, root, folders, SECONDS, seed) for seed in range(WRITERS)]
        while not all(writer.done() for writer in crowd):
            removed += len(store.gc(kept, grace=timedelta(seconds=GRACE)).trees)
            assert kept <= store.digests()
        outcomes = [writer.result() for writer in crowd]
    assert [wrong for _, wrong in outcomes] == [[]] * WRITERS
    assert removed > REMOVED
    assert sum(looked for looked, _ in outcomes) > LOOKED
    assert store.verify() == []


def test_without_the_lock_a_collection_takes_what_was_just_put_in(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLock:
        @contextmanager
        def shared(self) -> Iterator[None]:
            yield

        @contextmanager
        def exclusive(self, wait_seconds: float) -> Iterator[None]:
            yield

    folder = make_folder(tmp_path / "folder", "folder")

    def stays_whole(lock: NoLock | FileLock) -> bool:
        """Whether a writer's tree is whole that was added between a collection's listing and its removing."""
        store = LocalStore(root, lock=lock)
        store.add_folder(folder)
        age(store)
        needed, listed, added = store._needed, Event(), Event()

        def slow(trees: object) -> set[str]:
            found = needed(trees)  # pyright: ignore
            listed.set()
            added.wait(60 if isinstance(lock, NoLock) else 0.5)  # with the lock the writer waits for us
            return found

        with monkeypatch.context() as patched, ThreadPoolExecutor(1) as thread:
            patched.setattr(store, "_needed", slow)
            collecting = thread.submit(store.gc, set())
            assert listed.wait(60)
            digest = LocalStore(root, lock=lock).add_folder(folder).digest
            added.set()
            collecting.result()
        return store.has(digest) and is_whole(store.folder(digest), "folder") and store.verify() == []

    assert not stays_whole(NoLock())
    assert stays_whole(FileLock(root / "lock"))


def test_many_who_repair_one_tree_at_once_all_succeed(root: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", "folder")
    store = LocalStore(root)
    tree = store.add_folder(folder)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(ROUNDS):
            for name in ("own", "weights"):
                damaged = store.folder(tree.digest) / name
                damaged.chmod(0o644)
                damaged.write_text("damaged")
            found = [threads.submit(LocalStore(root).add_folder, folder) for _ in range(8)]
            assert [future.result() for future in found] == [tree] * 8
            assert store.verify() == []
    assert list((root / "staging").iterdir()) == []


WRITER = """
import itertools, sys
from pathlib import Path
from reccocktail.registry.store import create_store, open_store
store, folder = open_store(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
for number in itertools.count():
    (folder / "own").write_text(f"{sys.argv[3]}-{number % 7}")
    print(store.add_folder(folder).digest, flush=True)
"""


def killed_writers(count: int, start: Callable[[int], list[str]]) -> Iterator[list[str]]:
    """What each of `count` writers had reported as stored when it was killed, at a different moment each."""
    for number in range(count):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, *start(number)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
        if number == count - 1:  # however slow the machine is, one has stored something before it is killed
            first = writer.stdout.readline()
        else:
            first = ""
            time.sleep(0.003 + 0.0037 * number)
        writer.send_signal(signal.SIGKILL)
        out, _ = writer.communicate()
        out = first + out
        yield out.splitlines()[:-1] if not out.endswith("\n") else out.splitlines()


def test_killed_writers_leave_only_whole_trees_and_nothing_after_a_collection(root: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", "folder")
    store = open_store(root)
    stored: set[str] = set()
    for reported in killed_writers(KILLS, lambda number: [str(root), str(folder), str(number)]):
        stored |= set(reported)
        assert store.verify() == []
        assert stored <= store.digests()  # what was said to be stored is
    assert stored
    (folder / "own").write_text("the next one")
    tree = store.add_folder(folder)
    store.gc(stored | {tree.digest})
    assert list((root / "staging").iterdir()) == []
    store.gc(stored | {tree.digest}, grace=AT_ONCE)
    assert store.digests() == stored | {tree.digest}
    assert store.verify() == []
    blobs = list((root / "blobs/sha256").glob("*/*"))
    assert all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs)
