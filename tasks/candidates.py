"""What a user is offered: the item taken next among random items that the user never took."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from .data import DomainData
from .errors import DataError
from .splits import Example


def candidates(data: DomainData, example: Example, n_negatives: int, seed: int) -> tuple[str, ...]:
    """The target and `n_negatives` uniform negatives in random order, drawn per (seed, user, position).

    A negative is outside the user's whole history, later items included, and its title differs from those of the other
    candidates and of that history by more than case and punctuation: otherwise the question would have two right answers.
    """
    rng = random.Random(json.dumps([seed, example.user_id, example.position]))  # noqa: S311
    taken = data.by_user[example.user_id]
    titles = {wording(data.items[item_id].title) for item_id in taken}
    offered = [example.target]
    fill(offered, n_negatives + 1, data, titles, rng)
    if len(offered) <= n_negatives:
        raise DataError(
            f"{data.name} has only {len(offered) - 1} items that user {example.user_id!r} never took, "
            f"and {n_negatives} negatives are asked for",
            hint="set fewer negatives",
        )
    rng.shuffle(offered)
    return tuple(offered)


def fill(offered: list[str], count: int, data: DomainData, titles: set[str], rng: random.Random) -> None:
    """Add random titled items, up to `count` in all, each with another wording than `titles`, to which it is added."""
    for item_id in _draws(data.titled, rng):
        if len(offered) >= count:
            break
        words = wording(data.items[item_id].title)
        if words not in titles:
            titles.add(words)
            offered.append(item_id)


def _draws(pool: Sequence[str], rng: random.Random) -> Iterator[str]:
    """The pool in random order, lazily: a Fisher-Yates shuffle that remembers only what it moved."""
    moved: dict[int, int] = {}
    for last in range(len(pool) - 1, -1, -1):
        pick = rng.randint(0, last)
        yield pool[moved.get(pick, pick)]
        moved[pick] = moved.get(last, last)


@lru_cache(maxsize=1 << 16)
def wording(title: str) -> str:
    return " ".join(re.findall(r"\w+", title.casefold()))
