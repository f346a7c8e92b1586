"""Amazon Reviews, as published in 2014, 2018 and 2023: a file of reviews, or only of ratings, and one of metadata, by category.

Metadata cover far more products than the reviews, so only products that were reviewed become items.
https://jmcauley.ucsd.edu/data/amazon, https://nijianmo.github.io/amazon, https://amazon-reviews-2023.github.io
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data import DomainData, Item, clean_title, unescaped
from ..errors import DataError
from .dataset import FILE, Dataset
from .ids import identifier
from .interactions import Columns, Table, collect, domain
from .lines import LONGEST_BYTES, TooLong, json_object, lines, misread, not_encoded, objects, shortened
from .long_values import MAX_FIELD, JsonLine
from .separated import csv_rows
from .source import Source
from .tables import header, rows


@dataclass(frozen=True)
class Edition:
    """How one publication names its files and keys. A file of ratings without header has these keys' values in `order`."""

    reviews: tuple[str, ...]
    meta: str
    keys: tuple[str, str, str, str]  # user, item, time, rating
    order: Columns | None = None
    header: bool = False
    parts: tuple[str, ...] = ()  # of its own split: the reviews are all of them, in this order

    def files(self, reviews: str) -> list[str]:
        """The files of the reviews, where `reviews` is the first or only one."""
        return [reviews.replace(self.parts[0], part) for part in self.parts] or [reviews]

    @property
    def label(self) -> str:
        if self.parts:
            return f"NAME{', NAME'.join(self.parts)} and {self.meta.format('NAME')}, plain or .gz"
        return f"{' or '.join(self.reviews).replace('{}', 'NAME')} and {self.meta.format('NAME')}, plain or .gz"


OLD_KEYS = ("reviewerID", "asin", "unixReviewTime", "overall")
NEW_KEYS = ("user_id", "parent_asin", "timestamp", "rating")
EDITIONS = {
    "amazon 2014": Edition(("reviews_{}_5.json", "reviews_{}.json"), "meta_{}.json", OLD_KEYS),
    "amazon 2014 ratings": Edition(("ratings_{}.csv",), "meta_{}.json", OLD_KEYS, order=Columns(0, 1, 3, 2)),
    "amazon 2018": Edition(("{}_5.json", "{}.json"), "meta_{}.json", OLD_KEYS),
    "amazon 2018 ratings": Edition(("{}.csv",), "meta_{}.json", OLD_KEYS, order=Columns(1, 0, 3, 2)),
    "amazon 2023": Edition(("{}.jsonl",), "meta_{}.jsonl", NEW_KEYS),
    "amazon 2023 ratings": Edition(("{}.csv",), "meta_{}.jsonl", NEW_KEYS, header=True),
    "amazon 2023 splits": Edition(
        ("{}.train.csv",), "meta_{}.jsonl", NEW_KEYS, header=True, parts=(".train.csv", ".valid.csv", ".test.csv")
    ),
}
FORMATS = {name: edition.label for name, edition in EDITIONS.items()}

META = re.compile(r"meta_(?P<name>.+)\.(?:json|jsonl)(?:\.gz)?")
REVIEWS = re.compile(r"(?:reviews|ratings)_(?P<name>.+?)(?:_5)?\.(?:json|csv)(?:\.gz)?")
LITERAL = re.compile(rb"\{'asin': '([A-Za-z0-9]+)', ")  # how a record of 2014 begins; evaluating it takes long
STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"]""")  # the last is a quote that nothing closes
TAG = re.compile(r"</?[A-Za-z][^<>]*>")


def find(folder: Path, names: frozenset[str], dataset: Dataset) -> list[Source]:
    metas = {name: match["name"] for name in sorted(names) if (match := META.fullmatch(name))}
    found = [
        _source(folder, names, format_, file, meta)
        for meta, category in metas.items()
        for format_, edition in EDITIONS.items()
        for stem in edition.reviews
        for file in (stem.format(category), f"{stem.format(category)}.gz")
        if file in names and meta.removesuffix(".gz") == edition.meta.format(category)
    ]
    if not found:
        if metas:
            raise DataError(f"{folder} holds {min(metas)}, but no reviews that go with it", hint="put both files there")
        if alone := next((name for name in sorted(names) if REVIEWS.fullmatch(name)), None):
            raise DataError(
                f"{folder} holds {alone}, but no meta_NAME.json.gz with the titles", hint="put both files there"
            )
    return found


def _source(folder: Path, names: frozenset[str], format_: str, reviews: str, meta: str) -> Source:
    files = EDITIONS[format_].files(reviews)
    if missing := [file for file in files if file not in names]:
        raise DataError(
            f"{folder} holds {reviews}, but no {missing[0]}",
            hint="put all parts of the split there: together they are the interactions",
        )
    paths = [folder / file for file in files]
    return Source(format_, paths[0], frozenset({*files, meta}), partial(_domain, format_, paths, folder / meta))


def _domain(format_: str, reviews: list[Path], meta: Path, name: str, dataset: Dataset) -> DomainData:
    edition = EDITIONS[format_]
    found = collect([_table(path, edition, dataset) for path in reviews], dataset)
    key = "parent_asin" if edition.keys == NEW_KEYS else "asin"
    records = _items(meta, key, found.items, dataset.encoding)
    return domain(name, format_, found, records, dataset, catalogue=False)


def _table(path: Path, edition: Edition, dataset: Dataset) -> Table:
    if edition.header:
        there = header(path, dataset)
        if missing := [key for key in edition.keys if key not in there]:
            raise DataError(
                f"{path} has no column {missing[0]!r}; its columns are {', '.join(there)}",
                hint=f"name format, files and columns in {FILE} if this is a table of your own: see docs/data.md",
            )
        return Table(path, Columns(0, 1, 2, 3), partial(rows, path, edition.keys, dataset))
    if edition.order is not None:
        return Table(path, edition.order, partial(_ratings, path, dataset))
    reading = partial(objects, path, dataset.encoding, whole=False)
    return Table(path, Columns(*edition.keys), reading)


def _ratings(path: Path, dataset: Dataset) -> Iterator[tuple[int, list[str]]]:
    for number, row in csv_rows(path, dataset):
        if len(row) != 4:
            raise misread(path, number, ValueError(f"expected 4 columns, found {len(row)}"))
        yield number, row


def _items(path: Path, key: str, reviewed: Container[str], encoding: str | None) -> Iterator[Item]:
    """The items, without the metadata of products without reviews where a look at the line's beginning shows which it is."""
    for number, line in lines(path, encoding, longest=LONGEST_BYTES, without=JsonLine):
        if (literal := LITERAL.match(line)) and (asin := literal[1].decode()) not in reviewed:
            yield Item(asin, "")
        elif not line.isspace():
            try:
                record = _record(line) if len(line) <= MAX_FIELD else shortened(_record(line))
                yield Item(identifier(record.get(key), key), *_item_texts(record))
            except UnicodeDecodeError as error:
                raise not_encoded(path, number, error) from error
            except (ValueError, RecursionError, MemoryError) as error:
                raise misread(path, number, error) from error


def _record(line: bytes) -> dict[str, Any]:
    """JSON or, in 2014, a dictionary as Python writes it: with single quotes, which JSON has not."""
    if not line.startswith(b"{'"):
        return json_object(line)
    text = line.decode()
    with suppress(ValueError, SyntaxError):  # several times faster, and all that most records need
        return json_object(STRING.sub(_json_string, text))
    try:
        record = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"is neither JSON nor a Python literal ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    return record


def _json_string(literal: re.Match[str]) -> str:
    text = literal[0]
    if len(text) == 1:
        raise ValueError("a quote is not closed")  # looking on from every later quote would take for ever
    if "\\" not in text and '"' not in text[1:-1]:
        return f'"{text[1:-1]}"'
    return json.dumps(ast.literal_eval(text))


def _item_texts(record: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Title and fields, rid of HTML. Where a page was cut badly, a piece of its script replaces the title."""
    title, brand = record.get("title"), record.get("brand") or record.get("store")
    if not isinstance(title, str | None):
        raise ValueError(f"title must be text or null, found {title!r}")
    if isinstance(brand, TooLong):
        raise ValueError(f"brand must be text or null, found {brand!r}")
    shown = "" if title and "getTime()" in title else _plain(title)
    brand = _plain(brand) if isinstance(brand, str) else ""
    return shown, {"brand": brand} if brand else {}


def _plain(text: str | None) -> str:
    return clean_title(TAG.sub(" ", unescaped(text or "")))
