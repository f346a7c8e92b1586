"""Who may read and change files: whether a file is the user's own, and folders and files for nobody else."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
OTHERS = 0o077
_WRITE = 0o022


def foreign(path: Path, *, or_root: bool = False) -> str | None:
    """Why somebody else may have written the file, or could; None where it and its folder are this user's alone.

    With `or_root`, the administrator's are as good. Raises OSError.
    """
    if not hasattr(os, "geteuid"):  # Windows
        return None
    trusted = (os.geteuid(), 0) if or_root else (os.geteuid(),)
    for place in (path, path.parent):
        # of a link both: who made it, and who owns what it leads to
        for status in (place.lstat(), place.stat()):
            if status.st_uid not in trusted:
                return f"{place} belongs to another user"
            if not stat.S_ISLNK(status.st_mode) and status.st_mode & _WRITE:
                return f"{place} may be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def private_folder(path: Path) -> None:
    """Makes the folder for this user alone, whatever the umask; one that has something in it stays as it is. Raises OSError."""
    made = False
    with suppress(FileExistsError):  # another process may make it at the same time
        path.mkdir(parents=True)
        made = True
    if not made and any(path.iterdir()):  # NotADirectoryError where it is a file
        return
    with suppress(PermissionError):  # an empty folder of another user
        path.chmod(FOLDER)


def private_file(path: Path) -> None:
    """Makes an empty file for this user alone, whatever the umask; one that is there stays as it is. Raises OSError."""
    with suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE)
        try:
            os.fchmod(handle, FILE)
        finally:
            os.close(handle)


def open_to_others(path: Path) -> str | None:
    """The mode, in octal, of a folder or file that others may read or enter; None where they may not, or nothing is there."""
    with suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & OTHERS:
            return f"{mode:04o}"
    return None
