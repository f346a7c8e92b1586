"""The guard: bounds against scipy, and its verdict at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reccocktail.engine.adapting.calibration import margins
from reccocktail.engine.adapting.guard import UNSEEN, compare, level, student_quantile
from reccocktail.engine.adapting.judging import Judged, judge
from reccocktail.engine.adapting.users import FIT_SHARE, Labels, divide, is_fit
from reccocktail.tasks import Example, generate, load_template, questions
from scipy import stats


@pytest.mark.parametrize("freedom", [10, 19, 60, 1000])
@pytest.mark.parametrize("probability", [0.95, 0.975, 0.99375])
def test_the_quantile_is_students(probability, freedom):
    assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), abs=2e-3)


def ranks_of(seed: int, users: int, shift: float) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(rank) for rank in np.clip(rng.integers(10, size=users) - rng.binomial(6, shift, size=users), 0, 9)]


def test_the_bound_is_that_of_a_paired_t_test_with_one_user_more():
    mix, parent = ranks_of(1, 200, 0.5), ranks_of(2, 200, 0.3)
    (bound,) = compare(mix, {"spirit": parent}, metric="HR@1", margin=0.02).bounds
    difference = np.array([rank == 0 for rank in mix], float) - np.array([rank == 0 for rank in parent], float)
    deviation = math.sqrt((((difference - difference.mean()) ** 2).sum() + UNSEEN) / 200)
    assert bound.difference == pytest.approx(difference.mean())
    assert bound.deviation == pytest.approx(deviation)
    interval = stats.t.interval(0.9, 199, difference.mean(), deviation / math.sqrt(200))
    assert bound.low == pytest.approx(interval[0], abs=1e-5)
    usual = difference.std(ddof=1)
    assert bound.deviation == pytest.approx(usual, rel=0.01)


def test_every_parent_has_to_be_passed():
    mix, good, bad = ranks_of(1, 300, 0.5), ranks_of(3, 300, 0.7), ranks_of(2, 300, 0.0)
    assert compare(mix, {"spirit": bad}, metric="NDCG@3", margin=0.02).win
    both = compare(mix, {"spirit": bad, "ingredient": good}, metric="NDCG@3", margin=0.02)
    assert (both.safe, both.win) == (False, False)


def test_equal_rankings_are_safe_with_users_enough_and_never_a_win():
    found = [compare([0] * users, {"spirit": [0] * users}, metric="NDCG@3", margin=0.02) for users in (19, 25, 200)]
    assert [each.safe for each in found] == [False, False, True]
    assert not any(each.win for each in found)


def judged(noise: tuple[float, ...], users: int) -> Judged:
    """Two parents and a mix, each of which scores what is wanted with so much noise of its own."""
    rng = np.random.default_rng(4)
    wanted = rng.normal(size=(users, 10))
    picked = (wanted + 0.3 * rng.gumbel(size=wanted.shape)).argmax(axis=1)
    tables = [margins((wanted + each * rng.normal(size=wanted.shape)).tolist(), picked.tolist()) for each in noise]
    half = users // 2
    roles = ("spirit", "ingredient")
    return judge(roles, [t[:half] for t in tables], [t[half:] for t in tables], metric="NDCG@3", margin=0.02)


def test_a_mix_that_is_not_sure_ships_only_where_no_parent_is_and_its_loss_is_the_smallest():
    """With few users; the truth in the noises: the mix is better than both, worse than one of them, or as bad as is easily seen."""
    better, worse, seen = judged((1.0, 1.0, 0.8), 60), judged((1.0, 1.0, 1.5), 60), judged((0.1, 4.0, 0.6), 400)
    for found in (better, worse, seen):
        assert found.mix is not None
        assert not found.mix.safe
        assert (found.ships("off"), found.ships("ship-parent"), found.ships("fail")) == (True, False, False)
    assert (better.parent.safe, better.mix_has_least, better.ships("ship-best")) == (False, True, True)
    assert (worse.parent.safe, worse.mix_has_least, worse.ships("ship-best")) == (False, False, False)
    assert (seen.parent.safe, seen.best, seen.ships("ship-best")) == (True, 0, False)
    alone = judged((1.0, 1.0), 60)
    assert (alone.mix, alone.mix_has_least, alone.ships("off")) == (None, False, False)


def test_users_needed_are_those_of_the_table():
    """One-sided 95 %, s = .25 and .35: 422 and 828 for a margin of .02, 67 for .05."""
    for deviation, margin, expected in ((0.25, 0.02, 423), (0.25, 0.05, 68), (0.35, 0.02, 829)):
        assert math.ceil((stats.norm.ppf(0.95) * deviation / margin) ** 2) == expected
    mix, parent = ranks_of(1, 200, 0.5), ranks_of(2, 200, 0.3)
    found = compare(mix, {"spirit": parent}, metric="NDCG@3", margin=0.02)
    assert found.users_needed == math.ceil((stats.norm.ppf(0.95) * found.bounds[0].deviation / 0.02) ** 2)
    assert compare(mix, {"spirit": parent}, metric="NDCG@3", margin=0.0).users_needed is None


def test_a_retry_on_the_same_users_halves_the_level():
    assert [level(looks) for looks in range(4)] == [0.05, 0.025, 0.0125, 0.00625]
    mix, parent = ranks_of(1, 200, 0.5), ranks_of(2, 200, 0.3)
    first, third = (compare(mix, {"a": parent}, metric="NDCG@3", margin=0.02, looks=n) for n in (0, 2))
    assert third.bounds[0].low < first.bounds[0].low
    assert (third.alpha, third.looks) == (0.0125, 2)


# --- which users ----------------------------------------------------------------------------------------------------


def people(count: int) -> list[Example]:
    return [Example(f"user-{number}", ("a",), "b") for number in range(count)]


def test_a_users_group_follows_from_the_user_alone():
    share = sum(is_fit(example.user_id) for example in people(5000)) / 5000
    assert share == pytest.approx(FIT_SHARE, abs=0.02)
    small, large = divide(people(300), (), 100), divide(people(3000), (), 1000)
    assert small.fit == large.fit[: len(small.fit)]
    assert small.gate == large.gate[: len(small.gate)]
    assert (len(small.fit), len(small.gate)) == (60, 40)


def test_fewer_may_choose_and_as_many_judge():
    all_of_them, fewer = divide(people(300), (), 100), divide(people(300), (), 100, most_fit=25)
    assert (fewer.fit, fewer.gate) == (all_of_them.fit[:25], all_of_them.gate)


def test_users_that_were_seen_are_in_neither_group():
    seen = {f"user-{number}" for number in range(0, 50, 2)}
    found = divide(people(50), seen, 1000)
    left = {example.user_id for example in (*found.fit, *found.gate)}
    assert (left & seen, len(left), found.seen) == (set(), 25, 25)


def test_too_few_users_do_not_decide():
    question = questions(generate("skin-care", users=1), "validation", load_template("pick-one"))[1][0]
    assert Labels((question,) * 20, (question,)).decide
    assert not Labels((question,) * 19, (question,)).decide
    assert not Labels((question,) * 20).decide
