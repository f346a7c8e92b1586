"""What an object store keeps on this machine: a local store with a limit, in which nothing goes that is in use.

    pins/<hex>              held by those who use the tree; changed when it was last given out
    staging/fetch-<hex>/    a tree on its way here; one process fetches it, the others wait; after a crash the next one resumes
    room                    held by the process that makes room

The process that makes room removes a tree only while it alone has its pin, and never waits for that.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import timedelta
from itertools import chain
from math import inf
from pathlib import Path

from ..errors import StoreError
from .contract import GRACE, WAIT_SECONDS, GcReport
from .files import hash_file, link_file
from .garbage import is_waste, size_of
from .layout import lock_of
from .local import DISCARD, LocalStore, is_still
from .locks import abandoned, held
from .pins import Pins
from .trees import FileEntry, StoredTree, hex_of, write_manifest

_FETCH = "fetch"

_log = logging.getLogger(__name__)


class Cache(LocalStore):
    """Takes at most `limit` bytes, 0 for any number, unless more is in use. May be thrown away while nothing runs."""

    def __init__(self, root: Path, limit: int = 0) -> None:
        super().__init__(root, rights=f"let this user write to the store's cache on this machine, {root}")
        self._hints |= dict.fromkeys(
            (errno.ENOSPC, errno.EDQUOT), "free some space, or set a smaller RECCOCKTAIL_CACHE_LIMIT"
        )
        self.limit = limit
        self._pins = Pins(root / "pins")

    def bytes(self) -> int:
        """Of all files here, each once, and of what comes or goes; not of what is being built. Raises StoreError."""
        with self.translated("read"):
            # a folder may go while it is walked through: its fetch is done
            walks = (walk for folder in self._moving() for walk in os.walk(folder))
            moving = (Path(place, name) for place, _, names in walks for name in names)
            sizes: dict[tuple[int, int], int] = {}
            for path in chain(self._blobs.glob("*/*"), moving):
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    sizes[status.st_dev, status.st_ino] = status.st_size
            return sum(sizes.values())

    # in use

    @contextmanager
    def using(self) -> Iterator[None]:
        outermost = False
        try:
            with self._pins.block() as outermost:
                yield
        finally:
            if outermost:
                self._trim()

    @contextmanager
    def pinned(self, digest: str) -> Iterator[None]:
        """In use from now on, unless the block fails. Raises StoreError."""
        with self.translated(), self._pins.pinned(hex_of(digest)):
            yield

    def hold(self, digest: str, until: ExitStack) -> None:
        """In use until `until` closes, in whatever thread, whatever blocks end before. Raises StoreError."""
        name = hex_of(digest)
        with self.translated():
            self._pins.hold(name)
        until.callback(self._trim)
        until.callback(self._pins.let_go, name)

    def take(self, digest: str) -> Path | None:
        """The tree's folder, in use from now on; None if it is not here. Raises StoreError."""
        if self.local(digest) is None:
            return None
        with suppress(_GoneError), self.pinned(digest):
            folder = self.local(digest)
            if folder is None:
                raise _GoneError  # dropped just before
            return folder
        return None

    def commit(self, staged: Path, entries: Mapping[str, FileEntry]) -> StoredTree:
        """As for every store; what was put in is in use, and makes room for itself."""
        with self.pinned(write_manifest(entries)[0].digest):
            tree = super().commit(staged, entries)
        self._trim()
        return tree

    # on its way here

    def fetching(self, digest: str) -> AbstractContextManager[Path]:
        """Where the tree is fetched to, by one at a time: what was fetched before stays there when the block fails."""
        return self.lasting(_FETCH, hex_of(digest))

    def clear(self, staged: Path, keep: Collection[Path]) -> None:
        """Removes what a process left in the folder that was killed in the middle of something else."""
        for place, _, files in os.walk(staged):
            for path in {Path(place) / name for name in files} - set(keep):
                path.unlink()

    def find(self, entry: FileEntry, target: Path) -> bool:
        """Whether the file is there, or was and is linked now; it is read again to be sure of it. Raises StoreError."""
        with self.translated():
            with suppress(FileNotFoundError):
                status = target.lstat()
                if status.st_size == entry.bytes and hash_file(target) == entry:
                    if status.st_mode & 0o777 != 0o444:
                        target.chmod(0o444)
                    return True
                target.unlink()
            kept = self.blob(entry)
            if kept is None:
                return False
            try:
                link_file(kept, target)
            except FileNotFoundError:  # dropped just now
                return False
            return True

    # what goes

    def discard_damaged(self, digest: str) -> None:
        """Takes the tree away if it is damaged, even from those who use it; not what came in its place. Raises StoreError."""
        folder = self._trees / hex_of(digest)
        with self.translated(), self._pins.held(folder.name), suppress(FileNotFoundError):
            before = folder.lstat()
            if self._damages_of(folder, set()):
                with self._repair.exclusive(WAIT_SECONDS):
                    if is_still(folder, before):
                        self.discard(digest)

    def make_room(self, wanted: Collection[FileEntry] = (), *, missing: int = 0) -> None:
        """Drops what was used longest ago until `missing` more bytes fit, or all the rest is in use. Raises StoreError.

        Files that are `wanted` stay even if no tree here needs them.
        """
        if not self.limit or not self.exists():
            return
        # one at a time: what one takes away must not look as if it were in use to another
        with self.translated(), held(self.root / "room"):
            if self._excess(missing) <= 0:
                return
            self._drop_abandoned()
            needs = {name: self._needs(name) for name in self._names()}
            for name in [name for name, needed in needs.items() if not needed]:
                del needs[name]
                self._drop(name)  # its manifest is damaged: it is of no use, and nobody knows what it takes
            self._sweep(wanted)
            excess = self._excess(missing)
            users = Counter(entry for needed in needs.values() for entry in needed)
            users.update(set(wanted))
            for name in sorted(needs, key=self._last_use):
                if excess <= 0:
                    break
                if self._drop(name):
                    users.subtract(needs[name])
                    excess -= sum(entry.bytes for entry in needs[name] if not users[entry])
            self._sweep(wanted)

    def gc(self, keep: set[str], *, dry_run: bool = False, grace: timedelta = GRACE) -> GcReport:
        """As for every store, but what is in use stays."""
        report = super().gc(keep, dry_run=True, grace=grace)
        if dry_run:
            return report
        limit = time.time() - grace.total_seconds()
        with self.translated(), held(self.root / "room"):
            dropped = tuple(digest for digest in report.trees if self._drop(hex_of(digest)))
            for name in self._pins.names() - self._names():
                with self._pins.free(name):  # of a tree that never came, or went otherwise
                    pass
            swept = self._sweep(older=limit)
            return GcReport(dropped, tuple(sorted(swept)), self._collect_staging(limit, dry_run), sum(swept.values()))

    def _trim(self) -> None:
        try:
            self.make_room()
        except StoreError as error:  # what came in is there, and processes that wait for it can use it
            _log.warning("the cache is left above its limit: %s%s", error, f" ({error.hint})" if error.hint else "")

    def _drop(self, name: str) -> bool:
        """Whether it was not in use, and could be dropped."""
        with self._pins.free(name) as free:
            if free:
                try:
                    self.discard(f"sha256:{name}")
                except StoreError as error:
                    if isinstance(error.__cause__, PermissionError):  # another user's
                        return False
                    raise
            return free

    def _drop_abandoned(self) -> None:
        """What processes left that died or gave up: a fetch could resume from there, but room is needed."""
        for folder in self._moving():
            lock = lock_of(folder)
            with suppress(FileNotFoundError), abandoned(lock) as free:
                if free:
                    shutil.rmtree(folder, ignore_errors=True)
                    lock.unlink(missing_ok=True)

    def _sweep(self, wanted: Collection[FileEntry] = (), *, older: float = inf) -> dict[str, int]:
        """Removes files that neither a tree needs nor anybody wants, and says their sizes.

        However young they are: what relies on one has its own link to it.
        """
        with self._lock.exclusive(WAIT_SECONDS):
            needed = {entry.sha256 for name in self._names() for entry in self._needs(name)}
            needed |= {entry.sha256 for entry in wanted}
            waste = [blob for blob in self._blobs.glob("*/*") if is_waste(blob, needed, older)]
            swept = {blob.name: size_of(blob) for blob in waste}
            for blob in waste:
                blob.unlink()
        return swept

    def _excess(self, missing: int) -> int:
        return self.bytes() + missing - self.limit

    def _moving(self) -> list[Path]:
        """The folders of trees that come or go."""
        return [path for way in (_FETCH, DISCARD) for path in self._staging.glob(f"{way}-*") if path.suffix != ".lock"]

    def _names(self) -> set[str]:
        return {hex_of(digest) for digest in self.digests()}

    def _needs(self, name: str) -> set[FileEntry]:
        """The tree's files and its manifest; nothing if that cannot be read."""
        with suppress(StoreError, FileNotFoundError):
            tree = self.tree(f"sha256:{name}")
            return {*tree.files.values(), FileEntry(name, self._blob(name).lstat().st_size)}
        return set()

    def _last_use(self, name: str) -> int:
        last = self._pins.last_use(name)
        if last is None:
            with suppress(FileNotFoundError):
                last = (self._trees / name).stat().st_mtime_ns
        return last or 0


class _GoneError(Exception):
    """A tree went before it could be pinned."""
