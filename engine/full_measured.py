"""What an evaluation by full ranking finds: a rank for each user, and the metrics that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ..tasks import FULL_METRICS, FullSpec, Interval, paired_difference, summarise_full


@dataclass(frozen=True)
class FullEvaluation:
    """A system's ranks of each user's next item among the whole catalogue (0 is best).

    `mode` is the system's own way to score; `unkept` and `record` are as in Evaluation.
    """

    label: str
    system: str
    task: FullSpec
    mode: str
    dtype: str
    ranks: tuple[int, ...] = field(repr=False)
    unkept: str | None = field(default=None, compare=False)
    record: int | None = field(default=None, compare=False)

    @cached_property
    def metrics(self) -> Mapping[str, Interval]:
        return summarise_full(self.ranks)

    def minus(self, other: FullEvaluation) -> dict[str, Interval]:
        """How much better this system is for the same users, with paired intervals."""
        return {name: paired_difference(self.ranks, other.ranks, name) for name in FULL_METRICS}

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "system": self.system,
            "task": self.task.to_json() | {"digest": self.task.digest},
            "mode": self.mode,
            "dtype": self.dtype,
            "metrics": {name: asdict(interval) for name, interval in self.metrics.items()},
            "users": len(self.ranks),
            "ranks": list(self.ranks),
        }
