"""CSV, TSV and Parquet: a file of interactions and one of items, found by the names of their columns or by `dataset.yaml`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..data import DomainData, Item, clean_title, is_missing, unescaped
from ..errors import DataError
from .columnar import columns_of, is_list, is_point_in_time, parquet_rows
from .dataset import FILE, Dataset, ItemTable
from .ids import identifier
from .interactions import Columns, Table, collect, domain
from .lines import MAX_FIELD, UnreadableError, misread
from .separated import csv_rows
from .source import Source
from .times import excerpt

FORMATS = {
    "csv": "CSV or TSV files (plain or .gz), one with a user and an item column, one with an item and a title column",
    "parquet": "the same as Parquet files",
}

# The usual names of columns; case and blanks around them do not matter.
USER = ("user_id", "userid", "user", "reviewerid", "reviewer_id", "customer_id", "customerid", "visitorid", "uid")
ITEM = (
    *("item_id", "itemid", "item", "movie_id", "movieid", "parent_asin", "asin", "product_id", "productid"),
    *("article_id", "book_id", "isbn", "track_id", "song_id", "business_id", "iid"),
)
TIME = ("timestamp", "time", "unixreviewtime", "datetime", "date", "t_dat", "created_at", "event_time")
RATING = ("rating", "overall", "score", "stars", "rate")
TITLE = ("title", "name", "movie_title", "book_title", "item_name", "product_name", "product_title", "prod_name")
FIELDS = {
    "brand": ("brand", "store", "manufacturer"),
    "genres": ("genres", "genre", "class"),
    "category": (),  # only where dataset.yaml names it
    "year": ("year", "release_year"),
}
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def column(header: Sequence[str], usual: Sequence[str]) -> str | None:
    """The header's column with the first of these names."""
    there = {name.strip().lower(): name for name in reversed(header)}
    return next((there[name] for name in usual if name in there), None)


def find(folder: Path, names: frozenset[str], dataset: Dataset) -> list[Source]:
    if dataset.names_tables:
        return [_named_files(folder, names, dataset)]
    headers = {name: header(folder / name, dataset) for name in sorted(names) if name.endswith(SUFFIXES)}
    interactions = [name for name, columns in headers.items() if column(columns, USER) and column(columns, ITEM)]
    if not interactions:
        return []
    items = [
        name
        for name, columns in headers.items()
        if name not in interactions and column(columns, ITEM) and column(columns, TITLE)
    ]
    for what, found in ("interactions", interactions), ("items", items):
        if len(found) != 1:
            seen = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in headers.items())
            raise DataError(
                f"{folder}: {', '.join(found) or 'no file'} could be the file of {what}, where one is needed; found {seen}",
                hint=f"say in {FILE} which file and columns to read: `{what}: {{file: …}}`",
            )
    return [_source([folder / interactions[0]], folder / items[0], dataset)]


def _named_files(folder: Path, names: frozenset[str], dataset: Dataset) -> Source:
    """The files that `dataset.yaml` names; one that it leaves out must be the only one of its kind."""
    listed = dataset.interactions.file
    interactions = [listed] if isinstance(listed, str) else listed
    for what, files in ("interactions", interactions or []), ("items", [dataset.items.file or ""]):
        for file in filter(None, files):
            if file not in names or not file.endswith(SUFFIXES):
                raise DataError(
                    f"{folder / FILE} names {file!r} as its file of {what}, and the folder holds no such table",
                    hint=f"tables end in {', '.join(SUFFIXES)}; the folder holds {', '.join(sorted(names)) or 'no file'}",
                )
    tables = sorted(name for name in names if name.endswith(SUFFIXES))
    items = dataset.items.file
    if interactions is None:
        interactions = [_only(folder, "interactions", [name for name in tables if name != items])]
    if items is None:
        items = _only(folder, "items", [name for name in tables if name not in interactions])
    return _source([folder / name for name in interactions], folder / items, dataset)


def _only(folder: Path, what: str, names: list[str]) -> str:
    if len(names) != 1:
        raise DataError(
            f"{folder / FILE} does not say which file holds the {what}; the folder holds {', '.join(names) or 'no other table'}",
            hint=f"add `{what}: {{file: NAME}}`",
        )
    return names[0]


def _source(interactions: list[Path], items: Path, dataset: Dataset) -> Source:
    format_ = "parquet" if interactions[0].suffix == ".parquet" else "csv"
    layout = frozenset({*(path.name for path in interactions), items.name})
    return Source(format_, interactions[0], layout, partial(_domain, format_, interactions, items))


def _domain(format_: str, interactions: list[Path], items: Path, name: str, dataset: Dataset) -> DomainData:
    found = collect([_table(path, dataset) for path in interactions], dataset)
    return domain(name, format_, found, _items(items, dataset), dataset)


def _table(path: Path, dataset: Dataset) -> Table:
    there, columns = header(path, dataset), dataset.interactions
    wanted = [needed(path, there, "user", columns.user, USER), needed(path, there, "item", columns.item, ITEM)]
    time, rating = (
        named(path, there, "timestamp", columns.timestamp, TIME),
        named(path, there, "rating", columns.rating, RATING),
    )
    places = Columns(0, 1, None if time is None else 2, None if rating is None else 2 + (time is not None))
    wanted += [name for name in (time, rating) if name is not None]
    typed = path.suffix == ".parquet" and any(
        name == time and is_point_in_time(kind) for name, kind in columns_of(path)
    )
    return Table(path, places, partial(rows, path, wanted, dataset), unit(path), typed)


def _items(path: Path, dataset: Dataset) -> Iterator[Item]:
    there = header(path, dataset)
    item = needed(path, there, "item", dataset.items.item, ITEM)
    title = needed(path, there, "title", dataset.items.title, TITLE)
    lists = [name for name, kind in columns_of(path) if is_list(kind)] if path.suffix == ".parquet" else []
    fields = described(path, [*there, *lists], dataset.items, (item, title))
    return items(path, rows(path, [item, title, *fields.values()], dataset), list(fields))


def described(path: Path, there: Sequence[str], columns: ItemTable, taken: Sequence[str]) -> dict[str, str]:
    """The columns, besides those that are `taken`, of what else is kept of an item, by the names of the fields."""
    found = {}
    for field, usual in FIELDS.items():
        name = named(path, there, field, getattr(columns, field), usual)
        if name is not None and (name not in taken or getattr(columns, field) is not None):
            found[field] = name
    return found


def items(path: Path, rows: Iterator[tuple[int, Sequence[Any]]], fields: Sequence[str]) -> Iterator[Item]:
    """The items of a table whose rows are id, title and these fields."""
    for number, (item_id, title, *values) in rows:
        try:
            kept = {field: _plain(value) for field, value in zip(fields, values, strict=True)}
            yield Item(
                identifier(item_id, "item"),
                clean_title(unescaped(_text(title))),
                {field: value for field, value in kept.items() if value not in (None, "")},
            )
        except ValueError as error:
            raise misread(path, number, error, unit=unit(path)) from error


def _plain(value: Any) -> str | float | list[Any] | None:
    """What JSON can say of an item. Raises ValueError for anything else."""
    if value is None or value != value:
        return None
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, str) and len(value) <= MAX_FIELD:
        return "" if is_missing(value) else unescaped(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    raise UnreadableError(
        f"brand, genres, category and year must be text or finite numbers, found {excerpt(value)}",
        f"name another column in {FILE}, or correct the value",
    )


def _text(value: object) -> str:
    if value is None or value != value:  # NaN is how tables spell a missing value
        return ""
    if not isinstance(value, str):
        raise ValueError(f"title must be text, found {value!r}")
    return value


def needed(
    path: Path, there: Sequence[str], what: str, given: str | None, usual: Sequence[str], noun: str = "column"
) -> str:
    """The column that `dataset.yaml` or a usual name says is this. Raises DataError if there is none."""
    found = named(path, there, what, given, usual)
    if found is None:
        raise DataError(
            f"{path} has no {what} {noun}; its {noun}s are {', '.join(there)}",
            hint=f"say in {FILE} which it is; usual names are {', '.join(usual)}",
        )
    return found


def named(path: Path, there: Sequence[str], what: str, given: str | None, usual: Sequence[str]) -> str | None:
    """The same, or None. Raises DataError for a name that the table has twice, or that `dataset.yaml` made up."""
    if given is not None and given not in there:
        raise DataError(
            f"{path} has no column {given!r}, which {FILE} names for the {what}; its columns are {', '.join(there)}",
            hint=f"correct {FILE}",
        )
    found = given or column(there, usual)
    if found is not None and there.count(found) > 1:
        raise DataError(
            f"{path} has {there.count(found)} columns called {found!r}", hint="rename or remove all but one"
        )
    return found


def header(path: Path, dataset: Dataset) -> list[str]:
    """The names of a table's columns that hold one value a row."""
    if path.suffix == ".parquet":
        return [name for name, kind in columns_of(path) if not is_list(kind)]
    return [str(name) for name in next((row for _, row in csv_rows(path, dataset)), [])]


def rows(path: Path, wanted: Sequence[str], dataset: Dataset) -> Iterator[tuple[int, Sequence[Any]]]:
    """These columns of every row, in this order, with the number of the row (Parquet) or of its last line (CSV)."""
    if path.suffix == ".parquet":
        yield from parquet_rows(path, wanted)
        return
    there = header(path, dataset)
    pick = itemgetter(*(there.index(name) for name in wanted))  # of two columns or more
    for number, row in islice(csv_rows(path, dataset), 1, None):
        if len(row) != len(there):
            raise misread(path, number, _other_length(len(there), len(row)))
        yield number, pick(row)


def _other_length(expected: int, found: int) -> UnreadableError:
    return UnreadableError(
        f"expected {expected} columns, found {found}",
        "put text that holds separators in quotes, or correct the line; docs/data.md describes how CSV is read",
    )


def unit(path: Path) -> str:
    return "row" if path.suffix == ".parquet" else "line"
