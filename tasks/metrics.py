"""How good a ranking is, from each question's rank of the target (0 is best), with bootstrap intervals.

A rank of None is a target that was not ranked at all, as in a list of titles that does not name it: a miss for every k.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import TaskError

RESAMPLES = 2000
LEVEL = 0.95
MOST_COUNTS = 8_000_000  # of values drawn at a time: 64 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` questions and its 95 % percentile bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


def hit_rate(ranks: Sequence[int | None], k: int) -> float:
    """HR@k: the share of questions whose target is among the first k."""
    return float(per_question(ranks, f"HR@{k}").mean())


def ndcg(ranks: Sequence[int | None], k: int) -> float:
    """NDCG@k with one relevant item: the mean of 1 / log2(rank + 2) where rank < k, else 0."""
    return float(per_question(ranks, f"NDCG@{k}").mean())


def mrr(ranks: Sequence[int | None]) -> float:
    """MRR: the mean of 1 / (rank + 1), and 0 for a target that was not ranked."""
    return float(per_question(ranks, "MRR").mean())


def auc(ranks: Sequence[int | None], candidates: int) -> float:
    """AUC: the mean share of a question's negatives that are ranked below the target; `candidates` counts the target as well.

    Raises TaskError for a target that was not ranked: which negatives are below it is not known.
    """
    return float(per_question(ranks, "AUC", candidates).mean())


def summarise(
    ranks: Sequence[int | None], ks: Sequence[int] = (1, 3), *, candidates: int | None = None, seed: int = 0
) -> dict[str, Interval]:
    """HR@k for every k, NDCG@k for every k above 1 (NDCG@1 is HR@1), MRR and, if the number of `candidates` is told, AUC."""
    names = [f"HR@{k}" for k in ks] + [f"NDCG@{k}" for k in ks if k > 1] + ["MRR"]
    if candidates is not None:
        names.append("AUC")
    return {name: _bootstrap(per_question(ranks, name, candidates), seed) for name in names}


def paired_difference(
    ranks_a: Sequence[int | None],
    ranks_b: Sequence[int | None],
    metric: str,
    *,
    candidates: int | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of a minus b in `metric` ("HR@1", "NDCG@3", "MRR", …) over questions that both answered, in the same order.

    "AUC" needs the number of `candidates`. The difference is settled, at this level, when the interval leaves out 0.
    """
    if len(ranks_a) != len(ranks_b):
        raise TaskError(f"paired rankings answer the same questions; these answer {len(ranks_a)} and {len(ranks_b)}")
    return _bootstrap(per_question(ranks_a, metric, candidates) - per_question(ranks_b, metric, candidates), seed)


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of one value per question, such as a loss. Raises TaskError without values."""
    if not len(values):
        raise TaskError("there are no values to summarise", hint="the split may be empty")
    return _bootstrap(np.asarray(values, dtype=np.float64), seed)


def per_question(ranks: Sequence[int | None], metric: str, candidates: int | None = None) -> NDArray[np.float64]:
    """The metric of every single question, in their order. An unranked target counts as infinitely far down.

    Recall@k is HR@k by the name that full rankings use: with one target they are the same.
    """
    if not len(ranks):
        raise TaskError("there are no ranks to summarise", hint="the split may be empty")
    rank = np.asarray([np.inf if rank is None else rank for rank in ranks], dtype=np.float64)
    if metric == "MRR":
        return 1 / (rank + 1)
    if metric == "AUC":
        if candidates is None or not (rank < candidates).all() or candidates < 2:
            raise TaskError(f"AUC needs two candidates or more and a target ranked among them; got {candidates}")
        return 1 - rank / (candidates - 1)
    if match := re.fullmatch(r"(HR|Recall|NDCG)@([1-9]\d*)", metric):
        gain = 1 / np.log2(rank + 2) if match[1] == "NDCG" else np.ones_like(rank)
        return np.where(rank < int(match[2]), gain, 0.0)
    raise TaskError(f"no metric is called {metric!r}", hint="metrics are HR@k, Recall@k, NDCG@k, MRR and AUC")


def _bootstrap(values: NDArray[np.float64], seed: int) -> Interval:
    """Resampling questions is drawing how often each distinct value comes up, so memory does not grow with questions."""
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    rng, some = np.random.default_rng(seed), max(1, MOST_COUNTS // len(distinct))
    sizes = [min(some, RESAMPLES - begun) for begun in range(0, RESAMPLES, some)]
    means = np.concatenate([rng.multinomial(n, counts / n, size=size) @ distinct / n for size in sizes])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high), n)
