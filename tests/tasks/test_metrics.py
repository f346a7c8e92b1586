from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reccocktail.tasks import TaskError, auc, hit_rate, mrr, ndcg, paired_difference, summarise
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, roc_auc_score

RANKS = [0, 1, 2, 5]


def test_metrics_equal_those_computed_by_hand():
    assert hit_rate(RANKS, 1) == 1 / 4
    assert hit_rate(RANKS, 3) == 3 / 4
    assert ndcg(RANKS, 3) == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 4)
    assert mrr(RANKS) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 6) / 4)


def test_auc_is_the_share_of_negatives_below_the_target():
    assert auc(RANKS, 6) == pytest.approx((5 + 4 + 3 + 0) / 5 / 4)
    assert auc([0, 0], 30) == 1
    assert auc([29], 30) == 0


@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_metrics_equal_those_of_scikit_learn_on_the_scores(candidates, seed, k):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(candidates), (20, 1)), axis=1) / candidates
    relevant = np.zeros_like(scores)
    relevant[np.arange(20), rng.integers(0, candidates, 20)] = 1
    ranks = [int((row > row[hit == 1]).sum()) for row, hit in zip(scores, relevant, strict=True)]
    assert ndcg(ranks, k) == pytest.approx(ndcg_score(relevant, scores, k=k), abs=1e-12)
    assert mrr(ranks) == pytest.approx(label_ranking_average_precision_score(relevant, scores), abs=1e-12)
    firsts = np.argsort(-scores, axis=1)[:, :k]
    assert hit_rate(ranks, k) == pytest.approx(np.take_along_axis(relevant, firsts, axis=1).sum() / 20, abs=1e-12)
    expected = [roc_auc_score(hit, row) for row, hit in zip(scores, relevant, strict=True)]
    assert auc(ranks, candidates) == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_target_that_was_not_ranked_is_a_miss_at_every_depth():
    assert hit_rate([0, None], 1000) == 1 / 2
    assert ndcg([0, None], 1000) == 1 / 2
    assert mrr([0, None]) == 1 / 2
    assert summarise([None, None])["MRR"].high == 0
    assert paired_difference([None, 0], [0, 0], "HR@1").mean == -1 / 2
    with pytest.raises(TaskError, match="AUC needs two candidates or more and a target ranked among them"):
        auc([0, None], 10)


def test_a_summary_with_the_number_of_candidates_has_auc_as_well():
    assert list(summarise(RANKS, candidates=6)) == ["HR@1", "HR@3", "NDCG@3", "MRR", "AUC"]
    assert summarise(RANKS, candidates=6)["AUC"].mean == pytest.approx(auc(RANKS, 6))
    difference = paired_difference(RANKS, [5, 5, 5, 5], "AUC", candidates=6)
    assert difference.mean == pytest.approx(auc(RANKS, 6))


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
    for told in (None, 1, 5):
        with pytest.raises(TaskError, match=f"got {told}"):
            paired_difference([0, 5], [0, 1], "AUC", candidates=told)
    with pytest.raises(TaskError, match="no ranks"):
        summarise([])
