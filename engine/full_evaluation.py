"""How well systems rank each user's next item in the whole catalogue: the same users for all, and what was recorded before is not measured again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

from ..registry import Registry
from ..registry.catalog.evaluations import Measurement
from ..tasks import FullTask, Split, full_ranks, full_task, read_domain
from .domain_data import data_folder
from .errors import EvaluationError
from .evaluation import Bar, Bars
from .full_measured import FullEvaluation
from .full_scorers import TRAINED, expect_scorable, full_scorer
from .question_sets import RANKING_VERSION, result_key
from .record_files import add_record
from .records import Records, store_ranks
from .systems import System, find_system, place_among

DTYPE = "float32"  # of what is trained


@dataclass(frozen=True)
class FullRequest:
    """An evaluation of systems on a registered domain; `systems` are named as `find_system` reads them.

    `limit` is the size of a random sample of the users, `seed` is of it. `against` is the system that the others are compared with.
    """

    domain: str
    systems: Sequence[str]
    split: Split = "test"
    limit: int | None = None
    seed: int = 42
    against: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class FullComparison:
    """The evaluation of each system in order, and the one that the others are compared with."""

    results: tuple[FullEvaluation, ...]
    other: FullEvaluation | None


def evaluate_full(
    registry: Registry,
    wanted: FullRequest,
    *,
    device: str,
    bar: Bars = lambda label, unit: nullcontext(lambda done, total: None),
) -> FullComparison:
    """Evaluate every system on the same users.

    `bar` is entered with (what is done, in which unit) and gives what receives the progress. Raises NotFoundError, UsageError,
    EvaluationError without users, TaskError and DataError.
    """
    data = data_folder(registry, wanted.domain)
    systems = [find_system(registry, text, base=wanted.base) for text in wanted.systems]
    place = place_among(wanted.systems, systems, wanted.against)
    for system in systems:
        expect_scorable(system)
    task = full_task(read_domain(data, wanted.domain), wanted.split, seed=wanted.seed, limit=wanted.limit)
    if not task.examples:
        raise EvaluationError(f"the {wanted.split} split has no users", hint="another --split, or more data")
    results = []
    for system in systems:
        unit = "epochs" if system.baseline in TRAINED else "users"
        with bar(f"ranking all items with {system.label}", unit) as progress:
            results.append(_evaluated(Records(registry, wanted.domain), system, task, device, progress))
    return FullComparison(tuple(results), None if place is None else results[place])


def _evaluated(records: Records, system: System, task: FullTask, device: str, progress: Bar) -> FullEvaluation:
    """What any machine has recorded of it, or is found now and recorded; where that cannot be done, `unkept` says why."""
    mode = system.baseline or "index"
    key = result_key(system, task.spec, DTYPE, mode)
    known = records.find(key, len(task.examples))
    ranks = _ranks(system, task, device, progress) if known is None else known.ranks
    found = FullEvaluation(
        system.label, system.digest, task.spec, mode, DTYPE, tuple(r for r in ranks if r is not None)
    )
    record, unkept = add_record(records.registry, key, lambda: _measurement(records, key, system, task, found))
    return replace(found, record=record, unkept=unkept)


def _ranks(system: System, task: FullTask, device: str, progress: Bar) -> tuple[int, ...]:
    scorer = full_scorer(system, task, device, progress)
    return full_ranks(task, scorer) if system.baseline in TRAINED else full_ranks(task, scorer, progress=progress)


def _measurement(records: Records, key: str, system: System, task: FullTask, found: FullEvaluation) -> Measurement:
    return Measurement(
        key=key,
        system=system.digest,
        weights=system.weights,
        label=system.label,
        domain=records.domain,
        mode=found.mode,
        dtype=found.dtype,
        task_digest=task.spec.digest,
        task=task.spec.to_json(),
        questions=task.questions,
        users=len(found.ranks),
        metrics={name: asdict(interval) for name, interval in found.metrics.items()},
        detail={},
        ranks=store_ranks(records.registry, found.ranks),
        version=f"{version('reccocktail')}/{RANKING_VERSION}",
    )
