"""How a language model's figures of a title become its score, and how probable the right answer is by the scores.

A `Score` is read where no model is loaded, so what needs one is imported when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .prompts import OpenQuestion, Question, Template
    from .ranking import Ranking, TitleFigures
    from .title_trie import TitleTrie

ScoreMode = Literal["likelihood", "pmi", "constrained", "hybrid"]
MODES: tuple[ScoreMode, ...] = get_args(ScoreMode)
KNOWN_SCORES = "likelihood, pmi, pmi:WEIGHT (such as pmi:0.5), constrained, hybrid:WEIGHT (such as hybrid:12)"
WEIGHED: tuple[ScoreMode, ...] = ("pmi", "hybrid")
WIDEST = 1e4  # a fitted temperature is at most this many times the spread of the scores, and at least its inverse
AT_ONCE = 64  # questions that are read together; their progress is seen as they finish
WEIGHTS = (0.01, 1e4)  # of hybrid: between them one is looked for
NARROW = 0.01  # of the logarithm of a weight, where the search ends
HALVINGS = 60  # of the range of log temperature: to below the precision of a float64


@dataclass(frozen=True, slots=True)
class Score:
    """What a candidate is ranked by.

    `likelihood`: sum of log P over the title's tokens and those that close it. `pmi`: the same, less `gamma` times its value
    under an empty history (PMI_DC, arXiv 2104.08315): what is left is how much the history speaks for the title, and short and
    common titles no longer begin ahead. `constrained`: at each token the softmax runs only over the tokens that continue some
    title of the catalogue, so that how a title is spelled costs nothing. `hybrid`: pmi with the weight 1, and `gamma` nats times the
    cosine of the baseline `tfidf`, from 0 to 1: what the model says of the title, and what its words say.

    Raises TaskError for another mode, and for a `gamma` that is negative, not finite, or of a mode that has none.
    """

    mode: ScoreMode = "pmi"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise TaskError(f"no score is called {self.mode!r}", hint=f"scores are {KNOWN_SCORES}")
        object.__setattr__(self, "gamma", float(self.gamma))
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            least = "likelihood" if self.mode == "pmi" else "pmi"
            raise TaskError(f"the weight of {self.mode} is {self.gamma}", hint=f"a number from 0 ({least}) on")
        if self.mode not in WEIGHED and self.gamma != 1:
            raise TaskError(
                f"{self.mode} has no weight, and {self.gamma} is given",
                hint=f"only {' and '.join(WEIGHED)} have one: pmi:0.5",
            )

    def __str__(self) -> str:
        """The mode's name; `pmi` with a weight other than 1, and `hybrid` always, as `pmi:0.5`. `parse` reads it back."""
        if self.gamma == 1 and self.mode != "hybrid":
            return self.mode
        return f"{self.mode}:{repr(self.gamma).removesuffix('.0')}"

    @classmethod
    def parse(cls, text: str) -> Score:
        """The score of its text form. Raises TaskError."""
        mode, colon, weight = text.partition(":")
        try:
            gamma = float(weight) if colon else 1.0
        except ValueError:
            raise TaskError(
                f"{text!r} is no score: {weight!r} is no number", hint=f"scores are {KNOWN_SCORES}"
            ) from None
        if mode == "hybrid" and not colon:
            raise TaskError("the score hybrid has no weight here", hint="hybrid:WEIGHT, such as hybrid:12")
        if colon and mode not in WEIGHED:
            raise TaskError(f"no score is called {text!r}", hint=f"scores are {KNOWN_SCORES}")
        return cls(mode, gamma)  # pyright: ignore[reportArgumentType]  checked by the class


SCORES = (Score("likelihood"), Score("pmi", 0.5), Score("pmi", 1.0), Score("constrained"))
"""What a score is chosen from where the choice is left to validation questions."""


@dataclass(frozen=True, slots=True)
class ScoreParts:
    """One question's figures per candidate, in nats, from which every Score follows without the model.

    `prior` is log P of the title under an empty history, `likeness` the cosine of titles' words. They and `constrained` are None where
    they were not wanted.
    """

    likelihood: tuple[float, ...]
    prior: tuple[float, ...] | None = None
    constrained: tuple[float, ...] | None = None
    likeness: tuple[float, ...] | None = None

    def allows(self, mode: ScoreMode) -> bool:
        """Whether scores of this mode follow from these figures."""
        return (
            None
            not in {
                "likelihood": (self.likelihood,),
                "pmi": (self.prior,),
                "constrained": (self.constrained,),
                "hybrid": (self.prior, self.likeness),
            }[mode]
        )

    def scores(self, score: Score) -> tuple[float, ...]:
        """A score per candidate. Raises TaskError where the parts that it needs were not wanted."""
        found = {
            "likelihood": self.likelihood,
            "pmi": self.prior,
            "constrained": self.constrained,
            "hybrid": self.likeness,
        }[score.mode]
        if found is None:
            raise TaskError(f"these figures have no part for the score {score}", hint=f"want {score.mode} when asking")
        if score.mode == "pmi":
            return tuple(s - score.gamma * prior for s, prior in zip(self.likelihood, found, strict=True))
        if score.mode == "hybrid":
            own = self.scores(Score("pmi"))
            return tuple(s + score.gamma * alike for s, alike in zip(own, found, strict=True))
        return found


def score_parts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[OpenQuestion],
    wanted: Collection[ScoreMode],
    *,
    catalogue: Sequence[str] = (),
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[ScoreParts]:
    """Each question's figures for the scores that are `wanted`, all from one reading of prompt and candidates.

    The questions are put as `fit` has them, and several are read at once. A title is closed by the end of the assistant's turn or,
    where the answer is a list, by the separator. No pass of the model is over more than `batch_tokens`, unless one row is. The prior
    is read once per distinct title where the template shows no candidates. `constrained` needs the titles of the `catalogue`; a question's own
    candidates always count among them. `hybrid` needs questions that have their `likeness`. `progress` is called with the number of questions done.

    Raises TaskError if the model answers NaN, and where `constrained` is wanted without a catalogue or `hybrid` without likeness.
    """
    from .prompts import fit
    from .ranking import Asked, catalogue_trie, closing, evaluating, prompt_text, read_titles

    if "constrained" in wanted and not catalogue:
        raise TaskError(
            "the score constrained needs the catalogue's titles, and none are given",
            hint="give the titles of the domain's items, or another score: pmi, likelihood",
        )
    if "hybrid" in wanted and any(question.likeness is None for question in questions):
        raise TaskError(
            "the score hybrid needs to know how alike titles are", hint="`Likeness.added`, or another score: pmi"
        )
    by_prior = not {"pmi", "hybrid"}.isdisjoint(wanted)
    tries: dict[tuple[Template, str], TitleTrie] = {}

    def trie_of(question: OpenQuestion) -> TitleTrie:
        key = question.template, closing(tokenizer, question)
        if key not in tries:
            tries[key] = catalogue_trie(tokenizer, question, catalogue)
        return tries[key]

    def read(asked: Sequence[Asked], finished: Callable[[int], None] = lambda place: None) -> list[TitleFigures]:
        return read_titles(model, tokenizer, asked, batch_tokens, finished)

    priors: dict[tuple[str, str], float] = {}

    def priors_of(some: Sequence[OpenQuestion]) -> list[tuple[float, ...]]:
        """Per question and title, what is likely without any history; what is not known yet is read."""
        without = [replace(question, history=()) for question in some]
        starts = [prompt_text(tokenizer, question) for question in without]
        new: dict[str, dict[str, None]] = {}
        for question, start in zip(without, starts, strict=True):
            new.setdefault(start, {}).update((title, None) for title in question.titles if (start, title) not in priors)
        asked = {start: Asked(q, [*new[start]]) for q, start in zip(without, starts, strict=True) if new[start]}
        for start, figures in zip(asked, read([*asked.values()]), strict=True):
            priors.update(zip([(start, title) for title in new[start]], figures.likelihood, strict=True))
        return [tuple(priors[s, title] for title in q.titles) for q, s in zip(some, starts, strict=True)]

    done = 0

    def finished(_place: int) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done)

    found: list[ScoreParts] = []
    ready = fit(questions, tokenizer)
    with evaluating(model):
        for start in range(0, len(ready), AT_ONCE):
            some = ready[start : start + AT_ONCE]
            prior = priors_of(some) if by_prior else [None] * len(some)
            own = read([Asked(q, q.titles, trie_of(q) if "constrained" in wanted else None) for q in some], finished)
            found += [
                ScoreParts(f.likelihood, p, f.constrained, q.likeness) for f, p, q in zip(own, prior, some, strict=True)
            ]
            if some[0].template.lists_candidates:
                priors.clear()  # each question lists others
    return found


def rank_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    score: Score = Score(),
    *,
    catalogue: Sequence[str] = (),
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[Ranking]:
    """Rank every question's candidates by the score; for the rest see `score_parts`. Equal scores count against the target."""
    from .ranking import Ranking

    about: dict[str, Any] = {"catalogue": catalogue, "batch_tokens": batch_tokens, "progress": progress}
    parts = score_parts(model, tokenizer, questions, {score.mode}, **about)
    return [Ranking.of(part.scores(score), question) for part, question in zip(parts, questions, strict=True)]


def fit_temperature(
    scores: Sequence[Sequence[float]] | NDArray[np.float64], targets: Sequence[int] | NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """The temperature τ at which the right candidates are most probable, and each question's loss there, in nats.

    With q = softmax(scores / τ) over a question's candidates, the loss is −log q of the candidate at the question's target. Its mean
    is convex in 1/τ, so the root of its derivative is halved in on, in log τ. Questions may differ in their number of candidates.
    τ stays within WIDEST times the scores' spread and its inverse: it is at the upper end where scores say less than nothing,
    at the lower where the target always leads. Scores that are all equal have τ = 1.

    Raises TaskError without questions, for a score that is not finite, and for a target that is no candidate.
    """
    padded, there, target = _matrix(scores, targets)
    centred = np.where(there, padded - padded.max(axis=1, keepdims=True, where=there, initial=-np.inf), 0.0)
    at_target = centred[np.arange(len(target)), target]
    spread = float(np.abs(centred).max())
    if spread == 0:
        return 1.0, np.log(there.sum(axis=1))
    centred /= spread
    at_target = at_target / spread

    def slope(sharpness: float) -> float:
        """Of the mean loss, along the sharpness 1/τ."""
        weights = np.exp(sharpness * centred) * there
        return float(((weights * centred).sum(axis=1) / weights.sum(axis=1) - at_target).mean())

    low, high = -math.log(WIDEST), math.log(WIDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    sharpness = math.exp((low + high) / 2)
    losses = np.log((np.exp(sharpness * centred) * there).sum(axis=1)) - sharpness * at_target
    return spread / sharpness, losses


def _matrix(
    scores: Sequence[Sequence[float]] | NDArray[np.float64], targets: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Scores [questions, candidates at most], which of them are there, and the targets' places."""
    counts, target = np.array([len(row) for row in scores]), np.asarray(targets, dtype=np.int64)
    if not len(counts) or len(counts) != len(target):
        raise TaskError(
            f"a temperature is fitted on questions with one target each; got {len(counts)} and {len(target)}"
        )
    if ((target < 0) | (target >= counts)).any():
        raise TaskError("a target is none of its question's candidates")
    there = np.arange(counts.max()) < counts[:, None]
    padded = np.zeros(there.shape)
    padded[there] = np.concatenate([np.asarray(row, dtype=np.float64) for row in scores])
    if not np.isfinite(padded).all():
        raise TaskError("a score is not finite", hint="the model's weights may be broken, or the dtype too narrow")
    return padded, there, target


def fit_weight(loss: Callable[[float], float]) -> float:
    """The weight of `hybrid` with the least loss, to two digits; 0 where no weight has less than none.

    `loss` gives the mean loss in nats at a weight, with the temperature fitted there, so its ends are pmi alone and likeness alone. The
    loss is convex in 1/τ and weight/τ together, so over the weight it falls and then rises: a golden section of its logarithm finds the least.
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = (math.log(end) for end in WEIGHTS)
    one, two = high - ratio * (high - low), low + ratio * (high - low)
    at_one, at_two = loss(math.exp(one)), loss(math.exp(two))
    while high - low > NARROW:
        if at_one <= at_two:
            high, two, at_two = two, one, at_one
            one = high - ratio * (high - low)
            at_one = loss(math.exp(one))
        else:
            low, one, at_one = one, two, at_two
            two = low + ratio * (high - low)
            at_two = loss(math.exp(two))
    found = float(f"{math.exp((low + high) / 2):.2g}")
    return found if loss(found) < loss(0.0) else 0.0
