"""RecBole's atomic files: NAME.inter, NAME.item and perhaps NAME.user, cut at tabs, with a header of `field:type`.

https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..data import ALIGNED, DomainData
from ..errors import DataError
from .dataset import Dataset
from .interactions import Columns, collect, domain
from .lines import misread, split_rows, text_lines
from .source import Source
from .tables import ITEM, RATING, TIME, TITLE, USER, column, items

FORMAT = "recbole"
FORMATS = {FORMAT: "NAME.inter and NAME.item"}
TYPES = ("token", "token_seq", "float", "float_seq")


def find(folder: Path, names: frozenset[str], dataset: Dataset) -> list[Source]:
    found = []
    for name in sorted(name.removesuffix(".inter") for name in names if name.endswith(".inter")):
        if f"{name}.item" not in names:
            raise DataError(f"{folder} holds {name}.inter, but no {name}.item with the titles")
        layout = frozenset(f"{name}.{suffix}" for suffix in ("inter", "item", "user"))
        found.append(Source(FORMAT, folder / f"{name}.inter", layout, partial(_domain, folder / name)))
    return found


def _domain(stem: Path, name: str, dataset: Dataset) -> DomainData:
    interactions, records, profiles = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("inter", "item", "user"))
    there = _header(interactions)
    user, item = _needed(interactions, there, "user", USER), _needed(interactions, there, "item", ITEM)
    optional = [column(there, TIME), column(there, RATING)]
    time, rating = (None if name is None else there.index(name) for name in optional)
    rows = split_rows(interactions, "\t", len(there), "utf-8")
    next(rows)
    found = collect(interactions, rows, Columns(there.index(user), there.index(item), time, rating))
    described = _header(records)
    item, title = _needed(records, described, "item", ITEM), _needed(records, described, "title", TITLE)
    users = _users(profiles) if profiles.is_file() else {}
    return domain(name, FORMAT, found, items(records, _rows, described, item, title), dataset, users=users)


def _users(path: Path) -> dict[str, dict[str, str]]:
    there = _header(path)
    user = _needed(path, there, "user", USER)
    others = [field for field in there if field != user]
    if taken := {"items", "user_id", *ALIGNED} & set(others):
        raise DataError(
            f"{path} has a field {min(taken)!r}, a name that a history needs itself", hint="rename the field"
        )
    return {row[0]: dict(zip(others, row[1:], strict=True)) for _, row in _rows(path, [user, *others])}


def _header(path: Path) -> list[str]:
    """The names of the fields, without their types."""
    first = next((line for _, line in text_lines(path)), "")
    fields = [field.rpartition(":") for field in first.rstrip("\r\n").split("\t")]
    if wrong := [name or kind for name, _, kind in fields if not name or kind not in TYPES]:
        raise misread(
            path,
            1,
            ValueError(f"expected fields such as item_id:token, of type {', '.join(TYPES)}; found {wrong[0]!r}"),
        )
    return [name for name, _, _ in fields]


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
    there = _header(path)
    rows = split_rows(path, "\t", len(there), "utf-8")
    next(rows)
    places = [there.index(name) for name in wanted]
    if len(places) == 1:
        return ((number, (row[places[0]],)) for number, row in rows)
    pick = itemgetter(*places)
    return ((number, pick(row)) for number, row in rows)


def _needed(path: Path, there: Sequence[str], what: str, usual: Sequence[str]) -> str:
    found = column(there, usual)
    if found is None:
        raise DataError(
            f"{path} has no {what} field; its fields are {', '.join(there)}", hint=f"usual names: {', '.join(usual)}"
        )
    return found
