"""A domain's data: items and per-user histories, with a digest over what they say, and facts about its quality."""

from __future__ import annotations

import hashlib
import html
import json
import re
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

ALIGNED = ("timestamps", "ratings", "rules")  # history fields with one value per interaction
TEXTS = ("brand", "store", "genres", "category", "categories")  # item fields in which readers resolve HTML entities
MISSING = frozenset({"", "nan", "none", "null", "n/a", "#n/a", "<na>", "\\n"})  # in any case; \N is Hive's and MySQL's
ENTITY = re.compile(
    r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
)  # without the semicolon, "R&D" is one


READING = 2
"""Rises when the readers make something else of the same files, so that digests kept from before are not relied on."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be recommended. `title` is one line without surrounding blanks, or empty if it is missing."""

    item_id: str
    title: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class History:
    """What one user took, oldest first. `timestamps` and `ratings` among the fields may be lists or arrays of numbers."""

    user_id: str
    items: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where data came from, and what reading it passed over; no part of what the data say.

    `dropped` counts interactions that filters left out, `unlisted` items that were taken but have no record of their own,
    `duplicates` further records of items that had one, `unused` records of items nobody took that were passed over.
    `without_user` counts rows without a user, which were left out, `without_rating` interactions without a rating where others have one,
    `respelled_ids` ids such as 12.0 that are 12 elsewhere and were taken as one with it. `time_units` is not empty if times were
    in several units: how many in each; all became times in the finest of them. Interactions rated below `min_rating` are among the dropped.
    """

    format: str = "in memory"
    dropped: int = 0
    unlisted: int = 0
    duplicates: int = 0
    unused: int = 0
    without_user: int = 0
    without_rating: int = 0
    respelled_ids: int = 0
    time_units: tuple[tuple[str, int], ...] = ()
    min_rating: float | None = None


@dataclass(frozen=True)
class DomainData:
    """Items by id and histories by user id, both sorted. Equal content has an equal digest, whatever the domain is called."""

    name: str
    items: dict[str, Item]
    sequences: tuple[History, ...]
    digest: str
    origin: Origin = field(default=Origin(), compare=False)

    @classmethod
    def of(
        cls, name: str, items: Iterable[Item], sequences: Iterable[History], *, origin: Origin = Origin()
    ) -> DomainData:
        """Sort and digest. Ids are trusted to be unique and histories to name known items; `read_domain` checks both."""
        ordered = sorted(items, key=lambda item: item.item_id)
        histories = tuple(sorted(sequences, key=lambda history: history.user_id))
        return cls(name, {item.item_id: item for item in ordered}, histories, _digest(ordered, histories), origin)

    @property
    def format(self) -> str:
        """What the data were read from: "reccocktail jsonl", "movielens 1m", …"""
        return self.origin.format

    @cached_property
    def titled(self) -> tuple[str, ...]:
        """The ids of the items that have a title; only these are ever shown, offered or asked for."""
        return tuple(item_id for item_id, item in self.items.items() if item.title)

    @cached_property
    def by_user(self) -> dict[str, tuple[str, ...]]:
        """Each user's titled items, oldest first."""
        if len(self.titled) == len(self.items):
            return {h.user_id: h.items for h in self.sequences}
        titled = set(self.titled)
        return {h.user_id: tuple(i for i in h.items if i in titled) for h in self.sequences}


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a domain's data amounts to.

    `repeats` counts interactions with an item the same user already had, `never_taken` items without any interaction, and
    `too_short` users with fewer than three titled items, so without a training example. `first_time` and `last_time` are in
    the data's own unit, or None without timestamps. The others are of `Origin`.
    """

    format: str
    users: int
    items: int
    interactions: int
    missing_titles: int
    repeats: int
    never_taken: int
    too_short: int
    first_time: float | None
    last_time: float | None
    dropped: int
    unlisted: int
    duplicates: int
    unused: int
    without_user: int = 0
    without_rating: int = 0
    respelled_ids: int = 0
    time_units: Mapping[str, int] = field(default_factory=dict)


def describe(data: DomainData) -> DataFacts:
    interactions = sum(len(history.items) for history in data.sequences)
    distinct = sum(len(set(history.items)) for history in data.sequences)
    times = [history.fields["timestamps"] for history in data.sequences if history.fields.get("timestamps")]
    return DataFacts(
        format=data.format,
        users=len(data.sequences),
        items=len(data.items),
        interactions=interactions,
        missing_titles=len(data.items) - len(data.titled),
        repeats=interactions - distinct,
        never_taken=len(data.items) - len(set(chain.from_iterable(history.items for history in data.sequences))),
        too_short=sum(len(taken) < 3 for taken in data.by_user.values()),
        first_time=min(map(min, times), default=None),
        last_time=max(map(max, times), default=None),
        dropped=data.origin.dropped,
        unlisted=data.origin.unlisted,
        duplicates=data.origin.duplicates,
        unused=data.origin.unused,
        without_user=data.origin.without_user,
        without_rating=data.origin.without_rating,
        respelled_ids=data.origin.respelled_ids,
        time_units=dict(data.origin.time_units),
    )


def clean_title(raw: str | None) -> str:
    """One line, single blanks; empty for null, blank, and what tables write for a missing title, such as "nan" or "NULL"."""
    title = " ".join((raw or "").encode(errors="replace").decode().split())
    return "" if is_missing(title) else title


def is_missing(text: str) -> bool:
    """Whether this is how tables spell that there is nothing."""
    text = text.strip()
    return text.lower() in MISSING or text == "NA"


def unescaped(text: str) -> str:
    """The text with the characters that its HTML entities represent, once: "&amp;lt;" becomes "&lt;"."""
    return ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text


def _escaped(value: Any) -> Any:
    """What `unescaped` makes the value of; texts in lists alike."""
    if isinstance(value, list | tuple):
        return [_escaped(each) for each in value]
    if isinstance(value, str) and unescaped(value) != value:
        return value.replace("&", "&amp;")
    return value


def write_domain(data: DomainData, folder: str | Path) -> None:
    """Write a data folder that `read_domain` reads back to the same digest."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    items = (
        {
            "item_id": item.item_id,
            "title": _escaped(item.title) or None,
            **{name: _escaped(value) if name in TEXTS else value for name, value in item.fields.items()},
        }
        for item in data.items.values()
    )
    sequences = ({"user_id": h.user_id, "items": h.items, **h.fields} for h in data.sequences)
    for stem, records in ("items", items), ("sequences", sequences):
        with (folder / f"{stem}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(record, ensure_ascii=False, default=_numbers) + "\n" for record in records)


def _digest(items: Iterable[Item], histories: Iterable[History]) -> str:
    """SHA-256 over one line of canonical JSON per item, then one per history."""
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_numbers).encode
    sha = hashlib.sha256()
    for item in items:
        sha.update(encode(["item", item.item_id, item.title, dict(item.fields)]).encode() + b"\n")
    for history in histories:
        sha.update(encode(["history", history.user_id, history.items, dict(history.fields)]).encode() + b"\n")
    return f"sha256:{sha.hexdigest()}"


def _numbers(values: object) -> list[float]:
    """An array as JSON has it: the list of its numbers."""
    if isinstance(values, array):
        return values.tolist()
    raise TypeError(f"{type(values).__name__} is not a value of JSON")
