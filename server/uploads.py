"""Uploads: folders that arrive piece by piece, and are checked against the digests that were announced before anything reads them.

They lie in the home of the instance that takes them, `uploads/ID/`, in a folder of its own beside a note of what was announced. What was not
touched for a day is removed when the next upload begins.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..registry.digests import digest_of_json
from ..registry.errors import ConflictError, InvalidArtifactError, NotFoundError, StoreError
from ..registry.filenames import check_file_names
from ..registry.ownership import private_folder
from .errors import TooLargeError

LARGEST = 64 * 2**30  # bytes of one upload
MOST_FILES = 1000
KEPT_SECONDS = 24 * 3600
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class AnnouncedFile:
    """A file that is to come: its path, bytes and hex SHA-256."""

    path: str
    bytes: int
    sha256: str


class Uploads:
    """Of one instance. Whoever began an upload alone may go on with it."""

    def __init__(self, folder: Path, *, largest: int = LARGEST) -> None:
        self._folder, self._largest = folder, largest

    def begin(self, actor: str, files: Sequence[AnnouncedFile]) -> dict[str, Any]:
        """Raises TooLargeError, InvalidArtifactError for paths that no folder of ours may have."""
        total = sum(each.bytes for each in files)
        if total > self._largest or len(files) > MOST_FILES:
            raise TooLargeError(
                f"{len(files)} files of {total} bytes are too much", hint=f"{MOST_FILES} files, {self._largest} bytes"
            )
        check_file_names(Path("upload"), [each.path for each in files])
        private_folder(self._folder)
        self._remove_abandoned()
        place = self._folder / secrets.token_hex(16)
        private_folder(place)
        (place / "files").mkdir()
        (place / "announced.json").write_text(json.dumps({"actor": actor, "files": [asdict(each) for each in files]}))
        return self.state(place.name, actor)

    def state(self, id_: str, actor: str) -> dict[str, Any]:
        """How many bytes of each file are there. Raises NotFoundError."""
        place, files = self._found(id_, actor)
        known = [asdict(each) | {"received": _size(place / "files" / each.path)} for each in files]
        return {"id": id_, "files": known, "complete": all(each["received"] == each["bytes"] for each in known)}

    def write(self, id_: str, actor: str, path: str, offset: int, data: bytes) -> dict[str, Any]:
        """A piece of a file. The same piece again changes nothing. Raises ConflictError where it would leave a gap, or is too long."""
        place, files = self._found(id_, actor)
        file = next((each for each in files if each.path == path), None)
        if file is None:
            raise NotFoundError(f"{path!r} was not announced for this upload")
        target = place / "files" / path
        there = _size(target)
        if offset > there:
            raise ConflictError(
                f"{there} bytes of {path} are there, and none can be written at {offset}", hint=f"offset {there}"
            )
        if offset + len(data) > file.bytes:
            raise ConflictError(f"{path} was announced with {file.bytes} bytes, and would have {offset + len(data)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("r+b" if target.exists() else "wb") as opened:
            opened.seek(offset)
            opened.write(data)
        return self.state(id_, actor)

    def complete(self, id_: str, actor: str) -> Path:
        """The folder, once all its bytes are those that were announced. Raises ConflictError, InvalidArtifactError."""
        place, files = self._found(id_, actor)
        for file in files:
            target = place / "files" / file.path
            if (there := _size(target)) != file.bytes:
                raise ConflictError(f"{there} of {file.bytes} bytes of {file.path} are there", hint="send the rest")
            with target.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != file.sha256:
                raise InvalidArtifactError(
                    f"{file.path} has the SHA-256 {found}, and {file.sha256} was announced", hint="begin a new upload"
                )
        return place / "files"

    def keep(self, id_: str, actor: str, folder: Path) -> Path:
        """Moves the files of a complete upload into a folder of their own below `folder`, named by what they are; equal ones are there once."""
        place, files = self._found(id_, actor)
        said = sorted((each.path, each.sha256) for each in files)
        target = folder / digest_of_json(said).removeprefix("sha256:")[:32]
        private_folder(folder)
        with suppress(OSError):  # it is there already
            (place / "files").rename(target)
        if not target.is_dir():
            raise StoreError(f"{target} cannot be made", hint="is there room, and may the server write there?")
        shutil.rmtree(place, ignore_errors=True)
        return target

    def remove(self, id_: str, actor: str) -> None:
        """Raises NotFoundError."""
        place, _ = self._found(id_, actor)
        shutil.rmtree(place, ignore_errors=True)

    def _found(self, id_: str, actor: str) -> tuple[Path, list[AnnouncedFile]]:
        place = self._folder / id_
        if _ID.fullmatch(id_):
            with suppress(OSError, ValueError, KeyError, TypeError):
                said = json.loads((place / "announced.json").read_text())
                if said["actor"] == actor:
                    return place, [AnnouncedFile(**each) for each in said["files"]]
        raise NotFoundError(f"there is no upload {id_!r} of {actor}", hint="POST /api/v1/uploads begins one")

    def _remove_abandoned(self) -> None:
        for place in self._folder.iterdir():
            with suppress(OSError):
                newest = max(each.stat().st_mtime for each in (place, *place.rglob("*")))
                if time.time() - newest > KEPT_SECONDS:
                    shutil.rmtree(place, ignore_errors=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
