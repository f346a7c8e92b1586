"""Evaluations of clicks in the registry: a row for each, and in the store every row's label, probability and whose it is.

The same table as for ranks, `records.py`: the split is `clicks-time` or `clicks-user`, and the task says `"kind": "clicks"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np

from ..registry import Registry
from ..registry.catalog.evaluations import EvaluationRecord, Measurement
from ..registry.errors import RecCocktailError, StoreError
from ..tasks import CLICK_METRICS, ClickQuestions, ClickScores, Interval, paired_click_difference
from ..tasks.click_tasks import KIND
from .click_measured import ClickEvaluation
from .question_sets import RANKING_VERSION
from .record_files import REPAIR, add_record, store_tensors, stored_tensors
from .systems import System

FILE = "clicks.safetensors"


@dataclass(frozen=True)
class ClickRecords:
    """The evaluations of clicks of one domain in a registry."""

    registry: Registry
    domain: str

    def find(self, key: str, asked: ClickQuestions) -> ClickScores | None:
        """What was recorded under the key; None without a row, and where what is stored is damaged or of other rows."""
        try:
            row = self.registry.evaluations.by_key(key)
            return None if row is None or row.questions != asked.digest else scores_of(self.registry, row)
        except RecCocktailError:  # damaged, or not to be had: it is measured again
            return None

    def add(
        self, key: str, system: System, asked: ClickQuestions, found: ClickEvaluation
    ) -> tuple[int | None, str | None]:
        """Stores the probabilities, then the row: its id; else why it could not be recorded, which is nothing to the figures."""
        return add_record(self.registry, key, lambda: self._measurement(key, system, asked, found))

    def _measurement(self, key: str, system: System, asked: ClickQuestions, found: ClickEvaluation) -> Measurement:
        scores = found.found
        return Measurement(
            key=key,
            system=system.digest,
            weights=system.weights,
            label=system.label,
            domain=self.domain,
            mode=found.mode,
            dtype=found.dtype,
            task_digest=asked.task.digest,
            task=asked.task.to_json(),
            questions=asked.digest,
            users=found.users,
            metrics={name: asdict(interval) for name, interval in found.metrics.items()},
            detail={"template": asked.template.name, "rows": len(asked.rows), "positives": int(scores.labels.sum())},
            ranks=store_tensors(
                self.registry, FILE, {"labels": scores.labels, "scores": scores.scores, "users": scores.users}
            ),
            version=f"{version('reccocktail')}/{RANKING_VERSION}",
        )


def is_of_clicks(row: EvaluationRecord) -> bool:
    return row.task.get("kind") == KIND


def scores_of(registry: Registry, row: EvaluationRecord) -> ClickScores:
    """Every row's label, probability and user, who is a number. Raises StoreError."""
    tensors = stored_tensors(registry, row, FILE)
    found = [tensors.get(name, np.zeros(0)) for name in ("labels", "scores", "users")]
    if any(each.shape != (row.detail["rows"],) for each in found):
        raise StoreError(
            f"evaluation {row.id}: its clicks ({row.ranks}) are not one for each of {row.detail['rows']} rows",
            hint=REPAIR,
        )
    labels, scores, users = found
    return ClickScores(labels.astype(bool), scores.astype(np.float64), users.astype(np.int64))


def click_differences(registry: Registry, one: EvaluationRecord, other: EvaluationRecord) -> Mapping[str, Interval]:
    """`one` minus `other` in every metric, of the same rows, with intervals that draw whole users. Raises StoreError."""
    ours, theirs = scores_of(registry, one), scores_of(registry, other)
    return {name: paired_click_difference(ours, theirs, name) for name in CLICK_METRICS}
