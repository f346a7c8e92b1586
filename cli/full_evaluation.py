"""`evaluate --task full`: how well systems rank each user's next item in the whole catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .app import App
from .console import answer, table
from .measured import comparison_document, interval, system_bar, warn_of_unkept

if TYPE_CHECKING:
    from ..engine.full_evaluation import FullComparison, FullRequest

SPARE = ("Recall@50", "NDCG@50", "MRR")  # of the metrics, where a terminal is narrow


def evaluate_full(app: App, wanted: FullRequest, *, as_json: bool) -> None:
    """Evaluate and answer, as a table or as JSON."""
    from ..engine.full_evaluation import evaluate_full as evaluated

    with app.registry() as registry:
        found = evaluated(registry, wanted, device=app.device(), bar=system_bar)
    warn_of_unkept(found.results)
    answer(as_json, comparison_document(found), lambda: _show(found))


def _show(found: FullComparison) -> None:
    """Systems down, metrics across, each with its interval; then what sets them apart from the `other`."""
    names = list(found.results[0].metrics)
    rows = [
        [result.label, *map(interval, result.metrics.values()), len(result.ranks), result.task.n_candidates]
        for result in found.results
    ]
    columns = ["system", *names, "users", "items"]
    table(columns, rows, empty="", right=("users", "items"), spare=("items", *SPARE))
    if (other := found.other) is not None:
        rows = [
            [result.label, *(interval(each, "+") for each in result.minus(other).values())]
            for result in found.results
            if result is not other
        ]
        empty = "there is no other system to compare with"
        table([f"minus {other.label}", *names], rows, empty=empty, spare=SPARE)
