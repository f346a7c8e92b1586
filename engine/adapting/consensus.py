"""How well a mix agrees with all of its parents, on questions that nobody knows the answer of: the loss of `objective: agreement`.

After MergeRec (arXiv 2601.01753). Each parent chooses the candidate that it scores highest, and is made as sure as every other: its scores are
divided by the temperature at which the mean entropy of their softmax is half of log(candidates). With u the parents' choices and p their
probabilities at T times that temperature, both averaged over the parents, the loss of a question is

    −Σ u log softmax(s / τ) + β T² KL(p ‖ softmax(s / (τ T)))

for a mix that scores s. τ is fitted anew for every mix, as in `calibration`: being surer of everything gains nothing. Plain arrays, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import AdaptationError
from .calibration import Floats, rising_root

ENTROPY_SHARE = 0.5  # of the highest mean entropy, log(candidates), at which parents are compared
FLATTEST = 1e6  # a table's sharpness is at most this, over the widest difference of its scores


@dataclass(frozen=True)
class Consensus:
    """What the parents say of every question: `votes` and `average` [questions, candidates], each row a distribution.

    `temperatures` are the parents' own, None for one whose scores say nothing. A parent that has several candidates first gives each a part
    of its vote. As a `Measure` it takes tables of scores; see `ladder`.
    """

    votes: Floats
    average: Floats
    beta: float
    softening: float
    temperatures: tuple[float | None, ...]

    @classmethod
    def of(cls, tables: Sequence[Floats], *, beta: float, softening: float) -> Consensus:
        """Of one table of scores per parent; `softening` is T."""
        sharp = [entropy_sharpness(table) for table in tables]
        own = [probabilities(table, at / softening) for table, at in zip(tables, sharp, strict=True)]
        return cls(
            sum(map(choices, tables), np.zeros_like(tables[0])) / len(tables),
            sum(own, np.zeros_like(tables[0])) / len(tables),
            beta,
            softening,
            tuple(1 / at if at else None for at in sharp),
        )

    def losses(self, table: Floats, sharp: float, rows: NDArray[np.bool_]) -> Floats:
        scores, average = table[rows], self.average[rows]
        apart = _log_probabilities(scores, sharp / self.softening)
        known = np.log(np.where(average > 0, average, 1.0))
        divergence = (average * (known - apart)).sum(axis=1)
        chosen = -(self.votes[rows] * _log_probabilities(scores, sharp)).sum(axis=1)
        return chosen + self.beta * self.softening**2 * divergence

    def sharpness(self, table: Floats, rows: NDArray[np.bool_]) -> float:
        """The 1/τ ≥ 0 with the smallest mean loss, which is convex in it; one question more is counted, whose votes are random."""
        scores = table[rows]
        centred = scores - scores.max(axis=1, keepdims=True)
        widest = float(np.abs(centred).max(initial=0.0))
        voted = (self.votes[rows] * centred).sum(axis=1)
        averaged = (self.average[rows] * centred).sum(axis=1)

        def slopes(at: float) -> tuple[float, float]:
            """First and second derivative by the sharpness of the summed loss."""
            expected, bend = _moments(centred, at)
            softly, soft_bend = _moments(centred, at / self.softening)
            random = expected - centred.mean(axis=1)
            slope = (expected - voted).sum() + self.beta * self.softening * (softly - averaged).sum() + random.mean()
            return float(slope), float(bend.sum() + self.beta * soft_bend.sum() + bend.mean())

        if widest == 0.0 or slopes(0.0)[0] >= 0.0:
            return 0.0
        return rising_root(slopes, 1.0 / widest)


def scores_table(scores: Sequence[Sequence[float]]) -> Floats:
    """[questions, candidates]. Raises AdaptationError for a score that is not finite."""
    table = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(table).all():
        raise AdaptationError(
            "the score of a candidate is not a number: an adapter is broken",
            hint="`reccocktail evaluate` each adapter",
        )
    return table


def choices(table: Floats) -> Floats:
    """[questions, candidates]: 1 for the candidate with the highest score; of several, each has an equal part."""
    first = (table == table.max(axis=1, keepdims=True)).astype(np.float64)
    return first / first.sum(axis=1, keepdims=True)


def probabilities(table: Floats, sharp: float) -> Floats:
    """[questions, candidates]: softmax of the scores times the sharpness."""
    return np.exp(_log_probabilities(table, sharp))


def entropy_sharpness(table: Floats) -> float:
    """The 1/τ at which the mean entropy of the softmax over the questions is `ENTROPY_SHARE` of log(candidates).

    Entropy falls with sharpness. Where it does not fall so far, because many candidates have equal scores, it is the largest that is
    tried; 0 where all have.
    """
    centred = table - table.max(axis=1, keepdims=True)
    widest = float(np.abs(centred).max(initial=0.0))
    if widest == 0.0:
        return 0.0
    wanted = ENTROPY_SHARE * float(np.log(table.shape[1]))

    def slopes(at: float) -> tuple[float, float]:
        log_p = _log_probabilities(centred, at)
        entropy = -(np.exp(log_p) * log_p).sum(axis=1).mean()
        return wanted - float(entropy), at * float(_moments(centred, at)[1].mean())

    highest = FLATTEST / widest
    return highest if slopes(highest)[0] < 0.0 else rising_root(slopes, 1.0 / widest)


def _log_probabilities(table: Floats, sharp: float) -> Floats:
    scaled = (table - table.max(axis=1, keepdims=True)) * sharp
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def _moments(centred: Floats, at: float) -> tuple[Floats, Floats]:
    """[questions]: mean and variance of the scores under the softmax at that sharpness; scores are centred on the highest."""
    weights = np.exp(centred * at)
    weights /= weights.sum(axis=1, keepdims=True)
    mean = (weights * centred).sum(axis=1)
    return mean, (weights * (centred - mean[:, None]) ** 2).sum(axis=1)
