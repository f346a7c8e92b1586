"""Options inside an option."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from ..registry.strict_json import shown
from ..tasks.validation import amiss, is_unknown, unknown


def pairs(value: object) -> object:
    """`epochs=5,hidden=64`, as it comes from `-o recommender=…`. Raises ValueError for what is no number."""
    if not isinstance(value, str):
        return value
    given = [tuple(map(str.strip, part.partition("="))) for part in value.split(",")]
    if wrong := next((part for part in given if not all(part)), None):
        raise ValueError(f"{shown(''.join(wrong))} is no NAME=NUMBER, as in epochs=5,hidden=64")
    if len({name for name, _, _ in given}) < len(given):
        raise ValueError("an option is named twice")
    return {name: _number(name, text) for name, _, text in given}


def _number(name: str, text: str) -> int | float:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise ValueError(f"{name}={shown(text)} is no number")


def wrong_option(problem: Any) -> str:
    """What is wrong with an option's value: `epochs='x' is no whole number`; what a check of the option says stands behind its name alone."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    return f"{name}={shown(problem.get('input'))} {amiss(problem)}"


def wrong_inside(option: str, error: ValidationError, model: type[BaseModel]) -> ValueError:
    """What is wrong with the first of the options inside `option`, in the words for one of the trainer's own."""
    first: Any = error.errors()[0]
    if is_unknown(first):
        return ValueError(f"{option}: {unknown(first, model, 'option')}")
    return ValueError(f"{option}: {wrong_option(first)}")
