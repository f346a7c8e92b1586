"""The ladder and the temperature beneath it, on arrays: against scipy, brute force, and worlds whose best mix is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reccocktail.engine.adapting.calibration import losses, margins, ranks, sharpness
from reccocktail.engine.adapting.ladder import (
    FOLDS,
    Ladder,
    Look,
    choose,
    held_out_losses,
    paired_gain,
    shrinkage,
)
from reccocktail.engine.errors import AdaptationError
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import ttest_1samp


def drawn(seed: int, questions: int = 60, candidates: int = 6, signal: float = 1.0):
    """(scores, targets): the right item scores higher by `signal` on average."""
    rng = np.random.default_rng(seed)
    scores, targets = rng.normal(size=(questions, candidates)), rng.integers(candidates, size=questions)
    scores[np.arange(questions), targets] += signal
    return scores, targets


def expected_losses(scores, targets, at: float):
    return -log_softmax(at * scores, axis=1)[np.arange(len(targets)), targets]


@pytest.mark.parametrize("signal", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_temperature_is_the_one_that_a_general_minimiser_finds(signal, size):
    scores, targets = drawn(1, signal=signal)
    scores *= size

    def objective(logarithm: float) -> float:
        at = math.exp(logarithm)
        at_random = -log_softmax(at * scores, axis=1).mean()  # of one question more, over all answers alike
        return expected_losses(scores, targets, at).sum() + at_random

    best = minimize_scalar(
        objective, bounds=(-12 - math.log(size), 6 - math.log(size)), method="bounded", options={"xatol": 1e-10}
    )
    margin = margins(scores, targets.tolist())
    assert sharpness(margin) == pytest.approx(math.exp(best.x), rel=1e-4)
    assert losses(margin, 0.7 / size) == pytest.approx(expected_losses(scores, targets, 0.7 / size), rel=1e-12)


def test_scores_against_the_right_item_are_worth_as_much_as_none():
    scores, targets = drawn(2, signal=-2.0)
    margin = margins(scores, targets.tolist())
    assert sharpness(margin) == 0.0
    assert losses(margin, 0.0) == pytest.approx(np.full(60, math.log(6)))
    assert sharpness(np.zeros((4, 3))) == 0.0


def test_scores_that_are_always_right_have_a_temperature():
    margin = np.full((5, 3), -2.0)
    margin[:, 0] = 0.0
    assert 0 < sharpness(margin) < 10


def test_a_candidate_that_cannot_be_scored_is_never_right_and_a_right_one_is_refused():
    scores, targets = drawn(3)
    scores[0, (targets[0] + 1) % 6] = -np.inf
    margin = margins(scores, targets.tolist())
    assert np.isfinite(losses(margin, sharpness(margin))).all()
    for wrong in (-np.inf, np.nan):
        scores[0, targets[0]] = wrong
        with pytest.raises(AdaptationError):
            margins(scores, targets.tolist())


def test_equal_scores_count_against_the_right_item():
    assert ranks(margins([[1.0, 2.0, 2.0], [3.0, 1.0, 2.0]], [1, 0])) == [1, 0]


# --- the choice among mixes -----------------------------------------------------------------------------------------


def looks(count: int, seed: int = 5) -> tuple[list[Look], list]:
    tables = [margins(*(part.tolist() for part in drawn(seed + n, signal=0.2 + 0.3 * n))) for n in range(count)]
    return [Look.of(str(n), ((1 - n / 4, n / 4),), table) for n, table in enumerate(tables)], tables


def test_held_out_losses_are_of_the_choice_that_the_other_folds_make():
    family, tables = looks(4)
    expected = np.empty(60)
    for fold in range(FOLDS):
        out = [row for row in range(60) if row % FOLDS == fold]
        kept = [row for row in range(60) if row % FOLDS != fold]
        costs = [
            losses(table[kept], sharpness(table[kept])).mean() + shrinkage(look.weights, 60)
            for look, table in zip(family, tables, strict=True)
        ]
        best = tables[costs.index(min(costs))]
        expected[out] = losses(best[out], sharpness(best[kept]))
    assert held_out_losses(family) == pytest.approx(expected)
    gain, error = paired_gain(family[:1], family)
    test = ttest_1samp(held_out_losses(family[:1]) - held_out_losses(family), 0)
    assert gain / error == pytest.approx(test.statistic)


def test_shrinkage_draws_groups_to_their_mean_and_that_to_the_even_mix():
    assert shrinkage(((0.5, 0.5), (0.5, 0.5)), 10) == 0
    assert shrinkage(((1.0, 0.0),), 10) == pytest.approx((0.25 + 0.25) / (2 * 0.5**2) / 10)
    assert shrinkage(((0.6, 0.4), (0.4, 0.6)), 10) == pytest.approx(0.02 / (2 * 0.2**2) / 10)
    even, apart = (Look.of("", weights, looks(1)[1][0]) for weights in (((0.5, 0.5),), ((1.0, 0.0),)))
    assert choose([apart, even]) is even


# --- worlds ---------------------------------------------------------------------------------------------------------


class World:
    """Users whose taste is a planted mix of two that the adapters know one of each; what else is in a score is noise."""

    def __init__(self, truth: tuple[float, ...], questions: int = 400, clash: float = 0.0, base: float = 0.0) -> None:
        rng = np.random.default_rng(11)
        self._tastes = 3 * rng.normal(size=(len(truth), questions, 8))
        wanted = np.tensordot(truth, self._tastes, 1) + rng.gumbel(size=(questions, 8))
        self._targets = wanted.argmax(axis=1).tolist()
        self._clash, self._base = clash * rng.normal(size=(questions, 8)), base * rng.normal(size=(questions, 8))
        self.asked = 0

    def look(self, weights):
        self.asked += 1
        row = np.asarray(weights).mean(axis=0)
        clash = np.prod(row) * self._clash
        return margins(np.tensordot(row, self._tastes, 1) + clash + self._base, self._targets)


def climbed(world: World, adapters: int = 2, **options) -> Ladder:
    ladder = Ladder(world.look, adapters, **options)
    ladder.begin()
    ladder.climb()
    return ladder


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.75])
def test_the_planted_share_is_found(share):
    ladder = climbed(World((1 - share, share)))
    (row,) = ladder.best.weights
    assert row[1] / sum(row) == pytest.approx(share, abs=0.06)
    assert ladder.rungs[0].taken == (share in (0.35, 0.5))  # else the one parent is better than the average
    assert {rung.name: rung.taken for rung in ladder.rungs}["one λ"] == (share != 0.5)


def test_a_sum_other_than_one_is_taken_where_the_base_has_to_be_outweighed():
    (row,) = climbed(World((0.5, 0.5), base=3.0)).best.weights
    assert sum(row) > 1.3
    assert sum(climbed(World((0.5, 0.5))).best.weights[0]) == 1.0


def test_a_parent_stays_where_mixing_harms():
    ladder = climbed(World((1.0, 0.0), clash=40.0))
    assert ladder.best.weights == ((1.0, 0.0),)
    assert not any(rung.taken for rung in ladder.rungs)


def test_little_noise_of_no_rung_is_taken_for_a_gain():
    """Both adapters know the same, so every mix is worth the same: about one rung in six may be taken by chance, not most."""
    rng, taken, tested = np.random.default_rng(3), 0, 0
    for _ in range(20):
        scores, targets = drawn(int(rng.integers(1 << 30)), questions=100)
        noise = rng.normal(size=(2, *scores.shape))
        ladder = Ladder(
            lambda w, s=scores, t=targets, n=noise: margins(s + 0.05 * np.tensordot(np.square(w[0]), n, 1), t.tolist()),
            2,
        )
        ladder.begin()
        ladder.climb(scale=False)
        taken += sum(rung.taken for rung in ladder.rungs)
        tested += len(ladder.rungs)
    assert taken / tested < 0.3


def test_of_many_adapters_those_that_help_are_added_one_by_one():
    ladder = climbed(World((0.4, 0.3, 0.0, 0.3), questions=600), adapters=4, pair=(0, 1))
    (row,) = ladder.best.weights
    assert row[3] > 0.15
    assert abs(row[2]) < 0.08
    assert {r.name: r.taken for r in ladder.rungs}["adapter 2"] is False


def test_nothing_is_scored_twice_and_two_adapters_cost_twelve_looks_at_most():
    world = World((0.3, 0.7))
    ladder = climbed(world)
    assert world.asked == len(ladder.looked) <= 12
    assert len({look.weights for look in ladder.looked}) == len(ladder.looked)


def test_blocks_move_where_layers_want_different_mixes():
    rng = np.random.default_rng(4)
    tastes, gumbel = 3 * rng.normal(size=(2, 2, 500, 8)), rng.gumbel(size=(500, 8))
    truth = np.array([[0.8, 0.2], [0.2, 0.8]])
    targets = (np.tensordot(truth, tastes, 2) + gumbel).argmax(axis=1).tolist()
    world = lambda weights: margins(np.tensordot(np.asarray(weights), tastes, 2), targets)  # noqa: E731
    ladder = Ladder(world, 2, groups=2, blocks=((0,), (1,)))
    ladder.begin()
    ladder.climb()
    assert ladder.rungs[-1].name == "blocks"
    assert ladder.rungs[-1].taken
    assert ladder.best.weights[0][0] > 0.6 > 0.4 > ladder.best.weights[1][0]
