"""How well a system recommends: a base model, an adapter on its base, a build, any checkpoint or adapter folder, or a baseline.

Results are kept beside the registry under a digest of everything they depend on, so that nothing is measured twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

from ..registry import Registry
from ..registry.artifacts.allowlist import published_files
from ..registry.artifacts.inspect import inspect_adapter, inspect_base
from ..registry.digests import digest_of_json
from ..registry.errors import InvalidArtifactError, InvalidReferenceError, NotFoundError, UsageError
from ..registry.store.atomic import write_whole
from ..registry.store.room import NO_ROOM, lacks_room
from ..registry.strict_json import OWN_LIMIT, read_object
from ..tasks import (
    DEFAULT_TEMPLATE,
    DomainData,
    GeneratedRanking,
    Interval,
    Question,
    Ranking,
    SasRecOptions,
    Score,
    Split,
    TaskSpec,
    load_template,
    paired_difference,
    questions,
    rank_by_generation,
    rank_by_popularity,
    rank_by_sasrec,
    rank_by_tfidf,
    rank_candidates,
    read_domain,
    summarise,
)
from .adapting.mixture import Mixture
from .errors import EvaluationError
from .merging.plan import Part
from .merging.standalone import folder_digest
from .models import compute_dtype, load_model

Mode = Literal["likelihood", "pmi", "generate"]
BaselineName = Literal["popularity", "tfidf", "sasrec"]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
RANKING_VERSION = 2  # part of every kept result's name: raised when equal questions would be ranked otherwise
COMPARED = ("HR@1", "NDCG@3")  # the metrics of paired differences


@dataclass(frozen=True)
class System:
    """Something that can rank: a checkpoint, and perhaps an adapter on top of it, or a baseline.

    `digest` names its exact weights, or what a baseline is made with.
    """

    label: str
    digest: str
    checkpoint: Path | None = None
    adapter: Part | None = None
    baseline: BaselineName | None = None


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a task; baselines also need the data that they are about."""

    task: TaskSpec
    questions: Sequence[Question]
    data: DomainData | None = None


@dataclass(frozen=True)
class ListFacts:
    """What the generated lists were like: how many `entries` in all, of which titles that were no candidate's, and repeats."""

    entries: int
    unknown: int
    duplicates: int


@dataclass(frozen=True)
class Evaluation:
    """A system's ranks of the true next item (0 is best), one per question, and what they come to.

    A rank is None where a generated list does not name the item; `lists` is what these lists were like. `unkept` says why the
    result could not be kept for later, which is nothing to the figures.
    """

    label: str
    system: str
    task: TaskSpec
    mode: str
    dtype: str
    ranks: tuple[int | None, ...]
    lists: ListFacts | None = None
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
            "ranks": list(self.ranks),
        }


@dataclass(frozen=True)
class DomainEvaluation:
    """An evaluation of systems on a registered domain; `systems` are named as `find_system` reads them.

    `negatives` counts the candidates besides the target, `limit` the users of a random sample; `seed` is of both. `against` is the
    system that the others are compared with.
    """

    domain: str
    systems: Sequence[str]
    split: Split = "test"
    mode: Mode = "likelihood"
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


Bar = Callable[[int, int], None]


def evaluate_domain(
    registry: Registry,
    wanted: DomainEvaluation,
    *,
    device: str,
    bar: Callable[[System], AbstractContextManager[Bar]] = lambda system: nullcontext(lambda done, total: None),
) -> tuple[list[Evaluation], Evaluation | None]:
    """The evaluation of each system in order, and the one that the others are compared with, if any.

    `bar` is entered for each system and gives what receives its progress. Raises NotFoundError, UsageError, EvaluationError and
    DataError.
    """
    row = registry.domains.get(wanted.domain)
    if row.data is None:
        raise UsageError(
            f"domain {wanted.domain!r} has no data", hint=f"reccocktail domain add {wanted.domain} --data DIR"
        )
    found = [find_system(registry, text, base=wanted.base) for text in wanted.systems]
    place = wanted.place_of(found)
    template = load_template(wanted.template)
    if wanted.mode == "generate" and not template.lists_candidates:
        raise UsageError(
            f"template {template.name!r} does not show the candidates, so no answer could name them",
            hint="--template top-five, or another with {candidates}",
        )
    data = read_domain(Path(row.data), wanted.domain)
    task, asked = questions(
        data, wanted.split, template, n_negatives=wanted.negatives, seed=wanted.seed, limit=wanted.limit
    )
    results = []
    for system in found:
        with bar(system) as progress:
            results.append(
                evaluate(
                    system,
                    QuestionSet(task, asked, data),
                    mode=wanted.mode,
                    device=device,
                    kept_in=registry.settings.own_folder("evaluations"),
                    progress=progress,
                )
            )
    return results, results[place] if place is not None else None


def find_system(registry: Registry, text: str, *, base: str | None = None) -> System:
    """What `text` names: a baseline, a folder, a base model, an adapter reference, or a build's id, looked up in this order.

    Raises NotFoundError when it is none of them.
    """
    if text in BASELINES:
        return _baseline(text)
    if Path(text).is_dir() and ("/" in text or os.sep in text or text.startswith(".")):
        return _folder(registry, Path(text), base)
    for lookup in (_base, _reference, _build):
        try:
            return lookup(registry, text, base)
        except (NotFoundError, InvalidReferenceError):
            continue
    raise NotFoundError(
        f"{text!r} names no base model, adapter, build or folder",
        hint="write a folder with a slash: ./merged; `reccocktail adapter list` shows the adapters;"
        f" baselines are {', '.join(BASELINES)}",
    )


def _baseline(name: BaselineName) -> System:
    made_with = asdict(SasRecOptions()) if name == "sasrec" else {}
    return System(name, digest_of_json([name, made_with]), baseline=name)


def _base(registry: Registry, text: str, _: str | None) -> System:
    base = registry.bases.get(text)
    return System(text, base.digest, registry.bases.folder(base))


def _reference(registry: Registry, text: str, base: str | None) -> System:
    adapter = registry.adapters.resolve(text, base=base)
    row = registry.bases.get(adapter.base)
    part = Part(registry.adapters.folder(adapter), registry.adapters.facts(adapter), 1.0)
    return System(adapter.ref, digest_of_json([row.digest, adapter.digest]), registry.bases.folder(row), part)


def _build(registry: Registry, text: str, _: str | None) -> System:
    build = registry.builds.get(text)
    if build.digest is None:
        raise EvaluationError(f"build {build.id} is {build.status} and has no checkpoint")
    return System(f"build {build.id}", build.digest, registry.store.folder(build.digest))


def _folder(registry: Registry, folder: Path, base: str | None) -> System:
    digest = folder_digest(folder, published_files(folder)[0])
    if not (folder / "adapter_config.json").exists():
        inspect_base(folder)
        return System(str(folder), digest, folder)
    row = registry.bases.get(base) if base else registry.bases.only()
    facts = inspect_adapter(folder, registry.bases.facts(row), base_names=(row.name, row.source))
    return System(
        str(folder), digest_of_json([row.digest, digest]), registry.bases.folder(row), Part(folder, facts, 1.0)
    )


def evaluate(
    system: System,
    asked: QuestionSet,
    *,
    mode: Mode = "likelihood",
    device: str,
    kept_in: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Rank every question's candidates: by likelihood, by what the history adds to it (`pmi`), or as the model lists them.

    Baselines rank by scores of their own, from the data.

    With `kept_in`, an equal evaluation found there is returned; where it cannot be written, `unkept` says why. `progress` receives
    (questions done, questions), by SASRec (epochs done, epochs at most). Raises EvaluationError without questions or when the checkpoint does not load.
    """
    task = asked.task
    if not asked.questions:
        raise EvaluationError(f"the {task.split} split has no questions", hint="another --split, or more data")
    how = system.baseline or mode
    dtype = "float32" if system.baseline else str(compute_dtype(device)).removeprefix("torch.")
    key = digest_of_json(
        {
            "system": system.digest,
            "task": task.digest,
            "dtype": dtype,
            "mode": how,
            "version": [version("reccocktail"), RANKING_VERSION],
        }
    )
    kept = kept_in / f"{key.removeprefix('sha256:')[:32]}.json" if kept_in else None
    made = partial(Evaluation, system.label, system.digest, task, how, dtype)
    if kept is not None and (seen := _kept(kept)) is not None:
        return made(*seen)
    if system.baseline is not None:
        found = made(_baseline_ranks(system.baseline, asked, device, progress))
    else:
        found = made(*_model_ranks(system, asked.questions, mode, device, progress))
    if kept is None:
        return found
    try:
        write_whole(kept, json.dumps(found.to_json()) + "\n")
    except OSError as error:
        return replace(found, unkept=f"{kept.parent}: {error.strerror}" + (f"; {NO_ROOM}" if lacks_room(error) else ""))
    return found


def _baseline_ranks(
    name: BaselineName, asked: QuestionSet, device: str, progress: Callable[[int, int], None]
) -> tuple[int, ...]:
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
    return tuple(ranking.rank for ranking in rankings)


def _model_ranks(
    system: System, questions: Sequence[Question], mode: Mode, device: str, progress: Callable[[int, int], None]
) -> tuple[tuple[int | None, ...], ListFacts | None]:
    assert system.checkpoint is not None
    model, tokenizer = load_model(system.checkpoint, device)

    def step(done: int) -> None:
        progress(done, len(questions))

    with ExitStack() as stack:
        if system.adapter is not None:
            stack.enter_context(Mixture(model, [system.adapter], "linear"))
        if mode != "generate":
            ranked = rank_candidates(model, tokenizer, questions, Score(mode), progress=step)
            return tuple(r.rank for r in ranked), None
        namings = rank_by_generation(model, tokenizer, questions, progress=step)
    return tuple(naming.rank for naming in namings), _list_facts(namings)


def _list_facts(namings: Sequence[GeneratedRanking]) -> ListFacts:
    return ListFacts(
        entries=sum(len(naming.named) for naming in namings),
        unknown=sum(naming.unknown for naming in namings),
        duplicates=sum(naming.duplicates for naming in namings),
    )


def _kept(path: Path) -> tuple[tuple[int | None, ...], ListFacts | None] | None:
    """What an earlier evaluation found; None without one, and for a file that a power cut left unreadable."""
    try:
        content = read_object(path, limit=OWN_LIMIT)
        return tuple(content["ranks"]), ListFacts(**content["lists"]) if content["lists"] else None
    except (InvalidArtifactError, KeyError, TypeError):
        return None
