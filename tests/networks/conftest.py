"""A recommender for M-Former that needs no training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from reccocktail.networks.m_former import RecommenderOutputs


@dataclass(frozen=True)
class HashedRecommender:
    """Each known item's vector follows from its id alone, except that it is scaled by `factor`."""

    known: frozenset[str]
    width: int = 8
    factor: float = 1.0

    def outputs(self, histories: Sequence[Sequence[str]]) -> RecommenderOutputs:
        places = max(map(len, histories))
        vectors = torch.zeros(len(histories), places, self.width)
        mask = torch.zeros(len(histories), places, dtype=torch.bool)
        known = torch.zeros_like(mask)
        for row, history in enumerate(histories):
            for place, item_id in enumerate(history, start=places - len(history)):
                seed = int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:4], "big")
                drawn = torch.randn(self.width, generator=torch.Generator().manual_seed(seed))
                vectors[row, place], mask[row, place] = drawn * self.factor, True
                known[row, place] = item_id in self.known
        return RecommenderOutputs(vectors, mask, known)


@pytest.fixture
def hashed_recommender() -> type[HashedRecommender]:
    return HashedRecommender
