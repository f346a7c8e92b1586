"""What a domain's build would recommend: candidates from the catalogue, scored by the build and, to compare, by its adapters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..registry import Build, Registry
from ..registry.catalog.references import did_you_mean
from ..registry.errors import ConflictError, NotFoundError, UsageError
from ..tasks import (
    DEFAULT_TEMPLATE,
    Catalogue,
    DataError,
    DomainData,
    Item,
    Likeness,
    OpenQuestion,
    Retriever,
    Score,
    Template,
    list_items,
    open_question,
    read_listed,
    score_parts,
    title_key,
)
from ..tasks.data import clean_title
from ..tasks.prompts import fit
from ..tasks.ranking import prompt_text, token_ids
from .adapting.mixture import Mixture
from .building.freshness import Freshness, chosen
from .domain_data import NO_CATALOGUE, domain_data
from .errors import EvaluationError, MergeError
from .models import load_model
from .recipe_book import find_template
from .systems import System, find_system

SEPARATOR = "||"  # between the titles of a history that is written out
SMALL_CATALOGUE = 200  # items up to which all of a catalogue is ranked
RETRIEVED = 100
TITLES_AT_ONCE = 25  # how many titles are scored between two reports of progress

Source = Literal["list", "catalogue", "retriever", "recommender"]  # the last picks for a personalised LoRA
ScoreOrigin = Literal["request", "build", "default"]
Bar = Callable[[int, int], None]


@dataclass(frozen=True)
class RecommendationRequest:
    """For whom, out of what, and by which build.

    Either `user` is one of the domain's data, or `history` has titles, newest last. `candidates` is a file or names ids and titles;
    None takes all of a small catalogue, else what `retrieve` items of it are retrieved. None as `build` means the one that
    is served for the domain, as `template` and `score` those that the build was tuned with, else the defaults. `adapter` is a
    personalised LoRA or a bi-tuning, which is asked instead of a build. `exclude_seen` leaves out what the history has, as builds and
    personalised LoRAs always do.
    """

    domain: str
    user: str | None = None
    history: Sequence[str] | None = None
    candidates: Path | Sequence[str] | None = None
    retrieve: int | None = None
    build: str | None = None
    base: str | None = None
    score: Score | None = None
    template: str | None = None
    compare: bool = False
    adapter: str | None = None
    exclude_seen: bool = False

    def __post_init__(self) -> None:
        if self.adapter is not None and self.build is not None:
            raise UsageError("one system recommends, and two are named", hint="leave out --build or --adapter")
        if (self.user is None) == (self.history is None):
            raise UsageError(
                "recommendations are for a user of the data or for a history, one of the two",
                hint=f'--user U, or --history "TITLE {SEPARATOR} TITLE"',
            )
        if self.candidates is not None and self.retrieve is not None:
            raise UsageError(
                "candidates that are listed are not retrieved", hint="leave out --retrieve or --candidates"
            )


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A candidate's place among all, from 1, and its score: in nats, comparable within one list, not between two.

    A personalised LoRA's is the probability of a like, a bi-tuning's a cosine.
    """

    rank: int
    item_id: str
    title: str
    score: float


@dataclass(frozen=True, slots=True)
class RankedList:
    """All candidates, best first, as one system ranks them: the `build`, or one adapter of it by its role there."""

    label: str
    role: str
    items: tuple[Recommendation, ...]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is ranked, where it came from, and how many of a list were left out because the history has them."""

    items: tuple[Item, ...]
    source: Source
    catalogue: int
    known: int = 0
    repeats: int = 0
    retitled: int = 0


@dataclass(frozen=True)
class Recommendations:
    """The answer: lists of the build and of what it is compared with, and all that they depend on.

    `choice` says why it is that build where the domain's was taken. Items of the history that the catalogue lacks have an empty id.
    """

    build: Build
    choice: Freshness | None
    score: Score
    score_origin: ScoreOrigin
    template: Template
    user: str | None
    history: tuple[Item, ...]
    candidates: Candidates
    lists: tuple[RankedList, ...]

    @property
    def outcome(self) -> str | None:
        """What came of the build's search: `mixed`, `average`, or `parent` where it is one adapter alone."""
        return (self.build.report or {}).get("outcome")

    @property
    def best(self) -> tuple[Recommendation, ...]:
        return self.lists[0].items


def recommend(
    registry: Registry,
    wanted: RecommendationRequest,
    *,
    device: str,
    bar: Callable[[str], AbstractContextManager[Bar]] = lambda label: nullcontext(lambda done, total: None),
) -> Recommendations:
    """Rank candidates for a user or a history by the domain's build.

    `bar` is entered for each system and gives what receives (titles done, titles). Raises NotFoundError, UsageError,
    ConflictError, DataError, TaskError, EvaluationError.
    """
    build, choice = _build(registry, wanted)
    data = domain_data(registry, wanted.domain, needed=NO_CATALOGUE)
    catalogue = Catalogue(data)
    history = history_asked(data, catalogue, wanted)
    template = _template(registry, build, wanted)
    candidates = _candidates(data, catalogue, history, wanted)
    asked = open_question(template, history, candidates.items)
    systems = [("build", find_system(registry, build.id))]
    score, origin = _score(wanted.score, systems[0][1].score)
    if wanted.compare:
        systems += [
            (adapter["role"], find_system(registry, adapter["ref"], base=build.base))
            for adapter in build.inputs["adapters"]
        ]
    if score.mode == "hybrid":
        asked = replace(asked, likeness=Likeness(data).of(history, candidates.items))
    titles = [item.title for item in catalogue.items] if score.mode == "constrained" else []
    scored = score_open([s for _, s in systems], [asked], score, catalogue=titles, device=device, bar=bar)
    lists = [
        RankedList(system.label, role, ranked(candidates.items, scores))
        for (role, system), (scores,) in zip(systems, scored, strict=True)
    ]
    return Recommendations(
        build, choice, score, origin, template, wanted.user, tuple(history), candidates, tuple(lists)
    )


def recommend_to(
    system: System,
    retriever: Retriever,
    histories: Sequence[Sequence[Item]],
    template: Template,
    *,
    count: int,
    device: str,
    progress: Bar = lambda done, total: None,
) -> list[tuple[Recommendation, ...]]:
    """For each history `count` items that are retrieved for it, best first, by the system's own score or else the default.

    Raises TaskError, EvaluationError.
    """
    offered = [retriever.retrieve(history, count) for history in histories]
    asked = [open_question(template, *both) for both in zip(histories, offered, strict=True)]
    score, _ = _score(None, system.score)
    if score.mode == "hybrid":
        alike = [retriever.likeness.of(*both) for both in zip(histories, offered, strict=True)]
        asked = [replace(question, likeness=each) for question, each in zip(asked, alike, strict=True)]
    (scored,) = score_open(
        [system], asked, score, catalogue=retriever.titles, device=device, bar=lambda label: nullcontext(progress)
    )
    return [ranked(items, scores) for items, scores in zip(offered, scored, strict=True)]


def score_open(
    systems: Sequence[System],
    questions: Sequence[OpenQuestion],
    score: Score,
    *,
    catalogue: Sequence[str] = (),
    device: str,
    bar: Callable[[str], AbstractContextManager[Bar]] = lambda label: nullcontext(lambda done, total: None),
) -> list[list[tuple[float, ...]]]:
    """Per system and question, a score per candidate. A checkpoint that follows itself is loaded once.

    Raises EvaluationError where a checkpoint does not load, an adapter cannot be put on it, or a prompt is too long.
    """
    found: list[list[tuple[float, ...]]] = []
    loaded: tuple[Path | None, Any, Any] = (None, None, None)
    for system in systems:
        with bar(system.label) as progress, ExitStack() as stack:
            if system.checkpoint is None or loaded[0] != system.checkpoint:
                loaded = (None, None, None)  # so that two checkpoints are never in memory together
                assert system.checkpoint is not None
                loaded = (system.checkpoint, *load_model(system.checkpoint, device))
            _, model, tokenizer = loaded
            if system.adapter is not None:
                try:
                    stack.enter_context(Mixture(model, [system.adapter], "linear"))
                except MergeError as error:
                    raise EvaluationError(
                        f"{system.label} cannot be asked alone: {error}", hint="leave out --compare"
                    ) from error
            found.append(_scores(model, tokenizer, questions, score, catalogue=catalogue, progress=progress))
    return found


def _scores(
    model: Any,
    tokenizer: Any,
    questions: Sequence[OpenQuestion],
    score: Score,
    *,
    catalogue: Sequence[str],
    progress: Bar,
) -> list[tuple[float, ...]]:
    pieces = [piece for question in questions for piece in _pieces(question)]
    sizes = [len(piece.titles) for piece in pieces]
    for piece in pieces:
        if piece.template.lists_candidates:
            _expect_room(model, tokenizer, piece)
    progress(0, sum(sizes))
    parts = score_parts(
        model,
        tokenizer,
        pieces,
        {score.mode},
        catalogue=catalogue,
        progress=lambda done: progress(sum(sizes[:done]), sum(sizes)),
    )
    each = iter(value for part in parts for value in part.scores(score))
    return [tuple(next(each) for _ in question.titles) for question in questions]


def _pieces(question: OpenQuestion) -> list[OpenQuestion]:
    """The question in parts with some of the candidates each, which makes no difference where the prompt does not list them."""
    if question.template.lists_candidates:
        return [question]
    places = range(0, len(question.titles), TITLES_AT_ONCE)
    parts = [slice(start, start + TITLES_AT_ONCE) for start in places]
    alike = question.likeness
    return [
        replace(
            question,
            candidates=question.candidates[part],
            titles=question.titles[part],
            likeness=None if alike is None else alike[part],
        )
        for part in parts
    ]


def _expect_room(model: Any, tokenizer: Any, question: OpenQuestion) -> None:
    """Raises EvaluationError where the candidates in the prompt are more than the model was made to read."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = len(token_ids(tokenizer, prompt_text(tokenizer, *fit([question], tokenizer))))
    if limit is not None and length > limit:
        raise EvaluationError(
            f"template {question.template.name!r} lists all {len(question.titles)} candidates in the prompt, which makes it"
            f" {length} tokens; the model reads {limit}",
            hint="--retrieve N or --candidates FILE with fewer, or a --template that lists none, such as next-title",
        )


def ranked(items: Sequence[Item], scores: Sequence[float]) -> tuple[Recommendation, ...]:
    """Best first; equal scores in the order of the candidates."""
    order = sorted(range(len(items)), key=lambda place: -scores[place])
    return tuple(
        Recommendation(rank, items[place].item_id, items[place].title, scores[place])
        for rank, place in enumerate(order, start=1)
    )


def _build(registry: Registry, wanted: RecommendationRequest) -> tuple[Build, Freshness | None]:
    """The build that is named, else the one that is served for the domain, and why that one."""
    registry.domains.get(wanted.domain)
    if wanted.build is None:
        choice = chosen(registry, wanted.domain, base=wanted.base)
        assert choice.build is not None
        return choice.build, choice
    build = registry.builds.get(wanted.build)
    if build.domain != wanted.domain:
        raise UsageError(
            f"build {build.id} is of {build.domain!r}, not of {wanted.domain!r}",
            hint=f"`reccocktail build list --domain {wanted.domain}` shows its builds",
        )
    if wanted.base is not None and build.base != wanted.base:
        raise NotFoundError(f"build {build.id} is on the base model {build.base!r}, not on {wanted.base!r}")
    if build.status != "succeeded":
        raise ConflictError(
            f"build {build.id} is {build.status} and has no checkpoint", hint=f"reccocktail build show {build.id}"
        )
    return build, None


def history_asked(data: DomainData, catalogue: Catalogue, wanted: RecommendationRequest) -> list[Item]:
    """What the user took, or the titles that are given, oldest first; a title that the catalogue lacks has no id."""
    if wanted.user is None:
        titles = [title for text in wanted.history or () if (title := clean_title(text))]
        if not titles:
            raise UsageError(
                "the history has no title", hint=f'--history "TITLE {SEPARATOR} TITLE", the newest at the end'
            )
        return [catalogue.by_title(title) or Item("", title) for title in titles]
    taken = data.by_user.get(wanted.user)
    somebody_else = f'--history "TITLE {SEPARATOR} TITLE" takes the history of somebody who is not in the data'
    if taken is None:
        near = did_you_mean(wanted.user, data.by_user)
        raise NotFoundError(
            f"there is no user {wanted.user!r} in the data of {wanted.domain!r}{near}", hint=somebody_else
        )
    if not taken:
        raise DataError(f"user {wanted.user!r} took nothing that has a title", hint=somebody_else)
    return [data.items[item_id] for item_id in taken]


def _candidates(
    data: DomainData, catalogue: Catalogue, history: Sequence[Item], wanted: RecommendationRequest
) -> Candidates:
    """Raises DataError where nothing is left that the history does not have."""
    size = len(catalogue.items)
    if wanted.candidates is not None:
        found = listed_candidates(wanted.candidates, catalogue, history)
    elif size <= (SMALL_CATALOGUE if wanted.retrieve is None else wanted.retrieve):
        found = Candidates(without(history, catalogue.items), "catalogue", size)
    else:
        items = Retriever(data).retrieve(history, wanted.retrieve or RETRIEVED)
        found = Candidates(tuple(items), "retriever", size)
    return expect_some(found)


def listed_candidates(given: Path | Sequence[str], catalogue: Catalogue, history: Sequence[Item]) -> Candidates:
    """Those of a file, or by ids and titles, without what the history has. Raises DataError for what the catalogue lacks."""
    listed = read_listed(given, catalogue) if isinstance(given, Path) else list_items(given, catalogue)
    left = without(history, listed.items)
    known = len(listed.items) - len(left)
    return Candidates(left, "list", len(catalogue.items), known, repeats=listed.repeats, retitled=listed.retitled)


def expect_some(found: Candidates) -> Candidates:
    """Raises DataError where nothing is left that the history does not have."""
    expect_some_items(found.items)
    return found


def expect_some_items(items: Sequence[object]) -> None:
    """Raises DataError where there are none."""
    if not items:
        raise DataError("there is nothing to recommend: the history has every candidate", hint="give other candidates")


def without(history: Sequence[Item], items: Iterable[Item]) -> tuple[Item, ...]:
    """The items whose titles say something else than the history's, and of several that say the same the first."""
    seen = {title_key(item.title) for item in history}
    found: list[Item] = []
    for item in items:
        if (title := title_key(item.title)) not in seen:
            seen.add(title)
            found.append(item)
    return tuple(found)


def _template(registry: Registry, build: Build, wanted: RecommendationRequest) -> Template:
    """The one that is asked for, else that of the questions by which the build was tuned, else the default."""
    tuned = (build.recipe.get("adaptive") or {}).get("template")
    return find_template(registry, wanted.template or tuned or DEFAULT_TEMPLATE)


def _score(wanted: Score | None, tuned: Score | None) -> tuple[Score, ScoreOrigin]:
    """The one that is asked for, else the one that the build was tuned with, else the default."""
    if wanted is not None:
        return wanted, "request"
    return (tuned, "build") if tuned is not None else (Score(), "default")
