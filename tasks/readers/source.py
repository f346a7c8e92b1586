"""What a reader found in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data import DomainData
from .dataset import Dataset


@dataclass(frozen=True)
class Source:
    """A data set: its format, the file of its interactions, the names of all files of its layout, and how to read it."""

    format: str
    file: Path
    layout: frozenset[str]
    read: Callable[[str, Dataset], DomainData]  # for a domain's name, with what the folder says of itself
