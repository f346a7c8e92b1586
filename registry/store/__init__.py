"""The artifact store: folders of files addressed by their content, in a folder or in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ..errors import StoreError

if TYPE_CHECKING:
    from .contract import Store
    from .locks import StoreLock


def create_store(
    url: str | Path, *, cache: Path | None = None, cache_limit: int = 0, lock: StoreLock | None = None
) -> Store:
    """Creates what is missing of the store at a folder, `file://…`, or `s3://bucket/prefix` and the like, and opens it.

    An object store keeps its copies on this machine in `cache`, created when something is first stored or fetched. The least
    recently used copies are removed when they take more than `cache_limit` bytes; 0 means no limit. `lock` must be one for all
    users of the store; by default it is a file in the store's folder or, for an object store, in `cache`: enough for one machine.
    Raises StoreError.
    """
    store = _store_at(url, cache, cache_limit, lock)
    store.initialise()
    return store


def open_store(
    url: str | Path, *, cache: Path | None = None, cache_limit: int = 0, lock: StoreLock | None = None
) -> Store:
    """As `create_store`, but raises StoreError if there is no store: an unmounted disk must not look like an empty one."""
    store = _store_at(url, cache, cache_limit, lock)
    store.require()
    return store


def _store_at(url: str | Path, cache: Path | None, cache_limit: int, lock: StoreLock | None) -> Store:
    scheme, separator, rest = str(url).partition("://")
    if not separator or scheme == "file":
        from .local import LocalStore

        return LocalStore(_local_folder(str(url)), lock=lock)
    from .remote import ObjectStore

    return ObjectStore(scheme, rest, cache=cache, cache_limit=cache_limit, lock=lock)


def _local_folder(text: str) -> Path:
    if not text.startswith("file://"):
        return Path(text).absolute()
    path = text.removeprefix("file://").removeprefix("localhost")
    if not path.startswith("/"):
        raise StoreError(
            "the store's file:// URL names another machine", hint="write file:///absolute/folder, or just the folder"
        )
    return Path(unquote(path))
