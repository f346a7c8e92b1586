"""How well a mixture's scores pick the right item, once their temperature is fitted: the loss of `objective: ranking`.

The loss of a question is −log q(right item), q = softmax(scores / τ) over its candidates, and τ is fitted anew for every mixture: one that is
only surer than another gains nothing by it. Plain arrays, no model. A question's scores enter as margins [questions, candidates]:
each candidate's score less that of the right item, which has margin 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import AdaptationError

Floats = NDArray[np.float64]

STEPS, PRECISION = 60, 1e-10  # of the search for a temperature


def margins(scores: Sequence[Sequence[float]], targets: Sequence[int]) -> Floats:
    """[questions, candidates] of the scores less the right item's. Raises AdaptationError for a right item without a finite score."""
    table = np.asarray(scores, dtype=np.float64)
    right = table[np.arange(len(table)), np.asarray(targets)]
    if np.isnan(table).any() or not np.isfinite(right).all():
        raise AdaptationError(
            "the score of a candidate is not a number: an adapter is broken",
            hint="`reccocktail evaluate` each adapter",
        )
    return table - right[:, None]


def losses(margin: Floats, sharpness: float) -> Floats:
    """[questions]: −log q(right item) at sharpness 1/τ; 0 gives log(candidates)."""
    scaled = np.where(np.isneginf(margin), -np.inf, margin * sharpness) if sharpness else np.zeros_like(margin)
    highest = scaled.max(axis=1, keepdims=True)
    return highest[:, 0] + np.log(np.exp(scaled - highest).sum(axis=1))


def sharpness(margin: Floats) -> float:
    """The 1/τ ≥ 0 with the smallest mean loss, which is convex in it; 0 where scores say nothing of the right item.

    One question more is counted, answered at random: without it scores that happen to order few questions right would have no τ.
    """
    finite = np.where(np.isneginf(margin), 0.0, margin)
    widest = float(np.abs(finite).max(initial=0.0))
    if widest == 0.0 or _slopes(finite, margin, 0.0)[0] >= 0.0:
        return 0.0
    return rising_root(lambda at: _slopes(finite, margin, at), 1.0 / widest)


def rising_root(slopes: Callable[[float], tuple[float, float]], first: float) -> float:
    """Where a rising function, which is negative at 0, is 0: `slopes` gives its value and derivative, `first` is tried before more."""
    low, high = 0.0, first
    while slopes(high)[0] < 0.0:
        low, high = high, 2.0 * high
    at = (low + high) / 2
    for _ in range(STEPS):
        slope, bend = slopes(at)
        low, high = (at, high) if slope < 0.0 else (low, at)
        last, at = at, at - slope / bend if bend > 0 else low
        if not low < at < high:
            at = (low + high) / 2
        if abs(at - last) <= PRECISION * at:
            break
    return at


def _slopes(finite: Floats, margin: Floats, at: float) -> tuple[float, float]:
    """First and second derivative by the sharpness of the summed loss, with that of the question answered at random."""
    scaled = np.where(np.isneginf(margin), -np.inf, finite * at)
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    expected = (weights * finite).sum(axis=1)
    bend = (weights * finite**2).sum(axis=1) - expected**2
    random = expected - finite.mean(axis=1)
    return float(expected.sum() + random.mean()), float(bend.sum() + bend.mean())


def mean_loss(margin: Floats) -> float:
    """Mean loss at the fitted temperature, in nats."""
    return float(losses(margin, sharpness(margin)).mean())


def ranks(margin: Floats) -> list[int]:
    """[questions]: the right item's rank, 0 is best; equal scores count against it."""
    return [int(rank) for rank in (margin >= 0).sum(axis=1) - 1]
