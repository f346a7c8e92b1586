"""Our own format: `items.jsonl` (`item_id`, `title`, anything else) and `sequences.jsonl` (`user_id`, `items`, optional
`timestamps` and `ratings`, anything else), each plain or gzipped, and whole: an item that is taken has a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..data import ALIGNED, TEXTS, DomainData, History, Item, Origin, clean_title, unescaped
from ..errors import DataError
from ..filters import at_least_rated, k_core
from .dataset import Dataset
from .lines import UnreadableError, misread, objects
from .source import Source
from .times import ONE_UNIT, MixedTimesError, excerpt, factors, in_unit

LARGEST = 2**63 - 1
FORMAT = "reccocktail jsonl"
FORMATS = {FORMAT: "items.jsonl and sequences.jsonl, each plain or .gz"}

Record = TypeVar("Record", Item, History)


def find(folder: Path, names: frozenset[str], dataset: Dataset) -> list[Source]:
    mine = names & {f"{stem}.jsonl{suffix}" for stem in ("items", "sequences") for suffix in ("", ".gz")}
    if not mine:
        return []
    items, sequences = _file(folder, mine, "items"), _file(folder, mine, "sequences")
    return [Source(FORMAT, sequences, mine, partial(_domain, items, sequences))]


def _file(folder: Path, names: frozenset[str], stem: str) -> Path:
    found = sorted(name for name in names if name.startswith(stem))
    if len(found) > 1:
        raise DataError(f"{folder} holds {stem}.jsonl both plain and gzipped", hint="remove one of the two")
    if not found:
        raise DataError(
            f"{folder} holds no {stem}.jsonl or {stem}.jsonl.gz",
            hint="a data folder has items.jsonl (item_id, title) and sequences.jsonl (user_id, items); an empty sequences.jsonl"
            " says that there is a catalogue and no user yet",
        )
    return folder / found[0]


def _domain(items_file: Path, sequences_file: Path, name: str, dataset: Dataset) -> DomainData:
    items = _read(items_file, "item_id", _item, dataset)
    histories = _read(sequences_file, "user_id", partial(_history, items, None), dataset)
    units = _units(sequences_file, histories.values(), dataset)
    if units:  # read again, because equal moments keep the order of the file
        histories = _read(sequences_file, "user_id", partial(_history, items, list(units)[-1]), dataset)
    origin = Origin(FORMAT, time_units=tuple(units.items()))
    data = DomainData.of(name, items.values(), histories.values(), origin=origin)
    if dataset.min_rating is not None:
        data = at_least_rated(data, dataset.min_rating)
    if dataset.core is not None:
        data = k_core(data, dataset.core)
    return data


def _read(path: Path, key: str, parse: Callable[[dict[str, Any]], Record], dataset: Dataset) -> dict[str, Record]:
    """The file's records by their `key`; whatever `parse` refuses is reported with file and line."""
    found: dict[str, Record] = {}
    for number, content in objects(path, dataset.encoding):
        try:
            record = parse(content)
            if getattr(record, key) in found:
                raise ValueError(f"{key} {getattr(record, key)!r} was used before")
        except ValueError as error:
            raise misread(path, number, error) from error
        found[getattr(record, key)] = record
    return found


def _item(record: dict[str, Any]) -> Item:
    title = record.pop("title", None)
    if not isinstance(title, str | None):
        raise ValueError(f"title must be text or null, found {title!r}")
    texts = {name: _unescaped(record[name]) for name in TEXTS if name in record}
    return Item(_identifier(record, "item_id"), clean_title(unescaped(title or "")), record | texts)


def _unescaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_unescaped(each) for each in value]
    return unescaped(value) if isinstance(value, str) else value


def _history(items: Mapping[str, Item], unit: str | None, record: dict[str, Any]) -> History:
    """The history of a record, its times in this unit if they are in several."""
    user_id = _identifier(record, "user_id")
    taken = record.pop("items", None)
    if not isinstance(taken, list) or not all(isinstance(item_id, str) for item_id in taken):
        raise ValueError(f"items must be a list of item_ids, found {excerpt(taken)}")
    if unknown := next((item_id for item_id in taken if item_id not in items), None):
        raise ValueError(f"item {unknown!r} is not among the items")
    for name in ALIGNED:
        values = record.get(name)
        if values is not None and (not isinstance(values, list) or len(values) != len(taken)):
            raise ValueError(f"{name} must be a list of {len(taken)} values, one per item, found {excerpt(values)}")
    if wrong := [rating for rating in record.get("ratings") or () if rating is not None and not _is_number(rating)]:
        raise ValueError(f"ratings must be finite numbers or null, found {excerpt(wrong[0])}")
    own = tuple([items[item_id].item_id for item_id in taken])  # one text per item, however often it is taken
    return _in_time_order(History(user_id, own, record), unit)


def _units(path: Path, histories: Iterable[History], dataset: Dataset) -> dict[str, int]:
    """How many times are in each unit, if there are several."""
    if dataset.time_unit is not None:
        return {}
    timed = [times for history in histories if (times := history.fields.get("timestamps"))]
    try:
        return factors(np.fromiter(chain.from_iterable(timed), np.float64))[1]
    except MixedTimesError as error:
        rows = objects(path, dataset.encoding)
        number = next(n for n, record in rows if error.value in (record.get("timestamps") or ()))
        raise misread(path, number, UnreadableError(str(error), ONE_UNIT)) from error


def _in_time_order(history: History, unit: str | None) -> History:
    times = history.fields.get("timestamps")
    if times is None:
        return history
    if wrong := [time for time in times if not _is_number(time)]:
        raise ValueError(f"timestamps must be numbers, found {excerpt(wrong[0])}")
    if unit is not None:
        times = [in_unit(time, unit) for time in times]
    order = sorted(range(len(times)), key=times.__getitem__)
    fields = {**history.fields, "timestamps": times}
    aligned = {name: [fields[name][i] for i in order] for name in ALIGNED if fields.get(name)}
    return History(history.user_id, tuple(history.items[i] for i in order), {**fields, **aligned})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _identifier(record: dict[str, Any], key: str) -> str:
    value = record.pop(key, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be non-empty text, found {value!r}")
    return value
