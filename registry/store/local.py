"""A store in a local folder: what comes in is staged, hashed and renamed into place; what is there is looked up and verified."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from ..errors import InvalidArtifactError, StoreError
from .contract import WAIT_SECONDS, Damage, Store
from .files import Progress, copy_file, hash_file, link_file, sync_all
from .garbage import CollectableFolder
from .layout import inode
from .pieces import FolderPieces, Pieces
from .trees import FileEntry, StoredTree, checked_files, hex_of, list_files, write_manifest

DISCARD = "discard"

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # whatever bore the name may be gone when one looks


class LocalStore(CollectableFolder, Store):
    """A store in a local folder, or in one of a network file system with flock and atomic renames."""

    def initialise(self) -> None:
        try:
            shards = (self._blobs / f"{number:02x}" for number in range(256))
            for folder in (self._blobs, self._trees, self._staging, *shards):
                folder.mkdir(parents=True, exist_ok=True)
            sync_all([self._blobs, self._blobs.parent, self.root])
        except OSError as error:
            raise StoreError(
                f"cannot create the store in {self.root}: {error.strerror}", hint=self._hints.get(error.errno or 0)
            ) from error

    def exists(self) -> bool:
        return all(_is_folder(folder) for folder in (self._blobs, self._trees, self._staging))

    def require(self) -> None:
        if not self.exists():
            raise StoreError(
                f"{self.root} is not an artifact store",
                hint="if the store should be there, mount or restore it; only for a new registry run `reccocktail init`",
            )

    def probe(self) -> None:
        with self.staging("probe") as folder, self.translated():
            (folder / "probe").write_bytes(b"x")
            sync_all([folder / "probe"])

    # putting in

    def add_folder(
        self,
        folder: Path | str,
        *,
        files: Iterable[str] | None = None,
        allow_links: bool = False,
        check: Callable[[Path, str], None] | None = None,
        progress: Progress | None = None,
    ) -> StoredTree:
        with self.staging("add") as staged:
            entries = self.copy_in(Path(folder), staged, files, allow_links=allow_links, progress=progress)
            if check is not None:
                check(staged, write_manifest(entries)[0].digest)
            return self.commit(staged, entries)

    def adopt(
        self, staged: Path, *, known: Mapping[str, str] | None = None, progress: Progress | None = None
    ) -> StoredTree:
        return self.commit(staged, self.hash_staged(staged, progress, known or {}))

    def copy_in(
        self,
        folder: Path,
        staged: Path,
        files: Iterable[str] | None,
        *,
        allow_links: bool,
        progress: Progress | None,
    ) -> dict[str, FileEntry]:
        """The files in `staged` afterwards, not yet durable. Raises InvalidArtifactError and StoreError."""
        names = list_files(folder) if files is None else sorted(set(files))
        entries: dict[str, FileEntry] = {}
        with self.translated():
            for name, source in checked_files(folder, names, allow_links=allow_links):
                target = staged / name
                target.parent.mkdir(parents=True, exist_ok=True)
                entries[name] = copy_file(source, target, progress, follow=allow_links)
        return entries

    def hash_staged(self, staged: Path, progress: Progress | None, known: Mapping[str, str]) -> dict[str, FileEntry]:
        """The files of a folder from `staging`, `known` digests taken as they are. Raises InvalidArtifactError, and StoreError for any other folder."""
        if staged.parent != self._staging:
            raise StoreError(f"{staged} was not made by this store's staging()")
        entries: dict[str, FileEntry] = {}
        with self.translated():
            for name, path in checked_files(staged, list_files(staged), allow_links=False):
                path.chmod(0o444)
                if name in known:
                    entries[name] = FileEntry(hex_of(known[name]), path.stat().st_size)
                    if progress:
                        progress(entries[name].bytes)
                else:
                    entries[name] = hash_file(path, progress)
        return entries

    def commit(self, staged: Path, entries: Mapping[str, FileEntry]) -> StoredTree:
        """Moves a staged folder into place; `entries` are all its files. Raises InvalidArtifactError and StoreError."""
        tree, data = write_manifest(entries)
        with self.translated():
            manifest = staged / f".{uuid.uuid4().hex}"
            manifest.write_bytes(data)
            manifest.chmod(0o444)
            arriving = {staged / name: entry for name, entry in entries.items()}
            arriving[manifest] = FileEntry(hex_of(tree.digest), len(data))
            sync_all(arriving)
            sound = self._sound(arriving.values())  # reading takes long; a collection need not wait for it
            with self._lock.shared():
                for path, entry in arriving.items():
                    self._install(path, entry, sound)
                manifest.unlink()
                # a tree needs its manifest's blob; its other files are its own, even if their blobs' names are lost
                shard = self._blob(hex_of(tree.digest)).parent
                sync_all([shard, *(Path(place) for place, _, _ in os.walk(staged))])
                self._publish(tree, staged)
                sync_all([self._trees])
        return tree

    def _sound(self, entries: Iterable[FileEntry]) -> set[tuple[int, int]]:
        """The inodes of the blobs that are there and are what they should be."""
        sound: set[tuple[int, int]] = set()
        for entry in entries:
            with suppress(FileNotFoundError):
                status = self._blob(entry.sha256).lstat()
                if inode(status) not in sound and self._is_sound(entry):
                    sound.add(inode(status))
        return sound

    def _is_sound(self, entry: FileEntry) -> bool:
        blob = self._blob(entry.sha256)
        status = blob.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size == entry.bytes and hash_file(blob) == entry

    def _install(self, path: Path, entry: FileEntry, sound: set[tuple[int, int]]) -> None:
        """Makes `path` and the blob one file: the one that was there first, unless its bytes are not what they should be."""
        blob = self._blob(entry.sha256)
        if not blob.parent.is_dir():
            blob.parent.mkdir(exist_ok=True)
            sync_all([self._blobs])
        there = not _linked(path, blob)
        good = not there or inode(blob.lstat()) in sound or self._is_sound(entry)
        if not (good and _touched(blob)):
            self._replace(blob, path)
        elif there:
            path.unlink()
            link_file(blob, path)
        sound.add(inode(blob.lstat()))

    def _replace(self, blob: Path, path: Path) -> None:
        """Puts the file, or a copy of it where it is another user's, in the place of whatever bears the blob's name."""
        with self.staging("blob") as aside:
            ours = aside / blob.name
            link_file(path, ours)
            if not _touched(ours):
                ours.unlink()
                copy_file(path, ours)
                sync_all([ours])
            with suppress(FileNotFoundError):  # another one does the same
                if stat.S_ISDIR(blob.lstat().st_mode):
                    blob.rename(aside / "folder")
            ours.replace(blob)

    def _publish(self, tree: StoredTree, staged: Path) -> None:
        folder = self._trees / hex_of(tree.digest)
        os.utime(staged)  # it may have been filled for days
        while not _renamed(staged, folder):
            # another one may be repairing it, or it is another user's: then its manifest, which is touched too, keeps it
            with suppress(FileNotFoundError, PermissionError):
                os.utime(folder, follow_symlinks=False)
            if not self._is_damaged(tree, folder):
                return
            with self._repair.exclusive(WAIT_SECONDS):
                if os.path.lexists(folder) and self._is_damaged(tree, folder):  # and not repaired while we waited
                    with self.staging("damaged") as aside:
                        folder.rename(aside / folder.name)
                        if _renamed(staged, folder):
                            return

    def _is_damaged(self, tree: StoredTree, folder: Path) -> bool:
        # just installed, so they are sound
        sound = {inode(self._blob(entry.sha256).lstat()) for entry in tree.files.values()}
        return next(self._damages(tree.digest, folder, sound, None), None) is not None

    def pieces(self) -> Pieces:
        return FolderPieces(self)

    def link(self, source: Path, target: Path) -> None:
        with self.translated():
            link_file(source, target)

    # looking up

    def folder(self, digest: str, *, until: ExitStack | None = None) -> Path:
        folder = self.local(digest)
        if folder is None:
            raise StoreError(f"{self.root} holds nothing under {digest}", hint="run `reccocktail store verify`")
        return folder

    def local(self, digest: str) -> Path | None:
        folder = self._trees / hex_of(digest)
        return folder if _is_folder(folder) else None

    def has(self, digest: str) -> bool:
        return self.local(digest) is not None

    def blob(self, entry: FileEntry) -> Path | None:
        """The file with these bytes, read again to be sure of them, if the store has it."""
        with suppress(OSError):
            if self._is_sound(entry):
                return self._blob(entry.sha256)
        return None

    # looking after

    def verify_tree(self, digest: str) -> None:
        with self.translated("read"):
            damages = self._damages_of(self.folder(digest), set())
        for damage in damages:
            raise StoreError(
                f"{digest}: {damage.path or 'the manifest'}: {damage.reason}",
                hint="add the same files again to repair it, or restore the store",
            )

    def verify(self, *, progress: Progress | None = None) -> list[Damage]:
        damages: list[Damage] = []
        sound: set[tuple[int, int]] = set()  # a tree's hard link needs no second reading
        with self.translated("read"):
            for path in sorted(self._blobs.glob("*/*")):
                if path.name.startswith("."):  # a copy that is being made, or was cut short
                    continue
                with suppress(FileNotFoundError):  # collected meanwhile
                    reason = _difference(path, path.name, progress)
                    if reason is None:
                        sound.add(inode(path.lstat()))
                    else:
                        damages.append(Damage(f"sha256:{path.name}", str(path.relative_to(self.root)), reason))
            for folder in sorted(self._trees.iterdir()):
                with suppress(FileNotFoundError):  # collected meanwhile
                    damages += self._damages_of(folder, sound, progress)
        return damages

    def _damages_of(self, folder: Path, sound: set[tuple[int, int]], progress: Progress | None = None) -> list[Damage]:
        """Of the tree that is there in the end: one may go meanwhile, and another come. Raises FileNotFoundError."""
        while True:
            before = folder.lstat()
            found = list(self._damages(f"sha256:{folder.name}", folder, sound, progress))
            if not found or is_still(folder, before):
                return found

    def _damages(
        self, digest: str, folder: Path, sound: set[tuple[int, int]], progress: Progress | None
    ) -> Iterator[Damage]:
        try:
            files = self.tree(digest).files
            if folder.is_symlink():
                raise InvalidArtifactError(f"{folder}: is a link")
            there = set(list_files(folder))
        except (StoreError, InvalidArtifactError) as error:
            yield Damage(digest, "", str(error))
            return
        for name in sorted(there - files.keys()):
            yield Damage(digest, name, "is not in the manifest")
        for name, entry in files.items():
            try:
                status = (folder / name).lstat()
                if not stat.S_ISREG(status.st_mode):
                    yield Damage(digest, name, "is not a regular file")
                elif not (inode(status) in sound and inode(self._blob(entry.sha256).lstat()) == inode(status)):
                    reason = _difference(folder / name, entry.sha256, progress)
                    if reason is not None:
                        yield Damage(digest, name, f"{reason} instead of {entry.sha256}")
            except (FileNotFoundError, NotADirectoryError):
                yield Damage(digest, name, "is missing")

    def discard(self, digest: str) -> None:
        """Takes a tree away, whatever its age: for a copy that can be fetched again. Raises StoreError."""
        with self.staging(DISCARD) as aside, self.translated(), self._lock.shared(), suppress(FileNotFoundError):
            (self._trees / hex_of(digest)).rename(aside / "tree")
            sync_all([self._trees])  # no half of it may come back after a power failure


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a parent may not be searched


def _linked(path: Path, blob: Path) -> bool:
    """Whether the blob is the file now; not if something bore its name before."""
    try:
        link_file(path, blob)
    except FileExistsError:
        return False
    return True


def _touched(blob: Path) -> bool:
    """Whether it is in use from now on, however long ago it was written: out of gc's reach. Not if it is another user's."""
    try:
        os.utime(blob)
    except PermissionError:
        return False
    return True


def is_still(folder: Path, before: os.stat_result) -> bool:
    """Whether nobody has moved or replaced it since."""
    with suppress(FileNotFoundError):
        now = folder.lstat()
        return (inode(now), now.st_ctime_ns) == (inode(before), before.st_ctime_ns)  # inodes are given out again
    return False


def _renamed(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in _TAKEN or os.path.lexists(target):
            return False
        raise
    return True


def _difference(path: Path, sha256: str, progress: Progress | None) -> str | None:
    """Why the file is not the one with that hash, if it is not. Raises FileNotFoundError."""
    try:
        found = hash_file(path, progress)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found.sha256 == sha256 else f"its bytes hash to {found.sha256}"
