"""Options inside an option."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from ..tasks.validation import is_unknown, unknown


def pairs(value: object) -> object:
    """`epochs=5,hidden=64`, as it comes from `-o recommender=…`."""
    if not isinstance(value, str):
        return value
    given = [part.partition("=") for part in value.split(",")]
    if len({name.strip() for name, _, _ in given}) < len(given):
        raise ValueError("an option of the recommender is named twice")
    return {name.strip(): text for name, _, text in given}


def wrong_inside(option: str, error: ValidationError, model: type[BaseModel]) -> ValueError:
    """What is wrong with the first of the options inside `option`, in the words for one of the trainer's own."""
    first: Any = error.errors()[0]
    if is_unknown(first):
        return ValueError(f"{option}: {unknown(first, model, 'option')}")
    return ValueError(f"{option}={'.'.join(map(str, first['loc']))}=…: {first['msg']}")
