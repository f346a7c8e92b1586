"""Which items of a large catalogue are worth ranking for a history: those most like its last titles, and those taken most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from .catalogue import title_key
from .data import DomainData, Item
from .errors import TaskError
from .tfidf import LAST_ITEMS, Likeness, words

TFIDF_SHARE = 0.75  # of what is retrieved; popularity finds the rest. benchmarks/retrieval.py measures it
DECIMALS = 9  # of a cosine: what only the rounding errors of sums tell apart counts as equal


class Retriever:
    """An index of a catalogue's words, and of how often each item was taken. Making it reads every title once.

    `taken` is what counts as popularity, all histories of the data by default; repeats count as often as they happened.
    """

    def __init__(self, data: DomainData, *, taken: Iterable[Sequence[str]] | None = None) -> None:
        self._data = data
        self._items = [data.items[item_id] for item_id in data.titled]
        counts = Counter(chain.from_iterable(data.by_user.values() if taken is None else taken))
        self._popularity = np.array([counts[item.item_id] for item in self._items], dtype=np.int64)
        self._most_popular = np.argsort(-self._popularity, kind="stable")
        self._inverse, self._postings = _index(self._items)

    @property
    def titles(self) -> list[str]:
        """Of all items, by their ids."""
        return [item.title for item in self._items]

    @cached_property
    def likeness(self) -> Likeness:
        """How alike the words of the catalogue's items are."""
        return Likeness(self._data)

    def retrieve(self, history: Sequence[Item], count: int, *, tfidf_share: float = TFIDF_SHARE) -> list[Item]:
        """At most `count` items, first the share that is most like the last items of the history, then the most popular others.

        Likeness is that of the baseline `tfidf`. What has no word in common with the history is not alike, and leaves its place to
        popularity. Equally alike items come by popularity, equally popular ones by id. Left out are the items of the history and
        those whose titles say the same but for case and punctuation; of several items that say the same the first stays.
        Raises TaskError for a share that is none.
        """
        if not 0 <= tfidf_share <= 1:
            raise TaskError(f"a share of {tfidf_share} is not between 0 and 1")
        seen = {title_key(item.title) for item in history}
        found = self._next(self._most_alike(history), round(count * tfidf_share), seen)
        return found + self._next(self._most_popular, count - len(found), seen)

    def alike(self, history: Sequence[Item], count: int) -> list[Item]:
        """At most `count` items that have a word in common with the last items of the history, most alike first; the rest as `retrieve`."""
        return self._next(self._most_alike(history), count, {title_key(item.title) for item in history})

    def likenesses(self, history: Sequence[Item], *, last_items: int = LAST_ITEMS) -> NDArray[np.float64]:
        """How alike each titled item, by id, is to the last items of the history: the cosines of `Likeness`, rounded to DECIMALS."""
        asked = Counter(chain.from_iterable(words(item) for item in history[-last_items:]))
        known = {term: times * self._inverse[term] for term, times in asked.items() if term in self._inverse}
        scores, length = np.zeros(len(self._items)), math.sqrt(sum(weight**2 for weight in known.values()))
        for term, weight in known.items():
            places, weights = self._postings[term]
            scores[places] += weight / length * weights
        return scores.round(DECIMALS)

    def _most_alike(self, history: Sequence[Item]) -> NDArray[np.int64]:
        """Places of the items that have a word in common with the last of the history, most alike first."""
        scores = self.likenesses(history)
        order = np.lexsort((-self._popularity, -scores))
        return order[: np.count_nonzero(scores)]

    def _next(self, order: Iterable[int], count: int, seen: set[str]) -> list[Item]:
        """The first `count` items in this order whose titles were not seen; they are from now on."""
        found: list[Item] = []
        for place in order:
            if len(found) >= count:
                break
            item = self._items[place]
            if (title := title_key(item.title)) not in seen:
                seen.add(title)
                found.append(item)
        return found


def _index(
    items: Sequence[Item],
) -> tuple[dict[str, float], dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]]:
    """Per term its inverse document frequency; and the places of the items that have it, with its share of their unit vectors."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    for place, item in enumerate(items):
        for term, times in Counter(words(item)).items():
            places, counts = found.setdefault(term, ([], []))
            places.append(place)
            counts.append(times)
    inverse = {term: math.log((1 + len(items)) / (1 + len(places))) + 1 for term, (places, _) in found.items()}
    placed = {t: (np.array(places), np.array(counts) * inverse[t]) for t, (places, counts) in found.items()}
    squares = np.zeros(len(items))
    for places, weights in placed.values():
        squares[places] += weights**2
    lengths = np.sqrt(squares)
    return inverse, {term: (places, weights / lengths[places]) for term, (places, weights) in placed.items()}
