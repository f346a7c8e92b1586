"""Leave-one-out by time: a user's last item is the test target, the one before it the validation target, the rest train.

Items without a title are left out before splitting: they can be neither shown nor asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from heapq import nsmallest
from typing import Literal, Protocol, TypeVar

from .data import DomainData
from .errors import TaskError

Split = Literal["train", "validation", "test", "cold"]


class Example:
    """One prediction to make: the item that `user_id` took after `history` (item ids, newest last).

    Examples of one user share the tuple of what the user took, so that a million of them cost what a million names cost.
    """

    __slots__ = ("_taken", "position", "user_id")
    user_id: str
    position: int

    def __init__(self, user_id: str, history: Sequence[str], target: str) -> None:
        self.user_id, self._taken, self.position = user_id, (*history, target), len(history)

    @classmethod
    def at(cls, user_id: str, taken: tuple[str, ...], position: int) -> Example:
        """The prediction of what stands at `position`, from 0, among the titled items that the user took."""
        example = cls.__new__(cls)
        example.user_id, example._taken, example.position = user_id, taken, position
        return example

    @property
    def history(self) -> tuple[str, ...]:
        return self._taken[: self.position]

    @property
    def target(self) -> str:
        return self._taken[self.position]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        return (self.user_id, self.history, self.target) == (other.user_id, other.history, other.target)

    def __hash__(self) -> int:
        return hash((self.user_id, self.position, self.target))

    def __repr__(self) -> str:
        return f"Example(user_id={self.user_id!r}, history={self.history!r}, target={self.target!r})"


def examples(data: DomainData, split: Split) -> list[Example]:
    """The split's examples by user id, then by time; each has a history of at least one item.

    `cold` holds the test examples whose target occurs at no training or validation position of any user.
    """
    if split == "cold":
        seen = {item_id for taken in data.by_user.values() for item_id in taken[:-1]}
        return [example for example in examples(data, "test") if example.target not in seen]
    return [
        Example.at(user_id, taken, position)
        for user_id, taken in data.by_user.items()
        for position in _positions(split, len(taken))
    ]


def _positions(split: Split, length: int) -> range:
    """Where a history of `length` items has its targets."""
    match split:
        case "train":
            return range(1, length - 2)
        case "validation":
            return range(max(1, length - 2), length - 1)
        case "test":
            return range(max(1, length - 1), length)
    raise TaskError(f"no split is called {split!r}", hint="the splits are train, validation, test and cold")


class Placed(Protocol):
    """Something about what a user did at a place of their history, from 0."""

    @property
    def user_id(self) -> str: ...

    @property
    def position(self) -> int: ...


Drawn = TypeVar("Drawn", bound=Placed)


def sample(examples: Iterable[Drawn], limit: int, seed: int) -> list[Drawn]:
    """At most `limit` examples in an order that depends on the seed alone; a smaller sample is the head of a larger one."""

    @cache
    def beginning(user_id: str) -> str:
        return json.dumps([seed, user_id])[:-1]

    def rank(example: Drawn) -> bytes:
        return hashlib.sha256(f"{beginning(example.user_id)}, {example.position}]".encode()).digest()

    return nsmallest(limit, examples, key=rank)


def user_digest(user_id: str) -> str:
    """A short name of a user for what is kept with an adapter: 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(b"user\0" + user_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
