"""YAML files from outside, read as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..registry.strict_json import regular_bytes
from ..registry.strict_yaml import parse_yaml

LIMIT = 256 << 10  # bytes; five seconds of PyYAML at worst


def read_yaml(path: Path) -> Any:
    """The content of a regular file, by `parse_yaml`. Raises ValueError for what is not YAML, OSError for what cannot be read."""
    return parse_yaml(regular_bytes(path, limit=LIMIT).removeprefix(b"\xef\xbb\xbf"))
