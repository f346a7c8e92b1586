"""How `status` fits a screen: remarks that say the same of many domains, and domains that stand alike, share a line."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .console import prose

MOST_NAMED = 8  # domains of a line
LEAST = 4  # remarks that are alike before they share a line: fewer are better read one by one
FRAME = 4  # lines of a table beside its rows, and the next prompt

Entry = Mapping[str, Any]


def with_names(text: str, names: Sequence[str]) -> str:
    """The text, and in brackets the first few names and how many more there are; on a terminal as many as its line has room for."""
    most = MOST_NAMED
    while most > 1 and sys.stdout.isatty() and len(_with(text, names, most)) > shutil.get_terminal_size().columns:
        most -= 1
    return _with(text, names, most)


def _with(text: str, names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{text} ({', '.join(names[:most])}{more})"


def grouped(document: Iterable[Entry], remarks: Callable[[Entry], Iterable[str]]) -> Iterator[str]:
    """The remarks of each domain; where many differ only in names, ids and percentages, one line for all of them."""
    alike: dict[str, list[tuple[str, str]]] = {}
    for entry in document:
        own = sorted({entry["domain"], *_ids(entry)}, key=len, reverse=True)
        pattern = re.compile("|".join([*map(re.escape, own), r"\d+%"]))
        for line in remarks(entry):
            alike.setdefault(pattern.sub("…", line), []).append((entry["domain"], line))
    for said, lines in alike.items():
        if len(lines) < LEAST:
            yield from (line for _, line in lines)
        else:
            yield with_names(f"{len(lines)} domains: {said.removeprefix('…: ')}", [name for name, _ in lines])


def _ids(value: Any, key: str = "") -> Iterator[str]:
    """The ids of builds, and the publication, of what `status --json` says of a domain."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _ids(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _ids(each, key)
    elif isinstance(value, str) and value and key in ("id", "build", "trial", "ready", "published"):
        yield value
        if key == "published":
            yield value.rpartition("@")[0]


def fits(rows: int, lines: Iterable[str]) -> bool:
    """Whether a table of so many rows fits the terminal with these lines below; always where there is no terminal."""
    if not sys.stdout.isatty():
        return True
    height = shutil.get_terminal_size().lines
    return rows + FRAME + sum(1 + prose(line, stream=sys.stdout).count("\n") for line in lines) <= height


def summary(document: Sequence[Entry]) -> list[list[Any]]:
    """A row for all domains that stand alike: how many, in what state, with what spirit, and what there is beside it."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for entry in document:
        key = entry["state"], (entry["spirit"] or "").partition("@")[2] or None, _beside(entry)
        alike.setdefault(key, []).append(entry["domain"])
    return [[len(names), *key, names[:MOST_NAMED]] for key, names in alike.items()]


def _beside(entry: Entry) -> str | None:
    """Whether builds are under way or failed, and whether what is published is out of date."""
    found = [
        *sorted({build["status"] for build in entry["pending"]}),
        *(["failed"] if entry["failed"] else []),
        *(["published: out of date"] if entry["publication"] == "stale" else []),
    ]
    return ", ".join(found) or None
