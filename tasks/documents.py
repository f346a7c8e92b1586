"""YAML files from outside, read as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> Any:
    """The file's content. Raises ValueError for what is not YAML, OSError for what cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # the safe loader's own errors, and those of the types that a tag or a date asks for
        raise ValueError(str(error) or type(error).__name__) from error
