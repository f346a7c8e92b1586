"""What every store does, on a local folder and on S3. What only one of them has to do is tested beside this file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from reccocktail.registry import Store
from reccocktail.registry.digests import canonical_json, digest_of_json
from reccocktail.registry.errors import InvalidArtifactError, StoreError
from reccocktail.registry.store import create_store, garbage, open_store
from reccocktail.registry.store import remote as object_store
from reccocktail.registry.store.locks import FileLock

from .s3 import keys, serve

AT_ONCE = timedelta(seconds=-2)  # S3 tells when an object was written in whole seconds


class House(Protocol):
    """Where a store keeps its bytes, seen from outside."""

    url: str
    cache: Path | None

    def blobs(self) -> set[str]: ...
    def trees(self) -> set[str]: ...
    def staging(self) -> Path: ...
    def overwrite(self, sha256: str, data: bytes) -> None: ...
    def remove(self, sha256: str) -> None: ...
    def spoil_manifest(self, digest: str) -> None: ...


@dataclass
class Folder:
    root: Path
    cache: Path | None = None

    @property
    def url(self) -> str:
        return str(self.root)

    def blobs(self) -> set[str]:
        names = {path.name for path in (self.root / "blobs/sha256").glob("*/*")}
        return names - {tree.removeprefix("sha256:") for tree in self.trees()}  # manifests are blobs here

    def trees(self) -> set[str]:
        return {f"sha256:{path.name}" for path in (self.root / "trees").iterdir()}

    def staging(self) -> Path:
        return self.root / "staging"

    def overwrite(self, sha256: str, data: bytes) -> None:
        self._blob(sha256).chmod(0o644)
        self._blob(sha256).write_bytes(data)

    def remove(self, sha256: str) -> None:
        for tree in (self.root / "trees").rglob("*"):
            if tree.is_file() and tree.samefile(self._blob(sha256)):
                tree.unlink()
        self._blob(sha256).unlink()

    def spoil_manifest(self, digest: str) -> None:
        self.overwrite(digest.removeprefix("sha256:"), b"{}")

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs/sha256" / sha256[:2] / sha256


@dataclass
class Bucket:
    client: Any
    cache: Path
    url: str = "s3://shop/some/where"

    def blobs(self) -> set[str]:
        return {key.rpartition("/")[2] for key in keys(self.client) if key.startswith("some/where/blobs/sha256/")}

    def trees(self) -> set[str]:
        names = {key.removeprefix("some/where/trees/") for key in keys(self.client)}
        return {f"sha256:{name.removesuffix('.json')}" for name in names if name.endswith(".json") and "/" not in name}

    def staging(self) -> Path:
        return self.cache / "staging"

    def overwrite(self, sha256: str, data: bytes) -> None:
        self.client.put_object(Bucket="shop", Key=self._blob(sha256), Body=data)

    def remove(self, sha256: str) -> None:
        self.client.delete_object(Bucket="shop", Key=self._blob(sha256))

    def spoil_manifest(self, digest: str) -> None:
        key = f"some/where/trees/{digest.removeprefix('sha256:')}.json"
        self.client.put_object(Bucket="shop", Key=key, Body=b"{}")
        shutil.rmtree(self.cache)  # where a sound one would be found

    def _blob(self, sha256: str) -> str:
        return f"some/where/blobs/sha256/{sha256[:2]}/{sha256}"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as client:
        yield client


@pytest.fixture(params=["local", "object"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    if request.param == "local":
        return Folder(tmp_path / "store")
    client = request.getfixturevalue("server")
    for key in keys(client):
        client.delete_object(Bucket="shop", Key=key)
    return Bucket(client, tmp_path / "cache")


@pytest.fixture
def store(house: House) -> Store:
    return create_store(house.url, cache=house.cache)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("one")
    (folder / "deep/two.txt").write_text("two")
    (folder / "deep/again.txt").write_text("one")
    (folder / "empty").write_text("")
    return folder


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


# putting in and taking out


def test_a_folder_comes_back_as_it_went_in(store: Store, house: House, folder: Path) -> None:
    steps: list[int] = []
    tree = store.add_folder(folder, progress=steps.append)
    assert contents(store.folder(tree.digest)) == {
        "one.txt": "one",
        "deep/two.txt": "two",
        "deep/again.txt": "one",
        "empty": "",
    }
    assert tree.bytes == sum(steps) == 9
    assert store.has(tree.digest)
    assert store.digests() == house.trees() == {tree.digest}
    assert store.local(tree.digest) == store.folder(tree.digest)
    assert store.tree(tree.digest) == tree
    assert store.verify() == []
    store.verify_tree(tree.digest)
    assert list(house.staging().iterdir()) == []


def test_the_digest_is_the_sha256_of_the_manifest(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    manifest = {name: {"sha256": entry.sha256, "bytes": entry.bytes} for name, entry in tree.files.items()}
    assert tree.digest == digest_of_json(manifest)
    assert tree.files["one.txt"].sha256 == sha256("one")


def test_identical_files_are_stored_once_and_read_only(store: Store, house: House, folder: Path) -> None:
    tree = store.add_folder(folder)
    assert house.blobs() == {sha256("one"), sha256("two"), sha256("")}
    stored = store.folder(tree.digest)
    assert (stored / "one.txt").samefile(stored / "deep/again.txt")
    assert (stored / "one.txt").stat().st_mode & 0o777 == 0o444


def test_the_same_folder_twice_is_the_same_tree(store: Store, house: House, folder: Path) -> None:
    assert store.add_folder(folder) == store.add_folder(folder)
    assert len(house.trees()) == 1


def test_only_the_files_that_are_named_are_stored(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder, files=["one.txt", "deep/two.txt", "one.txt"])
    assert set(contents(store.folder(tree.digest))) == {"one.txt", "deep/two.txt"}


def test_a_large_file_keeps_every_byte(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    data = os.urandom((33 << 20) + 17)
    (tmp_path / "big/x.bin").write_bytes(data)
    tree = store.add_folder(tmp_path / "big")
    assert tree.files["x.bin"].sha256 == hashlib.sha256(data).hexdigest()
    assert (store.folder(tree.digest) / "x.bin").read_bytes() == data
    store.verify_tree(tree.digest)


def test_creating_a_store_again_changes_nothing(store: Store, house: House, folder: Path) -> None:
    tree = store.add_folder(folder)
    for again in (create_store(house.url, cache=house.cache), open_store(house.url, cache=house.cache)):
        assert again.digests() == {tree.digest}


def test_a_store_can_say_that_it_is_writable(store: Store, house: House) -> None:
    before = house.blobs()
    store.probe()
    assert house.blobs() == before
    assert list(house.staging().iterdir()) == []


def test_a_place_that_is_no_store_is_refused(house: House) -> None:
    if isinstance(house, Folder):
        house.root.mkdir()
    with pytest.raises(StoreError, match="not an artifact store") as caught:
        open_store(house.url, cache=house.cache)
    assert "only for a new registry run `reccocktail init`" in (caught.value.hint or "")


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../x", "md5:" + "0" * 64, "sha256:" + "0" * 64])
def test_an_unknown_or_malformed_digest_is_refused(store: Store, digest: str) -> None:
    for operation in (store.folder, store.tree, store.verify_tree):
        with pytest.raises(StoreError):
            operation(digest)


# what may not go in


@pytest.mark.parametrize(
    "name",
    ["../folder/one.txt", "/etc/hostname", "deep/../one.txt", "deep//two.txt", "", "a\\b", "deep", "absent", "nul.txt"],
)
def test_a_name_that_is_not_a_plain_path_to_a_file_is_refused(store: Store, folder: Path, name: str) -> None:
    with pytest.raises(InvalidArtifactError):
        store.add_folder(folder, files=[name])


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", os.fsdecode(b"a\xff")])
def test_a_file_name_with_control_characters_is_refused(store: Store, folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    with pytest.raises(InvalidArtifactError, match="control characters"):
        store.add_folder(folder)


def test_names_that_are_one_file_elsewhere_are_refused(store: Store, house: House, folder: Path) -> None:
    (folder / "ONE.txt").write_text("x")
    with pytest.raises(InvalidArtifactError, match="differ only in case"):
        store.add_folder(folder)
    with store.staging("build") as staged:
        shutil.copytree(folder, staged, dirs_exist_ok=True)
        with pytest.raises(InvalidArtifactError, match="differ only in case"):
            store.adopt(staged)
    assert house.blobs() == house.trees() == set(house.staging().iterdir()) == set()


def test_a_link_is_followed_only_when_allowed_and_never_to_a_folder(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("out")
    (folder / "link").symlink_to("../outside")
    with pytest.raises(InvalidArtifactError, match="is a link"):
        store.add_folder(folder)
    tree = store.add_folder(folder, allow_links=True)
    assert not (store.folder(tree.digest) / "link").is_symlink()
    assert contents(store.folder(tree.digest))["link"] == "out"
    (folder / "loop").symlink_to(".")
    with pytest.raises(InvalidArtifactError, match="loop"):
        store.add_folder(folder, allow_links=True)


def test_a_pipe_is_refused_rather_than_waited_for(store: Store, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidArtifactError, match="not a regular file"):
        store.add_folder(folder)


# adopting


def test_an_adopted_folder_is_moved_not_copied(store: Store) -> None:
    with store.staging("build") as staged:
        (staged / "x.bin").write_bytes(b"x" * 100)
        inode = (staged / "x.bin").stat().st_ino
        tree = store.adopt(staged)
    assert (store.folder(tree.digest) / "x.bin").stat().st_ino == inode
    assert store.verify() == []


def test_adopting_what_is_known_gives_the_known_tree(store: Store, house: House, folder: Path) -> None:
    known = store.add_folder(folder, files=["one.txt"])
    with store.staging("build") as staged:
        (staged / "one.txt").write_text("one")
        assert store.adopt(staged) == known
    assert list(house.staging().iterdir()) == []


def test_what_a_check_refuses_is_not_kept(store: Store, house: House, folder: Path) -> None:
    seen: list[str] = []

    def check(copy: Path, digest: str) -> None:
        seen.append(digest)
        assert contents(copy)["one.txt"] == "one"
        if len(seen) == 1:
            raise InvalidArtifactError("not this one")

    with pytest.raises(InvalidArtifactError, match="not this one"):
        store.add_folder(folder, check=check)
    assert store.digests() == set()
    assert list(house.staging().iterdir()) == []
    assert store.add_folder(folder, check=check).digest == seen[0] == seen[1]


def test_only_a_folder_of_its_own_staging_is_adopted(store: Store, folder: Path) -> None:
    with pytest.raises(StoreError, match="staging"):
        store.adopt(folder)


def test_a_failed_build_leaves_nothing(store: Store, house: House) -> None:
    with pytest.raises(InvalidArtifactError, match="without files"), store.staging("build") as staged:
        store.adopt(staged)
    assert list(house.staging().iterdir()) == []


def test_a_link_is_a_second_name_and_never_replaces_a_file(store: Store, folder: Path, tmp_path: Path) -> None:
    store.link(folder / "one.txt", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(folder / "one.txt")
    with pytest.raises(StoreError):
        store.link(folder / "deep/two.txt", tmp_path / "linked")
    assert (tmp_path / "linked").read_text() == "one"


@pytest.mark.parametrize("code", [28, 30, 122], ids=["full", "read-only", "over-quota"])
def test_a_disk_that_refuses_is_a_failure_of_the_store_and_leaves_nothing(
    store: Store, house: House, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match=os.strerror(code)) as caught:
            store.add_folder(folder)
    assert caught.value.hint
    assert list(house.staging().iterdir()) == []
    assert store.verify() == []  # in a bucket, the tree is whole; its copy here was never made
    assert all(store.local(digest) is None for digest in store.digests())
    tree = store.add_folder(folder)
    assert contents(store.folder(tree.digest)) == contents(folder)


# damage and repair


@pytest.mark.parametrize("data", [b"", b"tw", b"owt"], ids=["emptied", "truncated", "altered"])
def test_damage_is_named_and_storing_good_bytes_again_repairs_it(
    store: Store, house: House, folder: Path, data: bytes
) -> None:
    tree = store.add_folder(folder)
    house.overwrite(sha256("two"), data)
    damage = store.verify()
    assert {(found.digest, found.path) for found in damage} == {
        (f"sha256:{sha256('two')}", f"blobs/sha256/{sha256('two')[:2]}/{sha256('two')}"),
        (tree.digest, "deep/two.txt"),
    }
    assert all(hashlib.sha256(data).hexdigest() in found.reason for found in damage)
    with pytest.raises(StoreError, match="deep/two"):
        store.verify_tree(tree.digest)
    assert store.add_folder(folder) == tree
    assert store.verify() == []
    assert contents(store.folder(tree.digest)) == contents(folder)
    assert list(house.staging().iterdir()) == []


def test_verifying_one_tree_is_enough_to_have_it_repaired(store: Store, house: House, folder: Path) -> None:
    tree = store.add_folder(folder)
    house.overwrite(sha256("one"), b"eno")
    with pytest.raises(StoreError, match="its bytes hash to") as caught:
        store.verify_tree(tree.digest)
    assert "add the same files again" in (caught.value.hint or "")
    store.add_folder(folder)
    store.verify_tree(tree.digest)


def test_a_missing_file_is_named_and_comes_back(store: Store, house: House, folder: Path) -> None:
    tree = store.add_folder(folder)
    house.remove(sha256("one"))
    missing = {found.path for found in store.verify() if found.digest == tree.digest and "is missing" in found.reason}
    assert missing == {"one.txt", "deep/again.txt"}
    assert store.add_folder(folder) == tree
    assert store.verify() == []


def test_a_damaged_manifest_is_named_stops_a_collection_and_comes_back(
    store: Store, house: House, folder: Path
) -> None:
    tree = store.add_folder(folder)
    house.spoil_manifest(tree.digest)
    store = open_store(house.url, cache=house.cache)
    assert (tree.digest, "") in {(found.digest, found.path) for found in store.verify()}
    with pytest.raises(StoreError, match="does not match its digest"):
        store.tree(tree.digest)
    with pytest.raises(StoreError, match="nothing was removed"):
        store.gc({tree.digest}, grace=AT_ONCE)
    assert store.add_folder(folder) == tree
    assert store.verify() == []


def test_a_damaged_blob_does_not_reach_another_tree(store: Store, house: House, folder: Path) -> None:
    store.add_folder(folder)
    house.overwrite(sha256("one"), b"eno")
    second = store.add_folder(folder, files=["one.txt"])
    assert contents(store.folder(second.digest)) == {"one.txt": "one"}


# collecting


def test_gc_keeps_what_is_kept_and_removes_the_rest(store: Store, house: House, folder: Path) -> None:
    with store.using():
        kept = store.add_folder(folder, files=["one.txt"])
        dropped = store.add_folder(folder)
    planned = store.gc({kept.digest}, dry_run=True, grace=AT_ONCE)
    assert store.digests() == {kept.digest, dropped.digest}
    assert store.gc({kept.digest}, grace=AT_ONCE) == planned
    assert planned.trees == (dropped.digest,)
    assert {sha256("two"), sha256("")} <= set(planned.blobs)
    assert house.blobs() == {sha256("one")}  # which both had
    assert store.digests() == house.trees() == {kept.digest}
    assert not store.has(dropped.digest)
    assert store.local(dropped.digest) is None
    assert store.verify() == []
    assert contents(store.folder(kept.digest)) == {"one.txt": "one"}


def test_gc_leaves_alone_what_is_younger_than_a_day(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    report = store.gc(set())
    assert (report.trees, report.blobs, report.bytes) == ((), (), 0)
    assert store.verify() == []
    assert contents(store.folder(tree.digest)) == contents(folder)


def test_staging_is_safe_while_its_owner_lives_however_old(store: Store) -> None:
    with store.staging("build") as staged:
        (staged / "x").write_text("x")
        os.utime(staged, (0, 0))
        assert store.gc(set(), grace=AT_ONCE).staging == ()
        assert (staged / "x").exists()


def test_staging_of_a_dead_process_goes_at_once_however_young(store: Store, house: House) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from reccocktail.registry.store import create_store, open_store\n"
        "with open_store(sys.argv[1], cache=Path(sys.argv[2])).staging('build') as staged:\n"
        "    (staged / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, house.url, str(house.cache)], check=False)
    (name,) = {path.name.removesuffix(".lock") for path in house.staging().iterdir()}
    assert store.gc(set(), dry_run=True).staging == (name,)
    assert store.gc(set()).staging == (name,)
    assert list(house.staging().iterdir()) == []


def test_gc_does_not_interrupt_a_commit_and_says_when_it_waited_in_vain(
    house: House, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(object_store, "WAIT_SECONDS", 0.1)
    lock = FileLock(tmp_path / "lock")
    store = create_store(house.url, cache=house.cache, lock=lock)
    tree = store.add_folder(folder)
    with lock.shared():
        store.add_folder(folder)  # writers do not exclude one another
        with pytest.raises(StoreError, match="kept writing") as caught:
            store.gc(set(), grace=AT_ONCE)
    assert caught.value.hint
    assert store.gc(set(), grace=AT_ONCE).trees == (tree.digest,)


def test_an_exclusive_lock_holds_writers_off_until_it_is_free(
    house: House, folder: Path, tmp_path: Path, in_thread: Callable[..., Any]
) -> None:
    lock = FileLock(tmp_path / "lock")
    store = create_store(house.url, cache=house.cache, lock=lock)
    with lock.exclusive(1):
        adding = in_thread(store.add_folder, folder)
        with pytest.raises(TimeoutError):
            adding.result(timeout=0.5)
        assert house.trees() == set()
    assert adding.result(timeout=60).digest in house.trees()


def test_pieces_are_there_for_everybody_until_they_are_removed(house: House, store: Store, folder: Path) -> None:
    pieces, others = store.pieces(), open_store(house.url, cache=house.cache).pieces()
    assert pieces.find() == pieces.find("a/") == {}
    tree = store.add_folder(folder)
    for key, data in {"a/note": b"{}", "a/0/1": b"one", "b/note": b"old"}.items():
        pieces.write(key, data)
    pieces.write("b/note", b"")
    assert {key: about.size for key, about in others.find().items()} == {"a/note": 2, "a/0/1": 3, "b/note": 0}
    assert set(others.find("a/")) == {"a/note", "a/0/1"}
    assert others.read("a/note") == b"{}"
    assert others.read("a/other") is others.read("c/note") is None
    assert b"".join(others.chunks("a/0/1", 3)) == b"one"
    store.gc({tree.digest}, grace=AT_ONCE)
    assert store.verify() == []
    others.delete(["a/note", "a/0/1", "nothing"])
    assert set(pieces.find()) == {"b/note"}


@pytest.fixture
def in_thread() -> Iterator[Callable[..., Any]]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as threads:
        yield threads.submit


def test_canonical_json_has_one_form_and_no_nan() -> None:
    assert canonical_json({"b": [1, 0.5, None], "a": "é"}) == '{"a":"é","b":[1,0.5,null]}'.encode()
    with pytest.raises(ValueError):
        canonical_json(float("nan"))
