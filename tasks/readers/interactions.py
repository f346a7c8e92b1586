"""Interactions as most data sets have them, one a row: collected in a few bytes each, filtered, and turned into histories."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import DomainData, History, Item, Origin
from ..errors import DataError
from ..filters import core_mask
from .dataset import Dataset
from .lines import misread

FINER = re.compile(r":\d\d[.,]\d{6}\d*[1-9]")  # Python's dates would cut it, and the order with it
EXACT = 2**53  # a double holds every integer up to here


@dataclass
class Interactions:
    """Users and items numbered as they come, and per interaction the two numbers, time and rating, in the order of the file."""

    users: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    user_numbers: array = field(default_factory=lambda: array("i"))
    item_numbers: array = field(default_factory=lambda: array("i"))
    times: array | None = None
    ratings: array | None = None


@dataclass(frozen=True)
class Columns:
    """Where in a row the user, the item and, if there are any, time and rating stand: places in a list, or keys of a record."""

    user: int | str
    item: int | str
    time: int | str | None = None
    rating: int | str | None = None


def collect(path: Path, rows: Iterable[tuple[int, Any]], columns: Columns, *, unit: str = "line") -> Interactions:
    """Numbered rows as interactions. Raises DataError for a row without user or item, or with a time or rating that is none."""
    found = Interactions()
    times: array[Any] = array("q")
    ratings = array("d")
    users, items = found.users, found.items
    add_user, add_item, add_time = found.user_numbers.append, found.item_numbers.append, times.append
    the_user, the_item, the_time, the_rating = columns.user, columns.item, columns.time, columns.rating
    for number, row in rows:
        try:
            user, item = row[the_user], row[the_item]
            if user.__class__ is not str or not user:
                user = identifier(user, "user")
            if item.__class__ is not str or not item:
                item = identifier(item, "item")
            if the_time is not None:
                time = moment(row[the_time])
                try:
                    add_time(time)
                except TypeError:  # the first with a fraction
                    times = array("d", times)
                    add_time = times.append
                    add_time(time)
            if the_rating is not None:
                ratings.append(rating(row[the_rating]))
        except KeyError as error:
            raise misread(path, number, ValueError(f"has no {error.args[0]}"), unit=unit) from error
        except (ValueError, OverflowError) as error:
            raise misread(path, number, error, unit=unit) from error
        add_user(users.setdefault(user, len(users)))
        add_item(items.setdefault(item, len(items)))
    if times.typecode == "d" and max(map(abs, times)) > EXACT:
        raise DataError(f"{path}: some timestamps have a fraction, and others are too large to have one")
    found.times = None if columns.time is None else times
    found.ratings = None if columns.rating is None else ratings
    return found


def domain(
    name: str,
    format_: str,
    interactions: Interactions,
    records: Iterable[Item],
    dataset: Dataset,
    *,
    users: Mapping[str, Mapping[str, Any]] | None = None,
    catalogue: bool = True,
) -> DomainData:
    """The data of a domain, after the filters that `dataset` asks for.

    `records` may name an item twice, in which case the first with a title counts, and may lack items that were taken, which
    then have no title. Records of items nobody took stay if they are a `catalogue` of what can be had, unless there is a core.
    """
    mask = _mask(name, interactions, dataset)
    taken = np.zeros(len(interactions.items), dtype=bool)
    taken[np.asarray(interactions.item_numbers)[mask]] = True
    wanted = {item_id for item_id, number in interactions.items.items() if taken[number]}
    items: dict[str, Item] = {}
    duplicates = unused = 0
    for item in records:
        if item.item_id not in wanted and (not catalogue or dataset.core is not None):
            unused += 1
        elif (known := items.get(item.item_id)) is None:
            items[item.item_id] = item
        else:
            duplicates += 1
            if item.title and not known.title:
                items[item.item_id] = item
    if not interactions.users:
        raise DataError(f"{name}: the data ({format_}) hold no interaction")
    unlisted = [item_id for item_id in wanted if item_id not in items]
    items |= {item_id: Item(item_id, "") for item_id in unlisted}
    origin = Origin(format_, len(mask) - int(np.count_nonzero(mask)), len(unlisted), duplicates, unused)
    return DomainData.of(name, items.values(), _histories(interactions, mask, users or {}), origin=origin)


def identifier(value: Any, what: str) -> str:
    """Text as it is, a whole number as its digits. Raises ValueError for anything else, and for no text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must be non-empty text or a whole number, found {value!r}")
    return value


def moment(value: Any) -> int | float:
    """A number as it is, exact; a date in ISO 8601 as seconds since 1970, in UTC unless it names its offset."""
    if value.__class__ is int:
        return value
    try:
        return int(value) if isinstance(value, str) else _finite(value)
    except ValueError:
        return _unusual_moment(value)


def _unusual_moment(value: Any) -> int | float:
    if isinstance(value, str):
        with suppress(ValueError):
            return _finite(float(value))
        if FINER.search(value):
            raise ValueError(f"timestamp is finer than microseconds: {_excerpt(value)}; write it as a number")
        with suppress(ValueError):
            date = datetime.fromisoformat(value)
            return _finite((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
    raise ValueError(f"timestamp must be a number or a date such as 2024-05-31 18:00:00, found {_excerpt(value)}")


def rating(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"rating must be a number, found {_excerpt(value)}")
    return number


def _finite(number: Any) -> int | float:
    """Whole numbers as integers, so that 978300760.0 and 978300760 are the same moment."""
    if not isinstance(number, float) or not math.isfinite(number):
        raise ValueError(f"{number!r} is no finite number")
    return int(number) if number.is_integer() else number


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _mask(name: str, interactions: Interactions, dataset: Dataset) -> NDArray[np.bool_]:
    """Which interactions the filters let stay: those rated high enough, and of those the ones in the core."""
    mask = np.ones(len(interactions.user_numbers), dtype=bool)
    if dataset.min_rating is not None:
        if interactions.ratings is None:
            raise DataError(f"{name} has no ratings, and dataset.yaml asks for a min_rating of {dataset.min_rating:g}")
        mask &= np.asarray(interactions.ratings) >= dataset.min_rating
    if dataset.core is not None:
        users, items = np.asarray(interactions.user_numbers), np.asarray(interactions.item_numbers)
        mask[mask] = core_mask(users[mask], items[mask], dataset.core)
    return mask


def _histories(
    interactions: Interactions, mask: NDArray[np.bool_], profiles: Mapping[str, Mapping[str, Any]]
) -> Iterator[History]:
    users = np.asarray(interactions.user_numbers)[mask]
    if interactions.times is None:
        order = np.argsort(users, kind="stable")
    else:
        order = np.lexsort((np.asarray(interactions.times)[mask], users))  # stable: equal times keep the file's order
    ends = np.cumsum(np.bincount(users, minlength=len(interactions.users))).tolist()
    item_ids = list(interactions.items)
    taken = _ordered(interactions.item_numbers, mask, order)
    aligned = {
        name: _ordered(values, mask, order)
        for name, values in (("timestamps", interactions.times), ("ratings", interactions.ratings))
        if values is not None
    }
    start = 0
    for user_id, end in zip(interactions.users, ends, strict=True):
        if start < end:
            items = tuple([item_ids[number] for number in taken[start:end]])
            own = {name: values[start:end] for name, values in aligned.items()}
            yield History(user_id, items, {**profiles.get(user_id, {}), **own})
        start = end


def _ordered(values: array, mask: NDArray[np.bool_], order: NDArray[np.integer]) -> array:
    ordered = array(values.typecode)
    ordered.frombytes(np.asarray(values)[mask][order].tobytes())
    return ordered
