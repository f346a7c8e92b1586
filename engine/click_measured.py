"""What an evaluation of clicks finds: a probability for each row, and the metrics that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ..tasks import (
    CLICK_METRICS,
    ClickMetric,
    ClickScores,
    ClickTask,
    Interval,
    paired_click_difference,
    summarise_clicks,
)


@dataclass(frozen=True)
class ClickEvaluation:
    """A system's probabilities of a like, one for each row of the task.

    `mode` is how they were found, as its scorer calls it; `unkept` and `record` are as in Evaluation.
    """

    label: str
    system: str
    task: ClickTask
    mode: str
    dtype: str
    found: ClickScores = field(repr=False)
    unkept: str | None = field(default=None, compare=False)
    record: int | None = field(default=None, compare=False)

    @cached_property
    def metrics(self) -> Mapping[ClickMetric, Interval]:
        return summarise_clicks(self.found)

    @property
    def users(self) -> int:
        return len(set(self.found.users.tolist()))

    def minus(self, other: ClickEvaluation) -> dict[ClickMetric, Interval]:
        """This system less the other on the same rows, with paired intervals; of `log_loss` less is better."""
        return {name: paired_click_difference(self.found, other.found, name) for name in CLICK_METRICS}

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "system": self.system,
            "task": self.task.to_json() | {"digest": self.task.digest},
            "mode": self.mode,
            "dtype": self.dtype,
            "metrics": {name: asdict(interval) for name, interval in self.metrics.items()},
            "rows": len(self.found.labels),
            "users": self.users,
            "labels": self.found.labels.tolist(),
            "scores": self.found.scores.tolist(),
        }
