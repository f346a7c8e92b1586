"""By which score systems are compared: the one that is named, that of a build, or the best one on validation questions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..registry.errors import UsageError
from ..tasks import SCORES, Question, Score, ScoreParts, TaskError, fit_temperature, fit_weight

RequestedScore = Score | Literal["auto", "hybrid", "generate"]
CHOICE_QUESTIONS = 100  # validation questions that a score is chosen on, at most


@dataclass(frozen=True)
class ScoreChoice:
    """The score that all models of a table are ranked by, and the reason for it.

    `losses` has, where the choice was made on validation questions, the mean log-loss of each score, in nats, over all
    systems. `unkept` says why figures could not be kept for later.
    """

    score: Score
    reason: str
    losses: Mapping[str, float] = field(default_factory=dict)
    unkept: str | None = field(default=None, compare=False)


def read_score(text: str | None) -> RequestedScore | None:
    """What `--score` says: a Score in its text form, `auto`, `hybrid`, `generate`, or nothing. Raises UsageError."""
    if text is None or text == "auto" or text == "hybrid" or text == "generate":
        return text
    try:
        return Score.parse(text)
    except TaskError as error:
        raise UsageError(str(error), hint=f"{error.hint}; auto, hybrid and generate are possible too") from error


def score_of_report(report: Mapping[str, Any] | None) -> Score | None:
    """The score that a build was tuned with, as its report says; None where it says none. Raises TaskError."""
    text = (report or {}).get("score")
    return Score.parse(text) if isinstance(text, str) else None


def common_score(tuned: Iterable[tuple[str, Score | None]]) -> ScoreChoice:
    """The score for systems of these names, of which some were tuned with one: theirs if they agree, else the default."""
    named = [(label, score) for label, score in tuned if score is not None]
    scores = {score for _, score in named}
    if len(scores) == 1:
        return ScoreChoice(scores.pop(), f"{', '.join(label for label, _ in named)} was tuned with it")
    if scores:
        each = ", ".join(f"{label} with {score}" for label, score in named)
        return ScoreChoice(Score(), f"the default, because the builds were tuned differently: {each}")
    return ScoreChoice(Score(), "the default")


def losses_by_score(parts: Sequence[ScoreParts], questions: Sequence[Question]) -> dict[str, float]:
    """Per score in SCORES its mean −log q of the right candidates, q = softmax(scores / τ) with τ fitted to these questions."""
    targets = [question.target_index for question in questions]
    return {
        str(score): float(fit_temperature([part.scores(score) for part in parts], targets)[1].mean())
        for score in SCORES
    }


def best_score(losses: Sequence[Mapping[str, float]], questions: int) -> ScoreChoice:
    """The score with the least loss over the systems, of which each has its losses; of equal ones the first in SCORES."""
    means = {str(score): float(np.mean([each[str(score)] for each in losses])) for score in SCORES}
    least = min(SCORES, key=lambda score: means[str(score)])
    return ScoreChoice(least, f"the least log-loss on {questions} validation questions", means)


def fitted_hybrid(parts: Sequence[Sequence[ScoreParts]], targets: Sequence[int]) -> tuple[Score, dict[str, float]]:
    """The score `hybrid` with the weight of the least mean log-loss over systems, and its loss, pmi's and that of the words alone.

    `parts` has each system's figures of the same questions, whose right candidates are at `targets`. The systems share the weight; each
    has its own temperature.
    """

    def loss(weight: float) -> float:
        score = Score("hybrid", weight)
        return float(np.mean([fit_temperature([p.scores(score) for p in each], targets)[1].mean() for each in parts]))

    score = Score("hybrid", fit_weight(loss))
    alone = [part.likeness or () for part in parts[0]]
    words = float(fit_temperature(alone, targets)[1].mean())
    return score, {"pmi": loss(0.0), "tfidf": words, str(score): loss(score.gamma)}


def log_losses(
    scores: Sequence[Sequence[float]], questions: Sequence[Question]
) -> tuple[float, tuple[float, ...]] | None:
    """(fitted temperature, loss per question); None where a score is not finite, which no temperature makes a probability."""
    if not all(map(math.isfinite, (score for row in scores for score in row))):
        return None
    tau, losses = fit_temperature(scores, [question.target_index for question in questions])
    return tau, tuple(losses.tolist())
