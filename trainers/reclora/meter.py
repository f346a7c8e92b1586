"""The progress of a training whose stages count different things."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

DIN_ROWS, ITEMS_READ = 1000, 4  # of these take about as long as one row from which the language model learns


@dataclass(frozen=True)
class Meter:
    """The job's progress over all stages, counted in rows that the language model learns from."""

    progress: Callable[[int, int, Mapping[str, float]], None]
    recommender: int
    items: int
    rows: int

    @classmethod
    def of(
        cls, progress: Callable[[int, int, Mapping[str, float]], None], *, din_rows: int, items: int, rows: int
    ) -> Meter:
        """For so many rows that DIN learns from, items that are embedded, and rows that the language model learns from."""
        return cls(progress, -(-din_rows // DIN_ROWS), -(-items // ITEMS_READ), rows)

    def of_recommender(self, done: int, total: int) -> None:
        self._report(self.recommender * done // total, {"recommender": done / total})

    def of_items(self, done: int) -> None:
        self._report(self.recommender + min(self.items, done // ITEMS_READ), {"items_embedded": done})

    def of_rows(self, done: int, figures: Mapping[str, float]) -> None:
        self._report(self.recommender + self.items + done, figures)

    def _report(self, done: int, figures: Mapping[str, float]) -> None:
        self.progress(done, self.recommender + self.items + self.rows, figures)
