"""Leave-one-out by time: a user's last item is the test target, the one before it the validation target, the rest train.

Items without a title are left out before splitting: they can be neither shown nor asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .data import DomainData
from .errors import TaskError

Split = Literal["train", "validation", "test", "cold"]


@dataclass(frozen=True, slots=True)
class Example:
    """One prediction to make: the item that `user_id` took after `history` (item ids, newest last)."""

    user_id: str
    history: tuple[str, ...]
    target: str

    @property
    def position(self) -> int:
        """Where the target stands among the user's titled items, from 0."""
        return len(self.history)


def examples(data: DomainData, split: Split) -> list[Example]:
    """The split's examples by user id, then by time; each has a history of at least one item.

    `cold` holds the test examples whose target occurs at no training or validation position of any user.
    """
    if split == "cold":
        seen = {item_id for taken in data.by_user.values() for item_id in taken[:-1]}
        return [example for example in examples(data, "test") if example.target not in seen]
    return [
        Example(user_id, taken[:position], taken[position])
        for user_id, taken in data.by_user.items()
        for position in _positions(split, len(taken))
        if position > 0
    ]


def _positions(split: Split, length: int) -> range:
    """Where a history of `length` items has its targets."""
    match split:
        case "train":
            return range(length - 2)
        case "validation":
            return range(length - 2, length - 1)
        case "test":
            return range(length - 1, length)
    raise TaskError(f"no split is called {split!r}", hint="the splits are train, validation, test and cold")


def sample(examples: Iterable[Example], limit: int, seed: int) -> list[Example]:
    """At most `limit` examples in an order that depends on the seed alone; a smaller sample is the head of a larger one."""

    def rank(example: Example) -> bytes:
        return hashlib.sha256(json.dumps([seed, example.user_id, example.position]).encode()).digest()

    return sorted(examples, key=rank)[:limit]
