"""What a build ships in the end, and which parent that is where it is one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .calibration import Floats, mean_loss


def best_parent(*labelled: Sequence[Floats]) -> int:
    """The place of the parent with the smallest loss on all labels together; each argument is the parents' margins on some of them."""
    together = [np.concatenate(margin) for margin in zip(*labelled, strict=True)]
    return min(range(len(together)), key=lambda place: mean_loss(together[place]))
