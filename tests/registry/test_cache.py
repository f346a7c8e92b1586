"""Copies of a bucket's trees on one machine: fetched once, within a limit, and never taken from whoever uses them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Store
from reccocktail.registry.errors import StoreError
from reccocktail.registry.store import bucket as buckets
from reccocktail.registry.store import cache as caches
from reccocktail.registry.store import create_store, open_store
from reccocktail.registry.store.locks import FileLock
from reccocktail.registry.store.pins import Pins
from reccocktail.registry.store.trees import StoredTree

from .s3 import keys, serve

AT_ONCE = timedelta(seconds=-2)
URL = "s3://shop/some/where"
FILE = 10_000  # bytes of a file; a manifest has a hundred
TWO = 25_000  # room for two trees of one file

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from reccocktail.registry.store import bucket
from reccocktail.registry.store import create_store, open_store

store = open_store(sys.argv[1], cache=Path(sys.argv[2]), cache_limit=int(sys.argv[3]))
store.digests()  # loads the driver
words = sys.argv[4:]

def say(word):
    print(word, flush=True)
    return sys.stdin.readline()

def slow_down(wait):
    chunks = bucket.Bucket.chunks
    def slow(self, key, size):
        wait(key)
        return chunks(self, key, size)
    bucket.Bucket.chunks = slow
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as client:
        yield client


@pytest.fixture
def origin(server: Any, tmp_path: Path) -> Store:
    """Another machine, which has put in what is fetched here."""
    for key in keys(server):
        server.delete_object(Bucket="shop", Key=key)
    return create_store(URL, cache=tmp_path / "origin")


@pytest.fixture
def add(origin: Store, tmp_path: Path) -> Callable[..., StoredTree]:
    """(letters): a tree with a file of ten thousand bytes for each letter."""

    def add_one(letters: str, *, to: Store = origin) -> StoredTree:
        folder = tmp_path / f"folder-{letters}"
        folder.mkdir(exist_ok=True)
        for letter in letters:
            (folder / letter).write_text(letter * FILE)
        return to.add_folder(folder)

    return add_one


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def here(origin: Store, place: Path) -> Callable[..., Store]:
    """(limit): the store as opened on this machine."""
    return lambda limit=0: open_store(URL, cache=place, cache_limit=limit)


@contextmanager
def process(program: str, place: Path, limit: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM + program, URL, str(place), str(limit), *words]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def heard(running: subprocess.Popen[str], word: str) -> None:
    assert running.stdout
    assert running.stdout.readline() == f"{word}\n"


def tell(running: subprocess.Popen[str]) -> None:
    assert running.stdin
    running.stdin.write("go on\n")
    running.stdin.flush()


def fetch(store: Store, *trees: StoredTree) -> None:
    """As a worker does: one after the other, and each in use only for a moment."""
    for tree in trees:
        with store.using():
            store.folder(tree.digest)


def is_fetched(path: Path) -> bool:
    """Whether the file is there, whole: one that is being fetched can be written."""
    return path.exists() and path.stat().st_mode & 0o777 == 0o444


def kept(store: Store, *trees: StoredTree) -> list[bool]:
    return [store.local(tree.digest) is not None for tree in trees]


def blobs(place: Path) -> int:
    """The bytes of the cache's files."""
    return sum(path.stat().st_size for path in (place / "blobs").rglob("*") if path.is_file())


@pytest.fixture
def gets(caplog: pytest.LogCaptureFixture) -> Callable[[], Counter[str]]:
    """How often the server was asked for the bytes of each blob."""
    caplog.set_level(logging.INFO, logger="werkzeug")

    def count() -> Counter[str]:
        lines = [record.getMessage() for record in list(caplog.records) if record.name == "werkzeug"]
        asked = [line.partition("GET ")[2].split()[0] for line in lines if "GET " in line and "/blobs/sha256/" in line]
        return Counter(path.rpartition("/")[2] for path in asked if "?" not in path)

    return count


# fetched once


def test_processes_and_threads_that_need_a_tree_at_once_fetch_it_once(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path, gets: Callable[[], Counter[str]]
) -> None:
    tree = add("abcdef")
    program = "slow_down(lambda key: time.sleep(0.1)); say('ready'); store.folder(words[0]); say('done')"
    with process(program, place, 0, tree.digest) as one, process(program, place, 0, tree.digest) as two:
        for running in (one, two):
            heard(running, "ready")
        for running in (one, two):
            tell(running)
        with ThreadPoolExecutor(4) as threads:
            found = [threads.submit(here().folder, tree.digest) for _ in range(4)]
        for running in (one, two):
            heard(running, "done")
        (folder,) = {each.result() for each in found}
    assert {path.name: path.read_text() for path in folder.iterdir()} == {letter: letter * FILE for letter in "abcdef"}
    assert gets() == {entry.sha256: 1 for entry in tree.files.values()}
    assert here().verify() == []
    assert not list((place / "staging").iterdir())


def test_the_work_of_a_killed_fetcher_is_gone_on_with_by_who_waited_for_it(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path, gets: Callable[[], Counter[str]]
) -> None:
    tree = add("abc")
    last = tree.files["c"].sha256
    program = "slow_down(lambda key: key.endswith(words[1]) and say('stuck')); store.folder(words[0])"
    with process(program, place, 0, tree.digest, last) as fetcher, ThreadPoolExecutor(1) as thread:
        heard(fetcher, "stuck")
        (half,) = (path for path in (place / "staging").iterdir() if path.is_dir())
        until = time.monotonic() + 120
        while not all(is_fetched(half / name) for name in "ab"):  # they come beside the one that is stuck
            assert time.monotonic() < until
            time.sleep(0.01)
        waiting = thread.submit(here().folder, tree.digest)
        time.sleep(0.3)
        assert not waiting.done()
        fetcher.send_signal(signal.SIGKILL)
        folder = waiting.result(120)
    assert (folder / "c").read_text() == "c" * FILE
    assert set(gets().values()) == {1}
    here().verify_tree(tree.digest)
    assert not list((place / "staging").iterdir())


def test_a_fetch_that_failed_goes_on_where_it_was(
    add: Callable[..., StoredTree],
    here: Callable[..., Store],
    place: Path,
    gets: Callable[[], Counter[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = add("abc")
    chunks, last = buckets.Bucket.chunks, tree.files["c"].sha256
    others = threading.Barrier(3, timeout=60)  # they come before the line is cut

    def cut(self: buckets.Bucket, key: str, size: int) -> Iterator[bytes]:
        if key.endswith(last):
            others.wait()
            yield b"half of"
            raise StoreError("the line is cut")
        yield from chunks(self, key, size)
        if key.endswith((tree.files["a"].sha256, tree.files["b"].sha256)):
            others.wait()

    with monkeypatch.context() as patched:
        patched.setattr(buckets.Bucket, "chunks", cut)
        with pytest.raises(StoreError, match="the line is cut"):
            here().folder(tree.digest)
    (half,) = (path for path in (place / "staging").iterdir() if path.is_dir())
    for name in (".left", "a"):  # what a killed process may have left, and a disk may have damaged
        (half / name).unlink(missing_ok=True)
        (half / name).write_text("x" * FILE)
    fetch(here(), tree)
    asked = gets()
    here().verify_tree(tree.digest)
    assert here().local(tree.digest)
    assert asked == {tree.files["a"].sha256: 2, tree.files["b"].sha256: 1, last: 1}


# the limit


def test_what_was_used_longest_ago_goes_first(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b, c, d = map(add, "abcd")
    store = here(TWO)
    fetch(store, a, b, a, c)
    assert kept(store, a, b, c) == [True, False, True]
    fetch(store, d)
    assert kept(store, a, c, d) == [False, True, True]
    assert blobs(place) < TWO
    assert not (place / "pins" / a.digest.removeprefix("sha256:")).exists()
    fetch(store, a)
    assert (store.folder(a.digest) / "a").read_text() == "a" * FILE
    assert store.verify() == []


def test_what_is_put_in_counts_as_well(add: Callable[..., StoredTree], here: Callable[..., Store]) -> None:
    store, trees = here(TWO), []
    for letter in "abc":
        with store.using():
            trees.append(add(letter, to=store))
    assert kept(store, *trees) == [False, True, True]
    assert all(store.has(tree.digest) for tree in trees)  # the bucket has them all


def test_room_is_made_before_the_bytes_come(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees, store, sizes = [*map(add, "ab"), add("cd")], here(TWO), []
    download = buckets.Bucket.chunks

    def watched(self: buckets.Bucket, key: str, size: int) -> Iterator[bytes]:
        sizes.append(blobs(place) + size)
        return download(self, key, size)

    monkeypatch.setattr(buckets.Bucket, "chunks", watched)
    fetch(store, *trees)
    assert len(sizes) == 4
    assert max(sizes) <= TWO
    assert kept(store, *trees) == [False, False, True]


def test_files_that_trees_share_count_once_and_stay_as_long_as_one_needs_them(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path, gets: Callable[[], Counter[str]]
) -> None:
    ab, ac, ad = map(add, ("ab", "ac", "ad"))
    store = here(35_000)
    fetch(store, ab, ac)
    assert kept(store, ab, ac) == [True, True]
    assert 3 * FILE < blobs(place) < 3 * FILE + 1000
    fetch(store, ad)
    assert kept(store, ab, ac, ad) == [False, True, True]
    assert 3 * FILE < blobs(place) < 3 * FILE + 1000  # the file that only the first one had is gone
    assert set(gets().values()) == {1}
    assert store.verify() == []


def test_a_shared_file_is_not_fetched_again_though_its_tree_has_to_go_for_the_one_that_comes(
    add: Callable[..., StoredTree], here: Callable[..., Store], gets: Callable[[], Counter[str]]
) -> None:
    ab, ac = add("ab"), add("ac")
    store = here(TWO)
    fetch(store, ab, ac)
    assert kept(store, ab, ac) == [False, True]
    assert set(gets().values()) == {1}
    assert store.verify() == []


def test_a_tree_larger_than_the_limit_is_fetched_and_goes_when_it_is_not_in_use(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    small, used, large = add("a"), add("b"), add("cdef")
    store = here(TWO)
    fetch(store, small)
    with store.using():
        store.folder(used.digest)
        folder = store.folder(large.digest)
        assert kept(store, small, used, large) == [False, True, True]
        assert (folder / "f").read_text() == "f" * FILE
    assert kept(store, used, large) == [False, False]  # the older one first, then the other one alone is too large
    assert blobs(place) == 0


@pytest.mark.parametrize("limit", [0, 1_000_000])
def test_nothing_goes_without_a_limit_or_below_it(
    add: Callable[..., StoredTree], here: Callable[..., Store], limit: int
) -> None:
    trees, store = [add(letter) for letter in "abcd"], here(limit)
    fetch(store, *trees)
    assert all(kept(store, *trees))


def test_what_was_left_of_a_fetch_that_was_given_up_goes_when_room_is_wanted(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    left = place / "staging" / f"fetch-{'0' * 64}"
    fetch(here(TWO), add("a"))
    left.mkdir()
    (left / "half").write_bytes(b"x" * FILE)
    left.with_name(f"{left.name}.lock").touch()
    fetch(here(TWO), add("b"))
    assert not list((place / "staging").iterdir())
    assert here().verify() == []


def test_a_tree_whose_manifest_is_damaged_goes_first(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b, c = map(add, "abc")
    store = here(TWO)
    fetch(store, a, b)
    name = b.digest.removeprefix("sha256:")
    manifest = place / "blobs/sha256" / name[:2] / name
    manifest.chmod(0o644)
    manifest.write_text("{}")
    fetch(store, c)
    assert kept(store, a, b, c) == [True, False, True]
    assert store.verify() == []


def test_what_came_in_is_not_refused_because_no_room_can_be_made(
    add: Callable[..., StoredTree],
    here: Callable[..., Store],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(self: object, digest: str) -> None:
        raise StoreError("the disk is read-only", hint="mount it again")

    store = here(TWO)
    fetch(store, *map(add, "ab"))
    monkeypatch.setattr(caches.Cache, "discard", refuse)
    assert store.local(add("c", to=store).digest)
    assert "above its limit: the disk is read-only (mount it again)" in caplog.text
    with pytest.raises(StoreError, match="the disk is read-only"):
        fetch(store, add("d"))


def test_what_is_fetched_counts_once_however_many_names_it_has(here: Callable[..., Store], place: Path) -> None:
    here().probe()
    fetched = place / "staging" / f"fetch-{'0' * 64}"
    fetched.mkdir()
    (fetched / "a").write_bytes(b"a" * FILE)
    blob = place / "blobs/sha256/ab/blob"
    for file, name in [("a", fetched / "again"), ("b", blob)]:
        (fetched / file).write_bytes(b"x" * FILE)
        os.link(fetched / file, name)
    assert caches.Cache(place).bytes() == 2 * FILE
    blob.unlink()
    assert caches.Cache(place).bytes() == 2 * FILE


def test_what_was_left_of_a_tree_by_a_process_that_died_dropping_it_counts_and_goes(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b, c = map(add, "abc")
    store = here(TWO)
    fetch(store, a)
    left = place / "staging/discard-dead/tree"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x" * FILE)
    (place / "staging/discard-dead.lock").touch()
    fetch(store, b)
    assert not list((place / "staging").iterdir())
    assert kept(store, a, b) == [True, True]
    with store.staging("discard") as dropping:  # by somebody who is alive
        (dropping / "half").write_bytes(b"x" * FILE)
        fetch(store, c)
        assert (dropping / "half").exists()


def test_no_dropped_tree_comes_back_after_a_power_failure(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = map(add, "abc")
    store, log = here(TWO), list[tuple[str, str]]()
    sync, rename, remove = os.fsync, Path.rename, shutil.rmtree

    def logged_sync(handle: int) -> None:
        log.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        sync(handle)

    def logged_rename(path: Path, target: Path) -> Path:
        log.append(("rename", str(path)))
        return rename(path, target)

    def logged_remove(path: Path, **options: Any) -> None:
        log.append(("remove", str(path)))
        remove(path, **options)

    fetch(store, a, b)
    monkeypatch.setattr(os, "fsync", logged_sync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    monkeypatch.setattr(shutil, "rmtree", logged_remove)
    fetch(store, c)
    dropped = log.index(("rename", str(place / "trees" / a.digest.removeprefix("sha256:"))))
    assert log[dropped + 1] == ("sync", str(place / "trees"))


# in use


def test_what_a_process_uses_stays_until_its_block_ends(
    add: Callable[..., StoredTree], here: Callable[..., Store]
) -> None:
    a, b, c, d = map(add, "abcd")
    store = here(TWO)
    with store.using():
        with store.using():  # only the outermost counts
            store.folder(a.digest)
        fetch(store, b, c)
        assert kept(store, a, b, c) == [True, True, True]
    assert sum(kept(store, a, b, c)) == 2
    assert not kept(store, a)[0]
    store.folder(b.digest)  # outside of a block: until the process ends
    fetch(store, c, d, a)
    assert kept(store, b) == [True]


def test_a_block_ends_for_its_own_thread_only(add: Callable[..., StoredTree], here: Callable[..., Store]) -> None:
    a, b, c, d = map(add, "abcd")
    store = here(TWO)
    with store.using(), ThreadPoolExecutor(1) as thread:
        store.folder(a.digest)
        thread.submit(fetch, store, a, b, c, d).result()
        assert kept(store, a, d) == [True, True]
        assert kept(store, b, c) == [False, False]


def test_what_is_held_goes_when_it_is_let_go_in_whatever_thread(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b, c = map(add, "abc")
    store, until = here(TWO), ExitStack()
    with store.using(), ThreadPoolExecutor(1) as thread:
        thread.submit(store.folder, a.digest, until=until).result()
    fetch(store, b, c)
    assert kept(store, a, b, c) == [True, False, True]
    store.folder(b.digest)
    assert kept(store, a, b, c) == [True, True, False]
    store.folder(c.digest)  # more is in use than fits
    with ThreadPoolExecutor(1) as thread:
        thread.submit(until.close).result()
    assert kept(store, a, b, c) == [False, True, True]
    assert blobs(place) < TWO


def test_who_lets_a_tree_go_takes_it_from_nobody_else(
    add: Callable[..., StoredTree], here: Callable[..., Store]
) -> None:
    a, b, c = map(add, "abc")
    store, first, second = here(TWO), ExitStack(), ExitStack()
    for until in (first, second):
        store.folder(a.digest, until=until)
    first.close()
    first.close()
    fetch(store, b, c)
    assert kept(store, a) == [True]
    with store.using():
        store.folder(a.digest)
        second.close()
        fetch(store, b, c)
        assert kept(store, a) == [True]
    fetch(store, b, c)
    assert kept(store, a) == [False]
    with first:
        store.folder(a.digest, until=first)
        store.folder(a.digest)  # until the process ends
    fetch(store, b, c)
    assert kept(store, a) == [True]


def test_what_another_process_uses_stays_until_it_ends(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b, c, d = map(add, "abcd")
    with process("store.folder(words[0]); say('uses')", place, TWO, a.digest) as other:
        heard(other, "uses")
        fetch(here(TWO), b, c)
        assert kept(here(), a, b, c) == [True, False, True]
        other.kill()
        other.wait()
    fetch(here(TWO), d)
    assert kept(here(), a, c, d) == [False, True, True]


def test_a_forked_child_goes_on_using_what_its_parent_had(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b, c, d = map(add, "abcd")
    program = """
with store.using():
    store.folder(words[0])
    child = os.fork()
    if not child:
        signal.pause()
say("left")
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
say("buried")
"""
    with process(program, place, TWO, a.digest) as other:
        heard(other, "left")
        fetch(here(TWO), b, c)
        assert kept(here(), a) == [True]
        tell(other)
        heard(other, "buried")
        fetch(here(TWO), d)
        assert kept(here(), a) == [False]


def test_a_forked_child_that_leaves_the_block_takes_nothing_from_its_parent(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b, c = map(add, "abc")
    program = """
with store.using():
    store.folder(words[0])
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        say("alone")
if not child:
    os._exit(0)
"""
    with process(program, place, TWO, a.digest) as other:
        heard(other, "alone")
        fetch(here(TWO), b, c)
        assert kept(here(), a) == [True]


def test_a_collection_leaves_copies_that_are_in_use(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b = map(add, "ab")
    fetch(here(), b)
    with process("store.folder(words[0]); say('uses')", place, 0, a.digest) as other:
        heard(other, "uses")
        assert len(here().gc(set(), grace=AT_ONCE).trees) == 2
        assert kept(here(), a, b) == [True, False]
        assert (place / "trees" / a.digest.removeprefix("sha256:") / "a").read_text() == "a" * FILE
        other.kill()
        other.wait()
    here().gc(set(), grace=AT_ONCE)
    assert kept(here(), a) == [False]
    assert blobs(place) == 0
    assert not list((place / "pins").iterdir())


def test_what_is_used_of_a_cache_that_was_thrown_away_is_fetched_and_held_again(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    a, b, c = map(add, "abc")
    store = here(TWO)
    store.folder(a.digest)
    shutil.rmtree(place)
    store.folder(a.digest)
    fetch(here(TWO), b, c)
    assert kept(store, a, b, c) == [True, False, True]


def test_an_unknown_digest_leaves_no_trace(here: Callable[..., Store], place: Path) -> None:
    with pytest.raises(StoreError, match="holds nothing under"):
        here(TWO).folder(f"sha256:{'0' * 64}")
    assert not place.exists() or not list(place.rglob("*0000*"))


def test_handles_do_not_pile_up(add: Callable[..., StoredTree], here: Callable[..., Store]) -> None:
    store, tree = here(), add("a")
    fetch(store, tree)
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(50):
        fetch(store, tree)
        store.local(tree.digest)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_thread_holds_what_it_was_given_although_the_one_that_fetched_it_first_failed(
    add: Callable[..., StoredTree], here: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = map(add, "abc")
    store, first, failing = here(TWO), threading.Event(), threading.Event()
    chunks = buckets.Bucket.chunks

    def once(self: buckets.Bucket, key: str, size: int) -> Iterator[bytes]:
        if not first.is_set():
            first.set()
            failing.wait(120)
            raise StoreError("the line is cut")
        return chunks(self, key, size)

    monkeypatch.setattr(buckets.Bucket, "chunks", once)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(store.folder, a.digest)
        assert first.wait(120)
        two = threads.submit(store.folder, a.digest)
        time.sleep(0.3)
        failing.set()
        assert isinstance(one.exception(120), StoreError)
        assert two.result(120).exists()
    fetch(store, b, c)
    assert kept(store, a, b, c) == [True, False, True]


@pytest.mark.parametrize("linkable", [True, False], ids=["links", "copies"])
def test_a_file_that_is_dropped_just_before_it_is_linked_is_fetched(
    add: Callable[..., StoredTree],
    here: Callable[..., Store],
    gets: Callable[[], Counter[str]],
    monkeypatch: pytest.MonkeyPatch,
    linkable: bool,
) -> None:
    a, ab = add("a"), add("ab")
    shared = a.files["a"].sha256
    store = here()
    fetch(store, a)
    link, dropped = os.link, list[Path]()

    def drop_first(source: Path, target: Path) -> None:
        if source.name == shared and not dropped:  # as another process does that makes room
            source.unlink()
            dropped.append(source)
        if not linkable:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, target)

    monkeypatch.setattr(os, "link", drop_first)
    fetch(store, ab)
    assert dropped
    assert gets() == {shared: 2, ab.files["b"].sha256: 1}
    store.verify_tree(ab.digest)


@pytest.mark.parametrize("gone", ["fetch-done", "fetch-begun/deep"])
def test_a_fetch_that_ends_while_the_cache_is_measured_is_not_missed(
    add: Callable[..., StoredTree],
    here: Callable[..., Store],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    gone: str,
) -> None:
    a, b, c = map(add, "abc")
    store, scan, ended = here(TWO), os.scandir, list[str]()
    fetch(store, a)
    folder = place / "staging" / gone
    folder.mkdir(parents=True)

    def end_first(path: Any = ".") -> Any:
        if str(path) == str(folder):
            shutil.rmtree(folder)
            ended.append(gone)
        return scan(path)

    monkeypatch.setattr(os, "scandir", end_first)
    fetch(store, b, c)
    assert ended
    assert kept(store, a, b, c) == [False, True, True]


@pytest.mark.parametrize("whole", [True, False], ids=["verify", "verify_tree"])
def test_a_copy_that_is_fetched_anew_while_it_is_verified_stays(
    add: Callable[..., StoredTree],
    here: Callable[..., Store],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
) -> None:
    a, store = add("a"), here()
    fetch(store, a)
    folder, lstat, missed = place / "trees" / a.digest.removeprefix("sha256:"), Path.lstat, list[Path]()

    def miss(path: Path) -> os.stat_result:
        if path == folder / "a" and not missed:
            missed.append(folder.rename(place / "staging/dropped"))
            try:
                return lstat(path)
            finally:
                shutil.copytree(missed[0], folder)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", miss)
    assert not (store.verify() if whole else store.verify_tree(a.digest))
    assert missed
    assert kept(store, a) == [True]


@pytest.mark.parametrize("whole", [True, False], ids=["verify", "verify_tree"])
def test_a_damaged_copy_that_is_repaired_before_it_is_cleared_stays(
    add: Callable[..., StoredTree],
    here: Callable[..., Store],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
) -> None:
    a, store = add("a"), here()
    fetch(store, a)
    folder, repaired = place / "trees" / a.digest.removeprefix("sha256:"), list[StoredTree]()
    (folder / "a").unlink()
    lock = FileLock.exclusive

    def repair_first(self: FileLock, wait_seconds: float) -> AbstractContextManager[None]:
        if self._path.name == "repair" and not repaired:
            repaired.append(a)  # before it is: who repairs it locks too
            with here().using():
                add("a", to=here())
        return lock(self, wait_seconds)

    monkeypatch.setattr(FileLock, "exclusive", repair_first)
    assert not (store.verify() if whole else store.verify_tree(a.digest))
    assert repaired
    assert kept(store, a) == [True]
    assert (folder / "a").exists()


def test_a_collection_passes_over_a_copy_that_another_process_drops_just_then(
    add: Callable[..., StoredTree],
    here: Callable[..., Store],
    place: Path,
    just_before_lstat: Callable[..., list[Path]],
) -> None:
    a, b = map(add, "ab")
    store = here()
    fetch(store, a, b)
    folder = place / "trees" / a.digest.removeprefix("sha256:")
    dropped = just_before_lstat(folder, lambda: folder.rename(place / "staging/dropped"))
    store.gc(set(), grace=AT_ONCE)
    assert dropped
    assert kept(store, a, b) == [False, False]


def test_a_pin_is_not_lost_when_another_thread_that_wants_it_too_fails(tmp_path: Path) -> None:
    pins, others = Pins(tmp_path / "pins"), Pins(tmp_path / "pins")
    first, second = pins.pinned("tree"), pins.pinned("tree")
    first.__enter__()
    second.__enter__()
    assert not first.__exit__(StoreError, StoreError("the line is cut"), None)
    with others.free("tree") as free:
        assert not free
    second.__exit__(None, None, None)
    with others.free("tree") as free:
        assert not free


@pytest.mark.slow
def test_crowds_that_want_more_than_fits_always_read_what_they_were_given(
    add: Callable[..., StoredTree], here: Callable[..., Store], place: Path
) -> None:
    trees = {letters: add(letters) for letters in ("a", "b", "ab", "bc", "cd", "d")}
    program = """
import random
draw = random.Random(int(words[0]))
for _ in range(25):
    with store.using():
        for letters, digest in draw.sample([word.split("=") for word in words[1:]], 2):
            folder = store.folder(digest)
            assert {path.name: path.read_text() for path in folder.iterdir()} == {l: l * 10_000 for l in letters}
say("sound")
"""
    words = [f"{letters}={tree.digest}" for letters, tree in trees.items()]
    with process(program, place, TWO, "1", *words) as one, process(program, place, TWO, "2", *words) as two:
        for running in (one, two):
            heard(running, "sound")
    fetch(here(TWO), trees["a"])
    assert here().verify() == []
    assert blobs(place) <= TWO
    assert not [path for path in (place / "staging").iterdir() if path.suffix != ".lock"]
