"""The options of SASRec, apart from it, so that reading or hashing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SasRecOptions:
    """Sizes and training. `length` is how many of the newest items are seen; `patience` is in epochs.

    `loss`: `softmax` over all items; or `sampled`, the paper's: log-loss of the right item and of one random other at each place.
    """

    width: int = 64
    blocks: int = 2
    heads: int = 2
    length: int = 50
    dropout: float = 0.3
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 128
    epochs: int = 100
    patience: int = 5
    seed: int = 42
    loss: Literal["softmax", "sampled"] = "softmax"
