"""RecBole's atomic files: NAME.inter, NAME.item and perhaps NAME.user, cut at tabs, with a header of `field:type`.

https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..data import ALIGNED, DomainData
from ..errors import DataError
from . import tables
from .dataset import FILE, Dataset
from .interactions import Columns, Table, collect, domain
from .lines import misread, split_rows, text_lines
from .source import Source
from .tables import ITEM, RATING, TIME, TITLE, USER, described, items, named

FORMAT = "recbole"
FORMATS = {FORMAT: "NAME.inter and NAME.item"}
TYPES = ("token", "token_seq", "float", "float_seq")
PARTS = ("train", "valid", "validation", "dev", "test")  # of a split, in the order of time
needed = partial(tables.needed, noun="field")
PART = re.compile(r"(?P<name>.+)\.(?P<part>[^.]+)")


def find(folder: Path, names: frozenset[str], dataset: Dataset) -> list[Source]:
    found = []
    for name, parts in sorted(_parts(names).items()):
        if f"{name}.item" not in names:
            raise DataError(
                f"{folder} holds {parts[0]}, but no {name}.item with the titles", hint="put both files there"
            )
        files = [folder / part for part in _in_order(folder, name, parts, dataset)]
        layout = frozenset({*parts, f"{name}.item", f"{name}.user"})
        found.append(Source(FORMAT, files[0], layout, partial(_domain, folder / name, files)))
    return found


def _parts(names: frozenset[str]) -> dict[str, list[str]]:
    """The files of interactions by the data set's name: one that is whole, or the parts of its split."""
    stems = sorted(name.removesuffix(".inter") for name in names if name.endswith(".inter"))
    found: dict[str, list[str]] = {}
    for stem in stems:
        match = PART.fullmatch(stem)
        name = match["name"] if match and f"{stem}.item" not in names and f"{match['name']}.item" in names else stem
        found.setdefault(name, []).append(f"{stem}.inter")
    return found


def _in_order(folder: Path, name: str, files: list[str], dataset: Dataset) -> list[str]:
    """The files in the order in which they are read, which is that of interactions without times."""
    if dataset.benchmark_filename is not None:
        listed = [f"{name}.{part}.inter" for part in dataset.benchmark_filename]
        if missing := [file for file in listed if file not in files]:
            raise DataError(
                f"{folder / FILE} names {missing[0]} by its benchmark_filename, and the folder holds no such file",
                hint=f"there are {', '.join(files)}",
            )
        return listed
    whole = f"{name}.inter"
    if whole in files and len(files) > 1:
        raise DataError(
            f"{folder} holds {whole} and parts of it: {', '.join(file for file in files if file != whole)}",
            hint=f"keep the one or the others, or name the parts in {FILE}: `benchmark_filename: [train, valid, test]`",
        )
    if whole in files:
        return files
    by_part = {file.removeprefix(f"{name}.").removesuffix(".inter"): file for file in files}
    if not by_part.keys() <= set(PARTS):
        raise DataError(
            f"{folder} holds parts of {whole} whose order is not known: {', '.join(files)}",
            hint=f"name them in {FILE}, the earliest first: `benchmark_filename: [{', '.join(by_part)}]`",
        )
    return [by_part[part] for part in PARTS if part in by_part]


def _domain(stem: Path, files: list[Path], name: str, dataset: Dataset) -> DomainData:
    _expect_own_files(stem.parent, dataset)
    records, profiles = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("item", "user"))
    found = collect([_table(path, dataset) for path in files], dataset)
    there, columns = _header(records, dataset), dataset.items
    known = columns.item or (dataset.interactions.item if dataset.interactions.item in there else None)
    item, title = needed(records, there, "item", known, ITEM), needed(records, there, "title", columns.title, TITLE)
    fields = described(records, there, columns, (item, title))
    users = _users(profiles, dataset) if profiles.is_file() else {}
    rows = _rows(records, [item, title, *fields.values()], dataset)
    return domain(name, FORMAT, found, items(records, rows, list(fields)), dataset, users=users)


def _expect_own_files(folder: Path, dataset: Dataset) -> None:
    if dataset.interactions.file is not None or dataset.items.file is not None:
        raise DataError(
            f"{folder / FILE} names files, which {FORMAT} has of its own",
            hint="name only fields, or the parts of a split by `benchmark_filename`",
        )


def _table(path: Path, dataset: Dataset) -> Table:
    there, names = _header(path, dataset), dataset.interactions
    user, item = needed(path, there, "user", names.user, USER), needed(path, there, "item", names.item, ITEM)
    if f"{item}_list" in there:
        raise DataError(
            f"{path} has a field {item}_list: its rows are whole histories, cut by RecBole, where one interaction is needed",
            hint="use the file of interactions that they were made from",
        )
    time = named(path, there, "timestamp", names.timestamp, TIME)
    rating = named(path, there, "rating", names.rating, RATING)
    places = [None if name is None else there.index(name) for name in (time, rating)]
    columns = Columns(there.index(user), there.index(item), *places)
    return Table(path, columns, partial(_rows_below, path, there, dataset))


def _rows_below(path: Path, there: Sequence[str], dataset: Dataset) -> Iterator[tuple[int, list[Any]]]:
    rows = split_rows(path, "\t", len(there), dataset.encoding)
    next(rows)
    return rows


def _users(path: Path, dataset: Dataset) -> dict[str, dict[str, str]]:
    there = _header(path, dataset)
    user_field = dataset.interactions.user
    user = needed(path, there, "user", user_field if user_field in there else None, USER)
    others = [field for field in there if field != user]
    if taken := {"items", "user_id", *ALIGNED} & set(others):
        raise DataError(
            f"{path} has a field {min(taken)!r}, a name that a history needs itself", hint="rename the field"
        )
    return {row[0]: dict(zip(others, row[1:], strict=True)) for _, row in _rows(path, [user, *others], dataset)}


def _header(path: Path, dataset: Dataset) -> list[str]:
    """The names of the fields, without their types."""
    first = next((line for _, line in text_lines(path, dataset.encoding)), "")
    fields = [field.rpartition(":") for field in first.rstrip("\r\n").split("\t")]
    if wrong := [name or kind for name, _, kind in fields if not name or kind not in TYPES]:
        raise misread(
            path,
            1,
            ValueError(f"expected fields such as item_id:token, of type {', '.join(TYPES)}; found {wrong[0]!r}"),
        )
    return [name for name, _, _ in fields]


def _rows(path: Path, wanted: Sequence[str], dataset: Dataset) -> Iterator[tuple[int, Sequence[Any]]]:
    there = _header(path, dataset)
    places = [there.index(name) for name in wanted]
    rows = _rows_below(path, there, dataset)
    if len(places) == 1:
        return ((number, (row[places[0]],)) for number, row in rows)
    pick = itemgetter(*places)
    return ((number, pick(row)) for number, row in rows)
