"""Names of files and folders that mean the same file on every system, and show themselves for what they are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from .errors import InvalidArtifactError

PART_LIMIT = 255  # bytes; ext4, XFS, APFS and NTFS take no more

# https://learn.microsoft.com/windows/win32/fileio/naming-a-file: an extension does not make them usable
_RESERVED = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])[ ]*(?:\..*)?", re.IGNORECASE | re.DOTALL
)
_NOT_ON_WINDOWS = frozenset('<>:"|?*')

# Unicode's Default_Ignorable_Code_Points and two blanks that `str.isprintable` lets through: nobody sees them in a name
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def check_file_names(folder: Path, names: Iterable[str]) -> None:
    """Each name by `check_file_name`, and no two of them one file where case or Unicode normalisation do not count.

    `names` are relative to `folder` and have slashes. Raises InvalidArtifactError.
    """
    spelled: dict[str, str] = {}
    for name in names:
        check_file_name(folder, name)
        parts = name.split("/")
        for path in ("/".join(parts[:end]) for end in range(1, len(parts) + 1)):
            other = spelled.setdefault(_folded(path), path)
            if other != path:
                raise InvalidArtifactError(
                    f"{folder}: {other!a} and {path!a} differ only in case or Unicode normalisation;"
                    " on other file systems they are one",
                    hint="rename one of them",
                )


def check_file_name(folder: Path, name: str) -> None:
    """Raises InvalidArtifactError for a name that leads elsewhere, hides something or cannot exist on another system."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name:
        raise _refused(folder, name, "is not a plain relative path")
    if not name.isprintable():
        raise _refused(folder, name, "has control characters, invisible characters, or is not UTF-8")
    if hidden := _INVISIBLE.search(name):
        raise _refused(folder, name, f"has the invisible character U+{ord(hidden[0]):04X}")
    for part in parts:
        if len(part.encode()) > PART_LIMIT:
            raise _refused(folder, name, f"has a part of {len(part.encode())} bytes, over the limit of {PART_LIMIT}")
        if is_reserved(part):
            raise _refused(folder, name, f"has the part {part!r}, which is reserved on Windows")
        if strange := sorted(_NOT_ON_WINDOWS.intersection(part)):
            raise _refused(folder, name, f"has {strange[0]!r}, which no file name on Windows may have")
        if part.endswith((".", " ")):
            raise _refused(folder, name, f"has the part {part!r}, whose last character Windows drops")


def is_reserved(part: str) -> bool:
    """Whether Windows takes the name for a device: `con`, `NUL.txt`, `com1`."""
    return _RESERVED.fullmatch(part) is not None


def _folded(path: str) -> str:
    # canonical caseless matching, Unicode 3.13 D145
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _refused(folder: Path, name: str, reason: str) -> InvalidArtifactError:
    quoted = ascii(name) if len(name) <= PART_LIMIT else f"{name[:PART_LIMIT]!a}…"
    return InvalidArtifactError(f"{folder}: the file name {quoted} {reason}", hint="rename it")
