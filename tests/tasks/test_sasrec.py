from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reccocktail.tasks import (
    DomainData,
    History,
    Item,
    SasRecOptions,
    TaskError,
    hit_rate,
    load_template,
    questions,
    rank_by_popularity,
    rank_by_sasrec,
)
from reccocktail.tasks.sasrec import SasRec

TEMPLATE = load_template("next-title")
QUICK = SasRecOptions(width=32, blocks=1, dropout=0.1, epochs=12, learning_rate=5e-3, patience=12)
ITEMS = 40


def ring(users: int = 150, seed: int = 0) -> DomainData:
    """Everybody starts somewhere and takes the next item, or the one after the next, of a ring; everything is as popular."""
    rng = np.random.default_rng(seed)
    items = [Item(f"i{number:02d}", f"Title {number}") for number in range(ITEMS)]
    histories = []
    for user in range(users):
        places = rng.integers(ITEMS) + np.cumsum(rng.integers(1, 3, rng.integers(5, 9)))
        histories.append(History(f"u{user:03d}", tuple(f"i{place % ITEMS:02d}" for place in places)))
    return DomainData.of("ring", items, histories)


@pytest.fixture(scope="module")
def shop() -> DomainData:
    return ring()


@pytest.mark.parametrize("loss", ["softmax", "sampled"])
def test_it_learns_what_follows_what(loss, shop):
    """Among 10 candidates the right one is seldom rivalled by the one other item that may follow."""
    _, asked = questions(shop, "test", TEMPLATE, n_negatives=9)
    told, options = [], replace(QUICK, loss=loss)
    ranks = [r.rank for r in rank_by_sasrec(shop, asked, "test", options, progress=lambda *step: told.append(step))]
    assert hit_rate(ranks, 1) > 0.75
    assert hit_rate([r.rank for r in rank_by_popularity(shop, asked, "test")], 1) < 0.3
    assert told == [(epoch, 12) for epoch in range(1, len(told) + 1)]


def test_the_same_seed_ranks_the_same_whatever_was_drawn_before(shop):
    _, asked = questions(shop, "test", TEMPLATE, n_negatives=9, limit=20)
    options = replace(QUICK, epochs=2)
    first = rank_by_sasrec(shop, asked, "test", options)
    torch.rand(1)
    state = torch.random.get_rng_state()
    assert rank_by_sasrec(shop, asked, "test", options) == first
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator is left alone"
    assert rank_by_sasrec(shop, asked, "test", replace(options, seed=1)) != first


@pytest.mark.parametrize("split", ["test", "validation"])
def test_no_score_depends_on_what_is_asked_for(shop, split):
    """Two shops that differ only from the split's targets on give every candidate the same score."""
    rng, ids, kept = np.random.default_rng(1), list(shop.items), -1 if split == "test" else -2
    others = [History(h.user_id, (*h.items[:kept], *rng.choice(ids, -kept))) for h in shop.sequences]
    other = DomainData.of(shop.name, shop.items.values(), others)
    _, asked = questions(shop, split, TEMPLATE, n_negatives=9, limit=30)
    options = replace(QUICK, epochs=2)
    found = [r.scores for r in rank_by_sasrec(shop, asked, split, options)]
    assert found == [r.scores for r in rank_by_sasrec(other, asked, split, options)]


def test_validation_targets_are_not_trained_on_either(shop):
    """Stopping may look at them, so only the weights of a single epoch, which nothing was chosen by, tell."""
    rng, ids = np.random.default_rng(2), list(shop.items)
    others = [History(h.user_id, (*h.items[:-2], rng.choice(ids), h.items[-1])) for h in shop.sequences]
    other = DomainData.of(shop.name, shop.items.values(), others)
    _, asked = questions(shop, "test", TEMPLATE, n_negatives=9, limit=30)
    one = replace(QUICK, epochs=1)
    found = [r.scores for r in rank_by_sasrec(shop, asked, "test", one)]
    assert found == [r.scores for r in rank_by_sasrec(other, asked, "test", one)]


def test_a_place_sees_nothing_later_and_no_padding():
    torch.manual_seed(0)
    model = SasRec(ITEMS, QUICK).eval()
    taken = torch.tensor([[3, 7, 1, 9]])
    changed = torch.tensor([[3, 7, 1, 30]])
    torch.testing.assert_close(model(taken)[:, :3], model(changed)[:, :3])
    padded = torch.tensor([[0, 0, 0, 3, 7, 1, 9]])
    torch.testing.assert_close(model(padded)[:, 3:], model(taken))
    assert model(padded).isfinite().all()


def test_histories_longer_than_it_reads_are_read_from_their_end(shop):
    options = replace(QUICK, epochs=1, length=3)
    _, asked = questions(shop, "test", TEMPLATE, n_negatives=9, limit=5)
    cut = [
        replace(q, example=type(q.example)(q.example.user_id, q.example.history[-3:], q.example.target)) for q in asked
    ]
    assert rank_by_sasrec(shop, asked, "test", options) == rank_by_sasrec(shop, cut, "test", options)


def test_nothing_to_learn_from_is_an_error(domain):
    data = domain({"ann": ["i00", "i01", "i02"], "bob": ["i03", "i04"]})
    with pytest.raises(TaskError, match="SASRec has no training data"):
        rank_by_sasrec(data, [], "test", QUICK)
