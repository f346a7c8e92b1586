"""How well systems predict which items a domain's users like: the same rows for all, and what was recorded before is not measured again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from ..registry import Registry
from ..tasks import (
    DEFAULT_CLICK_TEMPLATE,
    ClickOptions,
    ClickQuestions,
    click_data,
    click_questions,
    load_click_template,
    read_domain,
)
from .click_measured import ClickEvaluation
from .click_records import ClickRecords
from .click_scorers import ClickScorer, click_scorer, expect_questions_of
from .domain_data import data_folder
from .evaluation import Bar, Bars
from .question_sets import result_key
from .systems import System, expect_baselines_of, find_system, place_among


@dataclass(frozen=True)
class ClickRequest:
    """An evaluation of systems on the test rows of a registered domain; `systems` are named as `find_system` reads them.

    `limit` is the size of a random sample of the rows, `seed` is of it. `against` is the system that the others are compared with.
    """

    domain: str
    systems: Sequence[str]
    options: ClickOptions = ClickOptions()  # noqa: RUF009  immutable
    template: str = DEFAULT_CLICK_TEMPLATE
    limit: int | None = None
    seed: int = 42
    against: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class ClickComparison:
    """The evaluation of each system in order, and the one that the others are compared with."""

    results: tuple[ClickEvaluation, ...]
    other: ClickEvaluation | None


def evaluate_clicks(
    registry: Registry,
    wanted: ClickRequest,
    *,
    device: str,
    bar: Bars = lambda label, unit: nullcontext(lambda done, total: None),
) -> ClickComparison:
    """Evaluate every system on the same rows.

    `bar` is entered with (what is done, in which unit) and gives what receives the progress. Raises NotFoundError, UsageError,
    EvaluationError and TaskError; of these NoRatingsError, NoNegativesError, OneClassError and AnswerTokenError are about clicks.
    """
    data = data_folder(registry, wanted.domain)
    systems = [find_system(registry, text, base=wanted.base) for text in wanted.systems]
    place = place_among(wanted.systems, systems, wanted.against)
    expect_baselines_of("clicks", systems)
    scorers = [click_scorer(system, device) for system in systems]
    template = load_click_template(wanted.template)
    clicks = click_data(read_domain(data, wanted.domain), wanted.options)
    asked = click_questions(clicks, "test", template, limit=wanted.limit, seed=wanted.seed)
    asked.expect_both_classes()  # before anything is computed, as is the next
    for scorer in scorers:
        expect_questions_of(scorer, asked)
    records = ClickRecords(registry, wanted.domain)
    results = []
    for system, scorer in zip(systems, scorers, strict=True):
        with bar(f"predicting clicks with {system.label}", scorer.unit) as progress:
            results.append(_evaluated(system, scorer, asked, records, progress))
    return ClickComparison(tuple(results), None if place is None else results[place])


def _evaluated(
    system: System, scorer: ClickScorer, asked: ClickQuestions, records: ClickRecords, progress: Bar
) -> ClickEvaluation:
    """What any machine has recorded of it, or is found now and recorded; where that cannot be done, `unkept` says why."""
    key = result_key(system, asked.task, scorer.dtype, scorer.mode)
    known = records.find(key, asked)
    scores = asked.scored(scorer.scores(asked, progress)) if known is None else known
    found = ClickEvaluation(system.label, system.digest, asked.task, scorer.mode, scorer.dtype, scores)
    record, unkept = records.add(key, system, asked, found)
    return replace(found, record=record, unkept=unkept)
