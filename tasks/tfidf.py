"""TF-IDF: the candidate whose title and brand are most like those of the last items. A baseline that knows titles and nobody's taste."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .data import DomainData, Item
from .prompts import Question
from .ranking import Ranking

LAST_ITEMS = 10
BRAND_FIELDS = ("brand", "store")
_WORD = re.compile(r"\w\w+")

Vector = Mapping[str, float]


def rank_by_tfidf(data: DomainData, questions: Sequence[Question]) -> list[Ranking]:
    """Score every candidate by the cosine between its text and the texts of the last items of the history, taken as one.

    Terms are words of two characters or more, without case; a term counts tf · (ln((1 + n) / (1 + df)) + 1) over the n titled items
    of the catalogue, as scikit-learn's `TfidfVectorizer` has it. Nothing of any user but the asked history is used, so the scores are
    the same for every split. Equal scores count against the target.
    """
    documents = {item_id: Counter(words(data.items[item_id])) for item_id in data.titled}
    inverse = _inverse_frequencies(documents.values())
    vectors = {item_id: _unit(_weighted(counts, inverse)) for item_id, counts in documents.items()}
    rankings = []
    for question in questions:
        counts: Counter[str] = Counter()
        for item_id in question.example.history[-LAST_ITEMS:]:
            counts.update(documents[item_id])
        asked = _unit(_weighted(counts, inverse))
        rankings.append(Ranking.of([_dot(asked, vectors[item_id]) for item_id in question.candidates], question))
    return rankings


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


def _weighted(counts: Mapping[str, int], inverse: Mapping[str, float]) -> Vector:
    return {term: count * inverse[term] for term, count in counts.items()}


def _unit(vector: Vector) -> Vector:
    length = math.sqrt(sum(value * value for value in vector.values()))
    return {term: value / length for term, value in vector.items()} if length else vector


def _dot(one: Vector, other: Vector) -> float:
    few, many = (one, other) if len(one) < len(other) else (other, one)
    return sum(value * many.get(term, 0.0) for term, value in few.items())
