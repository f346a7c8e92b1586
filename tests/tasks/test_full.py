"""Full ranking against plain loops, scikit-learn and figures found by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from reccocktail.tasks import (
    DomainData,
    FullTask,
    History,
    Item,
    Likeness,
    PopularityScorer,
    SasRecOptions,
    TaskError,
    TfidfScorer,
    examples,
    full_ranks,
    full_task,
    generate,
    load_template,
    ndcg,
    paired_difference,
    questions,
    rank_by_sasrec,
    summarise_full,
    train_sasrec,
)
from reccocktail.tasks import full as full_module
from reccocktail.tasks.metrics import per_question
from sklearn import metrics as sklearn


class Given:
    """A scorer of scores that are given, asked in blocks."""

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.asked = table, 0

    def scores(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
        start, self.asked = self.asked, self.asked + len(histories)
        return self.table[start : self.asked]


@pytest.fixture(scope="module")
def shop() -> DomainData:
    """Items without a title and repeats of what was taken among them."""
    made = generate("kitchen", users=60)
    items = [*made.items.values(), Item("no title", "")]
    histories = [History(h.user_id, (h.items[0], "no title", *h.items[1:-1], h.items[0])) for h in made.sequences[:12]]
    return DomainData.of("kitchen", items, [*histories, *made.sequences[12:]])


def brute_force(task: FullTask, table: np.ndarray) -> list[int]:
    """Ranks by a loop over all items."""
    ranks = []
    for example, row in zip(task.examples, table, strict=True):
        scores = dict(zip(task.data.titled, row.tolist(), strict=True))
        better = [i for i, score in scores.items() if i != example.target and score >= scores[example.target]]
        ranks.append(len(better))
    return ranks


@pytest.mark.parametrize("most_scores", [1, 700, 4_000_000])
def test_ranks_equal_those_of_a_loop_over_all_items_in_blocks_of_any_size(most_scores, shop, monkeypatch):
    monkeypatch.setattr(full_module, "MOST_SCORES", most_scores)
    task = full_task(shop, "test")
    table = np.random.default_rng(0).integers(0, 9, (len(task.examples), len(shop.titled))).astype(np.float32)
    table[3], table[4, task.targets[4]] = 5, -np.inf  # all are equal; the target is never offered
    told = []
    ranks = full_ranks(task, Given(table), progress=lambda *step: told.append(step))
    assert list(ranks) == brute_force(task, table)
    assert ranks[3] == ranks[4] == len(shop.titled) - 1
    assert told[-1] == (len(ranks), len(ranks))
    assert sum(example.target in example.history for example in task.examples) >= 12, "history items stay candidates"


def test_metrics_equal_those_of_scikit_learn_and_those_found_by_hand(shop):
    task = full_task(shop, "test")
    n, items = len(task.examples), len(shop.titled)
    table = np.random.default_rng(1).permuted(np.tile(np.arange(items, dtype=np.float64), (n, 1)), axis=1)
    relevant = np.zeros((n, items))
    relevant[np.arange(n), task.targets] = 1
    found = summarise_full(full_ranks(task, Given(table)))
    assert found["NDCG@10"].mean == pytest.approx(sklearn.ndcg_score(relevant, table, k=10))
    share = sklearn.top_k_accuracy_score(task.targets, table, k=10, labels=np.arange(items))
    assert found["Recall@10"].mean == pytest.approx(share)
    tied = table // 4  # scikit-learn's counts ties against what is relevant, too
    by_sklearn = sklearn.label_ranking_average_precision_score(relevant, tied)
    assert summarise_full(full_ranks(task, Given(tied)))["MRR"].mean == pytest.approx(by_sklearn)
    by_hand = summarise_full([0, 1, 9, 10], ["Recall@10", "NDCG@10", "MRR"])
    assert by_hand["Recall@10"].mean == 0.75
    assert by_hand["NDCG@10"].mean == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(11)) / 4)
    assert by_hand["MRR"].mean == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 4)


def test_intervals_equal_those_of_drawing_users_one_by_one_and_differences_are_paired():
    rng = np.random.default_rng(2)
    one = rng.integers(0, 40, 200).tolist()
    other = [rank + int(worse) for rank, worse in zip(one, rng.integers(0, 3, 200), strict=True)]
    draws = rng.integers(0, 200, (400, 200))
    for name in ("Recall@10", "NDCG@10", "MRR"):
        values = per_question(one, name)
        apart = values - per_question(other, name)
        for interval, each in (summarise_full(one)[name], values), (paired_difference(one, other, name), apart):
            drawn = np.quantile(each[draws].mean(axis=1), [0.025, 0.975])
            assert [interval.low, interval.high] == pytest.approx(drawn, abs=0.25 * (drawn[1] - drawn[0]))
            assert (interval.mean, interval.n) == (pytest.approx(each.mean()), 200)


def test_the_digest_has_the_kind_of_task_and_the_candidates(shop):
    task = full_task(shop, "test")
    spec, _ = questions(shop, "test", load_template("next-title"))
    specs = [task.spec, full_task(shop, "cold").spec, full_task(shop, "test", limit=5).spec]
    specs += [replace(task.spec, candidates="fewer"), replace(task.spec, seed=1), replace(task.spec, data_digest="")]
    assert len({spec.digest, *(each.digest for each in specs)}) == 7
    assert (task.spec.to_json()["kind"], task.spec.to_json()["split"]) == ("full", "full-test")
    other = full_task(shop, "test", limit=len(task.examples), seed=5)  # the same users in another order
    assert len({task.questions, other.questions, full_task(shop, "validation").questions}) == 3
    assert full_task(shop, "test").questions == task.questions
    assert full_task(shop, "test").spec.digest == task.spec.digest
    assert task.spec.n_candidates == len(shop.titled) == len(shop.items) - 1


def test_users_are_those_of_the_sampled_questions_and_cold_targets_are_those_of_the_split(shop):
    _, asked = questions(shop, "validation", load_template("next-title"), limit=7, seed=3)
    assert list(full_task(shop, "validation", limit=7, seed=3).examples) == [question.example for question in asked]
    cold = full_task(shop, "cold")
    assert list(cold.examples) == examples(shop, "cold")
    with pytest.raises(TaskError):
        full_task(shop, "train")


def test_scores_that_are_no_numbers_or_of_another_catalogue_are_refused(shop):
    task = full_task(shop, "test")
    whole = np.zeros((len(task.examples), len(shop.titled)))
    broken = whole.copy()
    broken[2, 1] = np.nan
    for table in (whole[:, :-1], broken):
        with pytest.raises(TaskError):
            full_ranks(task, Given(table))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_popularity_counts_what_was_taken_before_the_split(split, shop):
    before = -2 if split == "validation" else -1
    counts = Counter(item_id for taken in shop.by_user.values() for item_id in taken[:before])
    found = PopularityScorer(shop, split).scores([("a",), ("b",)])
    assert found.tolist() == [[counts[item_id] for item_id in shop.titled]] * 2


@pytest.mark.parametrize("last_items", [1, 10])
def test_tfidf_scores_are_likenesses_to_the_last_items(last_items, shop):
    likeness, items = Likeness(shop), [shop.items[item_id] for item_id in shop.titled]
    histories = [example.history for example in full_task(shop, "test", limit=8).examples]
    expected = [likeness.of([shop.items[i] for i in history[-last_items:]], items) for history in histories]
    np.testing.assert_allclose(TfidfScorer(shop, last_items=last_items).scores(histories), expected, atol=1e-9)


def test_items_of_the_same_words_tie_in_tfidf():
    items = [Item("a", "Rose cream"), Item("b", "CREAM, rose"), Item("c", "Green tea"), Item("d", "Rose soap")]
    data = DomainData.of("shop", items, [History("ann", ("d", "c", "a"))])
    assert full_ranks(full_task(data, "test"), TfidfScorer(data, last_items=2)) == (3,)
    found = TfidfScorer(data).scores([("d",), ("d", "c")])
    assert (found[:, 0] == found[:, 1]).all()


def test_sasrec_scores_the_catalogue_as_it_scores_candidates(shop):
    options = SasRecOptions(width=16, blocks=1, epochs=2)
    _, asked = questions(shop, "test", load_template("next-title"), limit=20)
    scorer = train_sasrec(shop, "test", options)
    found = scorer.scores([question.example.history for question in asked])
    places = {item_id: place for place, item_id in enumerate(shop.titled)}
    for row, question, ranking in zip(found, asked, rank_by_sasrec(shop, asked, "test", options), strict=True):
        assert ranking.scores == tuple(row[[places[item_id] for item_id in question.candidates]].tolist())
    task = full_task(shop, "test")
    again = train_sasrec(shop, "test", options)
    assert full_ranks(task, scorer) == full_ranks(task, again)
    assert ndcg(full_ranks(task, scorer), 10) > 0
