"""Interactions as most data sets have them, one a row: collected in a few bytes each, filtered, and turned into histories."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import DomainData, History, Item, Origin, is_missing
from ..errors import DataError
from ..filters import core_mask
from .dataset import FILE, Dataset
from .ids import identifier, is_no_user, renamed, respelled
from .lines import UnreadableError, misread
from .times import EXACT, ONE_UNIT, Clock, MixedTimesError, excerpt, factors, scaled


@dataclass
class Interactions:
    """Users and items numbered as they come, and per interaction the two numbers, time and rating, in the order of the file.

    `without_user` counts rows that were left out because they name no user; a rating that is missing is NaN.
    """

    users: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    user_numbers: array = field(default_factory=lambda: array("i"))
    item_numbers: array = field(default_factory=lambda: array("i"))
    times: array | None = None
    ratings: array | None = None
    without_user: int = 0
    time_units: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Columns:
    """Where in a row the user, the item and, if there are any, time and rating stand: places in a list, or keys of a record."""

    user: int | str
    item: int | str
    time: int | str | None = None
    rating: int | str | None = None


@dataclass(frozen=True)
class Table:
    """A file with one interaction a row. `rows` begins anew with each call; `typed` says that times are points in time."""

    path: Path
    columns: Columns
    rows: Callable[[], Iterable[tuple[int, Any]]]
    unit: str = "line"
    typed: bool = False


def collect(tables: Sequence[Table], dataset: Dataset) -> Interactions:
    """Rows of one file or several as interactions, in this order.

    Rows without a user are left out and counted. Raises DataError for a row without an item, with a time or rating that is
    none, or without a rating where ratings are asked for, and for times in units that cannot be distinguished.
    """
    found = Interactions()
    clock = Clock(dataset.dates, dataset.time_unit)
    first = tables[0]
    for table in tables:
        for what, own, other in (
            ("times", table.columns.time, first.columns.time),
            ("ratings", table.columns.rating, first.columns.rating),
        ):
            if (own is None) != (other is None):
                has, lacks = (first, table) if own is None else (table, first)
                raise DataError(
                    f"{has.path} has {what} and {lacks.path} has none",
                    hint=f"name the column in {FILE}, or give all files the same columns",
                )
        _add(found, table, clock, dataset.min_rating is not None)
    if found.times and found.times.typecode == "d" and max(map(abs, found.times)) > EXACT:
        raise DataError(
            f"{', '.join(str(table.path) for table in tables)}: some timestamps have a fraction, and others are too large to have one",
            hint="write all of them as whole numbers, in microseconds for example",
        )
    if found.ratings and all(map(math.isnan, found.ratings)):
        found.ratings = None
    _in_one_unit(found, tables, clock)
    _drop_unknown_users(found)
    return found


def _add(found: Interactions, table: Table, clock: Clock, rated: bool) -> None:
    columns, ratings = table.columns, found.ratings
    the_user, the_item, the_time, the_rating = columns.user, columns.item, columns.time, columns.rating
    moment = clock.point if table.typed else clock.moment
    times: array[Any] = array("q") if found.times is None else found.times
    if ratings is None:
        ratings = array("d")
    users, items = found.users, found.items
    add_user, add_item, add_time = found.user_numbers.append, found.item_numbers.append, times.append
    add_rating, is_record = ratings.append, isinstance(the_rating, str)
    for number, row in table.rows():
        try:
            user, item = row[the_user], row[the_item]
            if user.__class__ is not str or not user:
                if is_no_user(user):
                    found.without_user += 1
                    continue
                user = identifier(user, "user")
            if item.__class__ is not str or not item:
                item = identifier(item, "item")
            if the_time is not None:
                time = row[the_time]
                try:
                    time = int(time) if time.__class__ is str else moment(time)  # most times need no more
                except ValueError:
                    time = moment(time)
                try:
                    add_time(time)
                except TypeError:  # the first with a fraction
                    times = array("d", times)
                    add_time = times.append
                    add_time(time)
            if the_rating is not None:
                rating = row.get(the_rating) if is_record else row[the_rating]
                if rating.__class__ is not float or rating - rating != 0:
                    rating = _rating(rating, rated)
                add_rating(rating)
        except KeyError as error:
            raise misread(table.path, number, ValueError(f"has no {error.args[0]}"), unit=table.unit) from error
        except (ValueError, OverflowError) as error:
            raise misread(table.path, number, error, unit=table.unit) from error
        add_user(users.setdefault(user, len(users)))
        add_item(items.setdefault(item, len(items)))
    found.times = None if the_time is None else times
    found.ratings = None if the_rating is None else ratings


def _rating(value: Any, needed: bool) -> float:
    """The rating, or NaN where there is none and none is needed."""
    try:
        number = math.inf if value.__class__ is bool else float(value)
    except (ValueError, TypeError):
        missing = value is None or (isinstance(value, str) and is_missing(value))
        number = math.nan if missing else math.inf
    if number - number == 0:
        return number
    if number == number:
        raise ValueError(f"rating must be a number, found {excerpt(value)}")
    if needed:
        raise UnreadableError(
            f"rating is missing, found {excerpt(value)}, and {FILE} asks for a min_rating",
            f"leave the row out, or min_rating out of {FILE}",
        )
    return number


def _drop_unknown_users(found: Interactions) -> None:
    """Without the rows whose user is a word for "not known"; blank ones were never taken in."""
    unknown = [number for name, number in found.users.items() if is_no_user(name)]
    if not unknown:
        return
    stays = ~np.isin(np.asarray(found.user_numbers), unknown)
    found.without_user += len(stays) - int(np.count_nonzero(stays))
    found.user_numbers, found.item_numbers = _taken(found.user_numbers, stays), _taken(found.item_numbers, stays)
    found.times = None if found.times is None else _taken(found.times, stays)
    found.ratings = None if found.ratings is None else _taken(found.ratings, stays)


def _in_one_unit(found: Interactions, tables: Sequence[Table], clock: Clock) -> None:
    """Times in mixed units become times in the finest of them. Raises DataError where that would be a guess."""
    if not found.times or clock.unit is not None:
        return
    try:
        by, counts = factors(np.asarray(found.times), clock.dated)
        if by is not None:
            found.times, found.time_units = scaled(found.times, by), tuple(counts.items())
    except MixedTimesError as error:
        path, unit, number = _where(tables, error.value, clock)
        raise misread(path, number, UnreadableError(str(error), ONE_UNIT), unit=unit) from error
    except ValueError as error:
        raise DataError(f"{tables[0].path}: {error}", hint="write all of them in one unit") from error


def _where(tables: Sequence[Table], value: float, clock: Clock) -> tuple[Path, str, int]:
    """File, unit and number of the first row with this time."""
    for table in tables:
        moment = clock.point if table.typed else clock.moment
        for number, row in table.rows():
            with suppress(ValueError, KeyError):  # a row without a user may say anything
                if moment(row[table.columns.time]) == value:
                    return table.path, table.unit, number
    raise LookupError(value)


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
    users, respelled_ids = users or {}, 0
    if catalogue:
        records = list(records)
        users, records, respelled_ids = _spelled_alike(interactions, users, records)
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
    if not interactions.user_numbers:
        if interactions.without_user:
            raise DataError(
                f"{name}: none of {interactions.without_user:,} rows of the data ({format_}) names a user",
                hint=f"set the column of users in {FILE}",
            )
        raise DataError(
            f"{name}: the data ({format_}) hold no interaction",
            hint="is the file of interactions whole, or only a header?",
        )
    unlisted = [item_id for item_id in wanted if item_id not in items]
    items |= {item_id: Item(item_id, "") for item_id in unlisted}
    origin = Origin(
        format_,
        dropped=len(mask) - int(np.count_nonzero(mask)),
        unlisted=len(unlisted),
        duplicates=duplicates,
        unused=unused,
        without_user=interactions.without_user,
        without_rating=0
        if interactions.ratings is None
        else int(np.count_nonzero(np.isnan(np.asarray(interactions.ratings)))),
        respelled_ids=respelled_ids,
        time_units=interactions.time_units,
        min_rating=dataset.min_rating,
    )
    return DomainData.of(name, items.values(), _histories(interactions, mask, users), origin=origin)


def _spelled_alike(
    interactions: Interactions, users: Mapping[str, Mapping[str, Any]], records: list[Item]
) -> tuple[Mapping[str, Mapping[str, Any]], list[Item], int]:
    """Users' profiles and items' records after 12 and 12.0 have become one id in them and in the interactions; how many did."""
    of_users = respelled([user for user in interactions.users if not is_no_user(user)], users)
    of_items = respelled(interactions.items, {record.item_id for record in records})
    for names, numbers, respelled_ids in (("users", "user_numbers", of_users), ("items", "item_numbers", of_items)):
        if respelled_ids:
            known, new = renamed(getattr(interactions, names), respelled_ids)
            setattr(interactions, names, known)
            old = np.asarray(getattr(interactions, numbers))
            setattr(interactions, numbers, array("i", np.asarray(new, dtype=np.intc)[old].tolist()))
    if of_users:
        users = {of_users.get(user_id, user_id): profile for user_id, profile in users.items()}
    if of_items:
        records = [replace(record, item_id=of_items.get(record.item_id, record.item_id)) for record in records]
    return users, records, len(of_users) + len(of_items)


def _mask(name: str, interactions: Interactions, dataset: Dataset) -> NDArray[np.bool_]:
    """Which interactions the filters let stay: those rated high enough, and of those the ones in the core."""
    mask = np.ones(len(interactions.user_numbers), dtype=bool)
    if dataset.min_rating is not None:
        if interactions.ratings is None:
            raise DataError(
                f"{name} has no ratings, and {FILE} asks for a min_rating of {dataset.min_rating:g}",
                hint=f"name the column of ratings in {FILE}, or leave min_rating out",
            )
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
    without_rating = interactions.ratings is not None and bool(np.isnan(np.asarray(interactions.ratings)).any())
    start = 0
    for user_id, end in zip(interactions.users, ends, strict=True):
        if start < end:
            items = tuple([item_ids[number] for number in taken[start:end]])
            own: dict[str, Any] = {name: values[start:end] for name, values in aligned.items()}
            if without_rating:
                own["ratings"] = [None if rating != rating else rating for rating in own["ratings"]]
            yield History(user_id, items, {**profiles.get(user_id, {}), **own})
        start = end


def _taken(values: array, stays: NDArray[np.bool_]) -> array:
    return _ordered(values, stays, np.arange(int(np.count_nonzero(stays))))


def _ordered(values: array, mask: NDArray[np.bool_], order: NDArray[np.integer]) -> array:
    ordered = array(values.typecode)
    ordered.frombytes(np.asarray(values)[mask][order].tobytes())
    return ordered
