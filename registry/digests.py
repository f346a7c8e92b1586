"""SHA-256 over files and over JSON written in one canonical way."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import InvalidArtifactError
from .store.atomic import write_whole
from .strict_json import OWN_LIMIT, read_object

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
    """Digests of large files and of folders that are needed again and again, kept in `folder` until a file shows any sign of change.

    The signs are device, inode, size and both times; the change time cannot be set back. A memory that cannot be written
    costs time, nothing else. `about` is what else the digests depend on.
    """

    def __init__(self, folder: Path, **about: object) -> None:
        self._folder, self._about = folder, about

    def file_digest(self, path: Path) -> str:
        """As `file_digest`, from memory where it can be."""
        place = Path(os.path.realpath(path))
        return self.digest(place, lambda: file_digest(place))

    def digest(self, path: Path, compute: Callable[[], str]) -> str:
        """The digest of a file or of a flat folder, from memory where it can be. Raises what `compute` raises."""
        place = os.path.realpath(path)
        note = self._folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"
        signs = stat_fingerprint(place)
        about = self._about | {"path": place, "signs": signs}
        with suppress(InvalidArtifactError, OSError):
            kept = _note(note, *_signs(note.stat()))
            if signs and kept == about | {"digest": kept.get("digest")}:
                return str(kept["digest"])
        digest = compute()
        settled = all(max(seen[-2:]) < (time.time() - RACE_SECONDS) * 1e9 for seen in signs.values())
        if signs and settled and stat_fingerprint(place) == signs:
            with suppress(OSError, ValueError):
                write_whole(note, json.dumps(about | {"digest": digest}))
        return digest


@lru_cache(maxsize=5_000)
def _note(path: Path, *_: int) -> dict[str, Any]:
    """What a note says that has these signs; a process that asks again and again reads it once."""
    return read_object(path, limit=OWN_LIMIT)


def stat_fingerprint(path: str) -> dict[str, list[int]]:
    """Device, inode, size and times, where a change shows: of a file, or of every entry of a folder by its name. Empty if not visible."""
    try:
        seen = os.stat(path)  # noqa: PTH116  the path is text already, and may hold any bytes
        if not stat.S_ISDIR(seen.st_mode):
            return {"": _signs(seen)}
        with os.scandir(path) as entries:
            return {entry.name: _signs(entry.stat()) for entry in sorted(entries, key=lambda entry: entry.name)}
    except OSError:
        return {}


def _signs(seen: os.stat_result) -> list[int]:
    return [seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
