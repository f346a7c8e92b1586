"""The ladder: ever finer mixes, each of which has to earn its place on questions to choose by.

Parents alone, their average, one λ between two of them, neighbours one by one, the sum of the coefficients, blocks of layers. A rung is a
family of mixes that includes those of the rungs below. It is taken only if its choice, made without a user's answer, serves that user better
than the coarser choice made likewise: the mean paired gain over users has to exceed one standard error.

What a mix is worth is seen through `look` and a `Measure` alone, on all questions: nothing here knows a model. The points of a search
are placed with all questions in view; only the choice among them is cross-validated. The guard judges what comes out on other users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .calibration import Floats, losses, sharpness
from .found import Matrix

FOLDS = 5
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
NEIGHBOUR_SHARES = (0.1, 0.25, 0.5)
SCALES = (0.7, 1.4)
NARROWEST, WIDEST = 0.5, 2.0  # times the sum of the coefficients
STEP = 0.2  # of a block's coefficients
APART = 0.01  # mixes nearer than this are taken for the same
SPREAD, BLOCK_SPREAD = (
    0.5,
    0.2,
)  # prior standard deviations: of coefficients about the even mix, of a group's about their mean


class Measure(Protocol):
    """What a mix is worth by its `table` [questions, candidates], on the questions that `rows` [questions] marks."""

    def sharpness(self, table: Floats, rows: NDArray[np.bool_]) -> float:
        """The 1/τ ≥ 0 that suits these questions best."""
        ...

    def losses(self, table: Floats, sharp: float, rows: NDArray[np.bool_]) -> Floats:
        """The loss of each of these questions, in nats, at that sharpness."""
        ...


class RightItem:
    """The measure of labelled questions: the loss of the right item, by a table of margins."""

    def sharpness(self, table: Floats, rows: NDArray[np.bool_]) -> float:
        return sharpness(table[rows])

    def losses(self, table: Floats, sharp: float, rows: NDArray[np.bool_]) -> Floats:
        return losses(table[rows], sharp)


@dataclass(frozen=True)
class Look:
    """A mix that was looked at: coefficients [groups][adapters], mean loss and its τ (None: infinite), and what shrinkage adds.

    The loss is that of the right item, or of another `Measure`. `costs` [folds] are losses with shrinkage on all but a fold's questions,
    `held_out` [questions] is each one's loss at the temperature that the other folds have.
    """

    name: str
    weights: Matrix
    loss: float
    temperature: float | None
    shrinkage: float
    costs: Floats = field(repr=False, compare=False)
    held_out: Floats = field(repr=False, compare=False)

    @classmethod
    def of(cls, name: str, weights: Matrix, table: Floats, measure: Measure | None = None) -> Look:
        measure = measure or RightItem()
        questions = len(table)
        fold = np.arange(questions) % FOLDS
        held_out, costs = np.empty(questions), np.empty(FOLDS)
        shrunk = shrinkage(weights, questions)
        for number in range(FOLDS):
            out = fold == number
            sharp = measure.sharpness(table, ~out)
            costs[number] = measure.losses(table, sharp, ~out).mean() + shrunk
            held_out[out] = measure.losses(table, sharp, out)
        every = np.ones(questions, dtype=bool)
        sharp = measure.sharpness(table, every)
        loss = float(measure.losses(table, sharp, every).mean())
        return cls(name, weights, loss, 1 / sharp if sharp else None, shrunk, costs, held_out)

    @property
    def cost(self) -> float:
        """What the choice is by, in nats per question."""
        return self.loss + self.shrinkage


@dataclass(frozen=True)
class Rung:
    """A family of mixes, and whether it was taken: the mean paired gain per user over the coarser one, and its standard error."""

    name: str
    gain: float
    error: float
    taken: bool
    best: Matrix


def adapter_rung(place: int) -> str:
    """The rung that adds the adapter at that place."""
    return f"adapter {place}"


def shrinkage(weights: Matrix, questions: int) -> float:
    """Towards the coarser mix: groups towards their mean, and that towards the even mix; nats per question."""
    table = np.asarray(weights)
    middle = table.mean(axis=0)
    even = 1 / table.shape[1]
    coarse = float(np.square(middle - even).sum()) / (2 * SPREAD**2)
    fine = float(np.square(table - middle).sum(axis=1).mean()) / (2 * BLOCK_SPREAD**2)
    return (coarse + fine) / questions


def choose(family: Sequence[Look]) -> Look:
    """The mix of the smallest cost; of equal ones the first."""
    return min(family, key=lambda look: look.cost)


def held_out_losses(family: Sequence[Look]) -> Floats:
    """[questions]: each one's loss by the mix and the temperature that were chosen without its fold."""
    fold = np.arange(len(family[0].held_out)) % FOLDS
    best = np.argmin([look.costs for look in family], axis=0)
    return np.array([look.held_out for look in family])[best[fold], np.arange(len(fold))]


def paired_gain(coarser: Sequence[Look], finer: Sequence[Look]) -> tuple[float, float]:
    """(mean, standard error) over users of what the finer family's choice is better by, in nats."""
    difference = held_out_losses(coarser) - held_out_losses(finer)
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


class Ladder:
    """A climb: `look` scores a mix of that many `adapters`, two or more, each group of whose coefficients has a row.

    `pair` are the two adapters that one λ is sought between, by place; None takes the two that are best alone. Without a `measure`, what
    `look` gives are margins, and the loss is that of the right item.
    """

    def __init__(
        self,
        look: Callable[[Matrix], Floats],
        adapters: int,
        *,
        groups: int = 1,
        pair: tuple[int, int] | None = None,
        blocks: Sequence[Sequence[int]] = (),
        measure: Measure | None = None,
    ) -> None:
        self._look, self._adapters, self._groups, self._measure = look, adapters, groups, measure
        self._pair, self._blocks = pair, blocks
        self.looked: list[Look] = []
        self.rungs: list[Rung] = []
        self._accepted: list[Look] = []
        self._pending: list[Look] = []  # of rungs that were not taken; finer ones include them

    @property
    def best(self) -> Look:
        """The choice of the finest rung that was taken."""
        return choose(self._accepted)

    @property
    def parents(self) -> list[Look]:
        return self.looked[: self._adapters]

    @property
    def average(self) -> Look:
        return self.looked[self._adapters]

    def begin(self, *, with_average: bool = False) -> None:
        """Every parent alone, and the average, which has to earn its place too, unless the climb begins `with_average`."""
        for place in range(self._adapters):
            self._see("parent", [1.0 if k == place else 0.0 for k in range(self._adapters)])
        self._accepted = list(self.looked)
        average = self._see("average", [1 / self._adapters] * self._adapters)
        if with_average:
            self._accepted = [average]
        else:
            self._test("average", [average])

    def climb(self, *, scale: bool = True) -> None:
        """All rungs above the average, in their order. It may be interrupted at any moment: `best` is then of what was taken."""
        first, second = self._pair or self._two_best()
        self._test("one λ", list(self._line(first, second)))
        for other in self._others((first, second)):
            start = self.best
            self._test(adapter_rung(other), list(self._towards(start, other)), keeps=False)
        if scale:
            self._test("scale", list(self._scaled(self._start())))
        if self._blocks:
            self._test("blocks", list(self._by_blocks(self._start())))

    def _start(self) -> Look:
        return choose([*self._accepted, *self._pending])

    def _two_best(self) -> tuple[int, int]:
        order = sorted(range(self._adapters), key=lambda place: self.parents[place].loss)
        return min(order[:2]), max(order[:2])

    def _others(self, own: tuple[int, int]) -> list[int]:
        places = (place for place in range(self._adapters) if place not in own)
        return sorted(places, key=lambda place: self.parents[place].loss)

    def _test(self, name: str, added: list[Look], *, keeps: bool = True) -> None:
        finer = [*self._accepted, *self._pending, *added]
        gain, error = paired_gain(self._accepted, finer)
        taken = gain > error
        self.rungs.append(Rung(name, gain, error, taken, choose(finer).weights))
        if taken:
            self._accepted, self._pending = finer, []
        elif keeps:
            self._pending += added

    def _see(self, name: str, row: Sequence[float]) -> Look:
        return self._see_matrix(name, (tuple(row),) * self._groups)

    def _see_matrix(self, name: str, weights: Matrix) -> Look:
        """Coefficients are rounded to what a recipe holds; what was looked at before is not scored again."""
        rounded = tuple(tuple(round(value, 6) + 0.0 for value in row) for row in weights)
        known = next((look for look in self.looked if look.weights == rounded), None)
        if known is not None:
            return known
        found = Look.of(name, rounded, self._look(rounded), self._measure)
        self.looked.append(found)
        return found

    def _line(self, first: int, second: int) -> Iterator[Look]:
        """Five shares of the second, then three times where the parabola through the smallest and its neighbours is smallest."""

        def at(share: float) -> Look:
            row = [0.0] * self._adapters
            row[first], row[second] = 1 - share, share
            return self._see("one λ", row)

        yield from _minimised(at, SHARES, refinements=3)

    def _towards(self, start: Look, other: int) -> Iterator[Look]:
        """From a mix towards one more adapter, the sum of the coefficients kept."""
        table = np.asarray(start.weights)
        total = table.sum(axis=1, keepdims=True)

        def at(share: float) -> Look:
            moved = (1 - share) * table
            moved[:, other] += share * total[:, 0]
            return self._see_matrix(adapter_rung(other), _matrix(moved))

        yield from list(_minimised(at, (0.0, *NEIGHBOUR_SHARES), refinements=1))[1:]

    def _scaled(self, start: Look) -> Iterator[Look]:
        """All coefficients larger or smaller together; the parabola is in the logarithm."""
        table = np.asarray(start.weights)

        def at(logarithm: float) -> Look:
            factor = min(max(math.exp(logarithm), NARROWEST), WIDEST)
            return start if abs(factor - 1) < APART else self._see_matrix("scale", _matrix(factor * table))

        places = sorted((0.0, *map(math.log, SCALES)))
        yield from (look for look in _minimised(at, places, refinements=1) if look is not start)

    def _by_blocks(self, start: Look) -> Iterator[Look]:
        """Coordinate search: each block's coefficients a step up or down along the difference of its adapters, what helps is kept."""
        current = start
        for block in self._blocks:
            for direction in self._directions():
                for sign in (1, -1):
                    table = np.array(current.weights)
                    table[list(block)] += sign * STEP * direction
                    seen = self._see_matrix("blocks", _matrix(table))
                    yield seen
                    if seen.cost < current.cost:
                        current = seen
                        break

    def _directions(self) -> list[Floats]:
        """For two adapters from one to the other; for more from each to the rest."""
        k = self._adapters
        rows = [np.where(np.arange(k) == place, 1.0, -1 / (k - 1)) for place in range(k)]
        return rows[:1] if k == 2 else rows


def _minimised(at: Callable[[float], Look], places: Sequence[float], *, refinements: int) -> Iterator[Look]:
    """Looks at the places, then where parabolas through the smallest cost and its neighbours are smallest, not beyond the places."""
    # ends and middle first: what is interrupted has then seen the most important ones
    middle = places[len(places) // 2]
    order = sorted(places, key=lambda place: (place not in (places[0], places[-1], middle), place))
    seen = {}
    for place in order:
        seen[place] = at(place)
        yield seen[place]
    for _ in range(refinements):
        place = _vertex([(where, look.cost) for where, look in sorted(seen.items())])
        if place is None or min(abs(place - other) for other in seen) < APART:
            return
        seen[place] = at(place)
        yield seen[place]


def _vertex(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the parabola through the smallest point and its two neighbours is smallest; at an end, through the three nearest."""
    smallest = min(range(len(points)), key=lambda index: points[index][1])
    middle = min(max(smallest, 1), len(points) - 2)
    (x0, y0), (x1, y1), (x2, y2) = points[middle - 1 : middle + 2]
    left, right = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    if left == right:
        return None
    place = x1 - 0.5 * ((x1 - x0) * left - (x1 - x2) * right) / (left - right)
    bend = (y2 - y1) / (x2 - x1) - (y1 - y0) / (x1 - x0)
    if bend <= 0 or not points[0][0] < place < points[-1][0]:
        return None
    return round(place, 4)


def _matrix(table: Floats) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in table)
