"""`evaluate --task clicks`: how well systems predict which items users like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .app import App
from .console import answer, table
from .measured import comparison_document, interval, system_bar, warn_of_unkept

if TYPE_CHECKING:
    from ..engine.click_evaluation import ClickComparison, ClickRequest


def evaluate_clicks(app: App, wanted: ClickRequest, *, as_json: bool) -> None:
    """Evaluate and answer, as a table or as JSON."""
    from ..engine.click_evaluation import evaluate_clicks as evaluated

    with app.registry() as registry:
        found = evaluated(registry, wanted, device=app.device(), bar=system_bar)
    warn_of_unkept(found.results)
    answer(as_json, comparison_document(found), lambda: _show(found))


def _show(found: ClickComparison) -> None:
    """Systems down, metrics across, each with its interval; then what sets them apart from the `other`."""
    names = list(found.results[0].metrics)
    rows = [
        [result.label, *(interval(each) for each in result.metrics.values()), len(result.found.labels), result.users]
        for result in found.results
    ]
    table(["system", *names, "rows", "users"], rows, empty="", right=("rows", "users"))
    if (other := found.other) is not None:
        rows = [
            [result.label, *(interval(each, "+") for each in result.minus(other).values())]
            for result in found.results
            if result is not other
        ]
        table([f"minus {other.label}", *names], rows, empty="there is no other system to compare with")
