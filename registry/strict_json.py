"""JSON, YAML and TOML that come from outside, read strictly: bounded in size, depth and numbers, and no key twice.

What cannot be written down again (an alias, a tag, half of a character, an integer of a thousand digits) is refused here,
so that no reader behind it has to expect it. NaN and infinities pass: some models' configurations have them.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import InvalidArtifactError

LIMIT = 10 << 20
OWN_LIMIT = 1 << 30  # of what we write ourselves, which grows with what it is about
WRITTEN_LIMIT = 256 << 10  # of YAML and TOML, which people write; five seconds of their parsers at worst
DEPTH = 64
_LARGEST = 10**100
_DOTS = 256  # in one line of TOML: the parser's time is square in the parts of a dotted key

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 200
_shortened.maxlevel = 3


def read_object(path: Path, *, limit: int = LIMIT) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. Raises InvalidArtifactError naming the file."""
    data = read_bytes(path, limit=limit)
    return _mapping(path, "JSON", lambda: _bounded(_json_value(data), numbers=False))


def read_bytes(path: Path, *, limit: int = LIMIT) -> bytes:
    """As `regular_bytes`, but raises InvalidArtifactError naming the file."""
    try:
        return regular_bytes(path, limit=limit)
    except OSError as error:
        raise InvalidArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArtifactError(f"{path}: {error}") from error


def regular_bytes(path: Path, *, limit: int = LIMIT) -> bytes:
    """The content of a regular file. Raises OSError, and ValueError for another kind of file or more than `limit` bytes."""
    # a pipe without a writer would be waited for
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"is larger than the {limit} bytes that are allowed here")
    return data


def parse_object(data: bytes, source: Path | str) -> dict[str, Any]:
    """The JSON object in `data`: UTF-8, no key twice, no half of a character. Raises InvalidArtifactError naming `source`.

    How deep it is, and how large its numbers are, is for the caller to look at.
    """
    return _mapping(source, "JSON", lambda: _json_value(data))


def parse_mapping(data: bytes, source: Path, *, foreign: bool = False) -> dict[Any, Any]:
    """The mapping in `data`, which is YAML; see `parse_yaml` for `foreign`. Raises InvalidArtifactError naming `source`."""
    from .strict_yaml import parse_yaml  # not at the top: settings are read by every command, and are no YAML

    return _mapping(source, "YAML", lambda: parse_yaml(data, foreign=foreign))


def parse_written(data: bytes, suffix: str) -> Any:
    """What a person wrote as `.json`, as `.toml`, or else as YAML. Raises ValueError."""
    text = data.removeprefix(b"\xef\xbb\xbf")  # some editors begin a file with a byte order mark
    try:
        if suffix == ".json":
            return _bounded(_json_value(text))
        if suffix == ".toml":
            return _bounded(_toml_value(text))
        from .strict_yaml import parse_yaml

        return parse_yaml(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_value(text: str) -> Any:
    """One JSON value, as an option has it. Raises ValueError, also for NaN and infinities."""
    value = parse_written(text.encode(), ".json")
    json.dumps(value, allow_nan=False)
    return value


def _json_value(data: bytes) -> Any:
    value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    if _ESCAPED_SURROGATE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()  # fails for a half, which neither files nor databases take
        except UnicodeEncodeError as error:
            raise ValueError("it has a lone surrogate in a text") from error
    return value


def _toml_value(data: bytes) -> dict[str, Any]:
    text = data.decode("utf-8")
    if any(line.count(".") > _DOTS for line in text.splitlines()):
        raise ValueError(f"a line has more than {_DOTS} dots")
    return tomllib.loads(text)


def _mapping(source: Path | str, language: str, parse: Callable[[], Any]) -> dict[Any, Any]:
    try:
        value = parse()
    except RecursionError as error:
        raise InvalidArtifactError(f"{source}: is not sound {language}: it is nested too deeply") from error
    except ValueError as error:
        raise InvalidArtifactError(f"{source}: is not sound {language}: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        kind = "JSON object" if language == "JSON" else f"{language} mapping"
        raise InvalidArtifactError(f"{source}: must hold a {kind}, not {type(value).__name__}")
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


def _bounded(value: Any, *, numbers: bool = True) -> Any:
    """The value, if it is not deep and, for `numbers`, has no integer beyond every float. Raises ValueError."""
    level = [value]
    for _ in range(DEPTH):
        if numbers and any(isinstance(each, int) and not -_LARGEST < each < _LARGEST for each in level):
            raise ValueError("an integer has more than 100 digits")
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than {DEPTH} levels")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
