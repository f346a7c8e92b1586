"""Looking for the coefficients with the lowest entropy: along a line, or down the gradient.

Both see the model as an `Objective` alone. A point of a search is a matrix [groups, adapters] of coefficients; a group is the whole
model, a layer or a module.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import AdaptationError
from ..recipes import Adaptive
from .found import Matrix
from .objective import Objective

Judge = Callable[[], float]
"""NDCG@3 of the mixture as it is set, on labelled validation questions."""

CORNER = 0.99  # a weight as good as alone; under `simplex` corners are reached, under `softmax` never
MIN_DELTA = 1e-5  # nats: less is no fall
ALL_TAKEN, LEVEL, IN_A_CORNER, BROKEN, INTERRUPTED = (
    "all steps taken", "entropy no longer falls", "one adapter has all the weight", "entropy is not finite", "interrupted",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A mix that was looked at: its coefficients [groups][adapters], and the mean entropy (nats) of the prompts it is judged by.

    `trained` is the entropy of the prompts of the step that led here, `ndcg` that of labelled validation questions. What was
    not measured is None.
    """

    coefficients: Matrix
    entropy: float | None
    trained: float | None = None
    ndcg: float | None = None


@dataclass(frozen=True)
class Run:
    """One descent from the same start, or the points of a line in order, and why it ended."""

    learning_rate: float | None
    points: tuple[Point, ...]
    stopped: str = ALL_TAKEN


@dataclass
class SearchTrace:
    """What a search has found so far: it can be interrupted at any moment and still has an answer."""

    runs: list[Run] = field(default_factory=list)

    def has_ended(self) -> bool:
        """Whether a run went as far as it could."""
        return any(run.stopped != INTERRUPTED for run in self.runs)

    def points(self) -> Iterator[tuple[int, Point]]:
        for number, run in enumerate(self.runs):
            for point in run.points:
                if point.entropy is not None:
                    yield number, point


# The line


def grid_search(
    objective: Objective, points: int, which: Sequence[int], sought: SearchTrace, judge: Judge | None = None
) -> None:
    """Two adapters, one λ: every mix from the first alone to the second alone, evenly spaced."""
    seen: list[Point] = []
    # Ends and middle first: an interrupted search has then seen the most important points.
    order = sorted(range(points), key=lambda step: (step not in (0, points // 2, points - 1), step))
    for step in order:
        share = round(step / (points - 1), 6)
        coefficients = (round(1 - share, 6), share)
        weights = torch.tensor([coefficients], device=objective.mixture.device)
        entropy = objective.value(weights, which)
        if not math.isfinite(entropy):
            raise AdaptationError(
                f"the entropy at λ = {share:g} of the second adapter is not a number: an adapter is broken",
                hint="`reccocktail evaluate` each adapter",
            )
        seen.append(Point((coefficients,), entropy, ndcg=judge() if judge else None))
        seen.sort(key=lambda point: point.coefficients[0][1])
        sought.runs[:] = [Run(None, tuple(seen), INTERRUPTED if len(seen) < points else ALL_TAKEN)]


# The gradient


@dataclass(frozen=True)
class Constraint:
    """Raw parameters, which Adam moves, and the coefficients that they represent.

    `along` is the part of a gradient that does not lead out of the constraint. Adam makes steps of equal size of all partials, so what
    they have in common must go before: projecting afterwards would undo the whole step where every adapter helps.
    """

    start: Callable[[float], float]
    weights: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor] = lambda raw: raw
    along: Callable[[Tensor], Tensor] = lambda gradient: gradient


def project_simplex(raw: Tensor) -> Tensor:
    """Each row's nearest point with coefficients that are not negative and sum to 1 (Duchi et al. 2008, algorithm 1)."""
    ordered = raw.sort(dim=-1, descending=True).values
    rank = torch.arange(1, raw.shape[-1] + 1, device=raw.device, dtype=raw.dtype)
    over = (ordered.cumsum(-1) - 1) / rank
    last = (ordered > over).sum(-1, keepdim=True) - 1
    return (raw - over.gather(-1, last)).clamp(min=0)


CONSTRAINTS: dict[str, Constraint] = {
    "softmax": Constraint(lambda share: 0.0, lambda raw: raw.softmax(-1)),
    "sigmoid": Constraint(lambda share: math.log(share / (1 - share)) if share < 1 else 4.0, torch.sigmoid),
    "simplex": Constraint(
        lambda share: share,
        lambda raw: raw,
        project_simplex,
        lambda gradient: gradient - gradient.mean(-1, keepdim=True),
    ),
    "free": Constraint(lambda share: share, lambda raw: raw),
}
"""All start with 1/K for each of K adapters (RecCocktail, code)."""


def gradient_descent(
    objective: Objective,
    adapters: int,
    adaptive: Adaptive,
    training: Sequence[int],
    held_out: Sequence[int],
    sought: SearchTrace,
    judge: Judge | None = None,
) -> None:
    """One descent by Adam for every learning rate; model, prompts, and what is the same for all of them are shared.

    All descents begin at the same point with the same prompts, so the first point and the first gradient are computed once.
    Raises AdaptationError where the start is not finite; a descent that leaves the numbers ends there.
    """
    constraint = CONSTRAINTS[adaptive.constraint]
    shape = len(objective.mixture.groups), adapters
    start = torch.full(shape, constraint.start(1 / adapters), device=objective.mixture.device)
    watched = held_out or training
    steps = _steps(training, adaptive)

    weights = constraint.weights(start)
    entropy = objective.value(weights, watched)
    if not math.isfinite(entropy):
        raise AdaptationError(
            "the entropy of an even mix is not a number: an adapter is broken",
            hint="`reccocktail evaluate` each adapter",
        )
    first = Point(_matrix(weights), entropy, ndcg=judge() if judge else None)
    first_gradient: tuple[float, Tensor] | None = None
    for rate in adaptive.rates:
        points = [first]
        raw = start.clone().requires_grad_()
        adam = torch.optim.Adam([raw], lr=rate)

        def note(stopped: str, points: list[Point] = points, rate: float = rate) -> None:
            sought.runs[:] = [r for r in sought.runs if r.learning_rate != rate] + [Run(rate, tuple(points), stopped)]

        note(INTERRUPTED)
        stopped = ALL_TAKEN
        for number, batch in enumerate(steps):
            with torch.enable_grad():
                weights = constraint.weights(raw)
            if number == 0 and first_gradient is not None:
                trained, gradient = first_gradient
            else:
                trained, gradient = objective.gradient(weights, batch)
                first_gradient = first_gradient or (trained, gradient)
            if not (math.isfinite(trained) and bool(torch.isfinite(gradient).all())):
                stopped = BROKEN
                break
            adam.zero_grad()
            weights.backward(constraint.along(gradient))
            adam.step()
            with torch.no_grad():
                raw.copy_(constraint.project(raw))
                weights = constraint.weights(raw)
            last = number == len(steps) - 1
            looked_at = bool(held_out) or last
            entropy = objective.value(weights, watched) if looked_at else None
            if entropy is not None and not math.isfinite(entropy):
                stopped = BROKEN
                break
            points.append(Point(_matrix(weights), entropy, trained, judge() if judge and looked_at else None))
            note(INTERRUPTED)
            if reason := _has_settled(points, adaptive) if held_out and adaptive.patience else None:
                stopped = reason
                break
        note(stopped)


def _steps(training: Sequence[int], adaptive: Adaptive) -> list[list[int]]:
    """The prompts of each step of the optimiser: first in their own order, then shuffled anew for each pass."""
    order, found = list(training), []
    shuffled = random.Random(adaptive.seed)  # noqa: S311
    for _ in range(adaptive.epochs):
        found += [order[at : at + adaptive.batch] for at in range(0, len(order), adaptive.batch)]
        order = shuffled.sample(order, len(order))
    return found


def _has_settled(points: Sequence[Point], adaptive: Adaptive) -> str | None:
    known = [point.entropy for point in points if point.entropy is not None]
    recent, before = known[-adaptive.patience :], known[: -adaptive.patience]
    if before and min(recent) > min(before) - MIN_DELTA:
        return LEVEL
    if adaptive.constraint in ("simplex", "softmax") and len(points[-1].coefficients[0]) > 1:
        ahead = [row.index(max(row)) for row in points[-1].coefficients]
        if len(set(ahead)) == 1 and all(max(row) >= CORNER for row in points[-1].coefficients):
            return IN_A_CORNER
    return None


def _matrix(weights: Tensor) -> Matrix:
    """Rounded to what a recipe holds, so that the recipe says exactly what was judged."""
    return tuple(tuple(round(value, 6) for value in row) for row in weights.detach().double().tolist())
