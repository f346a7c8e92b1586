"""YAML files from outside, read as plain values."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from ..registry.strict_yaml import parse_yaml

LIMIT = 256 << 10  # bytes; five seconds of PyYAML at worst


def read_yaml(path: Path) -> Any:
    """The content of a regular file, by `parse_yaml`. Raises ValueError for what is not YAML, OSError for what cannot be read."""
    # a pipe without a writer would be waited for
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError(f"it is larger than the {LIMIT} bytes that are allowed here")
    return parse_yaml(data.removeprefix(b"\xef\xbb\xbf"))
