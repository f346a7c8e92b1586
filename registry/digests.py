"""SHA-256 over files and over JSON written in one canonical way."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import InvalidArtifactError
from .strict_json import read_object

RACE_SECONDS = 2.0  # within a tick of the file system's clock a file can change without any sign of it


def canonical_json(value: Any) -> bytes:
    """UTF-8, keys sorted, no spaces. Raises ValueError for NaN, infinities and text that is not Unicode."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest_of_json(value: Any) -> str:
    """`sha256:<hex>` of the canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(path: Path | str) -> str:
    """`sha256:<hex>` of the file's bytes."""
    with Path(path).open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_id(path: Path) -> str:
    """The hex SHA-1 by which git names the file's bytes: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    with path.open("rb") as file:
        hashed = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()


class DigestMemory:
    """Digests of large files that are asked for again and again, kept in a folder until a file shows any sign of change.

    The signs are device, inode, size and both times; the change time cannot be set back. A folder that cannot be written
    costs time, nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file_digest(self, path: Path) -> str:
        """As `file_digest`, from memory where it can be."""
        place = os.path.realpath(path)
        note = self._folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"
        signs = stat_fingerprint(place)
        with suppress(InvalidArtifactError, KeyError):
            kept = read_object(note)
            if (kept["path"], kept["signs"]) == (place, signs):
                return str(kept["digest"])
        digest = file_digest(place)
        settled = max(signs[-2:]) < (time.time() - RACE_SECONDS) * 1e9
        if settled and stat_fingerprint(place) == signs:
            with suppress(OSError, ValueError):
                write_whole(note, json.dumps({"path": place, "signs": signs, "digest": digest}))
        return digest


def write_whole(path: Path, text: str) -> None:
    """The file is there with all of the text, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def stat_fingerprint(path: str) -> list[int]:
    seen = os.stat(path)  # noqa: PTH116  the path is text already, and may hold any bytes
    return [seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
