"""BERT4Rec and SASRec as frozen encoders: what they learn, what they must not have seen, and that nothing but a history decides its vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reccocktail.networks.bert4rec import (
    MASK,
    PAD,
    Bert4Rec,
    Bert4RecOptions,
    FrozenBert4Rec,
    masked_places,
    train_bert4rec,
)
from reccocktail.networks.id_encoder import FrozenIdEncoder
from reccocktail.networks.sasrec import FrozenSasRec, SasRecEncoderOptions, train_sasrec_encoder
from reccocktail.tasks import (
    DomainData,
    History,
    Item,
    PopularityScorer,
    TaskError,
    full_ranks,
    full_task,
    hit_rate,
)
from reccocktail.tasks.sasrec import dropped
from safetensors.torch import load_file

ITEMS = 20
EPOCHS = 45
NEW = "never bought"
OPTIONS = {
    FrozenBert4Rec: Bert4RecOptions(
        width=32, blocks=1, length=8, dropout=0.0, learning_rate=5e-3, batch_size=32, patience=EPOCHS
    ),
    FrozenSasRec: SasRecEncoderOptions(
        width=32, blocks=1, length=8, dropout=0.0, learning_rate=5e-3, batch_size=32, patience=EPOCHS
    ),
}
KINDS = list(OPTIONS)


def ring(users: int = 120, seed: int = 0) -> DomainData:
    """Everybody starts somewhere and takes the next item of a ring, or the one after it; everything is as popular. One item is never taken."""
    rng = np.random.default_rng(seed)
    items = [*(Item(f"i{number:02d}", f"Title {number}") for number in range(ITEMS)), Item(NEW, "New")]
    histories = []
    for user in range(users):
        places = rng.integers(ITEMS) + np.cumsum(rng.integers(1, 3, rng.integers(5, 9)))
        histories.append(History(f"u{user:03d}", tuple(f"i{place % ITEMS:02d}" for place in places)))
    return DomainData.of("ring", items, histories)


def train(
    kind: type[FrozenIdEncoder],
    data: DomainData,
    *,
    epochs: int = 2,
    seed: int = 42,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FrozenIdEncoder:
    if kind is FrozenBert4Rec:
        options = OPTIONS[kind].model_copy(update={"epochs": epochs, "seed": seed})
        return train_bert4rec(data, "test", options, progress=progress)
    return train_sasrec_encoder(data, "test", replace(OPTIONS[kind], epochs=epochs, seed=seed), progress=progress)


@pytest.fixture(scope="module")
def shop() -> DomainData:
    return ring()


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.KIND)
def encoder(request: pytest.FixtureRequest, shop: DomainData) -> FrozenIdEncoder:
    return train(request.param, shop, epochs=EPOCHS)


def test_it_learns_what_follows_what_and_never_offers_what_it_does_not_know(encoder, shop):
    task = full_task(shop, "test")
    scorer = encoder.over(shop.titled)
    assert hit_rate(full_ranks(task, scorer), 3) > 0.7
    assert hit_rate(full_ranks(task, PopularityScorer(shop, "test")), 3) < 0.3
    row = scorer.scores([("i00", "i02", NEW)])[0]
    assert not encoder.knows(NEW)
    assert row[shop.titled.index(NEW)] == -np.inf
    assert np.isfinite(row).sum() == ITEMS
    swapped = encoder.over(["i03", "another shop's", "i01"]).scores([("i00", "i02", NEW)])[0]
    assert swapped.tolist() == [row[shop.titled.index("i03")], -np.inf, row[shop.titled.index("i01")]]


def test_a_history_with_an_unknown_item_is_still_read(encoder, shop):
    """What the others say is not lost to it, and all unknown items are the same."""
    task = full_task(shop, "test")
    strange = [(example.history[0], NEW, *example.history[2:]) for example in task.examples]
    scores = encoder.over(shop.titled).scores(strange)
    ranks = (scores >= scores[np.arange(len(strange)), task.targets][:, None]).sum(axis=1) - 1
    assert (ranks < 3).mean() > 0.6
    one, other = (encoder.states([("i00", name)]).values for name in (NEW, "of another shop"))
    assert torch.equal(one, other)
    assert not torch.equal(one, encoder.states([("i00", "i01")]).values)


def test_the_unknown_item_is_trained(encoder, tmp_path: Path):
    """Its vector is far from where it began, which is a norm of .02 · √width; without id dropout it never leaves that."""
    row, name = (
        (2, "bert.bert.embeddings.word_embeddings.weight") if encoder.KIND == "bert4rec" else (-1, "items.weight")
    )
    encoder.save(tmp_path)
    table = load_file(tmp_path / f"{encoder.KIND}.safetensors")[name]
    assert table[row].norm() > 1.5 * 0.02 * table.shape[1] ** 0.5
    real = torch.tensor([[False, True, True]])
    assert dropped(torch.tensor([[0, 5, 6]]), real, 1.0, 9).tolist() == [[0, 9, 9]]
    assert dropped(torch.tensor([[0, 5, 6]]), real, 0.0, 9).tolist() == [[0, 5, 6]]


def test_vectors_and_scores_depend_on_no_other_history(encoder, shop):
    histories = [example.history for example in full_task(shop, "test", limit=20).examples] + [("i05",), (NEW,)]
    together = encoder.states(histories)
    assert together.values.shape == (len(histories), together.mask.shape[1], encoder.width)
    assert together.values.dtype == torch.float32
    for row, history in enumerate(histories):
        alone = encoder.states([history])
        assert alone.mask.all()
        assert torch.equal(alone.values[0], together.values[row][together.mask[row]])
        assert (together.values[row][~together.mask[row]] == 0).all()
    alone = np.concatenate([encoder.scores([history]) for history in histories])
    assert np.array_equal(alone, encoder.scores(histories))
    assert np.isfinite(encoder.scores([()])).all()
    long = tuple(f"i{number:02d}" for number in range(20))
    assert torch.equal(encoder.states([long]).values, encoder.states([long[-encoder.length :]]).values)


def test_what_was_saved_is_the_same_bit_by_bit_and_damage_is_refused(encoder, shop, tmp_path: Path):
    histories = [example.history for example in full_task(shop, "test", limit=10).examples]
    encoder.save(tmp_path / "a")
    again = type(encoder).load(tmp_path / "a")
    assert torch.equal(again.states(histories).values, encoder.states(histories).values)
    assert np.array_equal(again.scores(histories), encoder.scores(histories))
    assert (again.items, again.trained_on) == (encoder.items, encoder.trained_on)
    again.save(tmp_path / "b")
    names = {f"{encoder.KIND}.json", f"{encoder.KIND}.safetensors"}
    assert {file.name for file in (tmp_path / "b").iterdir()} == names
    for name in names:
        whole = (tmp_path / "a" / name).read_bytes()
        assert whole == (tmp_path / "b" / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], whole.replace(b"i00", b"i0").replace(b"bert4rec", b"sasrec")[:-9]):
            (tmp_path / "b" / name).write_bytes(damaged)
            with pytest.raises(TaskError):
                type(encoder).load(tmp_path / "b")
        (tmp_path / "b" / name).write_bytes(whole)
    smaller = (tmp_path / "b" / f"{encoder.KIND}.json").read_text().replace('"width": 32', '"width": 16')
    (tmp_path / "b" / f"{encoder.KIND}.json").write_text(smaller)
    with pytest.raises(TaskError):
        type(encoder).load(tmp_path / "b")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_generator_alone(kind, shop):
    told = []
    first = train(kind, shop, progress=lambda *step: told.append(step))
    torch.rand(1)
    state = torch.random.get_rng_state()
    again, other = train(kind, shop), train(kind, shop, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    histories = [("i00", "i01")]
    assert torch.equal(first.states(histories).values, again.states(histories).values)
    assert not torch.equal(first.states(histories).values, other.states(histories).values)
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_test_positions_are_never_seen_and_validation_positions_only_stop(kind, shop):
    """What is planted there changes nothing: after any epochs at test positions, after one at validation positions."""
    histories = [("i00", "i05", "i09")]
    found, one = (train(kind, shop, epochs=epochs) for epochs in (3, 1))
    planted = [History(h.user_id, (*h.items[:-1], NEW)) for h in shop.sequences]
    of_test = train(kind, DomainData.of("ring", shop.items.values(), planted), epochs=3)
    planted = [History(h.user_id, (*h.items[:-2], NEW, NEW)) for h in shop.sequences]
    of_both = train(kind, DomainData.of("ring", shop.items.values(), planted), epochs=1)
    assert torch.equal(of_test.states(histories).values, found.states(histories).values)
    assert torch.equal(of_both.states(histories).values, one.states(histories).values)
    assert not of_test.knows(NEW)
    assert not of_both.knows(NEW)
    assert of_test.trained_on != found.trained_on
    planted = [History(h.user_id, (NEW, *h.items)) for h in shop.sequences]
    assert train(kind, DomainData.of("ring", shop.items.values(), planted), epochs=1).knows(NEW)


def test_bert4rec_reads_padding_on_either_side_alike_and_looks_both_ways():
    torch.manual_seed(0)
    model = Bert4Rec(ITEMS, OPTIONS[FrozenBert4Rec]).eval()
    left, right = torch.tensor([[PAD, PAD, 5, 9, MASK]]), torch.tensor([[5, 9, MASK, PAD, PAD]])
    torch.testing.assert_close(model(left)[:, 2:], model(right)[:, :3])
    torch.testing.assert_close(model(left)[:, 2:], model(left[:, 2:]))
    assert not torch.allclose(model(torch.tensor([[5, 9]]))[:, 0], model(torch.tensor([[5, 8]]))[:, 0])
    assert model.scores(model(left)).shape == (1, 5, ITEMS)


def test_masks_hide_items_alone_and_one_of_each_history_at_least():
    torch.manual_seed(0)
    rows = torch.tensor([[PAD, PAD, 5, 9, 7], [4, 5, 9, 7, 8]]).repeat(4000, 1)
    options = Bert4RecOptions(mask=0.3, mask_last=0.25)
    hidden = masked_places(rows, options)
    assert not hidden[rows == PAD].any()
    assert hidden.any(dim=1).all()
    share = hidden[1::2, 0].float().mean().item()
    assert share == pytest.approx(0.75 * 0.3, abs=0.02)
    last_alone = (hidden[1::2].sum(dim=1) == 1) & hidden[1::2, -1]
    others = 0.75 * (0.3 * 0.7**4 + 0.7**5)
    assert last_alone.float().mean().item() == pytest.approx(0.25 + others, abs=0.03)


def test_nothing_to_learn_from_and_sizes_that_do_not_fit_are_errors():
    items = [Item(f"i{number}", f"Title {number}") for number in range(3)]
    data = DomainData.of("shop", items, [History("ann", ("i0", "i1"))])
    for kind in KINDS:
        with pytest.raises(TaskError):
            train(kind, data)
    with pytest.raises(ValueError, match="multiple"):
        Bert4RecOptions(width=10, heads=3)
