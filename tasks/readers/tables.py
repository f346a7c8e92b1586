"""CSV, TSV and Parquet: a file of interactions and one of items, found by the names of their columns or told by `dataset.yaml`."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DomainData, Item, clean_title
from ..errors import DataError
from .dataset import FILE, Dataset
from .interactions import Columns, collect, domain, identifier
from .lines import misread, text_lines
from .source import Source

if TYPE_CHECKING:
    import pyarrow as pa

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
    "year": ("year", "release_year"),
}
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
BATCH_ROWS = 1 << 16


def column(header: Sequence[str], usual: Sequence[str]) -> str | None:
    """The header's column with the first of these names."""
    there = {name.strip().lower(): name for name in reversed(header)}
    return next((there[name] for name in usual if name in there), None)


def find(folder: Path, names: frozenset[str], dataset: Dataset) -> list[Source]:
    if dataset.names_tables:
        return [_told(folder, names, dataset)]
    headers = {}
    for name in sorted(names):
        if name.endswith(SUFFIXES):
            headers[name] = header(folder / name)
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
    return [_source(folder / interactions[0], folder / items[0], dataset)]


def _told(folder: Path, names: frozenset[str], dataset: Dataset) -> Source:
    """The files that `dataset.yaml` names; one that it leaves out must be the only one of its kind."""
    for what, file in ("interactions", dataset.interactions.file), ("items", dataset.items.file):
        if file is not None and (file not in names or not file.endswith(SUFFIXES)):
            raise DataError(
                f"{folder / FILE} names {file!r} as its file of {what}, and the folder holds no such table",
                hint=f"tables end in {', '.join(SUFFIXES)}; the folder holds {', '.join(sorted(names)) or 'no file'}",
            )
    tables = sorted(name for name in names if name.endswith(SUFFIXES))
    interactions, items = dataset.interactions.file, dataset.items.file
    if interactions is None:
        interactions = _only(folder, "interactions", [name for name in tables if name != items])
    if items is None:
        items = _only(folder, "items", [name for name in tables if name != interactions])
    return _source(folder / interactions, folder / items, dataset)


def _only(folder: Path, what: str, names: list[str]) -> str:
    if len(names) != 1:
        raise DataError(
            f"{folder / FILE} does not say which file holds the {what}; the folder holds {', '.join(names) or 'no other table'}",
            hint=f"add `{what}: {{file: NAME}}`",
        )
    return names[0]


def _source(interactions: Path, items: Path, dataset: Dataset) -> Source:
    format_ = "parquet" if interactions.suffix == ".parquet" else "csv"
    layout = frozenset({interactions.name, items.name})
    return Source(format_, interactions, layout, partial(_domain, format_, interactions, items))


def _domain(format_: str, interactions: Path, items: Path, name: str, dataset: Dataset) -> DomainData:
    there, said = header(interactions), dataset.interactions
    wanted = [
        _needed(interactions, there, "user", said.user, USER),
        _needed(interactions, there, "item", said.item, ITEM),
    ]
    optional = [
        _there(interactions, there, "timestamp", said.timestamp, TIME),
        _there(interactions, there, "rating", said.rating, RATING),
    ]
    places = Columns(0, 1, None if optional[0] is None else 2, None if optional[1] is None else 2 + bool(optional[0]))
    wanted += [name for name in optional if name is not None]
    found = collect(interactions, rows(interactions, wanted), places, unit=unit(interactions))
    return domain(name, format_, found, _items(items, dataset), dataset)


def _items(path: Path, dataset: Dataset) -> Iterator[Item]:
    there = header(path)
    title = _needed(path, there, "title", dataset.items.title, TITLE)
    return items(path, rows, there, _needed(path, there, "item", dataset.items.item, ITEM), title)


def items(
    path: Path,
    rows: Callable[[Path, Sequence[str]], Iterator[tuple[int, Sequence[Any]]]],
    there: Sequence[str],
    item: str,
    title: str,
) -> Iterator[Item]:
    """The items of a table with these columns: id, title and, if there are any, brand, genres and year."""
    named = {field: column(there, usual) for field, usual in FIELDS.items()}
    fields = {field: name for field, name in named.items() if name is not None and name not in (item, title)}
    for number, (item_id, its_title, *values) in rows(path, [item, title, *fields.values()]):
        try:
            yield Item(
                identifier(item_id, "item"),
                clean_title(_text(its_title)),
                {
                    field: value
                    for field, value in zip(fields, map(_plain, values), strict=True)
                    if value not in (None, "")
                },
            )
        except ValueError as error:
            raise misread(path, number, error, unit=unit(path)) from error


def _plain(value: Any) -> str | float | list[Any] | None:
    """What JSON can say of an item. Raises ValueError for anything else."""
    if value is None or value != value:
        return None
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError(f"brand, genres and year must be text or finite numbers, found {value!r}")


def _text(value: object) -> str:
    if value is None or value != value:  # NaN is how tables spell a missing value
        return ""
    if not isinstance(value, str):
        raise ValueError(f"title must be text, found {value!r}")
    return value


def _needed(path: Path, there: Sequence[str], what: str, said: str | None, usual: Sequence[str]) -> str:
    found = _there(path, there, what, said, usual)
    if found is None:
        raise DataError(
            f"{path} has no {what} column; its columns are {', '.join(there)}",
            hint=f"say in {FILE} which it is; usual names are {', '.join(usual)}",
        )
    return found


def _there(path: Path, there: Sequence[str], what: str, said: str | None, usual: Sequence[str]) -> str | None:
    if said is not None and said not in there:
        raise DataError(
            f"{path} has no column {said!r}, which {FILE} names for the {what}; its columns are {', '.join(there)}",
            hint=f"correct {FILE}",
        )
    found = said or column(there, usual)
    if found is not None and there.count(found) > 1:
        raise DataError(
            f"{path} has {there.count(found)} columns called {found!r}", hint="rename or remove all but one"
        )
    return found


def header(path: Path) -> list[str]:
    """The names of a table's columns."""
    if path.suffix == ".parquet":
        with _parquet(path) as file:
            return list(file.schema_arrow.names)
    return next((row for _, row in csv_rows(path)), [])


def rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
    """These columns of every row, in this order, with the number of the row (Parquet) or of its last line (CSV)."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, wanted)
        return
    there = header(path)
    pick = itemgetter(*(there.index(name) for name in wanted))  # of two columns or more
    for number, row in islice(csv_rows(path), 1, None):
        if len(row) != len(there):
            raise misread(path, number, ValueError(f"expected {len(there)} columns, found {len(row)}"))
        yield number, pick(row)


def unit(path: Path) -> str:
    return "row" if path.suffix == ".parquet" else "line"


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the number of their last line. A semicolon separates if the header has more of them."""
    first = next((line for _, line in text_lines(path)), "")
    separators = "\t" if ".tsv" in path.suffixes else ",;"
    reader = csv.reader((line for _, line in text_lines(path)), strict=True, delimiter=max(separators, key=first.count))
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise misread(path, reader.line_num, error) from error


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
    number = 0
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(dict.fromkeys(wanted))):
            columns = {name: _values(path, name, batch.column(name)) for name in set(wanted)}
            for row in zip(*(columns[name] for name in wanted), strict=True):
                number += 1
                yield number, row


def _values(path: Path, name: str, column: pa.Array) -> list[Any]:
    """The column's values; points in time become seconds since 1970."""
    import pyarrow as pa

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if not pa.types.is_timestamp(column.type):
        return column.to_pylist()
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    counts = column.cast(pa.int64()).to_pylist()
    if per_second == 10**9 and any(count is not None and count % 1000 for count in counts):
        raise DataError(
            f"{path}: column {name!r} is finer than microseconds", hint="store it as microseconds or as integers"
        )
    return [count if count is None else count / per_second for count in counts]


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow, which is not installed", hint="pip install 'reccocktail[train]'"
        ) from error
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
