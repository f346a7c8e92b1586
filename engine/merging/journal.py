"""What a merge has finished so far, so that a killed one can resume: a note in the folder of the result being made.

A shard is noted when its bytes are on the disk. The notes count only for the inputs they were made from.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...registry.errors import InvalidArtifactError
from ...registry.store.atomic import write_whole
from ...registry.strict_json import OWN_LIMIT, read_object

# Part of every key: raised when the engine would write other bytes for the same inputs.
FORMAT_VERSION = 2
NOTES = ".progress.json"


class Journal:
    """The notes of one result folder; `key` returns the digest of all inputs, which may take a while."""

    def __init__(self, folder: Path, key: Callable[[], str]) -> None:
        self._folder = folder
        self._key = key
        self._lock = threading.Lock()
        self._shards: dict[str, dict] = {}
        with suppress(InvalidArtifactError, OSError, ValueError, TypeError, KeyError, AttributeError):
            content = read_object(folder / NOTES, limit=OWN_LIMIT)
            if content["key"] == key():
                self._shards = {name: note for name, note in content["shards"].items() if self._is_there(name, note)}
        self._start_over_with_the_rest()

    def _is_there(self, name: str, note: dict) -> bool:
        path = self._folder / name
        return name == Path(name).name and path.is_file() and path.stat().st_size == note["bytes"]

    def _start_over_with_the_rest(self) -> None:
        # The notes first: a file that is made anew has its full size at once, and must not pass for one that was noted.
        if self._shards:
            self._write()
        else:
            self.close()
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for path in self._folder.iterdir():
            if path.is_dir():  # of chat templates, which are copied last
                shutil.rmtree(path)
            elif path.name not in self._shards and path.name != NOTES:
                path.unlink()

    def finished(self, file: str) -> dict | None:
        """What was noted of a shard, None for one that is still to be made."""
        return self._shards.get(file)

    def note(self, file: str, content: dict) -> None:
        """The shard is complete and on the disk. `content` is JSON, and is what `finished` gives back."""
        with self._lock:
            self._shards[file] = content | {"bytes": (self._folder / file).stat().st_size}
            self._write()

    def _write(self) -> None:
        content = {"key": self._key(), "shards": self._shards}
        write_whole(self._folder / NOTES, json.dumps(content), durable=True)

    def close(self) -> None:
        """The result is complete: no trace is left of how it came to be."""
        (self._folder / NOTES).unlink(missing_ok=True)
