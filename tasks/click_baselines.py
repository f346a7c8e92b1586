"""Baselines of click prediction that count: how often an item is liked, and how often this user likes anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .clicks import ClickData, ClickRow

MeanBaseline = Literal["item-mean", "item-user-mean"]
PRIOR = 5.0  # rows at the mean of all that are added to every count, so that few rows do not decide


def score_by_means(clicks: ClickData, rows: Sequence[ClickRow], baseline: MeanBaseline) -> NDArray[np.float64]:
    """[rows], the probability of a like.

    `item-mean` is the share of likes of the item among the training rows. `item-user-mean` adds, in log odds, how far the share of
    likes in the row's own history is from that of all training rows. All shares are drawn to the latter by PRIOR rows.
    """
    whole = float(np.mean([row.label is True for row in clicks.train]))
    counts: dict[str, tuple[int, int]] = {}
    for row in clicks.train:
        likes, count = counts.get(row.item_id, (0, 0))
        counts[row.item_id] = likes + (row.label is True), count + 1
    of_items = np.array([_share(*counts.get(row.item_id, (0, 0)), whole) for row in rows])
    if baseline == "item-mean":
        return of_items
    of_users = np.array([_share(*_liked(row, clicks.options.threshold), whole) for row in rows])
    return 1 / (1 + np.exp(-(_log_odds(of_items) + _log_odds(of_users) - _log_odds(whole))))


def _liked(row: ClickRow, threshold: float) -> tuple[int, int]:
    """How many of the row's history were liked, and how many there are."""
    return _count(rated.rating >= threshold for rated in row.history)


def _count(liked: Iterable[bool]) -> tuple[int, int]:
    all_of_them = list(liked)
    return sum(all_of_them), len(all_of_them)


def _share(likes: int, count: int, whole: float) -> float:
    return (likes + PRIOR * whole) / (count + PRIOR)


def _log_odds(share: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.log(share) - np.log1p(-np.asarray(share))
