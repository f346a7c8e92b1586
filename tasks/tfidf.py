"""TF-IDF: the candidate whose title and brand are most like those of the last items. A baseline that knows titles and nobody's taste."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .data import DomainData, Item
from .prompts import Question

if TYPE_CHECKING:
    from .ranking import Ranking

LAST_ITEMS = 10
BRAND_FIELDS = ("brand", "store")
_WORD = re.compile(r"\w\w+")

Vector = Mapping[str, float]


class Likeness:
    """How alike the words of items are, from 0 to 1: the cosine between an item's text and the texts of a history's last items, taken as one.

    Terms are words of two characters or more, without case; a term counts tf · (ln((1 + n) / (1 + df)) + 1) over the n titled items
    of the catalogue, as scikit-learn's `TfidfVectorizer` has it. Terms that the catalogue lacks do not count.
    """

    def __init__(self, data: DomainData) -> None:
        self._data = data
        texts = {item_id: Counter(words(data.items[item_id])) for item_id in data.titled}
        self._inverse = _inverse_frequencies(texts.values())
        self._vectors = {item_id: self._unit(counts) for item_id, counts in texts.items()}

    def of(self, history: Sequence[Item], candidates: Sequence[Item]) -> tuple[float, ...]:
        """One figure per candidate. Of the history the newest items count, the last ones."""
        counts: Counter[str] = Counter()
        for item in history[-LAST_ITEMS:]:
            counts.update(words(item))
        asked = self._unit(counts)
        return tuple(_dot(asked, self._vector(item)) for item in candidates)

    def added(self, questions: Sequence[Question]) -> list[Question]:
        """The questions, each with its `likeness`."""
        items = self._data.items
        return [
            replace(q, likeness=self.of([items[i] for i in q.example.history], [items[i] for i in q.candidates]))
            for q in questions
        ]

    def _vector(self, item: Item) -> Vector:
        return self._vectors.get(item.item_id) or self._unit(Counter(words(item)))

    def _unit(self, counts: Counter[str]) -> Vector:
        vector = {term: count * self._inverse[term] for term, count in counts.items() if term in self._inverse}
        length = math.sqrt(sum(value * value for value in vector.values()))
        return {term: value / length for term, value in vector.items()} if length else vector


def rank_by_tfidf(data: DomainData, questions: Sequence[Question]) -> list[Ranking]:
    """Score every candidate by its Likeness to the history.

    Nothing of any user but the asked history is used, so the scores are the same for every split. Equal scores count against the target.
    """
    from .ranking import Ranking  # which needs PyTorch, as likeness does not

    return [Ranking.of(question.likeness or (), question) for question in Likeness(data).added(questions)]


def words(item: Item) -> list[str]:
    """The terms of an item's title and brand, repeats included."""
    brands = (item.fields.get(name) for name in BRAND_FIELDS)
    text = " ".join([item.title, *(brand for brand in brands if isinstance(brand, str))])
    return _WORD.findall(text.casefold())


def _inverse_frequencies(documents: Iterable[Counter[str]]) -> dict[str, float]:
    found: Counter[str] = Counter()
    total = 0
    for counts in documents:
        found.update(counts.keys())
        total += 1
    return {term: math.log((1 + total) / (1 + count)) + 1 for term, count in found.items()}


def _dot(one: Vector, other: Vector) -> float:
    few, many = (one, other) if len(one) < len(other) else (other, one)
    return sum(value * many.get(term, 0.0) for term, value in few.items())
