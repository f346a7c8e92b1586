"""What the tables of `evaluate` have in common, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .console import progress, warn

if TYPE_CHECKING:
    from ..engine.click_measured import ClickEvaluation
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


def interval(found: Interval | None, sign: str = "") -> str:
    if found is None:
        return ""
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"
