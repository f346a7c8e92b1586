from __future__ import annotations

import math

import numpy as np
import pytest
from reccocktail.tasks import TaskError, hit_rate, mrr, ndcg, paired_difference, summarise

RANKS = [0, 1, 2, 5]


def test_metrics_equal_those_computed_by_hand():
    assert hit_rate(RANKS, 1) == 1 / 4
    assert hit_rate(RANKS, 3) == 3 / 4
    assert ndcg(RANKS, 3) == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 4)
    assert mrr(RANKS) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 6) / 4)


def test_a_summary_has_every_metric_with_its_interval():
    summary = summarise(RANKS)
    assert list(summary) == ["HR@1", "HR@3", "NDCG@3", "MRR"]
    assert summary["NDCG@3"].mean == pytest.approx(ndcg(RANKS, 3))
    assert all(i.low <= i.mean <= i.high and i.n == 4 for i in summary.values())
    assert summarise(RANKS) == summary


def test_the_interval_of_a_hit_rate_is_the_binomial_one():
    interval = summarise([0] * 300 + [9] * 700)["HR@1"]
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert interval.low == pytest.approx(0.3 - half, abs=0.004)
    assert interval.high == pytest.approx(0.3 + half, abs=0.004)


def test_the_interval_equals_that_of_resampling_questions_one_by_one():
    rng = np.random.default_rng(7)
    ranks = rng.integers(0, 10, 400)
    means = [np.mean(1 / (rng.choice(ranks, 400) + 1)) for _ in range(2000)]
    interval = summarise(ranks.tolist())["MRR"]
    assert [interval.low, interval.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)


def test_a_paired_difference_is_narrower_than_two_intervals_when_systems_agree():
    b = list(range(10)) * 50
    a = [max(rank - 1, 0) for rank in b]
    difference = paired_difference(a, b, "MRR")
    assert difference.mean == pytest.approx(mrr(a) - mrr(b))
    assert 0 < difference.low < difference.mean < difference.high
    assert difference.high - difference.low < summarise(a)["MRR"].high - summarise(a)["MRR"].low


def test_rankings_that_cannot_be_compared_or_summarised_are_refused():
    with pytest.raises(TaskError, match="answer 2 and 1"):
        paired_difference([0, 1], [0], "MRR")
    with pytest.raises(TaskError, match="no metric is called 'HR@0'"):
        paired_difference([0], [0], "HR@0")
    with pytest.raises(TaskError, match="no ranks"):
        summarise([])
