"""Laser around a tiny language model, against plain forwards written out one by one."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from reccocktail.networks import text_packs
from reccocktail.networks.laser import Laser, LaserConfig, LaserNet, info_nce, load_frozen
from reccocktail.networks.m_former import MFormerConfig
from reccocktail.networks.text_packs import PACK_TOKENS
from reccocktail.tasks import (
    DomainData,
    EmptyHistoryError,
    HistoryWriter,
    Item,
    TaskError,
    UntitledItemError,
    load_history_template,
)
from torch.nn import functional as F  # noqa: N812

WIDTH = 64
M_FORMER = MFormerConfig(experts=4, queries=3, layers=2, hidden=12, heads=3, width=8)
CONFIGS = {
    "none": LaserConfig(width=WIDTH, prefix="none"),
    "static": LaserConfig(width=WIDTH),
    "m-former": LaserConfig(width=WIDTH, prefix="m-former", m_former=M_FORMER),
    "eos": LaserConfig(width=WIDTH, rows=3, readout="eos"),
    "mean": LaserConfig(width=WIDTH, rows=3, readout="mean"),
}


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return load_frozen(base, "cpu", "float32")[0]


@pytest.fixture
def histories(shop: DomainData) -> list[list[Item]]:
    taken = [[shop.items[item_id] for item_id in history] for history in shop.by_user.values()]
    return [taken[0], taken[1][:1], taken[2][:3], taken[3]]


@pytest.fixture
def make(model: Any, tokenizer: Any, shop: DomainData, hashed_recommender: Any) -> Any:
    def make(name: str, seed: int = 4, **recommender: Any) -> Laser:
        torch.manual_seed(seed)
        writer = HistoryWriter(load_history_template("numbered"), tokenizer)
        reads = hashed_recommender(frozenset(list(shop.items)[::2]), **recommender)
        net = LaserNet.beside(model, CONFIGS[name]).eval()
        return Laser(model, writer, net, reads if name == "m-former" else None, eos=tokenizer.eos_token_id)

    return make


def digest(model: Any) -> str:
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode() + value.numpy().tobytes())
    return sha.hexdigest()


def one_by_one(laser: Laser, tokenizer: Any, history: list[Item], *, left: int) -> torch.Tensor:
    """Its embedding by a forward of its own, behind so many rows of padding that a mask hides."""
    net, model, table = laser.net, laser.model, laser.model.get_input_embeddings()
    words = "".join(laser.writer.template.line(number, item) for number, item in enumerate(history, start=1))
    text = tokenizer(words, add_special_tokens=False)["input_ids"]
    rows = [table(torch.tensor(list(laser.writer.instruction) + text))]
    if net.prefix is not None:
        rows.insert(0, net.prefix)
    if net.m_former is not None:
        assert laser.recommender is not None
        states = laser.recommender.states([[item.item_id for item in history]])
        rows.insert(0, net.m_former(states.values.clone(), states.mask.clone())[0][0])
    if net.suffix is not None:
        rows.append(net.suffix)
    if net.config.readout == "eos":
        rows.append(table(torch.tensor([tokenizer.eos_token_id])))
    whole = torch.cat(rows)
    mask = torch.tensor([[0] * left + [1] * len(whole)])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    states = model(
        inputs_embeds=F.pad(whole, (0, 0, left, 0))[None], attention_mask=mask, position_ids=positions
    ).last_hidden_state[0]
    return F.normalize(states[-len(text) :].mean(dim=0) if net.config.readout == "mean" else states[-1], dim=0)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_padding_its_side_and_batch_mates_change_nothing_nor_does_a_shared_beginning(make, tokenizer, histories, name, monkeypatch):  # fmt: skip
    laser = make(name)
    together = laser(histories).vectors
    for left in (0, 5):
        expected = torch.stack([one_by_one(laser, tokenizer, history, left=left) for history in histories])
        assert torch.allclose(together, expected, atol=2e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(4))
    assert (together[0] - together[1]).abs().max() > 0.01
    apart = laser.encode(histories, share=False)
    assert torch.allclose(apart, together, atol=2e-6)
    for row in (PACK_TOKENS, 30):
        monkeypatch.setattr(text_packs, "PACK_TOKENS", row)
        assert torch.allclose(laser.encode(histories, batch_tokens=100), apart, atol=2e-6)
    assert laser.shares_beginning == (name != "m-former")


def test_what_texts_begin_with_alike_is_read_once_and_kept_only_while_nothing_is_trained(make, histories, monkeypatch):
    laser, read = make("static"), []
    forward = laser.model.forward
    monkeypatch.setattr(laser.model, "forward", lambda **given: read.append(given["inputs_embeds"].shape[:2]) or forward(**given))  # fmt: skip
    histories = [*histories, histories[0]]
    beginning = 1, 32 + len(laser.writer.instruction)
    texts = [(*laser.writer.write(history).tokens, "suffix") for history in histories]
    parts = {text[:end] for text in texts for end in range(1, len(text) + 1)}
    before = laser.encode(histories)
    assert torch.equal(before[0], before[-1])
    assert read == [beginning, (1, len(parts))]
    laser.net.prefix.data.add_(1)
    assert (laser.encode(histories) - before).abs().max() > 1e-3
    laser.net.requires_grad_(False)
    laser.encode(histories)
    laser.encode(histories[:1])
    assert [shape for shape in read if shape == beginning] == [beginning] * 3
    assert read[-1] == (1, len(texts[0]))


def test_only_what_is_listed_is_trained_and_the_language_models_bytes_stay(make, histories):
    before = digest(make("static").model)
    names = {"none": {"suffix"}, "static": {"suffix", "prefix"}, "eos": {"prefix"}, "mean": {"prefix"}}
    for name, expected in names.items():
        laser = make(name)
        optimiser = torch.optim.Adam(laser.net.parameters(), lr=0.1)
        items = laser.encode(histories)
        for _ in range(2):
            optimiser.zero_grad()
            info_nce(laser(histories).vectors, items, torch.tensor([1, 2, 3, 0])).backward()
            optimiser.step()
        assert {each for each, value in laser.net.named_parameters() if value.grad is not None and value.grad.any()} == expected  # fmt: skip
        assert all(not value.requires_grad and value.grad is None for value in laser.model.parameters())
    assert digest(make("static").model) == before
    assert sum(value.numel() for value in make("static").net.parameters()) == 33 * WIDTH


def test_the_router_learns_from_balancing_alone_and_the_prefix_from_what_the_recommender_says(make, histories):
    laser = make("m-former")
    found = laser(histories)
    info_nce(found.vectors, laser.encode(histories), torch.tensor([1, 2, 3, 0])).backward()
    net = laser.net.m_former
    assert net.router.weight.grad is None
    assert net.experts.grad.any()
    laser(histories).routing.balance().backward()
    assert net.router.weight.grad.any()
    with torch.no_grad():
        zeroed = make("m-former", factor=0.0)
        zeroed.net.load_state_dict(laser.net.state_dict())
        assert (zeroed(histories).vectors - found.vectors).abs().amax() > 1e-3
        strangers = laser(histories, id_dropout=1.0).vectors
        assert (strangers - found.vectors).abs().amax() > 1e-3
        assert torch.equal(laser(histories, id_dropout=1.0).vectors, strangers)


@torch.no_grad()
def test_infonce_is_0_for_a_catalogue_of_one_near_ln_n_at_first_and_as_in_its_formula(make, histories, shop):
    one = F.normalize(torch.randn(1, 8), dim=1)
    users = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    assert info_nce(users, one, torch.zeros(3, dtype=torch.long)).item() == 0
    items = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(4)), dim=1)
    by_hand = [-math.log(math.exp(float(u @ items[t]) / 0.05) / sum(math.exp(float(u @ i) / 0.05) for i in items)) for u, t in zip(users, (4, 0, 2), strict=True)]  # fmt: skip
    assert info_nce(users, items, torch.tensor([4, 0, 2])).item() == pytest.approx(sum(by_hand) / 3, rel=1e-5)
    laser = make("static")
    catalogue = laser.encode([[item] for item in shop.items.values()])
    taken = [[shop.items[item_id] for item_id in history] for history in shop.by_user.values()]
    targets = torch.tensor([list(shop.items).index(history[-1].item_id) for history in taken])
    first = info_nce(laser([history[:-1] for history in taken]).vectors, catalogue, targets)
    assert first.item() == pytest.approx(
        math.log(len(catalogue)), rel=0.25
    )  # a random model of this size scatters more than a trained one


def test_what_does_not_fit_is_refused(make, model, tokenizer, histories, hashed_recommender):
    writer = HistoryWriter(load_history_template("numbered"), tokenizer)
    for config, recommender in (
        (LaserConfig(width=32), None),
        (CONFIGS["m-former"], None),
        (CONFIGS["m-former"], hashed_recommender(frozenset(), width=9)),
        (CONFIGS["eos"], None),
    ):
        with pytest.raises(TaskError):
            Laser(model, writer, LaserNet(config), recommender)
    for wrong in ({"prefix": "none", "readout": "mean"}, {"prefix": "m-former"}, {"m_former": M_FORMER}):
        with pytest.raises(ValidationError):
            LaserConfig(width=WIDTH, **wrong)
    laser = make("static")
    with pytest.raises(EmptyHistoryError):
        laser.encode([histories[0], []])
    with pytest.raises(UntitledItemError):
        laser.encode([[Item("bare", "")]])
    assert laser.encode([]).shape == (0, WIDTH)
