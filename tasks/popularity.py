"""Popularity: what most people took, offered to everybody. The baseline that every recommender has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from .data import DomainData
from .errors import TaskError
from .prompts import Question
from .ranking import Ranking
from .splits import Split


def rank_by_popularity(data: DomainData, questions: Sequence[Question], split: Split) -> list[Ranking]:
    """Score every candidate by how often it was taken before the split's targets; equal counts count against the target.

    What counts is what `known` returns: interactions, so that repeats count as often as they happened, each with the
    same weight however old it is.
    """
    counts = Counter(chain.from_iterable(known(data, split)))
    return [Ranking.of([float(counts[item]) for item in question.candidates], question) for question in questions]


def known(data: DomainData, split: Split) -> list[tuple[str, ...]]:
    """What a recommender may learn from before it is asked for the split's targets: per user, titled items, oldest first.

    For `test` and `cold` that is all but the user's last item, so training and validation positions and the first item,
    which is no user's target; for `validation` all but the last two. Users with less than that have an empty tuple. Raises
    TaskError for `train`: before its targets nothing is known.
    """
    if split == "train":
        raise TaskError("the train split has no history before its targets", hint="use test or validation")
    targets = 2 if split == "validation" else 1
    return [taken[:-targets] for taken in data.by_user.values()]
