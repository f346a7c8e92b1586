"""The artifact store: folders of files, addressed by their content.

    blobs/sha256/ab/<hex>   every distinct file once, read-only
    trees/<hex>/…           folders whose files are hard links to blobs; <hex> is the digest of the folder's manifest
    staging/                what is being written; nothing here is ever referred to

A tree's digest is the SHA-256 of its manifest, the canonical JSON of `{path: {"bytes": n, "sha256": hex}}`, and the manifest
is itself a blob. Bytes are fsynced before they are renamed into place, so a crash leaves a tree whole or absent. What is
there already is checked before it is relied on: storing a damaged folder again repairs it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from .digests import canonical_json
from .documents import parse_object
from .errors import InvalidArtifactError, StoreError

CHUNK = 8 << 20
GRACE = timedelta(hours=24)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class FileEntry:
    """One file of a tree: the hex SHA-256 of its bytes and their number."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class StoredTree:
    """A folder in the store: `sha256:<hex>`, its files by relative path, and their bytes together."""

    digest: str
    files: Mapping[str, FileEntry]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())


@dataclass(frozen=True)
class Damage:
    """A file that is not what its digest says; `path` is relative to the tree, or the blob's own."""

    digest: str
    path: str
    reason: str


@dataclass(frozen=True)
class GcReport:
    """What a collection removed, or would have: trees by digest, blobs by hex, abandoned staging folders by name."""

    trees: tuple[str, ...]
    blobs: tuple[str, ...]
    staging: tuple[str, ...]
    bytes: int


class Store:
    """A store in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._trees = root / "trees"
        self._staging = root / "staging"

    @classmethod
    def create(cls, url: str | Path) -> Store:
        """Makes the folders that are missing. Raises StoreError."""
        store = cls(_local_folder(url))
        try:
            for folder in (store._blobs, store._trees, store._staging):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create the store in {store.root}: {error.strerror}") from error
        return store

    @classmethod
    def open(cls, url: str | Path) -> Store:
        """Raises StoreError if there is no store: an unmounted disk must not look like an empty one."""
        store = cls(_local_folder(url))
        if not (store._blobs.is_dir() and store._trees.is_dir() and store._staging.is_dir()):
            raise StoreError(
                f"{store.root} is not an artifact store",
                hint="if the store should be there, mount or restore it; only for a new registry run `reccocktail init`",
            )
        return store

    def add_folder(
        self,
        folder: Path | str,
        *,
        files: Iterable[str] | None = None,
        allow_links: bool = False,
        progress: Progress | None = None,
    ) -> StoredTree:
        """Copies `files` (all, if not named) in, reading each once. `progress` is told the bytes of each step.

        Raises InvalidArtifactError for names and links that could lead elsewhere.
        """
        folder = Path(folder)
        names = _list_files(folder) if files is None else sorted(set(files))
        entries: dict[str, FileEntry] = {}
        with self._translated(), self.staging("add") as staged:
            for name in names:
                source = _checked(folder, name, allow_links)
                target = staged / name
                target.parent.mkdir(parents=True, exist_ok=True)
                entries[name] = _copy(source, target, progress)
            return self._commit(staged, entries)

    @contextmanager
    def staging(self, prefix: str) -> Iterator[Path]:
        """A new folder on the store's file system, removed afterwards unless it was adopted."""
        folder = self._staging / f"{prefix}-{uuid.uuid4().hex}"
        with self._translated():
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def adopt(self, staged: Path, *, progress: Progress | None = None) -> StoredTree:
        """Takes a folder from `staging` over as it is: its files are hashed and moved, not copied."""
        if staged.parent != self._staging:
            raise StoreError(f"{staged} was not made by this store's staging()")
        entries: dict[str, FileEntry] = {}
        with self._translated():
            for name in _list_files(staged):
                entries[name] = _hash_and_sync(_checked(staged, name, allow_links=False), progress)
            return self._commit(staged, entries)

    def link(self, source: Path, target: Path) -> None:
        """Gives the file a second name, or copies it where the file system has no hard links. Raises StoreError."""
        with self._translated():
            _link(source, target)

    def folder(self, digest: str) -> Path:
        """The tree's folder; its files are read-only. Raises StoreError if the store has no such tree."""
        folder = self._trees / _hex(digest)
        if not folder.is_dir():
            raise StoreError(f"{self.root} holds nothing under {digest}", hint="run `reccocktail store verify`")
        return folder

    def has(self, digest: str) -> bool:
        return (self._trees / _hex(digest)).is_dir()

    def tree(self, digest: str) -> StoredTree:
        """What the tree's manifest says. Raises StoreError if it is missing or damaged."""
        path = self._blob(_hex(digest))
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: the manifest of {digest} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != _hex(digest):
            raise StoreError(f"{path}: the manifest of {digest} does not match its digest")
        return StoredTree(digest, {name: FileEntry(**entry) for name, entry in parse_object(data, path).items()})

    def verify_tree(self, digest: str) -> None:
        """Reads every byte of one tree again. Raises StoreError naming the first file that is not what it was."""
        for damage in self._damages(digest, self.folder(digest), set(), None):
            raise StoreError(f"{digest}: {damage.path or 'the manifest'}: {damage.reason}")

    def verify(self, *, progress: Progress | None = None) -> list[Damage]:
        """Reads every byte again. `progress` is told the bytes of each file."""
        damages: list[Damage] = []
        sound: set[tuple[int, int]] = set()  # a tree's hard link needs no second reading
        for path in sorted(self._blobs.glob("*/*")):
            found = _hash(path, progress)
            if found.sha256 == path.name:
                status = path.stat()
                sound.add((status.st_dev, status.st_ino))
            else:
                reason = f"its bytes hash to {found.sha256}"
                damages.append(Damage(f"sha256:{path.name}", str(path.relative_to(self.root)), reason))
        for folder in sorted(self._trees.iterdir()):
            damages += self._damages(f"sha256:{folder.name}", folder, sound, progress)
        return damages

    def _damages(
        self, digest: str, folder: Path, sound: set[tuple[int, int]], progress: Progress | None
    ) -> Iterator[Damage]:
        try:
            files = self.tree(digest).files
        except StoreError as error:
            yield Damage(digest, "", str(error))
            return
        there = set(_list_files(folder))
        for name in sorted(there - files.keys()):
            yield Damage(digest, name, "is not in the manifest")
        for name, entry in files.items():
            if name not in there:
                yield Damage(digest, name, "is missing")
                continue
            status = (folder / name).lstat()
            if not stat.S_ISREG(status.st_mode):
                yield Damage(digest, name, "is not a regular file")
                continue
            if (status.st_dev, status.st_ino) in sound and self._blob(entry.sha256).samefile(folder / name):
                continue
            found = _hash(folder / name, progress)
            if found != entry:
                yield Damage(digest, name, f"its bytes hash to {found.sha256} instead of {entry.sha256}")

    def gc(self, keep: set[str], *, dry_run: bool = False, grace: timedelta = GRACE) -> GcReport:
        """Removes trees that are not in `keep`, blobs that no kept tree needs, and abandoned staging folders.

        Whatever is younger than `grace` stays: its row may be about to be written.
        """
        limit = time.time() - grace.total_seconds()
        every = sorted(self._trees.iterdir())
        dropped = [tree for tree in every if f"sha256:{tree.name}" not in keep and tree.stat().st_mtime <= limit]
        needed: set[str] = set()
        for tree in set(every) - set(dropped):
            needed |= {tree.name, *(entry.sha256 for entry in self.tree(f"sha256:{tree.name}").files.values())}
        blobs = [b for b in self._blobs.glob("*/*") if b.name not in needed and b.stat().st_mtime <= limit]
        staging = [folder for folder in self._staging.iterdir() if folder.stat().st_mtime <= limit]
        freed = sum(blob.stat().st_size for blob in blobs)
        if not dry_run:
            with self._translated(), self.staging("gc") as aside:
                for tree in dropped:  # whole or absent, even if the removal is cut short
                    with suppress(FileNotFoundError):
                        tree.rename(aside / tree.name)
                for folder in staging:
                    shutil.rmtree(folder, ignore_errors=True)
                for blob in blobs:
                    blob.unlink(missing_ok=True)
        return GcReport(
            trees=tuple(f"sha256:{tree.name}" for tree in dropped),
            blobs=tuple(sorted(blob.name for blob in blobs)),
            staging=tuple(sorted(folder.name for folder in staging)),
            bytes=freed,
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot write to the store in {self.root}: {error}") from error

    def _commit(self, staged: Path, entries: dict[str, FileEntry]) -> StoredTree:
        if not entries:
            raise InvalidArtifactError("a folder without files cannot be stored")
        manifest = canonical_json({name: asdict(entry) for name, entry in entries.items()})
        digest = hashlib.sha256(manifest).hexdigest()
        for name, entry in entries.items():
            self._install(staged / name, entry)
        with self.staging("manifest") as folder:
            path = folder / "manifest.json"
            path.write_bytes(manifest)
            self._install(path, _hash_and_sync(path, None))
        for folder in {staged, *(path for path in staged.rglob("*") if path.is_dir())}:
            _sync_folder(folder)
        tree = StoredTree(f"sha256:{digest}", entries)
        folder = self._trees / digest
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            os.utime(folder)  # known already, and in use again: out of gc's reach
            if self._is_damaged(tree, folder):
                with self.staging("damaged") as aside:
                    folder.rename(aside / digest)
                    staged.rename(folder)
        _sync_folder(self._trees)
        return tree

    def _is_damaged(self, tree: StoredTree, folder: Path) -> bool:
        blobs = [self._blob(entry.sha256).stat() for entry in tree.files.values()]  # just installed, so they are sound
        sound = {(status.st_dev, status.st_ino) for status in blobs}
        return next(self._damages(tree.digest, folder, sound, None), None) is not None

    def _install(self, path: Path, entry: FileEntry) -> None:
        """Makes `path` and the blob one file: the one that was there first, unless its bytes are not what they should be."""
        blob = self._blob(entry.sha256)
        blob.parent.mkdir(exist_ok=True)
        path.chmod(0o444)
        try:
            _link(path, blob)
        except FileExistsError:
            os.utime(blob)  # in use again: out of gc's reach
            if blob.stat().st_size == entry.bytes and _hash(blob, None) == entry:
                path.unlink()
                _link(blob, path)
            else:
                with self.staging("blob") as aside:
                    _link(path, aside / blob.name)
                    (aside / blob.name).replace(blob)
        _sync_folder(blob.parent)

    def _blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256


def _local_folder(url: str | Path) -> Path:
    text = str(url)
    if "://" in text and not text.startswith("file://"):
        scheme = text.partition("://")[0]
        raise StoreError(
            f"a store under {scheme}:// is not supported yet", hint="use a local folder as RECCOCKTAIL_STORE_URL"
        )
    return Path(text.removeprefix("file://")).absolute()


def _hex(digest: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise StoreError(f"{digest!r} is not a digest of the form sha256:<64 hex digits>")
    return digest.removeprefix("sha256:")


def _list_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InvalidArtifactError(f"{folder}: is not a folder")
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _checked(folder: Path, name: str, allow_links: bool) -> Path:
    """The file to read, if its name is harmless and, unless links are allowed, no part of its path is a link."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name:
        raise InvalidArtifactError(f"{folder}: {name!r} is not a plain relative path")
    if not name.isprintable():  # control characters, and bytes that are not UTF-8
        raise InvalidArtifactError(f"{folder}: the file name {name!r} has control characters or is not UTF-8")
    path = folder / name
    links = [p for p in (folder / "/".join(parts[: i + 1]) for i in range(len(parts))) if p.is_symlink()]
    if links and not allow_links:
        raise InvalidArtifactError(f"{links[0]}: is a link; only regular files are stored")
    if any(link != path for link in links):
        raise InvalidArtifactError(f"{links[0]}: is a link to a folder, which is never followed")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise InvalidArtifactError(f"{path}: is not a regular file")
    return path


def _copy(source: Path, target: Path, progress: Progress | None) -> FileEntry:
    hasher, size = hashlib.sha256(), 0
    with source.open("rb") as read, target.open("xb") as write:
        while chunk := read.read(CHUNK):
            hasher.update(chunk)
            write.write(chunk)
            size += len(chunk)
            if progress:
                progress(len(chunk))
        write.flush()
        os.fsync(write.fileno())
    return FileEntry(hasher.hexdigest(), size)


def _hash(path: Path, progress: Progress | None) -> FileEntry:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    if progress:
        progress(size)
    return FileEntry(sha256, size)


def _hash_and_sync(path: Path, progress: Progress | None) -> FileEntry:
    entry = _hash(path, progress)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return entry


def _link(source: Path, target: Path) -> None:
    """A second name for the file, or a copy where the file system has no hard links. Raises FileExistsError."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        if target.exists():
            raise FileExistsError(target) from None
        half = target.with_name(f".{uuid.uuid4().hex}")
        try:
            _copy(source, half, None)
            half.chmod(0o444)
            half.rename(target)
        finally:
            with suppress(FileNotFoundError):
                half.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
