"""Uploads: folders that arrive piece by piece, and are checked against the digests that were announced before anything reads them.

The pieces lie in the store, `uploads/ID/FILE/OFFSET-BYTES` beside a note of what was announced, so that any instance on that store takes the
next one. What was not touched for a day is removed when the next upload begins.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..registry import Store
from ..registry.errors import ConflictError, InvalidArtifactError, NotFoundError
from ..registry.filenames import check_file_names
from .errors import TooLargeError
from .security import CHUNK_LIMIT

LARGEST = 64 * 2**30  # bytes of one upload
MOST_FILES = 1000
MOST_PIECES = 20_000
KEPT_SECONDS = 24 * 3600
NOTE = "announced.json"
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class AnnouncedFile:
    """A file that is to come: its path, bytes and hex SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, order=True)
class _Piece:
    """`count` bytes of a file from `offset` on. Of those that begin at one place the longest comes first."""

    file: int
    offset: int
    minus_count: int

    @classmethod
    def of(cls, key: str) -> _Piece:
        """By its key, without the upload's id."""
        file, _, place = key.partition("/")
        offset, _, count = place.partition("-")
        return cls(int(file), int(offset), -int(count))

    @property
    def key(self) -> str:
        return f"{self.file}/{self.offset:015d}-{self.count}"

    @property
    def count(self) -> int:
        return -self.minus_count


@dataclass(frozen=True)
class _Upload:
    """What was announced, and what is there."""

    id: str
    files: Sequence[AnnouncedFile]
    pieces: Sequence[_Piece]

    def received(self, number: int) -> int:
        """The bytes of a file that are there without a gap."""
        there = 0
        for piece in sorted(each for each in self.pieces if each.file == number):
            if piece.offset <= there:
                there = max(there, piece.offset + piece.count)
        return there

    def to_json(self) -> dict[str, Any]:
        known = [asdict(each) | {"received": self.received(number)} for number, each in enumerate(self.files)]
        return {"id": self.id, "files": known, "complete": all(each["received"] == each["bytes"] for each in known)}


class Uploads:
    """Of all instances on one store. Whoever began an upload alone may go on with it. Everything raises StoreError."""

    def __init__(self, store: Store, *, largest: int = LARGEST) -> None:
        self._store, self._pieces, self._largest = store, store.pieces(), largest

    def begin(self, actor: str, files: Sequence[AnnouncedFile]) -> dict[str, Any]:
        """Raises TooLargeError, InvalidArtifactError for paths that no folder of ours may have."""
        total = sum(each.bytes for each in files)
        if total > self._largest or len(files) > MOST_FILES:
            raise TooLargeError(
                f"{len(files)} files of {total} bytes are too much", hint=f"{MOST_FILES} files, {self._largest} bytes"
            )
        check_file_names(Path("upload"), [each.path for each in files])
        self._remove_abandoned()
        id_ = secrets.token_hex(16)
        said = {"actor": actor, "files": [asdict(each) for each in files]}
        self._pieces.write(f"{id_}/{NOTE}", json.dumps(said).encode())
        return _Upload(id_, files, ()).to_json()

    def state(self, id_: str, actor: str) -> dict[str, Any]:
        """How many bytes of each file are there. Raises NotFoundError."""
        return self._found(id_, actor).to_json()

    def write(self, id_: str, actor: str, path: str, offset: int, data: bytes) -> dict[str, Any]:
        """A piece of a file. The same piece again changes nothing. Raises ConflictError where it would leave a gap, or is too long."""
        upload = self._found(id_, actor)
        number = next((n for n, each in enumerate(upload.files) if each.path == path), None)
        if number is None:
            raise NotFoundError(f"{path!r} was not announced for this upload")
        file, there = upload.files[number], upload.received(number)
        if offset > there:
            raise ConflictError(
                f"{there} bytes of {path} are there, and none can be written at {offset}", hint=f"offset {there}"
            )
        if offset + len(data) > file.bytes:
            raise ConflictError(f"{path} was announced with {file.bytes} bytes, and would have {offset + len(data)}")
        if not data:
            return upload.to_json()
        piece = _Piece(number, offset, -len(data))
        _expect_room(upload, piece)
        self._pieces.write(f"{id_}/{piece.key}", data)
        return _Upload(id_, upload.files, (*upload.pieces, piece)).to_json()

    @contextmanager
    def folder(self, id_: str, actor: str) -> Iterator[Path]:
        """The files on this machine for as long as the block lasts, once all their bytes are those that were announced.

        Raises ConflictError, InvalidArtifactError.
        """
        upload = self._found(id_, actor)
        with self._store.staging("upload") as folder:
            self._assemble(upload, folder)
            yield folder

    def remove(self, id_: str, actor: str) -> None:
        """Raises NotFoundError."""
        self._found(id_, actor)
        self._pieces.delete(self._pieces.find(f"{id_}/"))

    def _assemble(self, upload: _Upload, folder: Path) -> None:
        for number, file in enumerate(upload.files):
            if (there := upload.received(number)) != file.bytes:
                raise ConflictError(f"{there} of {file.bytes} bytes of {file.path} are there", hint="send the rest")
        for number, file in enumerate(upload.files):
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            hasher = hashlib.sha256()
            with target.open("xb") as opened:
                for chunk in self._bytes(upload, number):
                    hasher.update(chunk)
                    opened.write(chunk)
            if (found := hasher.hexdigest()) != file.sha256:
                raise InvalidArtifactError(
                    f"{file.path} has the SHA-256 {found}, and {file.sha256} was announced", hint="begin a new upload"
                )

    def _bytes(self, upload: _Upload, number: int) -> Iterator[bytes]:
        """Of one file, each place once, though pieces may overlap."""
        there = 0
        for piece in sorted(each for each in upload.pieces if each.file == number):
            skipped = there - piece.offset
            if skipped >= piece.count:
                continue
            there = piece.offset + piece.count
            for chunk in self._pieces.chunks(f"{upload.id}/{piece.key}", piece.count):
                yield chunk[skipped:]
                skipped = max(0, skipped - len(chunk))

    def _found(self, id_: str, actor: str) -> _Upload:
        if _ID.fullmatch(id_) and (note := self._pieces.read(f"{id_}/{NOTE}")) is not None:
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(note)
                if said["actor"] == actor:
                    files = [AnnouncedFile(**each) for each in said["files"]]
                    keys = (key.removeprefix(f"{id_}/") for key in self._pieces.find(f"{id_}/"))
                    return _Upload(id_, files, [_Piece.of(key) for key in keys if key != NOTE])
        raise NotFoundError(
            f"there is no upload {id_!r} of {actor}",
            hint="POST /api/v1/uploads begins one; servers know each other's if they share the store",
        )

    def _remove_abandoned(self) -> None:
        pieces = self._pieces.find()
        newest: dict[str, float] = {}
        for key, about in pieces.items():
            id_ = key.partition("/")[0]
            newest[id_] = max(newest.get(id_, 0.0), about.modified)
        old = {id_ for id_, modified in newest.items() if time.time() - modified > KEPT_SECONDS}
        self._pieces.delete([key for key in pieces if key.partition("/")[0] in old])


def _expect_room(upload: _Upload, piece: _Piece) -> None:
    """Pieces may overlap, since one whose answer was lost is sent again; not without end. Raises TooLargeError."""
    there: Mapping[str, int] = {each.key: each.count for each in (*upload.pieces, piece)}
    announced = sum(each.bytes for each in upload.files)
    if len(there) > MOST_PIECES or sum(there.values()) > 2 * announced + CHUNK_LIMIT:
        raise TooLargeError(
            f"the upload came in {len(there)} pieces of {sum(there.values())} bytes, and has {announced}",
            hint="begin a new one, with larger pieces that do not overlap",
        )
