"""A domain's data: items and per-user histories, read from JSON Lines, with a digest over what they say.

A data folder holds `items.jsonl` (`item_id`, `title`, anything else) and `sequences.jsonl` (`user_id`, `items`, optional
`timestamps` and `ratings`, anything else), each plain or gzipped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from .errors import DataError

MAX_LINE_BYTES = 1_000_000  # a compressed line can hide gigabytes; no honest record is this long
ALIGNED = ("timestamps", "ratings", "rules")  # history fields with one value per interaction


Record = TypeVar("Record", "Item", "History")


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be recommended. `title` is one line without surrounding blanks, or empty if it is missing."""

    item_id: str
    title: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class History:
    """What one user took, oldest first."""

    user_id: str
    items: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class DomainData:
    """Items by id and histories by user id, both sorted. Equal content has an equal digest, whatever the domain is called."""

    name: str
    items: dict[str, Item]
    sequences: tuple[History, ...]
    digest: str

    @classmethod
    def of(cls, name: str, items: Iterable[Item], sequences: Iterable[History]) -> DomainData:
        """Sort and digest. Ids are trusted to be unique and histories to name known items; `read_domain` checks both."""
        ordered = sorted(items, key=lambda item: item.item_id)
        histories = tuple(sorted(sequences, key=lambda history: history.user_id))
        return cls(name, {item.item_id: item for item in ordered}, histories, _digest(ordered, histories))

    @cached_property
    def titled(self) -> tuple[str, ...]:
        """The ids of the items that have a title; only these are ever shown, offered or asked for."""
        return tuple(item_id for item_id, item in self.items.items() if item.title)

    @cached_property
    def by_user(self) -> dict[str, tuple[str, ...]]:
        """Each user's titled items, oldest first."""
        return {h.user_id: tuple(i for i in h.items if self.items[i].title) for h in self.sequences}


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a domain's data amounts to. `repeats` counts interactions with an item the same user already had."""

    users: int
    items: int
    interactions: int
    missing_titles: int
    repeats: int


def describe(data: DomainData) -> DataFacts:
    interactions = sum(len(history.items) for history in data.sequences)
    distinct = sum(len(set(history.items)) for history in data.sequences)
    return DataFacts(
        users=len(data.sequences),
        items=len(data.items),
        interactions=interactions,
        missing_titles=len(data.items) - len(data.titled),
        repeats=interactions - distinct,
    )


def clean_title(raw: str | None) -> str:
    """One line, single blanks; empty for null, blank and "nan", which is how tables spell a missing title."""
    title = " ".join((raw or "").encode(errors="replace").decode().split())
    return "" if title.lower() == "nan" else title


def read_domain(folder: str | Path, name: str | None = None) -> DomainData:
    """Read a data folder; the domain is named after it unless `name` is given.

    Histories with `timestamps` are put in their order; equal times keep the order of the file. Raises DataError, which
    names file and line.
    """
    folder = Path(folder)
    items = _read(_file(folder, "items"), "item_id", _item)
    histories = _read(_file(folder, "sequences"), "user_id", partial(_history, items))
    return DomainData.of(name or folder.resolve().name.replace("_", "-"), items.values(), histories.values())


def write_domain(data: DomainData, folder: str | Path) -> None:
    """Write a data folder that `read_domain` reads back to the same digest."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    items = ({"item_id": i.item_id, "title": i.title or None, **i.fields} for i in data.items.values())
    sequences = ({"user_id": h.user_id, "items": h.items, **h.fields} for h in data.sequences)
    for stem, records in ("items", items), ("sequences", sequences):
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{stem}.jsonl").write_text("".join(lines), encoding="utf-8")


def _file(folder: Path, stem: str) -> Path:
    found = [path for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz") if path.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{folder} holds {stem}.jsonl both plain and gzipped", hint="remove one of the two")
    raise DataError(
        f"{folder} holds no {stem}.jsonl or {stem}.jsonl.gz",
        hint="a data folder has items.jsonl (item_id, title) and sequences.jsonl (user_id, items)",
    )


def _read(path: Path, key: str, parse: Callable[[dict[str, Any]], Record]) -> dict[str, Record]:
    """The file's records by their `key`; whatever `parse` refuses is reported with file and line."""
    found: dict[str, Record] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = parse(_object(line))
            if getattr(record, key) in found:
                raise ValueError(f"{key} {getattr(record, key)!r} was used before")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        found[getattr(record, key)] = record
    return found


def _lines(path: Path) -> Iterator[bytes]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}, after line {number}: cannot be read ({error})") from error


def _object(line: bytes) -> dict[str, Any]:
    record = json.loads(line, parse_constant=lambda _: None)  # NaN is how tables spell a missing value
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    return record


def _item(record: dict[str, Any]) -> Item:
    title = record.pop("title", None)
    if not isinstance(title, str | None):
        raise ValueError(f"title must be text or null, found {title!r}")
    return Item(_identifier(record, "item_id"), clean_title(title), record)


def _history(items: Mapping[str, Item], record: dict[str, Any]) -> History:
    user_id = _identifier(record, "user_id")
    taken = record.pop("items", None)
    if not isinstance(taken, list) or not all(isinstance(item_id, str) for item_id in taken):
        raise ValueError(f"items must be a list of item_ids, found {_excerpt(taken)}")
    if unknown := next((item_id for item_id in taken if item_id not in items), None):
        raise ValueError(f"item {unknown!r} is not among the items")
    for name in ALIGNED:
        values = record.get(name)
        if values is not None and (not isinstance(values, list) or len(values) != len(taken)):
            raise ValueError(f"{name} must be a list of {len(taken)} values, one per item, found {_excerpt(values)}")
    return _in_time_order(History(user_id, tuple(taken), record))


def _in_time_order(history: History) -> History:
    times = history.fields.get("timestamps")
    if times is None:
        return history
    if wrong := [time for time in times if isinstance(time, bool) or not isinstance(time, int | float)]:
        raise ValueError(f"timestamps must be numbers, found {wrong[0]!r}")
    order = sorted(range(len(times)), key=times.__getitem__)
    aligned = {name: [history.fields[name][i] for i in order] for name in ALIGNED if history.fields.get(name)}
    return History(history.user_id, tuple(history.items[i] for i in order), {**history.fields, **aligned})


def _identifier(record: dict[str, Any], key: str) -> str:
    value = record.pop(key, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be non-empty text, found {value!r}")
    return value


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest(items: Iterable[Item], histories: Iterable[History]) -> str:
    """SHA-256 over one line of canonical JSON per item, then one per history."""
    sha = hashlib.sha256()
    for item in items:
        sha.update(_canonical(["item", item.item_id, item.title, dict(item.fields)]))
    for history in histories:
        sha.update(_canonical(["history", history.user_id, history.items, dict(history.fields)]))
    return f"sha256:{sha.hexdigest()}"


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
