"""The loss of agreement on arrays: against plain loops, scipy's minimisers, and worlds whose best mix is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reccocktail.engine.adapting.consensus import Consensus, choices, entropy_sharpness, probabilities, scores_table
from reccocktail.engine.adapting.ladder import Ladder
from reccocktail.engine.errors import AdaptationError
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

QUESTIONS, CANDIDATES = 40, 6
EVERY = np.ones(QUESTIONS, dtype=bool)


def drawn(seed: int, size: float = 1.0) -> np.ndarray:
    return size * np.random.default_rng(seed).normal(size=(QUESTIONS, CANDIDATES))


def slow_sharpness(table: np.ndarray) -> float:
    """The sharpness at which the mean entropy is half of the highest."""
    wanted = math.log(CANDIDATES) / 2
    return brentq(lambda at: entropy(softmax(at * table, axis=1), axis=1).mean() - wanted, 1e-9, 1e9, xtol=1e-14)


def slow_loss(tables, mix: np.ndarray, at: float, beta: float, softening: float) -> np.ndarray:
    """Question by question and parent by parent, as the formula is written."""
    found = []
    sharp = [slow_sharpness(table) for table in tables]
    for question, scores in enumerate(mix):
        cross = sum(-log_softmax(at * scores)[int(table[question].argmax())] for table in tables) / len(tables)
        own = [softmax(a * table[question] / softening) for a, table in zip(sharp, tables, strict=True)]
        average = sum(own) / len(tables)
        apart = log_softmax(at * scores / softening)
        divergence = sum(p * (math.log(p) - q) for p, q in zip(average, apart, strict=True) if p > 0)
        found.append(cross + beta * softening**2 * divergence)
    return np.array(found)


@pytest.mark.parametrize(("beta", "softening"), [(0.0, 1.0), (1.0, 1.0), (0.7, 2.5), (3.0, 0.4)])
def test_the_loss_is_that_of_the_formula_question_by_question(beta, softening):
    tables, mix = [drawn(1), drawn(2, 30.0), drawn(3, 0.01)], drawn(4, 2.0)
    consensus = Consensus.of(tables, beta=beta, softening=softening)
    for at in (0.0, 0.3, 4.0):
        assert consensus.losses(mix, at, EVERY) == pytest.approx(slow_loss(tables, mix, at, beta, softening), rel=1e-9)
    some = np.arange(QUESTIONS) % 3 == 1
    assert consensus.losses(mix, 0.3, some) == pytest.approx(slow_loss(tables, mix, 0.3, beta, softening)[some])


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("beta", "softening"), [(0.0, 1.0), (1.0, 1.0), (2.0, 3.0)])
def test_the_temperature_is_the_one_that_a_general_minimiser_finds(beta, softening, size):
    tables = [drawn(1), drawn(2)]
    mix = size * (tables[0] + tables[1] + drawn(3))
    consensus = Consensus.of(tables, beta=beta, softening=softening)

    def objective(logarithm: float) -> float:
        at = math.exp(logarithm)
        at_random = -log_softmax(at * mix, axis=1).mean()  # of one question more, over all votes alike
        return slow_loss(tables, mix, at, beta, softening).sum() + at_random

    middle = -math.log(size)
    best = minimize_scalar(objective, bounds=(middle - 8, middle + 4), method="bounded", options={"xatol": 1e-9})
    assert consensus.sharpness(mix, EVERY) == pytest.approx(math.exp(best.x), rel=1e-4)


def test_parents_are_compared_when_they_are_equally_sure():
    tables = [drawn(1), drawn(2)]
    at = entropy_sharpness(tables[0])
    assert at == pytest.approx(slow_sharpness(tables[0]), rel=1e-8)
    assert entropy(probabilities(tables[0], at), axis=1).mean() == pytest.approx(math.log(CANDIDATES) / 2)
    plain = Consensus.of(tables, beta=1.0, softening=1.0)
    surer = Consensus.of([50.0 * tables[0] + 3.0, tables[1]], beta=1.0, softening=1.0)
    assert surer.average == pytest.approx(plain.average)
    assert surer.temperatures[0] == pytest.approx(50.0 * (plain.temperatures[0] or 0.0))


def test_scores_that_say_nothing_make_no_choice_and_no_temperature():
    flat = np.zeros((QUESTIONS, CANDIDATES))
    consensus = Consensus.of([flat, drawn(1)], beta=1.0, softening=1.0)
    assert consensus.temperatures[0] is None
    assert choices(flat) == pytest.approx(np.full_like(flat, 1 / CANDIDATES))
    assert consensus.sharpness(flat, EVERY) == 0.0
    assert np.isfinite(consensus.losses(flat, 0.0, EVERY)).all()
    assert consensus.sharpness(-drawn(1), EVERY) == 0.0  # against the only parent that says something
    half = drawn(2)
    half[: QUESTIONS * 3 // 4] = 0.0  # its entropy never falls to half of the highest
    assert np.isfinite(probabilities(half, entropy_sharpness(half))).all()


def test_a_parent_with_several_first_candidates_gives_each_a_part_of_its_vote():
    assert choices(np.array([[2.0, 1.0, 2.0], [0.0, 1.0, 0.5]])).tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]


def test_parents_that_always_agree_have_a_temperature_without_their_average():
    table = drawn(1)
    sharp = Consensus.of([table, table], beta=0.0, softening=1.0).sharpness(table, EVERY)
    assert 0 < sharp < 1e3


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(wrong):
    with pytest.raises(AdaptationError):
        scores_table([[0.0, wrong]])


def climbed(tastes: list[np.ndarray], strengths: list[float], **options) -> Ladder:
    """A world in which adapters differ in how much they change, as LoRAs of unlike norm do: a mix scores by Σ λ · strength · taste."""

    def look(weights) -> np.ndarray:
        row = np.mean(weights, axis=0)
        return sum(w * s * taste for w, s, taste in zip(row, strengths, tastes, strict=True))

    alone = [look((tuple(np.eye(len(tastes))[place]),)) for place in range(len(tastes))]
    ladder = Ladder(look, len(tastes), pair=(0, 1), measure=Consensus.of(alone, beta=1.0, softening=1.0))
    ladder.begin(with_average=True)
    ladder.climb(**options)
    return ladder


def tastes(count: int, questions: int = 200) -> list[np.ndarray]:
    return list(np.random.default_rng(7).normal(size=(count, questions, 10)))


@pytest.mark.parametrize("stronger", [1.0, 3.0])
def test_the_mix_that_agrees_with_both_parents_is_found_however_strong_each_is(stronger):
    """Both tastes count alike where λ₁ · strength₁ = λ₂ · strength₂."""
    best = climbed(tastes(2), [stronger, 1.0]).best.weights[0]
    assert best[1] / sum(best) == pytest.approx(stronger / (stronger + 1), abs=0.06)


def test_equal_parents_keep_the_average_which_nothing_is_clearly_better_than():
    ladder = climbed(tastes(2), [1.0, 1.0])
    assert ladder.best is ladder.average
    assert [(rung.name, rung.taken) for rung in ladder.rungs] == [("one λ", False), ("scale", False)]


def test_a_neighbour_that_the_others_drown_gains_weight():
    ladder = climbed(tastes(3), [1.0, 1.0, 0.2], scale=False)
    best = ladder.best.weights[0]
    assert best[2] > 1 / 3
    assert [rung.name for rung in ladder.rungs] == ["one λ", "adapter 2"]
