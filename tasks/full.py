"""Full ranking: each user's next item is ranked among all titled items of the catalogue, those of the user's history included.

Sampled candidates make systems look better, and not all of them by as much (Krichene & Rendle 2020, doi 10.1145/3394486.3403226). What
a user has taken stays a candidate, for in shops 2 to 3 % of the next items are repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .clicks import digest_of
from .data import DomainData
from .errors import TaskError
from .metrics import Interval, mean_interval, per_question
from .splits import Example, Split, examples, sample

KIND = "full"
FULL_METRICS = ("Recall@10", "NDCG@10", "Recall@50", "NDCG@50", "MRR")
MOST_SCORES = 4_000_000  # of users times items at a time: 32 MB in float64

Scores = NDArray[np.float32] | NDArray[np.float64]


class CatalogueScorer(Protocol):
    """Anything that scores the whole catalogue."""

    def scores(self, histories: Sequence[Sequence[str]]) -> Scores:
        """[histories, items]: how likely each item comes next, in the order of the data's `titled`. Histories are item ids, newest last.

        −∞ is the score of an item that the system never offers.
        """
        ...


@dataclass(frozen=True)
class FullSpec:
    """What a metric of a full ranking was measured on. `candidates` is the digest of the ids, `n_candidates` how many they are."""

    data_digest: str
    part: Split
    seed: int
    limit: int | None
    candidates: str
    n_candidates: int

    @property
    def split(self) -> str:
        """`full-test`, `full-cold` or `full-validation`: no figure stands beside one of another task."""
        return f"{KIND}-{self.part}"

    @property
    def digest(self) -> str:
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return {"kind": KIND, "split": self.split, **asdict(self)}


@dataclass(frozen=True)
class FullTask:
    """The examples of a split, one for each user, and the catalogue that each target is ranked in."""

    spec: FullSpec
    data: DomainData = field(repr=False)
    examples: tuple[Example, ...] = field(repr=False)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Per example the place of its target in the catalogue."""
        places = {item_id: place for place, item_id in enumerate(self.data.titled)}
        return np.array([places[example.target] for example in self.examples], dtype=np.int64)

    @cached_property
    def questions(self) -> str:
        """A digest of who is asked to choose among what, in order: figures of equal ones can be compared user by user."""
        return digest_of([self.spec.candidates, [[each.user_id, each.position] for each in self.examples]])


def full_task(data: DomainData, split: Split, *, seed: int = 42, limit: int | None = None) -> FullTask:
    """The split's users, or a seeded sample of `limit` of them; the same users as `questions` asks.

    Raises TaskError for `train`, where users have many targets.
    """
    if split == "train":
        raise TaskError("full ranking has one target a user", hint="use test, cold or validation")
    spec = FullSpec(data.digest, split, seed, limit, digest_of(data.titled), len(data.titled))
    chosen = examples(data, split)
    return FullTask(spec, data, tuple(chosen if limit is None else sample(chosen, limit, seed)))


def full_ranks(
    task: FullTask, scorer: CatalogueScorer, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, ...]:
    """Per example the rank of its target, from 0; equal scores count against it. `progress` receives (users done, users).

    Raises TaskError where a score is not a number, or where there is not one for each item.
    """
    at_once, ranks = max(1, MOST_SCORES // max(1, task.spec.n_candidates)), []
    for start in range(0, len(task.examples), at_once):
        some = task.examples[start : start + at_once]
        scores = scorer.scores([example.history for example in some])
        _expect_whole(scores, some, task)
        own = scores[np.arange(len(some)), task.targets[start : start + at_once]]
        ranks += ((scores >= own[:, None]).sum(axis=1) - 1).tolist()
        progress(len(ranks), len(task.examples))
    return tuple(ranks)


def _expect_whole(scores: Scores, asked: Sequence[Example], task: FullTask) -> None:
    wanted = (len(asked), task.spec.n_candidates)
    if scores.shape != wanted:
        raise TaskError(f"the scores of {wanted[0]} users and {wanted[1]} items are wanted; got {scores.shape}")
    if (wrong := np.isnan(scores).any(axis=1)).any():
        raise TaskError(
            f"a score for user {asked[int(wrong.argmax())].user_id!r} is not a number",
            hint="the weights may be broken, or the dtype too narrow",
        )


def summarise_full(
    ranks: Sequence[int], metrics: Sequence[str] = FULL_METRICS, *, seed: int = 0
) -> dict[str, Interval]:
    """Each metric with its 95 % bootstrap interval over users. `paired_difference` compares two systems."""
    return {name: mean_interval(per_question(ranks, name).tolist(), seed=seed) for name in metrics}
