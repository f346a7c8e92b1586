"""JSON objects that come from outside, read strictly."""

from __future__ import annotations

import json
import re
import reprlib
from pathlib import Path
from typing import Any

from .errors import InvalidArtifactError

LIMIT = 10 << 20

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 200
_shortened.maxlevel = 3


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
    """The JSON object in `data`: UTF-8, no key twice, no half of a character. Raises InvalidArtifactError naming `source`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        if _ESCAPED_SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # fails for a half, which neither files nor databases take
    except UnicodeEncodeError as error:
        raise InvalidArtifactError(f"{source}: is not sound JSON: it has a lone surrogate in a text") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArtifactError(f"{source}: is not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArtifactError(f"{source}: must hold a JSON object, not {type(value).__name__}")
    return value


def shown(value: object) -> str:
    """The value as an error message quotes it: like `repr`, and short whatever it is."""
    return _shortened.repr(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {shown(twice)} appears twice")
    return value
