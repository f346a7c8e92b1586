from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from reccocktail.networks.click_fields import ClickEncoder, ClickVocabulary
from reccocktail.networks.din import Din, DinOptions, FrozenDin, TargetAttention, train_din
from reccocktail.tasks import (
    ClickData,
    ClickOptions,
    ClickRow,
    ClickScores,
    ClickUser,
    DomainData,
    History,
    Item,
    RatedItem,
    TaskError,
    click_data,
    roc_auc,
)

SMALL = DinOptions(embedding=8, hidden=32, attention=16, length=20, epochs=8, batch_size=64, learning_rate=5e-3)


@pytest.fixture(scope="module")
def planted() -> ClickData:
    """40 users, each of whom likes one of two genres; every item is liked by half of them, so that its mean says nothing."""
    rng = random.Random(0)
    items = [
        Item(f"i{number:02d}", f"Film {number}", {"genres": ["War" if number % 2 else "Love"]}) for number in range(60)
    ]
    histories = []
    for user in range(40):
        taken = rng.sample(items, 40)
        ratings = [5.0 if int(item.item_id[1:]) % 2 == user % 2 else 1.0 for item in taken]
        fields = {"age": str(user // 10), "ratings": ratings, "timestamps": list(range(40))}
        histories.append(History(f"u{user:02d}", tuple(item.item_id for item in taken), fields))
    return click_data(DomainData.of("films", items, histories), ClickOptions(by="user"))


@pytest.fixture(scope="module")
def din(planted: ClickData) -> FrozenDin:
    """Trained on one thread, whatever else there is: two that wait for each other on a busy machine are ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    threads: list[int] = []
    try:
        trained = train_din(planted, SMALL, progress=lambda done, total: threads.append(torch.get_num_threads()))
        assert set(threads) == {1}
        assert torch.get_num_threads() == 2
        return trained
    finally:
        torch.set_num_threads(before)


def auc(din: FrozenDin, rows: tuple[ClickRow, ...]) -> float:
    return roc_auc(ClickScores.of([row.label for row in rows], din.scores(rows), [row.user_id for row in rows]))


def test_planted_preferences_are_recovered_with_and_without_the_target(planted: ClickData, din: FrozenDin):
    means = {
        item: np.mean([row.label for row in planted.train if row.item_id == item] or [0.5]) for item in planted.items
    }
    by_item = [float(means[row.item_id]) for row in planted.test]
    of_items = ClickScores.of([row.label for row in planted.test], by_item, [row.user_id for row in planted.test])
    assert roc_auc(of_items) < 0.7
    assert auc(din, planted.test) > 0.95
    free = train_din(planted, SMALL.model_copy(update={"target": False}))
    assert auc(free, planted.test) > 0.95
    row = planted.test[0]
    same_history = [ClickRow(row.user, item, row.position) for item in ("i00", "i01")]
    assert torch.equal(*free.user_vectors(same_history))
    assert not torch.equal(*din.user_vectors(same_history))


def test_an_unknown_user_is_told_by_history_alone(planted: ClickData, din: FrozenDin):
    strangers = {user_id: ClickUser(f"new {user_id}", {}, user.rated) for user_id, user in planted.users.items()}
    rows = tuple(ClickRow(strangers[row.user_id], row.item_id, row.position, row.label) for row in planted.test)
    assert not din.knows(rows[0].user_id)
    assert auc(din, rows) > 0.9
    offered = [ClickRow.candidate(rows[0].user, item) for item in ("i00", "never seen")]
    assert np.isfinite(din.scores(offered)).all()
    stripped = din.without_users()
    anonymous = tuple(
        ClickRow(ClickUser("?", row.profile, row.user.rated), row.item_id, row.position) for row in planted.test
    )
    assert stripped.vocabulary.users == ()
    assert torch.equal(stripped.user_vectors(planted.test), din.user_vectors(anonymous))


def test_user_vectors_depend_on_no_other_row_and_survive_saving_bit_by_bit(
    planted: ClickData, din: FrozenDin, tmp_path: Path
):
    rows = planted.test
    together = din.user_vectors(rows)
    assert together.shape == (len(rows), din.width)
    assert torch.equal(together, torch.cat([din.user_vectors([row]) for row in rows]))
    assert torch.equal(together, din.user_vectors(rows[::-1]).flip(0))
    din.save(tmp_path / "a")
    again = FrozenDin.load(tmp_path / "a")
    assert torch.equal(again.user_vectors(rows), together)
    assert np.array_equal(again.scores(rows), din.scores(rows))
    again.save(tmp_path / "b")
    for name in ("din.json", "din.safetensors"):
        whole = (tmp_path / "a" / name).read_bytes()
        assert whole == (tmp_path / "b" / name).read_bytes()
        (tmp_path / "b" / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(TaskError):
            FrozenDin.load(tmp_path / "b")
        (tmp_path / "b" / name).write_bytes(whole)


def test_history_is_relu_of_a_linear_map_of_item_and_rating_in_plain_loops(planted: ClickData):
    rows = planted.test[:3]
    vocabulary = ClickVocabulary.of(planted.train, planted.items)
    torch.manual_seed(0)
    model = Din(vocabulary, SMALL).double().eval()
    batch = ClickEncoder(vocabulary, SMALL.length).encode(rows)
    _, target, history, mask = model._fields(batch)
    for row in range(len(rows)):
        for place in range(SMALL.length):
            item = model._items_of(batch.history[row, place : place + 1])[0]
            read = torch.cat([item, model.ratings.weight[batch.ratings[row, place]]])
            expected = (model.taken.weight @ read + model.taken.bias).clamp(min=0)
            assert torch.allclose(history[row, place], expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(target[row], model._items_of(batch.target[row : row + 1])[0])
    assert torch.equal(mask, (batch.ratings > 0).double())


def test_attention_equals_the_papers_formula_in_plain_loops():
    torch.manual_seed(0)
    attention = TargetAttention(3, 5).double()
    target, history = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.float64)
    found = attention(target, history, mask).detach().numpy()
    w1, b1 = attention.first.weight.detach().tolist(), attention.first.bias.tolist()
    w2, b2 = attention.last.weight.detach().tolist()[0], attention.last.bias.item()
    expected = np.zeros((2, 3))
    for row in range(2):
        for place in range(4):
            if mask[row, place]:
                t, h = target[row].tolist(), history[row, place].tolist()
                read = [
                    *t,
                    *h,
                    *(a - b for a, b in zip(t, h, strict=True)),
                    *(a * b for a, b in zip(t, h, strict=True)),
                ]
                hidden = [
                    max(0.0, sum(w * x for w, x in zip(ws, read, strict=True)) + b)
                    for ws, b in zip(w1, b1, strict=True)
                ]
                expected[row] += (sum(w * x for w, x in zip(w2, hidden, strict=True)) + b2) * np.array(h)
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_without_users_a_profile_field_that_tells_them_apart_is_gone_too(tmp_path: Path):
    people = [
        ClickUser(f"u{number}", {"age": "young", "zip": f"zip-{number}"}, (RatedItem("i", 5.0),)) for number in range(4)
    ]
    rows = [ClickRow.candidate(person, "i") for person in people]
    vocabulary = ClickVocabulary.of(rows, {"i": Item("i", "Film")})
    din = FrozenDin(Din(vocabulary, SMALL), vocabulary, "sha256:rows")
    din.without_users().save(tmp_path / "stripped")
    stripped = FrozenDin.load(tmp_path / "stripped")
    assert stripped.vocabulary.profile == {"age": ("young",), "zip": ()}
    assert len(stripped.user_vectors(rows).unique(dim=0)) == 1
    assert len(din.user_vectors(rows).unique(dim=0)) == 4
