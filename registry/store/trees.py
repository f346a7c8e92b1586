"""Folders as the store knows them: the files by relative path, and the manifest whose SHA-256 is the folder's digest."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..digests import canonical_json
from ..errors import InvalidArtifactError, StoreError
from ..filenames import check_file_names
from ..strict_json import parse_object
from .links import HINT

HEX = re.compile(r"[0-9a-f]{64}")


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


def write_manifest(files: Mapping[str, FileEntry]) -> tuple[StoredTree, bytes]:
    """The tree of these files, and its manifest: the canonical JSON of `{path: {"bytes": n, "sha256": hex}}`.

    Raises InvalidArtifactError where there is no file at all.
    """
    if not files:
        raise InvalidArtifactError("a folder without files cannot be stored")
    manifest = canonical_json({name: asdict(entry) for name, entry in files.items()})
    return StoredTree(f"sha256:{hashlib.sha256(manifest).hexdigest()}", files), manifest


def read_manifest(data: bytes, digest: str, source: str) -> StoredTree:
    """The tree whose manifest was found at `source`. Raises StoreError if it is not the one that `digest` names.

    A manifest may have been put into a shared store by anyone: names that lead out of the tree are refused here too.
    """
    if hashlib.sha256(data).hexdigest() != hex_of(digest):
        raise StoreError(f"{source}: the manifest of {digest} does not match its digest")
    files: dict[str, FileEntry] = {}
    try:
        for name, entry in parse_object(data, Path(source)).items():
            files[name] = FileEntry(**entry)
            parts = name.split("/")
            if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
                raise StoreError(
                    f"{source}: the manifest of {digest} names {name!a}, which is not a plain relative path"
                )
            if not HEX.fullmatch(files[name].sha256) or type(files[name].bytes) is not int or files[name].bytes < 0:
                raise TypeError(name)
    except (InvalidArtifactError, TypeError) as error:
        raise StoreError(f"{source}: the manifest of {digest} is malformed: {error}") from error
    return StoredTree(digest, files)


def hex_of(digest: str) -> str:
    """The digest without `sha256:`. Raises StoreError for what is not a digest."""
    if not HEX.fullmatch(digest.removeprefix("sha256:")) or not digest.startswith("sha256:"):
        raise StoreError(f"{digest!r} is not a digest of the form sha256:<64 hex digits>")
    return digest.removeprefix("sha256:")


def is_tree(text: str) -> bool:
    """Whether it is a digest of the form that trees have."""
    return text.startswith("sha256:") and HEX.fullmatch(text.removeprefix("sha256:")) is not None


def list_files(folder: Path) -> list[str]:
    """All that is not a folder, and links to folders, by relative path. Raises InvalidArtifactError."""
    if not folder.is_dir():
        raise InvalidArtifactError(f"{folder}: is not a folder")
    names: list[str] = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        path = Path(place)
        links = (name for name in folders if (path / name).is_symlink())
        names += ((path / name).relative_to(folder).as_posix() for name in (*files, *links))
    return sorted(names)


def checked_files(folder: Path, names: Iterable[str], *, allow_links: bool) -> list[tuple[str, Path]]:
    """The files to read by name, all of them harmless: see `check_file_names`. Raises InvalidArtifactError.

    Unless links are allowed, no part of a path is one; a link to a folder is never followed.
    """
    names = list(names)
    check_file_names(folder, names)
    return [(name, _checked(folder, name, allow_links)) for name in names]


def _checked(folder: Path, name: str, allow_links: bool) -> Path:
    path = folder / name
    parts = name.split("/")
    links = [p for p in (folder / "/".join(parts[: i + 1]) for i in range(len(parts))) if p.is_symlink()]
    if links and not allow_links:
        raise InvalidArtifactError(f"{links[0]}: is a link; only regular files are stored", hint=HINT)
    if any(link != path for link in links):
        raise InvalidArtifactError(f"{links[0]}: is a link to a folder, which is never followed")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise InvalidArtifactError(f"{path}: is not a regular file")
    return path


def _refuse(error: OSError) -> None:
    raise InvalidArtifactError(f"{error.filename}: cannot be listed: {error.strerror}") from error
