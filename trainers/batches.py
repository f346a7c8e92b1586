"""In which order examples are learned from, and which share a batch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

POOLED = 50  # batches that are sorted by length together: more save padding, fewer leave more to chance


class BatchOrder(Sampler[int]):
    """Examples in batches of like length. The order depends on seed and epoch alone, not on how many processes share a batch.

    What does not fill a batch is left out of an epoch; another epoch leaves out others. (transformers' own grouping draws from
    the global generator, which a resumed run finds in another state, and begins with the longest.)
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self.batch_size, self._seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        return (index for batch in self.batches(self.epoch) for index in batch)

    def tokens(self, steps: int) -> int:
        """How many tokens the first `steps` batches have, without padding."""
        each = len(self) // self.batch_size
        batches = (batch for epoch in range(math.ceil(steps / each)) for batch in self.batches(epoch))
        return sum(self._lengths[index] for _, batch in zip(range(steps), batches, strict=False) for index in batch)

    def batches(self, epoch: int) -> list[list[int]]:
        """The numbers of an epoch's examples, batch by batch."""
        rng = random.Random(f"{self._seed}/{epoch}")  # noqa: S311
        order = rng.sample(range(len(self._lengths)), len(self))
        pool = POOLED * self.batch_size
        grouped = [
            index
            for start in range(0, len(order), pool)
            for index in sorted(order[start : start + pool], key=self._lengths.__getitem__)
        ]
        batches = [grouped[start : start + self.batch_size] for start in range(0, len(grouped), self.batch_size)]
        rng.shuffle(batches)
        return batches
