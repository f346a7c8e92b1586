"""Ids as files spell them: nobody's, and whole numbers that one file writes as 12 and another as 12.0."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from .lines import MAX_FIELD, TooLong, UnreadableError
from .times import EXACT

WHOLE = re.compile(r"0|-?[1-9]\d*")
FLOAT = re.compile(r"(?P<whole>0|-?[1-9]\d*)\.0+")
MISSING = frozenset({"nan", "NaN", "None", "NULL", "null", "<NA>", "\\N", "N/A", "n/a", "#N/A"})


def identifier(value: Any, what: str) -> str:
    """Text as it is, a whole number as its digits. Raises ValueError for anything else, and for no text."""
    if value.__class__ is int:
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return str(int(value))
    if isinstance(value, TooLong):
        raise UnreadableError(
            f"field larger than field limit ({MAX_FIELD:,} characters)", f"shorten the {what}, or correct its column"
        )
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must be non-empty text or a whole number, found {value!r}")
    return value


def is_no_user(value: Any) -> bool:
    """Whether this stands where a user is not known: null, NaN, blank, or a word for them that tables write."""
    return value is None or value != value or (isinstance(value, str) and (value in MISSING or not value.strip()))


def respelled(*columns: Collection[str]) -> dict[str, str]:
    """Which ids such as 12.0 are those that are 12 elsewhere, where columns of different files hold ids of one kind.

    They are where a column holds only such ids and another one none but their whole numbers, or where all ids of all
    columns are whole numbers in one of the two spellings. In any other company, 12.0 is a text like others.
    """
    marked = [
        {name: match["whole"] for name in column if ".0" in name and (match := FLOAT.fullmatch(name))}
        for column in columns
    ]
    found = {name: whole for column in marked for name, whole in column.items()}
    if not found:
        return {}
    floats = [column for column, names in zip(columns, marked, strict=True) if column and len(names) == len(column)]
    texts = [column for column, names in zip(columns, marked, strict=True) if not names]
    if floats and any(whole in column for column in texts for whole in found.values()):
        return {name: found[name] for column in floats for name in column}
    plain = [name for column in columns for name in column if name not in found]
    return found if plain and all(map(WHOLE.fullmatch, plain)) else {}


def renamed(names: Iterable[str], spelled: dict[str, str]) -> tuple[dict[str, int], list[int]]:
    """Names numbered anew as they come, and the new number of each; two spellings of one share theirs."""
    found: dict[str, int] = {}
    return found, [found.setdefault(spelled.get(name, name), len(found)) for name in names]
