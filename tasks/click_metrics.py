"""How good click probabilities are, over all rows together, with bootstrap intervals that draw whole users.

Rows of one user are alike, so that intervals over rows would be too narrow. `roc_auc` is another figure than the AUC of `metrics`,
which is the mean over questions of how many candidates are ranked below the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import OneClassError, TaskError
from .metrics import LEVEL, RESAMPLES, Interval

ClickMetric = Literal["roc_auc", "log_loss", "accuracy"]
CLICK_METRICS: tuple[ClickMetric, ...] = get_args(ClickMetric)
MOST_WEIGHTS = 4_000_000  # of resamples times rows at a time: 32 MB for each array
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClickScores:
    """Per row: whether the user liked it, the probability that was predicted, and whose row it is."""

    labels: NDArray[np.bool_]
    scores: Floats
    users: NDArray[np.int64]

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike, users: Sequence[str]) -> ClickScores:
        """Raises TaskError where they are not one each, or a score is no probability; OneClassError where labels are all the same."""
        made = cls(
            np.asarray(labels, dtype=bool),
            np.asarray(scores, dtype=np.float64),
            np.unique(np.asarray(users, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64),
        )
        made._check()
        return made

    def _check(self) -> None:
        if not len(self.labels) == len(self.scores) == len(self.users):
            raise TaskError(
                f"every row has a label, a score and a user; got {len(self.labels)}, {len(self.scores)} and {len(self.users)}"
            )
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise TaskError(
                "a score is no probability", hint="the model's weights may be broken, or the dtype too narrow"
            )
        if not 0 < self.labels.sum() < len(self.labels):
            raise OneClassError(
                f"{int(self.labels.sum())} of {len(self.labels)} rows are positive; metrics of clicks need both classes",
                hint="more rows, or another threshold",
            )


def roc_auc(found: ClickScores) -> float:
    """The probability that a random positive row has a higher score than a random negative one, equal scores counting one half."""
    return float(_values(found, "roc_auc", np.ones((1, len(found.labels))))[0])


def log_loss(found: ClickScores) -> float:
    """The mean of −ln of the probability that was given to what happened, in nats; probabilities are at least 2.2e-16 and at most 1 − 2.2e-16."""
    return float(_per_row(found, "log_loss").mean())


def accuracy(found: ClickScores) -> float:
    """The share of rows where a score above one half was given to a positive, or one of at most that to a negative."""
    return float(_per_row(found, "accuracy").mean())


def summarise_clicks(found: ClickScores, *, seed: int = 0) -> dict[ClickMetric, Interval]:
    """All three metrics with 95 % percentile intervals; `n` counts rows."""
    points = {"roc_auc": roc_auc(found), "log_loss": log_loss(found), "accuracy": accuracy(found)}
    return {name: _interval(points[name], _resampled([found], name, seed)[0], found) for name in CLICK_METRICS}


def paired_click_difference(a: ClickScores, b: ClickScores, metric: ClickMetric, *, seed: int = 0) -> Interval:
    """a minus b in the metric, where both have scored the same rows in the same order. Raises TaskError where they have not."""
    if not (np.array_equal(a.labels, b.labels) and np.array_equal(a.users, b.users)):
        raise TaskError("paired scores are of the same rows; these have other labels or users")
    one, other = _resampled([a, b], metric, seed)
    everything = np.ones((1, len(a.labels)))
    point = _values(a, metric, everything)[0] - _values(b, metric, everything)[0]
    return _interval(float(point), one - other, a)


def _interval(point: float, resampled: Floats, found: ClickScores) -> Interval:
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(point, float(low), float(high), len(found.labels))


def _resampled(each: Sequence[ClickScores], metric: ClickMetric, seed: int) -> list[Floats]:
    """[RESAMPLES] per set of scores: the metric over as many users as there are, drawn with replacement, the same for all sets.

    NaN where a draw has one class alone, which has no ROC.
    """
    users = int(each[0].users.max()) + 1
    some = max(1, MOST_WEIGHTS // len(each[0].labels))
    rng, parts = np.random.default_rng(seed), []
    for begun in range(0, RESAMPLES, some):
        counts = rng.multinomial(users, np.full(users, 1 / users), size=min(some, RESAMPLES - begun))
        weights = counts[:, each[0].users].astype(np.float64)
        parts.append([_values(found, metric, weights) for found in each])
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _values(found: ClickScores, metric: ClickMetric, weights: Floats) -> Floats:
    """[resamples]: the metric with the rows weighted; `weights` [resamples, rows]."""
    if metric == "roc_auc":
        return _weighted_auc(found, weights)
    return weights @ _per_row(found, metric) / weights.sum(axis=1)


def _per_row(found: ClickScores, metric: ClickMetric) -> Floats:
    if metric == "accuracy":
        return ((found.scores > 0.5) == found.labels).astype(np.float64)
    least = np.finfo(np.float64).eps
    given = np.clip(found.scores, least, 1 - least)
    return -np.log(np.where(found.labels, given, 1 - given))


def _weighted_auc(found: ClickScores, weights: Floats) -> Floats:
    """Positives times negatives below them, those of an equal score half, over all pairs; one pass over rows in the order of scores."""
    order = np.argsort(found.scores, kind="stable")
    starts = np.flatnonzero(np.diff(found.scores[order], prepend=-1.0))
    sorted_weights, labels = weights[:, order], found.labels[order]
    positives = np.add.reduceat(sorted_weights * labels, starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~labels, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positives * (below + negatives / 2)).sum(axis=1) / pairs
