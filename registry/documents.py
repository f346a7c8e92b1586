"""JSON objects that come from outside, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import InvalidArtifactError

LIMIT = 10 << 20


def read_object(path: Path, *, limit: int = LIMIT) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. Raises InvalidArtifactError naming the file."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InvalidArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise InvalidArtifactError(f"{path}: is larger than the {limit} bytes that are allowed here")
    return parse_object(data, path)


def parse_object(data: bytes, source: Path) -> dict[str, Any]:
    """The JSON object in `data`: UTF-8, no key twice. Raises InvalidArtifactError naming `source`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidArtifactError(f"{source}: is not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArtifactError(f"{source}: must hold a JSON object, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return value
