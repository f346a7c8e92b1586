"""M-Former: routing, balancing, and that it reads the recommender's outputs and no padding."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from reccocktail.networks.m_former import MFormer, MFormerConfig, Routing
from torch.nn import functional as F  # noqa: N812

SMALL = MFormerConfig(experts=4, queries=3, layers=2, hidden=12, heads=3, width=8)


@pytest.fixture
def m_former() -> MFormer:
    torch.manual_seed(2)
    return MFormer(SMALL, out=16, scale=0.1).eval()


@pytest.fixture
def outputs() -> tuple[torch.Tensor, torch.Tensor]:
    """What a recommender says of three histories, and where it speaks of items."""
    states = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(7)) * 3
    return states, torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.bool)


def test_the_balancing_loss_is_1_at_uniform_probabilities_and_k_at_collapse():
    chosen = torch.tensor([0, 3, 3, 1])
    assert Routing(torch.full((4, 5), 0.2), chosen).balance().item() == pytest.approx(1)
    all_to_one = torch.tensor([2, 2, 2, 2])
    assert Routing(F.one_hot(all_to_one, 5).float(), all_to_one).balance().item() == pytest.approx(5)
    p = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    by_hand = 5 * sum((chosen == j).float().mean() * p[:, j].mean() for j in range(5))
    assert Routing(p, chosen).balance().item() == pytest.approx(float(by_hand))


def test_routing_is_the_mean_of_a_softmax_per_item_and_the_best_expert(m_former, outputs):
    _, routing = m_former(*outputs)
    weight, bias = m_former.router.weight, m_former.router.bias
    for row in range(3):
        items = [outputs[0][row, place] for place in range(4) if outputs[1][row, place]]
        by_hand = torch.stack([torch.softmax(weight @ item + bias, dim=0) for item in items]).mean(dim=0)
        assert torch.allclose(routing.probabilities[row], by_hand, atol=1e-6)
        assert routing.chosen[row] == by_hand.argmax()
    assert len(set(routing.chosen.tolist())) > 1


@torch.no_grad()
def test_outputs_change_the_rows_and_padding_does_not(m_former, outputs):
    states, mask = outputs
    rows, routing = m_former(states, mask)
    assert rows.shape == (3, 3, 16)
    padded = torch.where(mask[..., None], states, torch.tensor(1e3))
    again, routed = m_former(padded, mask)
    assert torch.equal(again, rows)
    assert torch.equal(routed.probabilities, routing.probabilities)
    longer, _ = m_former(F.pad(padded, (0, 0, 2, 0)), F.pad(mask, (2, 0)))
    assert torch.allclose(longer, rows, atol=1e-5)
    alone, _ = m_former(states[1:2, 2:], mask[1:2, 2:])
    assert torch.allclose(alone, rows[1:2], atol=1e-5)
    zeroed, _ = m_former(torch.zeros_like(states), mask)
    assert (zeroed - rows).abs().amax() > 0.01


def test_every_second_block_has_cross_attention_and_rows_are_not_multiplied_by_their_probability(m_former, outputs):
    crossed = {name for name, _ in m_former.named_parameters() if "crossattention" in name}
    assert crossed
    assert all(".layer.0." in name for name in crossed)
    rows, routing = m_former(*outputs)
    rows.square().sum().backward()
    assert m_former.router.weight.grad is None
    assert [bool(grad.any()) for grad in m_former.experts.grad] == [
        expert in routing.chosen.tolist() for expert in range(SMALL.experts)
    ]
    m_former(*outputs)[1].balance().backward()
    assert m_former.router.weight.grad.abs().sum() > 0


def test_sizes_are_those_of_the_paper_and_of_a_small_default():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in MFormer(config, out=576, scale=1).blocks.parameters())
            for config in (MFormerConfig(), MFormerConfig(layers=12, hidden=768, heads=12))
        ]
    assert counts[0] == pytest.approx(2.0e6, rel=0.1)
    assert counts[1] == pytest.approx(92.8e6, rel=0.05)
    with pytest.raises(ValidationError):
        MFormerConfig(hidden=190)
