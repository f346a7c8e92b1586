from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.tasks import (
    ClickScores,
    TaskError,
    accuracy,
    log_loss,
    paired_click_difference,
    roc_auc,
    summarise_clicks,
)
from sklearn import metrics as sklearn


def drawn(seed: int, rows: int = 300, users: int = 20, noise: float = 1.0) -> ClickScores:
    """Users who like much or little, scores that know it, and many ties."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, users, rows)
    mood = rng.normal(size=users)[who]
    labels = mood + rng.normal(size=rows) > 0
    labels[:2] = [True, False]
    scores = 1 / (1 + np.exp(-np.round(mood + noise * rng.normal(size=rows), 1)))
    return ClickScores.of(labels, scores, [f"u{user}" for user in who])


@given(st.integers(0, 2**32 - 1), st.integers(2, 400))
def test_metrics_equal_those_of_scikit_learn(seed: int, rows: int):
    found = drawn(seed, rows)
    scores = np.where(np.arange(rows) % 50 == 7, np.round(found.scores), found.scores)  # some that are 0, 1/2 or 1
    found = ClickScores(found.labels, scores, found.users)
    assert roc_auc(found) == pytest.approx(sklearn.roc_auc_score(found.labels, scores), abs=1e-12)
    assert log_loss(found) == pytest.approx(sklearn.log_loss(found.labels, scores, labels=[False, True]), rel=1e-12)
    assert accuracy(found) == pytest.approx(sklearn.accuracy_score(found.labels, scores > 0.5), abs=1e-12)


def test_intervals_equal_those_of_drawing_users_one_by_one():
    one, other = drawn(3), drawn(3, noise=2.0)
    rng = np.random.default_rng(1)
    rows_of = [np.flatnonzero(one.users == user) for user in range(20)]
    draws = [np.concatenate([rows_of[user] for user in rng.integers(0, 20, 20)]) for _ in range(150)]
    functions = {
        "roc_auc": sklearn.roc_auc_score,
        "log_loss": sklearn.log_loss,
        "accuracy": lambda labels, scores: np.mean((scores > 0.5) == labels),
    }
    summary = summarise_clicks(one)
    assert list(summary) == list(functions)
    for name, function in functions.items():
        values = [function(one.labels[rows], one.scores[rows]) for rows in draws]
        interval = summary[name]
        assert [interval.low, interval.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.04)
        assert (interval.low <= interval.mean <= interval.high, interval.n) == (True, 300)
        apart = paired_click_difference(one, other, name)
        values = [v - function(other.labels[rows], other.scores[rows]) for v, rows in zip(values, draws, strict=True)]
        assert [apart.low, apart.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.04)
        assert apart.mean == pytest.approx(
            function(one.labels, one.scores) - function(other.labels, other.scores), abs=1e-12
        )


def test_an_interval_is_wider_when_rows_are_of_few_users():
    found = drawn(5, rows=1000)
    alone = ClickScores(found.labels, found.scores, np.arange(1000))
    widths = [
        interval.high - interval.low for interval in (summarise_clicks(each)["roc_auc"] for each in (found, alone))
    ]
    assert widths[0] > 1.5 * widths[1]
    assert summarise_clicks(found) == summarise_clicks(found)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(TaskError) as error:
        ClickScores.of([True, True], [0.5, 0.5], ["a", "b"])
    assert error.value.code == "one_class"
    for scores in ([0.5], [0.5, float("nan")], [0.5, 1.1]):
        with pytest.raises(TaskError):
            ClickScores.of([True, False], scores, ["a", "b"])
    one = ClickScores.of([True, False], [0.5, 0.5], ["a", "b"])
    with pytest.raises(TaskError):
        paired_click_difference(one, ClickScores.of([False, True], [0.5, 0.5], ["a", "b"]), "roc_auc")
    assert summarise_clicks(one)["roc_auc"].mean == 0.5  # most draws have one class, which count not at all
