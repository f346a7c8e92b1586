"""How well a system recommends: a base model, an adapter on its base, a build, any checkpoint or adapter folder, or a baseline.

Results are kept beside the registry under a digest of everything they depend on, so that nothing is measured twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ..registry import Registry
from ..registry.digests import digest_of_json
from ..registry.errors import InvalidArtifactError, UsageError
from ..registry.store.atomic import write_whole
from ..registry.store.room import NO_ROOM, lacks_room
from ..registry.strict_json import OWN_LIMIT, read_object
from ..tasks import (
    DEFAULT_TEMPLATE,
    SCORES,
    DomainData,
    GeneratedRanking,
    Interval,
    Question,
    Ranking,
    Score,
    Split,
    TaskSpec,
    Template,
    load_template,
    mean_interval,
    paired_difference,
    questions,
    rank_by_generation,
    rank_by_popularity,
    rank_by_sasrec,
    rank_by_tfidf,
    rank_candidates,
    read_domain,
    score_parts,
    summarise,
)
from .adapting.mixture import Mixture
from .errors import EvaluationError
from .models import compute_dtype, load_model
from .score_choice import (
    CHOICE_QUESTIONS,
    RequestedScore,
    ScoreChoice,
    best_score,
    common_score,
    log_losses,
    losses_by_score,
)
from .systems import BaselineName, System, find_system

RANKING_VERSION = (
    3  # part of every kept result's name: raised when equal questions would be ranked, or their losses kept, otherwise
)
COMPARED = ("HR@1", "NDCG@3")  # the metrics of paired differences


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a task; baselines, and the score `constrained`, also need the data that they are about."""

    task: TaskSpec
    questions: Sequence[Question]
    data: DomainData | None = None

    @property
    def catalogue(self) -> list[str]:
        return [self.data.items[item_id].title for item_id in self.data.titled] if self.data else []


@dataclass(frozen=True)
class ListFacts:
    """What the generated lists were like: how many `entries` in all, of which titles that were no candidate's, and repeats."""

    entries: int
    unknown: int
    duplicates: int


@dataclass(frozen=True)
class LogLosses:
    """Per question −log q of the right candidate in nats, q = softmax(scores / `temperature`), which is fitted to these questions."""

    temperature: float
    losses: tuple[float, ...]

    @property
    def mean(self) -> Interval:
        return mean_interval(self.losses)


@dataclass(frozen=True)
class Measured:
    """What an evaluation finds; the fields are those of Evaluation."""

    ranks: tuple[int | None, ...]
    lists: ListFacts | None = None
    log_losses: LogLosses | None = None


@dataclass(frozen=True)
class Evaluation:
    """A system's ranks of the true next item (0 is best), one per question, and what they come to.

    `mode` is the score in its text form, `generate`, or a baseline's name. A rank is None where a generated list does not name
    the item; `lists` is what these lists were like. `log_losses` is None for them, and where a score is not finite. `unkept` says
    why the result could not be kept for later, which is nothing to the figures.
    """

    label: str
    system: str
    task: TaskSpec
    mode: str
    dtype: str
    ranks: tuple[int | None, ...]
    lists: ListFacts | None = None
    log_losses: LogLosses | None = None
    unkept: str | None = field(default=None, compare=False)

    @property
    def metrics(self) -> dict[str, Interval]:
        """AUC needs the place of every candidate, which a list of a few titles does not have."""
        return summarise(self.ranks, candidates=None if self.mode == "generate" else self.task.n_negatives + 1)

    def minus(self, other: Evaluation) -> dict[str, Interval]:
        """How much better this system is on the same questions, with paired intervals."""
        return {metric: paired_difference(self.ranks, other.ranks, metric) for metric in COMPARED}

    def to_json(self) -> dict:
        return {
            "label": self.label,
            "system": self.system,
            "task": asdict(self.task) | {"digest": self.task.digest},
            "mode": self.mode,
            "dtype": self.dtype,
            "metrics": {name: asdict(interval) for name, interval in self.metrics.items()},
            "lists": asdict(self.lists) if self.lists else None,
            "log-loss": asdict(self.log_losses.mean) | asdict(self.log_losses) if self.log_losses else None,
            "ranks": list(self.ranks),
        }


@dataclass(frozen=True)
class DomainEvaluation:
    """An evaluation of systems on a registered domain; `systems` are named as `find_system` reads them.

    `score` is what all models are ranked by: a Score; `auto`, the best on validation questions that are not measured; `generate`,
    the lists that they write; or None, what a build was tuned with, else pmi. `negatives` counts the candidates besides the
    target, `limit` the users of a random sample; `seed` is of both. `against` is the system that the others are compared with.
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

    def place_of(self, found: Sequence[System]) -> int | None:
        """Which of the systems `against` names, by its text or its label. Raises UsageError if it is none of them."""
        names = [(text, system.label) for text, system in zip(self.systems, found, strict=True)]
        place = next((place for place, both in enumerate(names) if self.against in both), None)
        if self.against is not None and place is None:
            raise UsageError(
                f"--against {self.against} is none of the systems", hint=f"name one of {', '.join(self.systems)}"
            )
        return place


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
    row = registry.domains.get(wanted.domain)
    if row.data is None:
        raise UsageError(
            f"domain {wanted.domain!r} has no data", hint=f"reccocktail domain add {wanted.domain} --data DIR"
        )
    found = [find_system(registry, text, base=wanted.base) for text in wanted.systems]
    place = wanted.place_of(found)
    template = load_template(wanted.template)
    if wanted.score == "generate" and not template.lists_candidates:
        raise UsageError(
            f"template {template.name!r} does not show the candidates, so no answer could name them",
            hint="--template top-five, or another with {candidates}",
        )
    data = read_domain(Path(row.data), wanted.domain)
    task, asked = questions(
        data, wanted.split, template, n_negatives=wanted.negatives, seed=wanted.seed, limit=wanted.limit
    )
    kept_in = registry.settings.own_folder("evaluations")
    chosen = _chosen(wanted, found, data, template, _Keeping(device, kept_in), bar)
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
                    progress=progress,
                )
            )
    return Comparison(tuple(results), results[place] if place is not None else None, chosen)


@dataclass(frozen=True)
class _Keeping:
    """Where the models run, and where their figures are kept."""

    device: str
    folder: Path


def _chosen(
    wanted: DomainEvaluation,
    found: Sequence[System],
    data: DomainData,
    template: Template,
    keeping: _Keeping,
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
    losses, unkept = [], None
    for system in models:
        with bar(f"choosing the score with {system.label}", "users") as progress:
            each, why = _losses(system, asked, skipped, keeping, progress)
        losses.append(each)
        unkept = unkept or why
    return replace(best_score(losses, len(asked.questions)), unkept=unkept)


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


def _losses(
    system: System, asked: QuestionSet, skipped: int, keeping: _Keeping, progress: Bar
) -> tuple[dict[str, float], str | None]:
    """A model's mean log-loss by each score, and why it could not be kept for later, if so."""
    key = _key(system, asked.task, str(compute_dtype(keeping.device)), f"choice of a score after {skipped}")
    kept = keeping.folder / "scores" / f"{key}.json"
    try:
        content = read_object(kept, limit=OWN_LIMIT)
        return {str(score): float(content[str(score)]) for score in SCORES}, None
    except (InvalidArtifactError, KeyError, TypeError, ValueError):
        pass  # there is none, or a power cut left it unreadable
    with _loaded(system, keeping.device) as (model, tokenizer):
        parts = score_parts(
            model,
            tokenizer,
            asked.questions,
            {score.mode for score in SCORES},
            catalogue=asked.catalogue,
            progress=lambda done: progress(done, len(asked.questions)),
        )
    losses = losses_by_score(parts, asked.questions)
    return losses, _keep(kept, losses)


def evaluate(
    system: System,
    asked: QuestionSet,
    *,
    score: Score | Literal["generate"] = Score(),  # noqa: B008  immutable
    device: str,
    kept_in: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Rank every question's candidates: by a score, or as the model lists them. Baselines rank by scores of their own, from the data.

    With `kept_in`, an equal evaluation found there is returned; where it cannot be written, `unkept` says why. `progress` receives
    (questions done, questions), by SASRec (epochs done, epochs at most). Raises EvaluationError without questions or when the checkpoint does not load.
    """
    task = asked.task
    if not asked.questions:
        raise EvaluationError(f"the {task.split} split has no questions", hint="another --split, or more data")
    how = system.baseline or str(score)
    dtype = "float32" if system.baseline else str(compute_dtype(device)).removeprefix("torch.")
    kept = kept_in / f"{_key(system, task, dtype, how)}.json" if kept_in else None

    def made(found: Measured) -> Evaluation:
        return Evaluation(system.label, system.digest, task, how, dtype, found.ranks, found.lists, found.log_losses)

    if kept is not None and (seen := _kept(kept)) is not None:
        return made(seen)
    if system.baseline is not None:
        found = made(_baseline_measured(system.baseline, asked, device, progress))
    else:
        found = made(_model_measured(system, asked, score, device, progress))
    return found if kept is None else replace(found, unkept=_keep(kept, found.to_json()))


def _key(system: System, task: TaskSpec, dtype: str, how: str) -> str:
    """The name of a kept result, from everything that decides it."""
    content = {
        "system": system.digest,
        "task": task.digest,
        "dtype": dtype,
        "mode": how,
        "version": [version("reccocktail"), RANKING_VERSION],
    }
    return digest_of_json(content).removeprefix("sha256:")[:32]


def _keep(path: Path, content: Mapping[str, object]) -> str | None:
    """Write a result; where that cannot be done, why."""
    try:
        write_whole(path, json.dumps(content) + "\n")
    except OSError as error:
        return f"{path.parent}: {error.strerror}" + (f"; {NO_ROOM}" if lacks_room(error) else "")
    return None


def _baseline_measured(name: BaselineName, asked: QuestionSet, device: str, progress: Bar) -> Measured:
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
    system: System, asked: QuestionSet, score: Score | Literal["generate"], device: str, progress: Bar
) -> Measured:
    def step(done: int) -> None:
        progress(done, len(asked.questions))

    with _loaded(system, device) as (model, tokenizer):
        if isinstance(score, Score):
            ranked = rank_candidates(model, tokenizer, asked.questions, score, catalogue=asked.catalogue, progress=step)
            return _measured(ranked, asked.questions)
        namings = rank_by_generation(model, tokenizer, asked.questions, progress=step)
    return Measured(tuple(naming.rank for naming in namings), _list_facts(namings))


def _measured(rankings: Sequence[Ranking], questions: Sequence[Question]) -> Measured:
    fitted = log_losses([ranking.scores for ranking in rankings], questions)
    return Measured(tuple(ranking.rank for ranking in rankings), log_losses=LogLosses(*fitted) if fitted else None)


@contextmanager
def _loaded(system: System, device: str) -> Iterator[tuple[Any, Any]]:
    """A system's model, with its adapter on it, and the tokenizer."""
    assert system.checkpoint is not None
    model, tokenizer = load_model(system.checkpoint, device)
    with ExitStack() as stack:
        if system.adapter is not None:
            stack.enter_context(Mixture(model, [system.adapter], "linear"))
        yield model, tokenizer


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
