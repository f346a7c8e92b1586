"""A store in a local folder.

    blobs/sha256/ab/<hex>   every distinct file once, read-only; the manifests of trees too
    trees/<hex>/…           folders whose files are hard links to blobs; <hex> is the digest of the folder's manifest
    staging/                what is being written; nothing here is ever referred to
    uploads/…               pieces of what arrives at a server, until it is whole
    staging/<name>.lock     held by the process to which staging/<name> belongs
    lock                    shared by those who commit, exclusive to a collection
    repair                  held while a damaged tree is replaced

Bytes are fsynced before they are renamed into place. What is there already is checked before it is relied on.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import StoreError
from .files import open_regular
from .locks import FileLock, StoreLock, held, held_if_free
from .room import FULL, NO_ROOM
from .trees import HEX, StoredTree, hex_of, read_manifest

_RIGHTS = "let this user write there, or set RECCOCKTAIL_STORE_URL to another folder"
_HINTS = {
    **dict.fromkeys(FULL, NO_ROOM),
    errno.ENOLCK: "the file system must support flock; choose another folder as RECCOCKTAIL_STORE_URL",
}


class StoreFolder:
    """The folder that a store is in: where its files lie, its locks, and folders in it to work in."""

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

    def _blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

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


def inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
