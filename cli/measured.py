"""What the tables of `evaluate` have in common, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from .console import progress, warn

if TYPE_CHECKING:
    from ..engine.click_evaluation import ClickComparison
    from ..engine.click_measured import ClickEvaluation
    from ..engine.full_evaluation import FullComparison
    from ..engine.full_measured import FullEvaluation
    from ..engine.measured import Evaluation
    from ..tasks import Interval


@contextmanager
def system_bar(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how far a system has come."""
    with progress(label, unit=unit) as shown:
        yield shown.update


def warn_of_unkept(results: Sequence[Evaluation | ClickEvaluation | FullEvaluation]) -> None:
    """What could not be kept will be measured again; the figures are the same."""
    for result in results:
        if result.unkept is not None:
            warn(f"the result of {result.label} was not kept, and would be measured again: {result.unkept}")


def comparison_document(found: ClickComparison | FullComparison) -> dict[str, Any]:
    """Of systems on one task: each with its evaluation's number and, paired, what sets it apart from the `other`."""
    rows = []
    for result in found.results:
        apart = None if found.other is None or result is found.other else result.minus(cast("Any", found.other))
        against = apart and {name: asdict(each) for name, each in apart.items()}
        rows.append(result.to_json() | {"evaluation": result.record, "against": against})
    return {"task": rows[0]["task"], "against": found.other and found.other.label, "systems": rows}


def interval(found: Interval | None, sign: str = "") -> str:
    if found is None:
        return ""
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"
