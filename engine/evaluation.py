"""How well a system recommends: a base model, an adapter on its base, a build, any checkpoint or adapter folder, or a baseline.

Results are kept beside the registry under a digest of everything they depend on, so that nothing is measured twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..registry import Registry
from ..registry.errors import InvalidArtifactError, UsageError
from ..registry.strict_json import OWN_LIMIT, read_object
from ..tasks import (
    DEFAULT_TEMPLATE,
    SCORES,
    DomainData,
    GeneratedRanking,
    Question,
    Ranking,
    Score,
    ScoreMode,
    Split,
    Template,
    questions,
    rank_by_generation,
    rank_by_popularity,
    rank_by_sasrec,
    rank_by_tfidf,
    read_domain,
)
from .domain_data import data_folder
from .errors import EvaluationError
from .figures import Keeping, figures, keep, loaded
from .measured import Evaluation, ListFacts, LogLosses, Measured
from .models import compute_dtype
from .question_sets import QuestionSet, result_key
from .recipe_book import find_template
from .records import Records
from .score_choice import (
    CHOICE_QUESTIONS,
    RequestedScore,
    ScoreChoice,
    best_score,
    common_score,
    fitted_hybrid,
    log_losses,
    losses_by_score,
)
from .systems import System, expect_baselines_of, find_system, place_among


@dataclass(frozen=True)
class DomainEvaluation:
    """An evaluation of systems on a registered domain; `systems` are named as `find_system` reads them.

    `score` is what all models are ranked by: a Score; `auto`, the best on validation questions that are not measured; `hybrid`, with
    the weight that is best on those; `generate`, the lists that they write; or None, what a build was tuned with, else pmi.
    `negatives` counts the candidates besides the target, `limit` the users of a random sample; `seed` is of both. `against` is the system that the others are compared with.
    """

    domain: str
    systems: Sequence[str]
    split: Split = "test"
    score: RequestedScore | None = None
    template: str = DEFAULT_TEMPLATE
    negatives: int = 9
    limit: int | None = None
    seed: int = 42
    against: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Comparison:
    """The evaluation of each system in order, the one that the others are compared with, and how the models were scored.

    `chosen` is None where no model was scored: for baselines alone, and for lists.
    """

    results: tuple[Evaluation, ...]
    other: Evaluation | None
    chosen: ScoreChoice | None


Bar = Callable[[int, int], None]
Bars = Callable[[str, str], AbstractContextManager[Bar]]


def evaluate_domain(
    registry: Registry,
    wanted: DomainEvaluation,
    *,
    device: str,
    bar: Bars = lambda label, unit: nullcontext(lambda done, total: None),
) -> Comparison:
    """Evaluate every system on the same questions.

    `bar` is entered with (what is done, in which unit) and gives what receives the progress. Raises NotFoundError, UsageError,
    EvaluationError, TaskError and DataError.
    """
    data = data_folder(registry, wanted.domain)
    found = [find_system(registry, text, base=wanted.base) for text in wanted.systems]
    place = place_among(wanted.systems, found, wanted.against)
    expect_baselines_of("rank", found)
    template = find_template(registry, wanted.template)
    if wanted.score == "generate" and not template.lists_candidates:
        raise UsageError(
            f"template {template.name!r} does not show the candidates, so no answer could name them",
            hint="--template top-five, or another with {candidates}",
        )
    data = read_domain(data, wanted.domain)
    task, asked = questions(
        data, wanted.split, template, n_negatives=wanted.negatives, seed=wanted.seed, limit=wanted.limit
    )
    kept_in = registry.settings.own_folder("evaluations")
    chosen = _chosen(wanted, found, data, template, Keeping(device, kept_in), bar)
    records = Records(registry, wanted.domain)
    results = []
    for system in found:
        with bar(f"ranking with {system.label}", "epochs" if system.baseline == "sasrec" else "users") as progress:
            results.append(
                evaluate(
                    system,
                    QuestionSet(task, asked, data),
                    score=chosen.score if chosen else "generate",
                    device=device,
                    kept_in=kept_in,
                    records=records,
                    progress=progress,
                )
            )
    return Comparison(tuple(results), results[place] if place is not None else None, chosen)


def _chosen(
    wanted: DomainEvaluation,
    found: Sequence[System],
    data: DomainData,
    template: Template,
    keeping: Keeping,
    bar: Bars,
) -> ScoreChoice | None:
    """The score of all models; None where there is none to score."""
    models = [system for system in found if system.baseline is None]
    if not models or wanted.score == "generate":
        return None
    if isinstance(wanted.score, Score):
        return ScoreChoice(wanted.score, "as asked for")
    if wanted.score is None:
        return common_score((system.label, system.score) for system in models)
    asked, skipped = _choice_questions(wanted, data, template)
    modes: set[ScoreMode] = {"hybrid"} if wanted.score == "hybrid" else {score.mode for score in SCORES}
    parts, unkept = [], None
    for system in models:
        with bar(f"choosing the score with {system.label}", "users") as progress:
            each, why = figures(system, asked, modes, keeping, progress, after=skipped)
        parts.append(each)
        unkept = unkept or why
    if wanted.score == "hybrid":
        score, losses = fitted_hybrid(parts, [question.target_index for question in asked.questions])
        reason = f"the weight with the least log-loss on {len(asked.questions)} validation questions"
        return ScoreChoice(score, reason, losses, unkept)
    by_score = [losses_by_score(each, asked.questions) for each in parts]
    return replace(best_score(by_score, len(asked.questions)), unkept=unkept)


def _choice_questions(wanted: DomainEvaluation, data: DomainData, template: Template) -> tuple[QuestionSet, int]:
    """Validation questions that are not measured, and how many of the sample were left out for that. Raises UsageError."""
    skipped = wanted.limit if wanted.split == "validation" else 0
    count = min(CHOICE_QUESTIONS, wanted.limit or CHOICE_QUESTIONS)
    if skipped is not None:  # a smaller sample is the head of a larger one
        task, asked = questions(
            data, "validation", template, n_negatives=wanted.negatives, seed=wanted.seed, limit=skipped + count
        )
        if asked[skipped:]:
            return QuestionSet(task, asked[skipped:], data), skipped
    raise UsageError(
        "the score is chosen on validation questions, and none are left besides those that are measured",
        hint="name a score, such as --score pmi, or leave some validation users out: a smaller --limit",
    )


def evaluate(
    system: System,
    asked: QuestionSet,
    *,
    score: Score | Literal["generate"] = Score(),  # noqa: B008  immutable
    device: str,
    kept_in: Path | None = None,
    records: Records | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Rank every question's candidates: by a score, or as the model lists them. Baselines rank by scores of their own, from the data.

    With `kept_in`, an equal evaluation found there is returned, with `records` one that any machine has recorded; where it cannot be
    written, `unkept` says why. `progress` receives (questions done, questions), by SASRec (epochs done, epochs at most). Raises EvaluationError without questions or when the checkpoint does not load.
    """
    task = asked.task
    if not asked.questions:
        raise EvaluationError(f"the {task.split} split has no questions", hint="another --split, or more data")
    how = system.baseline or str(score)
    dtype = "float32" if system.baseline else str(compute_dtype(device)).removeprefix("torch.")
    key = result_key(system, task, dtype, how)
    kept = kept_in / f"{key}.json" if kept_in else None

    def made(found: Measured) -> Evaluation:
        return Evaluation(system.label, system.digest, task, how, dtype, found.ranks, found.lists, found.log_losses)

    unkept, measured = None, _kept(kept) if kept is not None else None
    is_new = measured is None
    if measured is None and records is not None:
        measured = records.find(key, len(asked.questions))
    if measured is None:
        if system.baseline is not None:
            measured = _baseline_measured(system.baseline, asked, device, progress)
        else:
            measured, unkept = _model_measured(system, asked, score, Keeping(device, kept_in), progress)
    found = made(measured)
    if kept is not None and is_new:
        unkept = keep(kept, found.to_json()) or unkept
    if records is not None:
        record, why = records.add(key, system, asked, found)
        found, unkept = replace(found, record=record), unkept or why
    return replace(found, unkept=unkept)


def _baseline_measured(name: str, asked: QuestionSet, device: str, progress: Bar) -> Measured:
    task, questions, data = asked.task, asked.questions, asked.data
    if data is None or data.digest != task.data_digest:
        raise EvaluationError(f"{name} needs the data that the questions are about")
    rankings: Sequence[Ranking]
    if name == "sasrec":
        rankings = rank_by_sasrec(data, questions, task.split, device=device, progress=progress)
    else:
        by_counting = name == "popularity"
        rankings = rank_by_popularity(data, questions, task.split) if by_counting else rank_by_tfidf(data, questions)
        progress(len(questions), len(questions))
    return _measured(rankings, questions)


def _model_measured(
    system: System, asked: QuestionSet, score: Score | Literal["generate"], keeping: Keeping, progress: Bar
) -> tuple[Measured, str | None]:
    """What is measured, and why what the scores follow from could not be kept, if so."""
    if isinstance(score, Score):
        parts, unkept = figures(system, asked, {score.mode}, keeping, progress)
        rankings = [Ranking.of(part.scores(score), q) for part, q in zip(parts, asked.questions, strict=True)]
        return _measured(rankings, asked.questions), unkept
    with loaded(system, keeping.device) as (model, tokenizer):
        namings = rank_by_generation(
            model, tokenizer, asked.questions, progress=lambda done: progress(done, len(asked.questions))
        )
    return Measured(tuple(naming.rank for naming in namings), _list_facts(namings)), None


def _measured(rankings: Sequence[Ranking], questions: Sequence[Question]) -> Measured:
    fitted = log_losses([ranking.scores for ranking in rankings], questions)
    return Measured(tuple(ranking.rank for ranking in rankings), log_losses=LogLosses(*fitted) if fitted else None)


def _list_facts(namings: Sequence[GeneratedRanking]) -> ListFacts:
    return ListFacts(
        entries=sum(len(naming.named) for naming in namings),
        unknown=sum(naming.unknown for naming in namings),
        duplicates=sum(naming.duplicates for naming in namings),
    )


def _kept(path: Path) -> Measured | None:
    """What an earlier evaluation found; None without one, and for a file that a power cut left unreadable."""
    try:
        content = read_object(path, limit=OWN_LIMIT)
        lists, fitted = content["lists"], content["log-loss"]
        return Measured(
            tuple(content["ranks"]),
            ListFacts(**lists) if lists else None,
            LogLosses(fitted["temperature"], tuple(fitted["losses"])) if fitted else None,
        )
    except (InvalidArtifactError, KeyError, TypeError):
        return None
