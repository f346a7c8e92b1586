"""How each kind of system scores a whole catalogue. A further kind is one more case in `full_scorer`."""

from __future__ import annotations

from collections.abc import Callable

from ..networks.bert4rec import train_bert4rec
from ..registry.errors import UsageError
from ..tasks import CatalogueScorer, FullTask, PopularityScorer, TfidfScorer, train_sasrec
from .systems import FULL_BASELINES, System

Progress = Callable[[int, int], None]
TRAINED = ("sasrec", "bert4rec")  # their progress counts epochs, that of the others users


def expect_scorable(system: System) -> None:
    """Raises UsageError for a system that does not score whole catalogues."""
    if system.baseline is None:
        raise UsageError(
            f"{system.label} scores titles one by one, which a whole catalogue for each user has too many of",
            hint="--task rank ranks it among candidates",
        )
    if system.baseline not in FULL_BASELINES:
        raise UsageError(
            f"{system.label} predicts clicks and ranks nothing",
            hint=f"baselines of --task full are {', '.join(FULL_BASELINES)}",
        )


def full_scorer(system: System, task: FullTask, device: str, progress: Progress) -> CatalogueScorer:
    """One that has learned what was known before the task's targets. Raises TaskError where there is too little."""
    data, part = task.data, task.spec.part
    match system.baseline:
        case "popularity":
            return PopularityScorer(data, part)
        case "tfidf":
            return TfidfScorer(data)
        case "tfidf-last":
            return TfidfScorer(data, last_items=1)
        case "sasrec":
            return train_sasrec(data, part, device=device, progress=progress)
        case "bert4rec":
            return train_bert4rec(data, part, progress=progress).over(data.titled)
    raise AssertionError(system.label)
