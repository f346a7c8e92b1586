"""Rows of clicks as numbers: the vocabularies of users, items, ratings, profiles and titles, and what a network reads of a row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..tasks import ClickRow, ClickUser, Item

UNKNOWN = 0  # of users, items and profile values, which are numbered from 1; of ratings: no rating, so padding
CATEGORIES = ("genres", "category", "categories", "brand", "store")  # item fields
MOST_RATINGS = 64  # distinct values; where a domain has more, as many quantiles stand for them
MOST_WORDS, MOST_CATEGORIES = 12, 8  # of an item that are read
_WORD = re.compile(r"\w+")


class ClickVocabulary(BaseModel):
    """What a network knows by number. Items are all of the catalogue; `trained_items` are those with an embedding of their own.

    `item_words` and `item_categories` are per item the numbers of its title's words and of its categories.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: tuple[str, ...]
    items: tuple[str, ...]
    trained_items: tuple[int, ...]
    ratings: tuple[float, ...]
    profile: dict[str, tuple[str, ...]]
    words: tuple[str, ...]
    categories: tuple[str, ...]
    item_words: tuple[tuple[int, ...], ...]
    item_categories: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, rows: Sequence[ClickRow], items: Mapping[str, Item]) -> ClickVocabulary:
        """Users, ratings and profile values of these rows; words and categories that at least two items of the catalogue share."""
        users = {row.user_id: row for row in rows}
        seen = {each.item_id for row in _longest(rows) for each in row.history} | {row.item_id for row in rows}
        given = [each.rating for row in _longest(rows) for each in row.history]
        profile = {name: _sorted({str(row.profile.get(name)) for row in users.values() if name in row.profile})
                   for name in _sorted({name for row in users.values() for name in row.profile})}  # fmt: skip
        ids = _sorted(items)
        words, item_words = _terms([_words(items[item_id])[:MOST_WORDS] for item_id in ids])
        categories, item_categories = _terms([_categories(items[item_id])[:MOST_CATEGORIES] for item_id in ids])
        trained = tuple(number for number, item_id in enumerate(ids, start=1) if item_id in seen)
        return cls(
            users=_sorted(users), items=ids, trained_items=trained, ratings=_levels(given), profile=profile,
            words=words, categories=categories, item_words=item_words, item_categories=item_categories,
        )  # fmt: skip


def _sorted(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(values))


def _longest(rows: Iterable[ClickRow]) -> Iterable[ClickRow]:
    """Each user's last row, whose history contains those of the others."""
    last: dict[str, ClickRow] = {}
    for row in rows:
        if row.user_id not in last or row.position > last[row.user_id].position:
            last[row.user_id] = row
    return last.values()


def _levels(ratings: Sequence[float]) -> tuple[float, ...]:
    levels = np.unique(np.asarray(ratings, dtype=np.float64))
    if len(levels) > MOST_RATINGS:
        levels = np.unique(np.quantile(ratings, np.linspace(0, 1, MOST_RATINGS)))
    return tuple(levels.tolist())


def _words(item: Item) -> list[str]:
    return list(dict.fromkeys(_WORD.findall(item.title.casefold())))


def _categories(item: Item) -> list[str]:
    values = [item.fields.get(name) for name in CATEGORIES]
    return list(dict.fromkeys(str(each) for value in values if value for each in (value if isinstance(value, list | tuple) else [value])))  # fmt: skip


def _terms(of_items: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """The terms of two items or more, and per item the numbers of its own."""
    counts = Counter(chain.from_iterable(of_items))
    terms = _sorted(term for term, count in counts.items() if count > 1)
    numbers = {term: number for number, term in enumerate(terms, start=1)}
    return terms, tuple(tuple(numbers[term] for term in own if term in numbers) for own in of_items)


@dataclass(frozen=True)
class ClickBatch:
    """Rows as numbers: `user` and `target` [rows], `profile` [rows, fields], `history` and `ratings` [rows, places], oldest first.

    Padding stands to the left, where `ratings` are 0.
    """

    user: Tensor
    profile: Tensor
    target: Tensor
    history: Tensor
    ratings: Tensor

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, which: Tensor) -> ClickBatch:
        return ClickBatch(*(each[which] for each in (self.user, self.profile, self.target, self.history, self.ratings)))


class ClickEncoder:
    """Makes batches of rows by a vocabulary; histories keep their newest `length` items."""

    def __init__(self, vocabulary: ClickVocabulary, length: int) -> None:
        self._length = length
        self.users = _numbers(vocabulary.users)
        self._items = _numbers(vocabulary.items)
        self._profile = {name: _numbers(values) for name, values in vocabulary.profile.items()}
        levels = np.asarray(vocabulary.ratings)
        self._bounds = (levels[1:] + levels[:-1]) / 2

    def encode(self, rows: Sequence[ClickRow]) -> ClickBatch:
        history = np.zeros((len(rows), self._length), dtype=np.int64)
        ratings = np.zeros_like(history)
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(id(row.user), []).append(place)
        for own in places.values():
            ends = np.array([rows[place].position for place in own])
            for target, padded in zip((history, ratings), self._padded(rows[own[0]].user), strict=True):
                target[own] = np.lib.stride_tricks.sliding_window_view(padded, self._length)[ends]
        profile = [[numbers.get(str(row.profile.get(name)), UNKNOWN) for name, numbers in self._profile.items()] for row in rows]  # fmt: skip
        return ClickBatch(
            torch.tensor([self.users.get(row.user_id, UNKNOWN) for row in rows], dtype=torch.long),
            torch.tensor(profile, dtype=torch.long).reshape(len(rows), len(self._profile)),
            torch.tensor([self._items.get(row.item_id, UNKNOWN) for row in rows], dtype=torch.long),
            torch.from_numpy(history),
            torch.from_numpy(ratings),
        )

    def _padded(self, user: ClickUser) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Item and rating numbers of all that the user rated; a rating that is not known becomes the nearest that is."""
        items = [UNKNOWN] * self._length + [self._items.get(each.item_id, UNKNOWN) for each in user.rated]
        nearest = np.searchsorted(self._bounds, [each.rating for each in user.rated]) + 1
        ratings = np.concatenate([np.zeros(self._length, dtype=np.int64), nearest])
        return np.asarray(items, dtype=np.int64), ratings.astype(np.int64)


def _numbers(values: Iterable[str]) -> dict[str, int]:
    return {value: number for number, value in enumerate(values, start=1)}


def padded_table(of_items: Sequence[Sequence[int]]) -> Tensor:
    """[items + 1, most terms]: the numbers of each item's terms, 0 for padding and for the unknown item."""
    table = np.zeros((len(of_items) + 1, max(1, *map(len, of_items), 1)), dtype=np.int64)
    for number, own in enumerate(of_items, start=1):
        table[number, : len(own)] = own
    return torch.from_numpy(table)
