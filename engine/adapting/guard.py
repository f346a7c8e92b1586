"""The guard: a mix ships only if users kept apart say that it is not worse than any of its parents.

Every difference is paired by user. Every parent has to be passed, each at the whole level α: what fails one is not shipped, so the chance to ship
a mix that is worse than the best parent by more than the margin is α at most, however many parents there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from ...tasks.metrics import per_question

Outcome = Literal["mixed", "parent", "average"]
ALPHA = 0.05
FEWEST = 20  # users, fewer decide nothing
UNSEEN = 0.25  # squared difference of one user more: where no user differs, one might


@dataclass(frozen=True)
class Bound:
    """The mix beside one parent: its mean, the parent's, their mean difference, its lower bound and standard deviation."""

    parent: str
    mix_mean: float
    parent_mean: float
    difference: float
    low: float
    deviation: float


@dataclass(frozen=True)
class Comparison:
    """A mix beside every parent on the users kept apart, at level `alpha`; `looks` is how often they had been looked at before."""

    metric: str
    margin: float
    alpha: float
    looks: int
    users: int
    bounds: tuple[Bound, ...]

    @property
    def safe(self) -> bool:
        """Not worse than any parent by more than the margin."""
        return self.users >= FEWEST and all(bound.low > -self.margin for bound in self.bounds)

    @property
    def win(self) -> bool:
        """Better than every parent."""
        return self.users >= FEWEST and all(bound.low > 0 for bound in self.bounds)

    @property
    def users_needed(self) -> int | None:
        """Users that would decide it: (z·s / margin)²; None for a margin of 0, which no number decides."""
        if not self.margin or not self.bounds:
            return None
        z = NormalDist().inv_cdf(1 - self.alpha)
        return math.ceil(max((z * bound.deviation / self.margin) ** 2 for bound in self.bounds))


def level(looks: int) -> float:
    """α of a look at users that were looked at so often before: half of the last, so that all together stay below 2α."""
    return ALPHA / 2**looks


def compare(
    mix: Sequence[int | None],
    parents: Mapping[str, Sequence[int | None]],
    *,
    metric: str,
    margin: float,
    looks: int = 0,
    candidates: int | None = None,
    alpha: float | None = None,
) -> Comparison:
    """The mix beside each parent, from their ranks (0 is best) of the same users in the same order.

    At the level `alpha`, else at that of so many looks.
    """
    alpha = level(looks) if alpha is None else alpha
    own = per_question(mix, metric, candidates)
    bounds = []
    for name, ranks in parents.items():
        other = per_question(ranks, metric, candidates)
        difference, users = own - other, len(own)
        mean = float(difference.mean())
        deviation = math.sqrt((float(np.square(difference - mean).sum()) + UNSEEN) / users)
        low = mean - student_quantile(1 - alpha, max(users - 1, 1)) * deviation / math.sqrt(users)
        bounds.append(Bound(name, float(own.mean()), float(other.mean()), mean, low, deviation))
    return Comparison(metric, margin, alpha, looks, len(own), tuple(bounds))


def student_quantile(probability: float, freedom: int) -> float:
    """Student's t by its expansion around the normal (Abramowitz and Stegun 26.7.5); to 1e-3 from 10 degrees of freedom on."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
