"""Options inside an option."""

from __future__ import annotations


def pairs(value: object) -> object:
    """`epochs=5,hidden=64`, as it comes from `-o recommender=…`."""
    if not isinstance(value, str):
        return value
    given = [part.partition("=") for part in value.split(",")]
    if len({name.strip() for name, _, _ in given}) < len(given):
        raise ValueError("an option of the recommender is named twice")
    return {name.strip(): text for name, _, text in given}
