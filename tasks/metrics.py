"""How good a ranking is, from each question's rank of the target (0 is best), with bootstrap intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import TaskError

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` questions and its 95 % percentile bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


def hit_rate(ranks: Sequence[int], k: int) -> float:
    """HR@k: the share of questions whose target is among the first k."""
    return float(_values(ranks, f"HR@{k}").mean())


def ndcg(ranks: Sequence[int], k: int) -> float:
    """NDCG@k with one relevant item: the mean of 1 / log2(rank + 2) where rank < k, else 0."""
    return float(_values(ranks, f"NDCG@{k}").mean())


def mrr(ranks: Sequence[int]) -> float:
    """MRR: the mean of 1 / (rank + 1)."""
    return float(_values(ranks, "MRR").mean())


def summarise(ranks: Sequence[int], ks: Sequence[int] = (1, 3), *, seed: int = 0) -> dict[str, Interval]:
    """HR@k for every k, NDCG@k for every k above 1 (NDCG@1 is HR@1), and MRR."""
    names = [f"HR@{k}" for k in ks] + [f"NDCG@{k}" for k in ks if k > 1] + ["MRR"]
    return {name: _bootstrap(_values(ranks, name), seed) for name in names}


def paired_difference(ranks_a: Sequence[int], ranks_b: Sequence[int], metric: str, *, seed: int = 0) -> Interval:
    """The mean of a minus b in `metric` ("HR@1", "NDCG@3", "MRR", …) over questions that both answered, in the same order.

    The difference is settled, at this level, when the interval leaves out 0.
    """
    if len(ranks_a) != len(ranks_b):
        raise TaskError(f"paired rankings answer the same questions; these answer {len(ranks_a)} and {len(ranks_b)}")
    return _bootstrap(_values(ranks_a, metric) - _values(ranks_b, metric), seed)


def _values(ranks: Sequence[int], metric: str) -> NDArray[np.float64]:
    """The metric of every single question."""
    if not len(ranks):
        raise TaskError("there are no ranks to summarise", hint="the split may be empty")
    rank = np.asarray(ranks, dtype=np.float64)
    if metric == "MRR":
        return 1 / (rank + 1)
    if match := re.fullmatch(r"(HR|NDCG)@([1-9]\d*)", metric):
        gain = np.ones_like(rank) if match[1] == "HR" else 1 / np.log2(rank + 2)
        return np.where(rank < int(match[2]), gain, 0.0)
    raise TaskError(f"no metric is called {metric!r}", hint="metrics are HR@k, NDCG@k and MRR")


def _bootstrap(values: NDArray[np.float64], seed: int) -> Interval:
    """Resampling questions is drawing how often each distinct value comes up, so memory does not grow with questions."""
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    means = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES) @ distinct / n
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high), n)
