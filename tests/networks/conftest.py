"""A recommender for M-Former that needs no training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class States:
    values: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class HashedRecommender:
    """An item's vector follows from its id, or is that of all unknown ones, and is scaled by `factor`; padding stands to the left."""

    known: frozenset[str]
    width: int = 8
    factor: float = 1.0

    @torch.inference_mode()
    def states(self, histories: Sequence[Sequence[str]]) -> States:
        places = max(map(len, histories))
        values = torch.zeros(len(histories), places, self.width)
        mask = torch.zeros(len(histories), places, dtype=torch.bool)
        for row, history in enumerate(histories):
            for place, item_id in enumerate(history, start=places - len(history)):
                values[row, place] = self._vector(item_id if item_id in self.known else "unknown") * self.factor
                mask[row, place] = True
        return States(values, mask)

    def _vector(self, name: str) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def hashed_recommender() -> type[HashedRecommender]:
    return HashedRecommender
