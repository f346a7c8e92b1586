"""What arrives in pieces and is no tree yet: small objects by key, in the store, so that every server on it finds them.

    uploads/<key>   of a local store a file, of a bucket an object

Nothing of the store refers to them, and a collection leaves them alone: who writes them removes them.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..ownership import FOLDER
from .bucket import Bucket, ObjectInfo
from .layout import StoreFolder

UPLOADS = "uploads"
CHUNK = 1 << 20


class Pieces(ABC):
    """Keys are relative paths with `/`, made by whoever writes, and never what somebody sent. Every method raises StoreError."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Whole or not at all; what was there under the key is replaced."""

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """All of a small one, or None if it is not there."""

    @abstractmethod
    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """Its `size` bytes, in order."""

    @abstractmethod
    def find(self, prefix: str = "") -> dict[str, ObjectInfo]:
        """All below a prefix that ends in `/`, or all, by key."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Those that are there."""


class FolderPieces(Pieces):
    """For this user alone: what is in them was not checked by anybody."""

    def __init__(self, store: StoreFolder) -> None:
        self._store, self._root = store, store.root / UPLOADS

    def write(self, key: str, data: bytes) -> None:
        path = self._root / key
        with self._store.translated():
            for folder in reversed([each for each in path.parents if each.is_relative_to(self._root)]):
                folder.mkdir(FOLDER, exist_ok=True)
            half = path.with_name(f".{uuid.uuid4().hex}")
            try:
                half.write_bytes(data)
                half.replace(path)
            except BaseException:
                half.unlink(missing_ok=True)
                raise

    def read(self, key: str) -> bytes | None:
        with self._store.translated("read"):
            try:
                return (self._root / key).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        with self._store.translated("read"), (self._root / key).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def find(self, prefix: str = "") -> dict[str, ObjectInfo]:
        found = {}
        with self._store.translated("read"):
            for path in (self._root / prefix).rglob("*"):
                with suppress(FileNotFoundError):  # it went meanwhile
                    if not path.name.startswith(".") and path.is_file():
                        about = path.stat()
                        found[path.relative_to(self._root).as_posix()] = ObjectInfo(about.st_size, about.st_mtime)
        return found

    def delete(self, keys: Iterable[str]) -> None:
        with self._store.translated():
            for path in (self._root / key for key in keys):
                path.unlink(missing_ok=True)
                self._remove_empty(path.parent)

    def _remove_empty(self, folder: Path) -> None:
        with suppress(OSError):  # something is in it
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent


class BucketPieces(Pieces):
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def write(self, key: str, data: bytes) -> None:
        self._bucket.write(f"{UPLOADS}/{key}", data)

    def read(self, key: str) -> bytes | None:
        return self._bucket.read(f"{UPLOADS}/{key}")

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        return self._bucket.chunks(f"{UPLOADS}/{key}", size)

    def find(self, prefix: str = "") -> dict[str, ObjectInfo]:
        found = self._bucket.find(f"{UPLOADS}/{prefix}")
        return {key.removeprefix(f"{UPLOADS}/"): about for key, about in found.items()}

    def delete(self, keys: Iterable[str]) -> None:
        self._bucket.delete(f"{UPLOADS}/{key}" for key in keys)
