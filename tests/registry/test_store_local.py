"""What a store on disk does beyond what every store does: hard links, durability, and repair of whole trees."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry.digests import file_digest
from reccocktail.registry.errors import InvalidArtifactError, StoreError
from reccocktail.registry.store import create_store, open_store
from reccocktail.registry.store.local import LocalStore
from reccocktail.registry.store.locks import FileLock, held
from reccocktail.registry.store.trees import StoredTree

AT_ONCE = timedelta(seconds=-1)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = create_store(tmp_path / "store")
    assert isinstance(store, LocalStore)
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("one")
    (folder / "deep/two.txt").write_text("two")
    (folder / "deep/again.txt").write_text("one")
    return folder


def blobs(store: LocalStore) -> list[Path]:
    return sorted((store.root / "blobs/sha256").glob("*/*"))


def staged(store: LocalStore) -> list[Path]:
    return list((store.root / "staging").iterdir())


def overwrite(path: Path, text: str) -> None:
    path.chmod(0o644)
    path.write_text(text)


@pytest.mark.parametrize("prefix", ["file://", "file://localhost"])
def test_a_file_url_is_a_folder(tmp_path: Path, folder: Path, prefix: str) -> None:
    tree = create_store(f"{prefix}{tmp_path}/a%20b").add_folder(folder)
    assert open_store(tmp_path / "a b").has(tree.digest)


def test_a_file_url_of_another_machine_is_refused() -> None:
    with pytest.raises(StoreError, match="another machine"):
        open_store("file://server/store")


def test_a_folder_that_cannot_be_made_is_a_failure_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create the store"):
        create_store(tmp_path / "file/store")


def test_the_manifest_is_a_blob_too(store: LocalStore, folder: Path) -> None:
    tree = store.add_folder(folder)
    hexadecimal = tree.digest.removeprefix("sha256:")
    assert file_digest(store.root / "blobs/sha256" / hexadecimal[:2] / hexadecimal) == tree.digest
    assert len(blobs(store)) == 3  # one, two, the manifest


def test_a_stored_file_and_its_blob_are_one(store: LocalStore, folder: Path) -> None:
    stored = store.folder(store.add_folder(folder).digest)
    for name in ("one.txt", "deep/two.txt", "deep/again.txt"):
        assert any(blob.samefile(stored / name) for blob in blobs(store))


def test_all_is_durable_before_the_next_step_and_nothing_is_synced_twice(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, str]] = []
    sync, rename = os.fsync, Path.rename

    def logged_sync(handle: int) -> None:
        sync(handle)
        log.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink())))

    def logged_rename(path: Path, target: Path) -> Path:
        log.append(("rename", str(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", logged_sync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    tree = store.add_folder(folder)
    published = log.index(("rename", str(store.folder(tree.digest))))
    before = {Path(path) for _, path in log[:published]}
    assert log[published + 1 :] == [("sync", str(store.root / "trees"))]
    assert {path.name for path in before} >= {"one.txt", "two.txt", "again.txt", "deep"}
    manifest = next(blob for blob in blobs(store) if f"sha256:{blob.name}" == tree.digest)
    assert manifest.parent in before
    again = Counter(path for kind, path in log if kind == "sync")
    assert max(again.values()) == 1


def test_a_full_disk_leaves_no_blob_and_no_tree(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        store.add_folder(folder)
    assert "store gc" in (caught.value.hint or "")
    assert blobs(store) == list((store.root / "trees").iterdir()) == staged(store) == []


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_store(store: LocalStore, folder: Path) -> None:
    (folder / "memory").symlink_to("/proc/self/mem")  # may be opened, but its first bytes not read
    with pytest.raises(InvalidArtifactError, match="memory: cannot be read"):
        store.add_folder(folder, allow_links=True)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EXDEV])
def test_where_there_can_be_no_hard_link_there_is_a_copy(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    tree = store.add_folder(folder)
    assert store.add_folder(folder) == tree
    assert (store.folder(tree.digest) / "deep/again.txt").read_text() == "one"
    assert store.verify() == []
    assert len(blobs(store)) == 3


def test_a_copy_that_was_cut_short_is_no_damage_and_is_collected(store: LocalStore, folder: Path) -> None:
    store.add_folder(folder)
    half = blobs(store)[0].with_name(".half")
    half.write_text("ha")
    assert store.verify() == []
    assert store.gc(store.digests()).blobs == (".half",)
    assert not half.exists()


def test_verify_names_every_kind_of_damage(store: LocalStore, folder: Path) -> None:
    tree = store.add_folder(folder)
    stored = store.folder(tree.digest)
    overwrite(stored / "deep/two.txt", "owt")  # the blob too: they are one file
    (stored / "one.txt").unlink()
    (stored / "extra").write_text("?")
    (store.root / "trees/stray").mkdir()
    reasons = {damage.path: damage.reason for damage in store.verify() if damage.digest == tree.digest}
    assert reasons["one.txt"] == "is missing"
    assert reasons["extra"] == "is not in the manifest"
    assert "instead of" in reasons["deep/two.txt"]
    assert any(damage.path.startswith("blobs/") for damage in store.verify())
    assert any(damage.digest == "sha256:stray" for damage in store.verify())
    with pytest.raises(StoreError, match="extra: is not in the manifest"):
        store.verify_tree(tree.digest)


def test_a_manifest_that_leads_out_of_its_tree_is_refused(store: LocalStore) -> None:
    manifest = b'{"../../x":{"bytes":1,"sha256":"%s"}}' % (b"0" * 64)
    path = store.root / "manifest"
    path.write_bytes(manifest)
    digest = file_digest(path)
    hexadecimal = digest.removeprefix("sha256:")
    path.rename(store.root / "blobs/sha256" / hexadecimal[:2] / hexadecimal)
    with pytest.raises(StoreError, match="not a plain relative path"):
        store.tree(digest)


def test_storing_a_folder_again_repairs_a_tree_with_missing_or_foreign_files(store: LocalStore, folder: Path) -> None:
    tree = store.add_folder(folder)
    stored = store.folder(tree.digest)
    shutil.rmtree(stored / "deep")
    (stored / "one.txt").unlink()
    (stored / "one.txt").symlink_to("nowhere")
    (stored / "extra").write_text("?")
    assert {damage.path for damage in store.verify()} == {"deep/again.txt", "deep/two.txt", "one.txt", "extra"}
    assert store.add_folder(folder) == tree
    assert store.verify() == []
    assert staged(store) == []


IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "a link to the same bytes": lambda path: path.symlink_to(path.rename(path.parents[3] / "elsewhere")),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("in_the_way", IN_THE_WAY.values(), ids=IN_THE_WAY)
@pytest.mark.parametrize("whose", ["file", "manifest"])
def test_a_blob_that_is_no_regular_file_is_damage_and_is_replaced(
    store: LocalStore, folder: Path, in_the_way: Callable[[Path], object], whose: str
) -> None:
    tree = store.add_folder(folder)
    name = tree.files["one.txt"].sha256 if whose == "file" else tree.digest.removeprefix("sha256:")
    blob = store.root / "blobs/sha256" / name[:2] / name
    in_the_way(blob)
    damages = [damage for damage in store.verify() if damage.digest == f"sha256:{name}" and damage.path]
    assert [damage.path for damage in damages] == [str(blob.relative_to(store.root))]
    assert store.add_folder(folder) == tree
    assert stat.S_ISREG(blob.lstat().st_mode)
    assert store.verify() == []
    store.verify_tree(tree.digest)
    assert (store.folder(tree.digest) / "one.txt").read_text() == "one"
    assert staged(store) == []


@pytest.mark.parametrize("target", ["../elsewhere", "nowhere"])
def test_a_link_in_a_trees_place_is_damage_and_is_replaced(store: LocalStore, folder: Path, target: str) -> None:
    tree = store.add_folder(folder)
    place = store.folder(tree.digest)
    place.rename(store.root / "elsewhere")
    place.symlink_to(target)
    assert [(damage.digest, damage.path) for damage in store.verify()] == [(tree.digest, "")]
    assert store.add_folder(folder) == tree
    assert not place.is_symlink()
    assert store.verify() == []


def test_a_collection_passes_over_what_is_no_regular_file(store: LocalStore, folder: Path) -> None:
    tree = store.add_folder(folder)
    shard = blobs(store)[0].parent
    (shard / ("0" * 64)).symlink_to("nowhere")
    (shard / ("1" * 64)).mkdir()
    os.mkfifo(shard / ("2" * 64))
    collected = store.gc({tree.digest}, grace=timedelta(days=-1))
    assert collected.blobs == ("0" * 64, "2" * 64)
    assert store.has(tree.digest)


def test_an_interrupted_gc_leaves_no_half_tree(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = store.add_folder(folder)

    def interrupted(path: Path, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.gc(set(), grace=AT_ONCE)
    assert not store.has(tree.digest)
    assert store.verify() == []
    assert store.gc(set()).staging != ()  # at once: nobody holds it
    assert staged(store) == []


def test_staging_of_a_version_without_locks_goes_after_the_grace(store: LocalStore) -> None:
    old = store.root / "staging/build-old"
    old.mkdir()
    assert store.gc(set()).staging == ()
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    assert store.gc(set()).staging == ("build-old",)
    assert staged(store) == []


def test_staging_that_cannot_be_made_is_a_failure_of_the_store(store: LocalStore) -> None:
    (store.root / "staging").rmdir()
    (store.root / "staging").write_text("in the way")  # root, who runs many tests, may write where it is forbidden
    with pytest.raises(StoreError, match="cannot write to the store"), store.staging("build"):
        pass


def test_storing_a_tree_again_puts_it_out_of_gcs_reach(store: LocalStore, folder: Path) -> None:
    tree = store.add_folder(folder)
    for path in (*blobs(store), store.folder(tree.digest)):
        os.utime(path, (0, 0))
    store.add_folder(folder)
    assert store.gc(set()).trees == ()
    assert store.verify() == []


def test_a_tree_is_young_when_it_is_published_however_long_it_was_staged(store: LocalStore) -> None:
    with store.staging("build") as building:
        (building / "x").write_text("x")
        for path in (building / "x", building):
            os.utime(path, (0, 0))
        tree = store.adopt(building)
    assert store.gc(set()).trees == ()
    assert store.has(tree.digest)


def test_what_is_no_tree_is_neither_listed_nor_collected(store: LocalStore, folder: Path) -> None:
    tree = store.add_folder(folder)
    stray = store.root / "trees/.DS_Store"
    stray.write_text("")
    assert store.digests() == {tree.digest}
    store.gc(set(), grace=AT_ONCE)
    assert stray.exists()


# what others do meanwhile


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_damaged_tree_that_another_one_moves_away_just_then_is_replaced(
    store: LocalStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tree = store.add_folder(folder)
    place = store.folder(tree.digest)
    if kind == "file":
        shutil.rmtree(place)
        place.write_text("not a tree")
    else:
        (place / "one.txt").unlink()
    rename, moved = Path.rename, list[Path]()

    def move_meanwhile(path: Path, target: Path) -> Path:
        try:
            return rename(path, target)
        except OSError:
            if not moved:
                moved.append(rename(place, tmp_path / "moved"))
            raise

    monkeypatch.setattr(Path, "rename", move_meanwhile)
    assert store.add_folder(folder) == tree
    assert moved
    assert store.verify() == []


def test_a_dry_run_passes_over_a_tree_that_is_repaired_just_then(
    store: LocalStore, folder: Path, just_before_lstat: Callable[..., list[Path]]
) -> None:
    place = store.folder(store.add_folder(folder).digest)
    moved = just_before_lstat(place, lambda: place.rename(store.root / "staging/damaged"))
    report = store.gc(set(), dry_run=True, grace=AT_ONCE)
    assert moved
    assert report.trees == report.blobs == ()


def test_a_dry_run_passes_over_a_copy_that_is_done_just_then(
    store: LocalStore, just_before_lstat: Callable[..., list[Path]]
) -> None:
    half = store.root / "blobs/sha256/ab/.half"
    half.write_text("x")
    done = just_before_lstat(half, lambda: half.rename(half.with_name("ab" * 32)))
    assert store.gc(set(), dry_run=True, grace=AT_ONCE).bytes == 0
    assert done


def test_a_reader_without_the_lock_passes_over_a_tree_that_is_collected_just_then(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Denied(FileLock):
        def shared(self) -> AbstractContextManager[None]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    tree = store.add_folder(folder)
    reader = LocalStore(store.root, lock=Denied(store.root / "lock"))
    read, collected = reader.tree, list[str]()

    def collect_first(digest: str) -> StoredTree:
        if not collected:
            collected.extend(store.gc(set(), grace=AT_ONCE).trees)
        return read(digest)

    monkeypatch.setattr(reader, "tree", collect_first)
    assert reader.gc({tree.digest}, dry_run=True).trees == ()
    assert collected == [tree.digest]


def test_a_tree_that_goes_and_comes_back_while_it_is_read_is_not_damaged(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = store.add_folder(folder)
    place, lstat, back = store.folder(tree.digest), Path.lstat, list[StoredTree]()

    def miss(path: Path) -> os.stat_result:
        if path == place / "one.txt" and not back:
            store.gc(set(), grace=AT_ONCE)
            try:
                return lstat(path)
            finally:
                back.append(store.add_folder(folder))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", miss)
    for verify in (store.verify, lambda: store.verify_tree(tree.digest)):
        assert not verify()
        assert back.pop() == tree


def test_a_tree_that_is_collected_while_it_is_verified_is_not_there_rather_than_damaged(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = store.add_folder(folder)
    lstat = Path.lstat

    def collect_first(path: Path) -> os.stat_result:
        if path.name == "one.txt":
            store.gc(set(), grace=AT_ONCE)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", collect_first)
    with pytest.raises(StoreError, match=f"No such file or directory: '{store.root}/trees/[0-9a-f]{{64}}'"):
        store.verify_tree(tree.digest)


def test_a_lock_that_another_user_removes_just_then_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, opened, refused = tmp_path / "lock", os.open, list[int]()
    lock.touch()

    def foreign(path: Path, flags: int, mode: int = 0o777, **rest: Any) -> int:
        if path == lock and not refused:
            refused.append(flags)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if path == lock and not flags & os.O_CREAT:
            lock.unlink()
        return opened(path, flags, mode, **rest)

    monkeypatch.setattr(os, "open", foreign)
    with held(lock):
        assert refused
        assert lock.exists()


def test_a_lock_that_is_refused_leaves_no_handle(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = len(list(Path("/dev/fd").iterdir()))
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match="No locks available"), store.staging("build"):
        pass
    assert len(list(Path("/dev/fd").iterdir())) == before
