"""A store in a local folder.

    blobs/sha256/ab/<hex>   every distinct file once, read-only; the manifests of trees too
    trees/<hex>/…           folders whose files are hard links to blobs; <hex> is the digest of the folder's manifest
    staging/                what is being written; nothing here is ever referred to
    staging/<name>.lock     held by the process to which staging/<name> belongs
    lock                    shared by those who commit, exclusive to a collection
    repair                  held while a damaged tree is replaced

Bytes are fsynced before they are renamed into place. What is there already is checked before it is relied on.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

from ..errors import InvalidArtifactError, StoreError
from .contract import GRACE, WAIT_SECONDS, Damage, GcReport, Store
from .files import Progress, copy_file, hash_file, link_file, open_regular, sync_all
from .locks import FileLock, StoreLock, abandoned, held, held_if_free, shared_if_possible
from .room import FULL, NO_ROOM
from .trees import HEX, FileEntry, StoredTree, checked_files, hex_of, list_files, read_manifest, write_manifest

DISCARD = "discard"

_RIGHTS = "let this user write there, or set RECCOCKTAIL_STORE_URL to another folder"
_HINTS = {
    **dict.fromkeys(FULL, NO_ROOM),
    errno.ENOLCK: "the file system must support flock; choose another folder as RECCOCKTAIL_STORE_URL",
}
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # whatever bore the name may be gone when one looks


class LocalStore(Store):
    """A store in a local folder, or in one of a network file system with flock and atomic renames."""

    def __init__(self, root: Path, *, lock: StoreLock | None = None, rights: str = _RIGHTS) -> None:
        """`rights` says what to do where this user may not write."""
        self.root = root
        self.url = str(root)
        self._blobs = root / "blobs" / "sha256"
        self._trees = root / "trees"
        self._staging = root / "staging"
        self._lock = lock or FileLock(root / "lock")
        self._repair = FileLock(root / "repair")
        self._hints = _HINTS | dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), rights)

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
        progress: Progress | None = None,
    ) -> StoredTree:
        with self.staging("add") as staged:
            entries = self.copy_in(Path(folder), staged, files, allow_links=allow_links, progress=progress)
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
                if _inode(status) not in sound and self._is_sound(entry):
                    sound.add(_inode(status))
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
        good = not there or _inode(blob.lstat()) in sound or self._is_sound(entry)
        if not (good and _touched(blob)):
            self._replace(blob, path)
        elif there:
            path.unlink()
            link_file(blob, path)
        sound.add(_inode(blob.lstat()))

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
        sound = {_inode(self._blob(entry.sha256).lstat()) for entry in tree.files.values()}
        return next(self._damages(tree.digest, folder, sound, None), None) is not None

    @contextmanager
    def staging(self, prefix: str, *, work: str | None = None) -> Iterator[Path]:
        with ExitStack() as owned:
            kept = self._staging / f"{prefix}-{work}" if work else None
            with self.translated():
                if kept and owned.enter_context(held_if_free(lock_of(kept))):
                    folder = kept
                else:
                    kept, folder = None, self._staging / f"{prefix}-{uuid.uuid4().hex}"
                    owned.enter_context(held(lock_of(folder)))
            try:
                with self.translated():
                    folder.mkdir(exist_ok=kept is not None)
                yield folder
            finally:
                _remove_staged(folder)

    @contextmanager
    def lasting(self, prefix: str, work: str) -> Iterator[Path]:
        """The one folder in `staging` for this work, waited for while others have it; it stays where the block fails."""
        folder = self._staging / f"{prefix}-{work}"
        with ExitStack() as owned:
            with self.translated():
                owned.enter_context(held(lock_of(folder)))
                try:
                    folder.mkdir(exist_ok=True)
                except OSError:
                    _remove_staged(folder)
                    raise
            yield folder
            _remove_staged(folder)

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

    def digests(self) -> set[str]:
        with self.translated("read"):
            return {f"sha256:{folder.name}" for folder in self._trees.iterdir() if HEX.fullmatch(folder.name)}

    def tree(self, digest: str) -> StoredTree:
        path = self._blob(hex_of(digest))
        try:
            with open_regular(path) as file:
                data = file.read()
        except OSError as error:
            raise StoreError(f"{path}: the manifest of {digest} cannot be read: {error.strerror}") from error
        return read_manifest(data, digest, str(path))

    def blob(self, entry: FileEntry) -> Path | None:
        """The file with these bytes, read again to be sure of them, if the store has it."""
        with suppress(OSError):
            if self._is_sound(entry):
                return self._blob(entry.sha256)
        return None

    def _blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

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
                        sound.add(_inode(path.lstat()))
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
                elif not (_inode(status) in sound and _inode(self._blob(entry.sha256).lstat()) == _inode(status)):
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

    def gc(self, keep: set[str], *, dry_run: bool = False, grace: timedelta = GRACE) -> GcReport:
        staging = self._collect_staging(time.time() - grace.total_seconds(), dry_run)
        if dry_run:
            with self.translated("read"), shared_if_possible(self._lock):
                return self._waste(keep, grace, staging)[0]
        # trees are only renamed while others wait; their files are deleted when `aside` is
        with self.translated(), self._aside("gc") as aside, self._lock.exclusive(WAIT_SECONDS):
            report, trees, blobs = self._waste(keep, grace, staging)
            for tree in trees:  # whole or absent, even if the removal is cut short
                tree.rename(aside / tree.name)
            sync_all([self._trees])  # no tree may come back after a power failure without its manifest
            for blob in blobs:
                blob.unlink()
            if aside == self._staging:
                for tree in trees:
                    shutil.rmtree(aside / tree.name, ignore_errors=True)
        return report

    @contextmanager
    def _aside(self, prefix: str) -> Iterator[Path]:
        """A folder for what is to be removed: `staging` itself where the disk has no room for another one."""
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self.staging(prefix))
            except StoreError as error:
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in FULL:
                    raise
                folder = self._staging
            yield folder

    def _waste(
        self, keep: set[str], grace: timedelta, staging: tuple[str, ...]
    ) -> tuple[GcReport, list[Path], list[Path]]:
        """What a collection reports, and the trees and blobs that it removes."""
        limit = time.time() - grace.total_seconds()
        trees = [path for path in sorted(self._trees.iterdir()) if HEX.fullmatch(path.name)]
        dropped = [tree for tree in trees if f"sha256:{tree.name}" not in keep and self._is_old(tree, limit)]
        needed = self._needed(set(trees) - set(dropped))
        blobs = [blob for blob in self._blobs.glob("*/*") if is_waste(blob, needed, limit)]
        report = GcReport(
            trees=tuple(f"sha256:{tree.name}" for tree in dropped),
            blobs=tuple(sorted(blob.name for blob in blobs)),
            staging=staging,
            bytes=sum(size_of(blob) for blob in blobs),
        )
        return report, dropped, blobs

    def _is_old(self, tree: Path, limit: float) -> bool:
        try:
            if tree.lstat().st_mtime > limit:
                return False
        except FileNotFoundError:  # another one drops or repairs it
            return False
        try:  # a user who may not touch another one's tree touches its manifest
            return self._blob(tree.name).lstat().st_mtime <= limit
        except FileNotFoundError:
            return True

    def _needed(self, trees: Iterable[Path]) -> set[str]:
        needed: set[str] = set()
        for tree in trees:
            try:
                files = self.tree(f"sha256:{tree.name}").files
            except StoreError as error:
                if not os.path.lexists(tree):
                    continue
                raise StoreError(
                    f"nothing was removed, because it is unknown what a tree needs: {error}",
                    hint="run `reccocktail store verify`, and add what is damaged again",
                ) from error
            needed |= {tree.name, *(entry.sha256 for entry in files.values())}
        return needed

    def _collect_staging(self, limit: float, dry_run: bool) -> tuple[str, ...]:
        collected: list[str] = []
        with self.translated():
            for name in sorted({path.name.removesuffix(".lock") for path in self._staging.iterdir()}):
                folder = self._staging / name
                lock = lock_of(folder)
                with suppress(FileNotFoundError):  # its owner has just finished
                    # a version without locks may still be at work in what it made lately
                    lease = abandoned(lock) if lock.exists() else nullcontext(folder.stat().st_mtime <= limit)
                    with lease as free:
                        if free and folder.exists():
                            collected.append(name)
                        if free and not dry_run:
                            shutil.rmtree(folder, ignore_errors=True)
                            lock.unlink(missing_ok=True)
        return tuple(collected)

    @contextmanager
    def translated(self, doing: str = "write to") -> Iterator[None]:
        """Turns what the file system refuses within the block into a StoreError that says what to do about it."""
        try:
            yield
        except OSError as error:
            hint = self._hints.get(error.errno or 0)
            raise StoreError(f"cannot {doing} the store in {self.root}: {error}", hint=hint) from error


def lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_staged(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        lock_of(folder).unlink(missing_ok=True)


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


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a parent may not be searched


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def is_waste(blob: Path, needed: set[str], limit: float) -> bool:
    if blob.name.startswith("."):  # a copy that was cut short: nobody is committing now
        return True
    status = blob.lstat()
    if stat.S_ISDIR(status.st_mode):  # not of our making: `verify` names it
        return False
    return blob.name not in needed and status.st_mtime <= limit


def size_of(path: Path) -> int:
    """In bytes; 0 if it has gone."""
    with suppress(FileNotFoundError):
        return path.lstat().st_size
    return 0


def is_still(folder: Path, before: os.stat_result) -> bool:
    """Whether nobody has moved or replaced it since."""
    with suppress(FileNotFoundError):
        now = folder.lstat()
        return (_inode(now), now.st_ctime_ns) == (_inode(before), before.st_ctime_ns)  # inodes are given out again
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
