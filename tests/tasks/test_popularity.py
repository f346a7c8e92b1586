"""Popularity against counts by hand, and against NumPy and scikit-learn on generated data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reccocktail.tasks import (
    DomainData,
    Question,
    TaskError,
    examples,
    generate,
    load_template,
    ndcg,
    question,
    questions,
    rank_by_popularity,
    summarise,
)
from sklearn.metrics import ndcg_score, roc_auc_score, top_k_accuracy_score

TEMPLATE = load_template("next-title")
HISTORIES = {
    "ann": ["i00", "i01", "i02", "i03"],
    "bob": ["i01", "i02", "i01", "i04"],
    "cleo": ["i05", "i03"],
    "dan": ["i06"],
}


def asking(data: DomainData, user: str, split: str, offered: tuple[str, ...], target: int) -> Question:
    """The user's question with these candidates, whatever candidates would have been drawn."""
    example = next(e for e in examples(data, split) if e.user_id == user)  # pyright: ignore
    return replace(question(data, example, TEMPLATE, 5, 0), candidates=offered, target_index=target)


def test_test_targets_do_not_count_and_repeats_do(domain):
    data = domain(HISTORIES)
    offered = ("i03", "i01", "i02", "i00", "i05", "i04", "i06")
    (ranking,) = rank_by_popularity(data, [asking(data, "ann", "test", offered, 0)], "test")
    assert ranking.scores == (0, 3, 2, 1, 1, 0, 0)
    assert ranking.rank == 6, "candidates that nobody took come before the target: a tie counts against it"


def test_before_validation_the_last_two_of_everybody_do_not_count(domain):
    data = domain(HISTORIES)
    offered = ("i02", "i01", "i00", "i05")
    (ranking,) = rank_by_popularity(data, [asking(data, "ann", "validation", offered, 0)], "validation")
    assert ranking.scores == (1, 2, 1, 0)
    assert ranking.rank == 2


def test_nothing_is_known_before_the_training_targets(domain):
    with pytest.raises(TaskError, match="the train split has no history before its targets"):
        rank_by_popularity(domain(HISTORIES), [], "train")


@pytest.mark.parametrize("split", ["test", "validation"])
def test_no_score_depends_on_what_is_asked_for(split):
    """Two shops that differ only from the split's targets on give every candidate the same score."""
    data = generate("kitchen", users=60)
    rng, ids, kept = np.random.default_rng(0), list(data.items), -1 if split == "test" else -2
    others = [
        replace(h, items=(*h.items[:kept], *rng.choice(ids, -kept)), fields={}) for h in data.sequences
    ]  # fmt: skip
    other = DomainData.of(data.name, data.items.values(), others)
    _, asked = questions(data, split, TEMPLATE, n_negatives=20)
    assert [r.scores for r in rank_by_popularity(data, asked, split)] == [
        r.scores for r in rank_by_popularity(other, asked, split)
    ]


def test_cold_items_tie_at_nothing(domain):
    data = domain(HISTORIES)
    (ranking,) = rank_by_popularity(data, [asking(data, "bob", "cold", ("i04", "i07", "i08"), 0)], "cold")
    assert (ranking.scores, ranking.rank) == ((0, 0, 0), 2)


def test_popularity_on_generated_data_measures_what_numpy_and_scikit_learn_measure():
    data = generate("garden", users=250)
    numbers = {item_id: number for number, item_id in enumerate(data.items)}
    matrix = np.zeros((len(data.sequences), len(numbers)))
    for row, history in zip(matrix, data.sequences, strict=True):
        np.add.at(row, [numbers[i] for i in history.items[:-1]], 1)
    counts = matrix.sum(axis=0)
    _, asked = questions(data, "test", TEMPLATE, n_negatives=29)
    scores = np.array([[counts[numbers[i]] for i in q.candidates] for q in asked])
    relevant = np.array([[i == q.example.target for i in q.candidates] for q in asked]).astype(float)
    scores -= 0.5 * relevant  # so that a tie is one against the target; scikit-learn would count half of it
    found = rank_by_popularity(data, asked, "test")
    ranks = [ranking.rank for ranking in found]
    summary = summarise(ranks, candidates=30)
    assert ndcg(ranks, 10) == pytest.approx(ndcg_score(relevant, scores, k=10, ignore_ties=True), abs=1e-12)
    assert summary["NDCG@3"].mean == pytest.approx(ndcg_score(relevant, scores, k=3, ignore_ties=True), abs=1e-12)
    # Ties among the negatives move no target; a small slope keeps scikit-learn's sorting from touching it.
    apart = scores + np.arange(30) * 1e-6 * (1 - relevant)
    expected = top_k_accuracy_score(relevant.argmax(1), apart, k=3, labels=np.arange(30))
    assert summary["HR@3"].mean == pytest.approx(expected, abs=1e-12)
    areas = [roc_auc_score(hit, row) for hit, row in zip(relevant, scores, strict=True)]
    assert summary["AUC"].mean == pytest.approx(np.mean(areas), abs=1e-12)
    assert len(found) == 250
    assert len(found[0].scores) == 30
