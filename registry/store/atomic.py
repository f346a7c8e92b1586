"""Files that are written as a whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from ..ownership import FILE
from .locks import abandoned, is_named


def write_whole(path: Path, text: str, *, durable: bool = False) -> None:
    """Writes the file as a whole: afterwards it has all of the text, or what it had before.

    What killed processes left half-written beside it is removed. With `durable`, the text is on the disk before the file takes
    its name, so that a power cut cannot leave an empty file. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    half, handle = _own_file(path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            half.replace(path)  # while it is locked
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def _own_file(folder: Path) -> tuple[Path, int]:
    """A new hidden file, locked for as long as this process has it open. Raises OSError."""
    while True:
        path = folder / f".{uuid.uuid4().hex}.tmp"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE)
        with suppress(OSError):  # a file system without locks: nobody takes it for abandoned there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if is_named(handle, path):  # and was not removed before it was locked
            return path, handle
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
            with suppress(OSError), abandoned(path) as free:  # another one removed it, or it is not ours to remove
                if free:
                    path.unlink()
