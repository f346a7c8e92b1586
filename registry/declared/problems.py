"""What is wrong with a file and where: gathered, so that a person sees all of it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

MOST_SHOWN = 20

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Place:
    """Where something stands: its keys from the top, and its line, which is unknown (None) of JSON."""

    path: Path
    line: int | None = None

    def __str__(self) -> str:
        return f"line {self.line}" if self.line is not None else key_of(self.path)


def key_of(path: Path) -> str:
    """`adapters[2].tags` of the keys and numbers that lead to it."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.removeprefix(".")


class Problems:
    def __init__(self, name: str, lines: Mapping[Path, int]) -> None:
        self._name = name
        self._lines = lines
        self._found: list[tuple[int, str]] = []

    @property
    def count(self) -> int:
        return len(self._found)

    def place(self, path: Path) -> Place:
        return Place(path, self._lines.get(path))

    def add(self, path: Path, text: str) -> None:
        line = self._lines.get(path)
        where = "" if line is None else f"line {line}: "
        key = f"{key_of(path)}: " if path else ""
        self._found.append((line or 0, f"{where}{key}{text}"))

    def raise_any(self) -> None:
        """Raises UsageError with what was found, in the order of the file."""
        if not self._found:
            return
        texts = [text for _, text in sorted(self._found, key=lambda problem: problem[0])]
        more = [f"and {len(texts) - MOST_SHOWN} more"] if len(texts) > MOST_SHOWN else []
        listed = "\n".join([*texts[:MOST_SHOWN], *more])
        raise UsageError(f"{self._name}: {listed}", hint="nothing was changed; the keys are in docs/one-file.md")
