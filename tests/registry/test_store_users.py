"""Stores that several users share, and users who may only read; locks that forked children have inherited.

Each user is a process that has loaded what it needs, because an interpreter may lie where only its owner may read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry.store import create_store, open_store

from .s3 import keys, serve

ANN, BOB = 1001, 1002
URL = "s3://shop/users"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")

BECOME = """
import os, sys
from datetime import timedelta
from pathlib import Path
from reccocktail.registry.store import local as local_store
from reccocktail.registry.store import remote as object_store
from reccocktail.registry.errors import StoreError
from reccocktail.registry.store import create_store, open_store

def become(user):  # from root to another user all capabilities are lost
    os.umask(0)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)

def refusal(action, *arguments):
    try:
        action(*arguments)
    except StoreError as error:
        return f"{error} ({error.hint})"
    return "nothing was refused"
"""


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", BECOME + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are for their owner."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def make_folder(folder: Path, own: str) -> Path:
    folder.mkdir()
    (folder / "shared").write_text("shared")
    (folder / "own").write_text(own)
    return folder


@as_root
@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_user_adds_to_a_store_what_another_one_has_added_before(ground: Path, umask: int) -> None:
    first, second = make_folder(ground / "first", "ann's"), make_folder(ground / "second", "bob's")
    run("become(int(sys.argv[1])); create_store(sys.argv[2])", ANN, ground / "store")
    add = """
become(int(sys.argv[1]))
os.umask(int(sys.argv[2]))
print(*(open_store(sys.argv[3]).add_folder(Path(folder)).digest for folder in sys.argv[4:]))
"""
    (known,) = run(add, ANN, umask, ground / "store", first).split()
    for path in (*ground.glob("store/blobs/sha256/*/*"), *ground.glob("store/trees/*")):
        os.utime(path, (0, 0))
    added, again = run(add, BOB, umask, ground / "store", second, first).split()
    assert again == known
    store = open_store(ground / "store")
    assert store.verify() == []
    assert list((ground / "store/staging").iterdir()) == []
    collected = store.gc(set())  # both were put in just now, whoever made them first
    assert (collected.trees, collected.blobs) == ((), ())
    assert store.digests() == {known, added}


@as_root
def test_who_may_only_read_a_store_is_told_what_a_collection_would_remove(ground: Path) -> None:
    store = create_store(ground / "store")
    tree = store.add_folder(make_folder(ground / "folder", "root's"))
    (ground / "store/lock").unlink()
    look = """
become(int(sys.argv[1]))
store = open_store(sys.argv[2])
print(*store.gc(set(), dry_run=True, grace=timedelta(seconds=-1)).trees)
print(refusal(lambda: store.gc(set(), grace=timedelta(seconds=-1))))
"""
    planned, refused = run(look, BOB, ground / "store").splitlines()
    assert planned == tree.digest
    assert "cannot write to the store" in refused
    assert not (ground / "store/lock").exists()
    assert store.digests() == {tree.digest}


@pytest.fixture
def client() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as client:
        yield client


@as_root
@pytest.mark.parametrize(
    ("mode", "there"),
    [(0o755, True), (0o755, False), (0o700, False)],
    ids=["a read-only cache", "no cache", "a closed home"],
)
def test_an_object_store_is_read_without_a_cache_to_write_to(ground: Path, client: Any, mode: int, there: bool) -> None:
    (ground / "home").mkdir(mode=mode)
    cache = ground / "home/cache"
    tree = create_store(URL, cache=ground / "elsewhere").add_folder(make_folder(ground / "folder", "root's"))
    if there:
        create_store(URL, cache=cache).probe()
    before = sorted(keys(client))
    look = """
url, cache, digest = sys.argv[2], Path(sys.argv[3]), sys.argv[4]
open_store(url, cache=cache).digests()  # loads the driver
become(int(sys.argv[1]))
store = open_store(url, cache=cache)
assert store.digests() == {digest}
assert store.has(digest)
assert store.tree(digest).digest == digest
assert store.local(digest) is None
assert store.verify() == []
assert store.gc(set(), dry_run=True, grace=timedelta(seconds=-2)).trees == (digest,)
print(refusal(store.folder, digest))
print(refusal(store.probe))
print(refusal(store.gc, set()))
"""
    refusals = run(look, BOB, URL, cache, tree.digest).splitlines()
    assert len(refusals) == 3
    for refusal in refusals:
        assert "Permission denied" in refusal
        assert f"let this user write to the store's cache on this machine, {cache}" in refusal
    assert sorted(keys(client)) == before
    assert cache.exists() == there


def test_a_lock_ends_with_its_block_though_a_forked_child_lives_on(tmp_path: Path) -> None:
    program = """
import signal
from reccocktail.registry.store.locks import FileLock, abandoned, held
lock, lease = FileLock(Path(sys.argv[1])), Path(sys.argv[2])
children = []

def fork():
    child = os.fork()
    if not child:
        signal.pause()
    children.append(child)

with lock.shared(), held(lease):
    fork()
try:
    with lock.exclusive(0.2), abandoned(lease) as free:
        assert free
        fork()
    with lock.exclusive(0.2), abandoned(lease) as free:
        assert free
finally:
    for child in children:
        os.kill(child, signal.SIGKILL)
"""
    run(program, tmp_path / "lock", tmp_path / "lease")


def test_a_forked_child_that_leaves_the_block_does_not_unlock_it(tmp_path: Path) -> None:
    program = """
from reccocktail.registry.store.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
with lock.shared():
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print(refusal(lambda: lock.exclusive(0.1).__enter__()))
if not child:
    os._exit(0)
"""
    assert "kept writing" in run(program, tmp_path / "lock")
