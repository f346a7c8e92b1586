from __future__ import annotations

import hashlib
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pytest
from reccocktail.registry.digests import canonical_json, digest_of_json, file_digest
from reccocktail.registry.errors import InvalidArtifactError, StoreError
from reccocktail.registry.store import Store

AT_ONCE = timedelta(seconds=-1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("one")
    (folder / "deep/two.txt").write_text("two")
    (folder / "deep/again.txt").write_text("one")
    return folder


def blobs(store: Store) -> list[Path]:
    return sorted((store.root / "blobs/sha256").glob("*/*"))


def test_a_folder_comes_back_as_it_went_in(store: Store, folder: Path) -> None:
    steps: list[int] = []
    tree = store.add_folder(folder, progress=steps.append)
    stored = store.folder(tree.digest)
    assert {p.relative_to(stored).as_posix(): p.read_text() for p in stored.rglob("*.txt")} == {
        "one.txt": "one",
        "deep/two.txt": "two",
        "deep/again.txt": "one",
    }
    assert tree.bytes == sum(steps) == 9
    assert store.has(tree.digest)
    assert store.tree(tree.digest) == tree
    assert store.verify() == []
    store.verify_tree(tree.digest)
    assert list((store.root / "staging").iterdir()) == []


def test_the_digest_is_the_sha256_of_the_manifest_which_is_a_blob_too(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    manifest = {name: {"sha256": entry.sha256, "bytes": entry.bytes} for name, entry in tree.files.items()}
    assert tree.digest == digest_of_json(manifest)
    assert tree.files["one.txt"].sha256 == hashlib.sha256(b"one").hexdigest()
    hexadecimal = tree.digest.removeprefix("sha256:")
    assert file_digest(store.root / "blobs/sha256" / hexadecimal[:2] / hexadecimal) == tree.digest


def test_identical_files_are_stored_once(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    assert len(blobs(store)) == 3  # one, two, the manifest
    stored = store.folder(tree.digest)
    assert (stored / "one.txt").samefile(stored / "deep/again.txt")
    assert (stored / "one.txt").stat().st_mode & 0o777 == 0o444


def test_the_same_folder_twice_is_the_same_tree(store: Store, folder: Path) -> None:
    assert store.add_folder(folder) == store.add_folder(folder)
    assert len(list((store.root / "trees").iterdir())) == 1


def test_only_the_named_files_are_stored(store: Store, folder: Path) -> None:
    assert set(store.add_folder(folder, files=["deep/two.txt"]).files) == {"deep/two.txt"}


@pytest.mark.parametrize(
    "name", ["../folder/one.txt", "/etc/hostname", "deep/../one.txt", "deep//two.txt", "", "a\\b", "deep"]
)
def test_a_name_that_is_not_a_plain_path_to_a_file_is_refused(store: Store, folder: Path, name: str) -> None:
    with pytest.raises(InvalidArtifactError):
        store.add_folder(folder, files=[name])


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", os.fsdecode(b"a\xff")])
def test_a_file_name_with_control_characters_is_refused(store: Store, folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    with pytest.raises(InvalidArtifactError, match="control characters"):
        store.add_folder(folder)


def test_a_link_is_followed_only_when_allowed_and_never_to_a_folder(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("out")
    (folder / "link").symlink_to("../outside")
    with pytest.raises(InvalidArtifactError, match="is a link"):
        store.add_folder(folder)
    tree = store.add_folder(folder, allow_links=True)
    assert not (store.folder(tree.digest) / "link").is_symlink()
    (folder / "loop").symlink_to(".")
    with pytest.raises(InvalidArtifactError, match="loop"):
        store.add_folder(folder, allow_links=True)


def test_a_pipe_is_refused_rather_than_waited_for(store: Store, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidArtifactError, match="not a regular file"):
        store.add_folder(folder)


def test_an_adopted_folder_is_moved_not_copied(store: Store) -> None:
    with store.staging("build") as staged:
        (staged / "x.bin").write_bytes(b"x" * 100)
        inode = (staged / "x.bin").stat().st_ino
        tree = store.adopt(staged)
    assert (store.folder(tree.digest) / "x.bin").stat().st_ino == inode
    assert store.verify() == []


def test_adopting_what_is_known_gives_the_known_tree(store: Store, folder: Path) -> None:
    known = store.add_folder(folder, files=["one.txt"])
    with store.staging("build") as staged:
        (staged / "one.txt").write_text("one")
        assert store.adopt(staged) == known
    assert list((store.root / "staging").iterdir()) == []


def test_only_a_folder_of_its_own_staging_is_adopted(store: Store, folder: Path) -> None:
    with pytest.raises(StoreError, match="staging"):
        store.adopt(folder)


def test_a_failed_build_leaves_nothing(store: Store) -> None:
    with pytest.raises(InvalidArtifactError, match="without files"), store.staging("build") as staged:
        store.adopt(staged)
    assert list((store.root / "staging").iterdir()) == []


def test_a_full_disk_is_a_failure_of_the_store_and_leaves_nothing(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.add_folder(folder)
    assert blobs(store) == list((store.root / "trees").iterdir()) == list((store.root / "staging").iterdir()) == []


def test_a_file_system_without_hard_links_gets_copies(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    tree = store.add_folder(folder)
    assert store.add_folder(folder) == tree
    assert (store.folder(tree.digest) / "deep/again.txt").read_text() == "one"
    assert store.verify() == []
    assert len(blobs(store)) == 3


def test_verify_names_every_kind_of_damage(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    stored = store.folder(tree.digest)
    (stored / "deep/two.txt").chmod(0o644)
    (stored / "deep/two.txt").write_text("owt")  # the blob too: they are one file
    (stored / "one.txt").unlink()
    (stored / "extra").write_text("?")
    reasons = {damage.path: damage.reason for damage in store.verify() if damage.digest == tree.digest}
    assert reasons["one.txt"] == "is missing"
    assert reasons["extra"] == "is not in the manifest"
    assert "instead of" in reasons["deep/two.txt"]
    assert any(damage.path.startswith("blobs/") for damage in store.verify())
    with pytest.raises(StoreError, match="extra: is not in the manifest"):
        store.verify_tree(tree.digest)


def overwrite(path: Path, text: str) -> None:
    path.chmod(0o644)
    path.write_text(text)


@pytest.mark.parametrize("text", ["", "tw", "owt"], ids=["emptied", "truncated", "altered"])
def test_storing_good_bytes_again_repairs_a_damaged_blob_and_its_tree(store: Store, folder: Path, text: str) -> None:
    tree = store.add_folder(folder)
    overwrite(store.folder(tree.digest) / "deep/two.txt", text)  # the blob too: they are one file
    assert store.verify() != []
    assert store.add_folder(folder) == tree
    assert store.verify() == []
    assert (store.folder(tree.digest) / "deep/two.txt").read_text() == "two"
    assert list((store.root / "staging").iterdir()) == []


def test_a_damaged_blob_does_not_reach_another_tree(store: Store, folder: Path) -> None:
    first = store.add_folder(folder)
    overwrite(store.folder(first.digest) / "one.txt", "eno")
    second = store.add_folder(folder, files=["one.txt"])
    assert (store.folder(second.digest) / "one.txt").read_text() == "one"
    store.verify_tree(second.digest)


def test_storing_a_folder_again_repairs_a_tree_with_missing_or_foreign_files(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    stored = store.folder(tree.digest)
    shutil.rmtree(stored / "deep")
    (stored / "one.txt").unlink()
    (stored / "one.txt").symlink_to("nowhere")
    (stored / "extra").write_text("?")
    assert {damage.path for damage in store.verify()} == {"deep/again.txt", "deep/two.txt", "one.txt", "extra"}
    assert store.add_folder(folder) == tree
    assert store.verify() == []
    assert list((store.root / "staging").iterdir()) == []


def test_an_interrupted_gc_leaves_no_half_tree(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = store.add_folder(folder)

    def interrupted(path: Path, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.gc(set(), grace=AT_ONCE)
    assert not store.has(tree.digest)
    assert store.verify() == []
    assert store.gc(set(), grace=AT_ONCE).staging != ()
    assert list((store.root / "staging").iterdir()) == []


def test_staging_that_cannot_be_made_is_a_failure_of_the_store(store: Store) -> None:
    (store.root / "staging").rmdir()
    (store.root / "staging").write_text("in the way")  # root, who runs many tests, may write where it is forbidden
    with pytest.raises(StoreError, match="cannot write to the store"), store.staging("build"):
        pass


def test_a_link_is_a_second_name_and_never_replaces_a_file(store: Store, folder: Path, tmp_path: Path) -> None:
    store.link(folder / "one.txt", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(folder / "one.txt")
    with pytest.raises(StoreError):
        store.link(folder / "deep/two.txt", tmp_path / "linked")
    assert (tmp_path / "linked").read_text() == "one"


def test_gc_keeps_what_is_kept_and_removes_the_rest(store: Store, folder: Path) -> None:
    kept = store.add_folder(folder, files=["one.txt"])
    dropped = store.add_folder(folder)
    planned = store.gc({kept.digest}, dry_run=True, grace=AT_ONCE)
    assert store.has(dropped.digest)
    assert store.gc({kept.digest}, grace=AT_ONCE) == planned
    assert planned.trees == (dropped.digest,)
    assert len(planned.blobs) == 2  # "two" and the dropped manifest; "one" is shared
    assert not store.has(dropped.digest)
    assert store.has(kept.digest)
    assert store.verify() == []


def test_gc_leaves_alone_what_is_younger_than_a_day(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    with store.staging("build") as staged:
        assert store.gc(set()).trees == ()
        assert staged.exists()
        yesterday = time.time() - 25 * 3600
        os.utime(staged, (yesterday, yesterday))
        assert store.gc(set()).staging == (staged.name,)
    assert store.has(tree.digest)


def test_storing_a_tree_again_puts_it_out_of_gcs_reach(store: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    for path in (*blobs(store), store.folder(tree.digest)):
        os.utime(path, (0, 0))
    store.add_folder(folder)
    assert store.gc(set()).trees == ()
    assert store.verify() == []


def test_a_store_elsewhere_is_not_supported_yet() -> None:
    with pytest.raises(StoreError, match="s3:// is not supported yet"):
        Store.open("s3://bucket/prefix")


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not an artifact store") as caught:
        Store.open(tmp_path)
    assert "mount or restore it; only for a new registry run `reccocktail init`" in (caught.value.hint or "")


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../x", "md5:" + "0" * 64, "sha256:" + "0" * 64])
def test_an_unknown_or_malformed_digest_is_refused(store: Store, digest: str) -> None:
    with pytest.raises(StoreError):
        store.folder(digest)


def test_canonical_json_has_one_form_and_no_nan() -> None:
    assert canonical_json({"b": [1, 0.5, None], "a": "é"}) == '{"a":"é","b":[1,0.5,null]}'.encode()
    with pytest.raises(ValueError):
        canonical_json(float("nan"))
