"""Baselines that score the whole catalogue from counts and from titles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from .data import DomainData, Item
from .popularity import known
from .retrieval import Retriever
from .splits import Split
from .tfidf import LAST_ITEMS


class PopularityScorer:
    """How often each item was taken before the split's targets, the same for everybody."""

    def __init__(self, data: DomainData, split: Split) -> None:
        counts = Counter(chain.from_iterable(known(data, split)))
        self._counts = np.array([counts[item_id] for item_id in data.titled], dtype=np.float64)

    def scores(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """[histories, items], counts."""
        return np.broadcast_to(self._counts, (len(histories), len(self._counts)))


class TfidfScorer:
    """How alike title and brand of each item are to those of the history's last items; it uses nothing of any other user.

    Cosines are rounded, so that items of equal words are equal.
    """

    def __init__(self, data: DomainData, *, last_items: int = LAST_ITEMS) -> None:
        self._items, self._last_items = data.items, last_items
        self._retriever = Retriever(data)

    def scores(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """[histories, items], from 0 to 1."""
        return np.stack([self._of([self._items[item_id] for item_id in history]) for history in histories])

    def _of(self, history: Sequence[Item]) -> NDArray[np.float64]:
        return self._retriever.likenesses(history, last_items=self._last_items)
