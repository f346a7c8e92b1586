"""The data of a domain that a file names by the digest of a tree of the store, as `export` does of what was uploaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..registry import Registry
from ..store.files import folder_digest
from ..store.trees import is_tree, list_files
from .document import DomainEntry
from .refusals import check_digest, nowhere

_OTHER = "these are other data than the ones that were meant; correct `files`, or write the folder as `data`"
_MISSING = "write in `files` the folder that has them, or as `data` a folder with a data set"


def check_and_bring(
    registry: Registry,
    entry: DomainEntry,
    fields: Mapping[str, str],
    check: Callable[[str, Mapping[str, str]], object],
    *,
    dry_run: bool,
) -> None:
    """Checks what is to be written of the domain, and adds its data to the store where that lacks them.

    Raises NotFoundError where data are nowhere, InvalidArtifactError for others than the digest says, and what `check` raises.
    """
    folder = _lacked(registry, entry) if "data" in fields else None
    if folder is None:
        check(entry.name, fields)
        return
    check(entry.name, {**fields, "data": str(folder)})
    if not dry_run:
        registry.store.add_folder(folder, check=lambda _, digest: _expect(entry, folder, digest))


def _lacked(registry: Registry, entry: DomainEntry) -> Path | None:
    """The folder with the data that the store lacks."""
    if entry.data is None or not is_tree(entry.data) or registry.store.has(entry.data):
        return None
    if entry.files is None or not Path(entry.files).is_dir():
        raise nowhere(entry.files, entry.data, hint=_MISSING)
    folder = Path(entry.files)
    _expect(entry, folder, folder_digest(folder, list_files(folder)))
    return folder


def _expect(entry: DomainEntry, folder: Path, digest: str) -> None:
    check_digest(folder, digest, entry.data, hint=_OTHER)
