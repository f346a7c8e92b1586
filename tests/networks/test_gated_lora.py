"""The gated LoRA against PEFT, and against float64 algebra written out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reccocktail.networks.gated_lora import GatedLora, GatedLoraConfig, GatedLoraError
from transformers import AutoModelForCausalLM

WIDTH = 12
TOKENS = torch.arange(4, 40).reshape(3, 12)


@pytest.fixture
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)


def gated(model: Any, *, b: float = 0.1, seed: int = 3, **config: Any) -> GatedLora:
    torch.manual_seed(seed)
    made = GatedLora.beside(model, GatedLoraConfig(**({"metas": 3, "rank": 2, "width": WIDTH} | config))).eval()
    for each in made.b:
        each.data.normal_(std=b) if b else None
    return made


def users(count: int = 3) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(8)) * 5


@torch.no_grad()
def logits(model: Any, net: GatedLora, c: torch.Tensor, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with net.applied(model, net.coefficients(c)):
        return model(tokens).logits


def with_peft(base: Path, net: GatedLora, alpha: torch.Tensor, dtype: torch.dtype) -> Any:
    """A model with the plain LoRA of one user, applied by PEFT."""
    factors = net.factors(alpha)
    rank, scale = next((len(each.a), each.scale) for each in factors.values())
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    peft: Any = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=rank * scale, target_modules=list(net.config.targets))
    ).to(dtype)
    for name, each in factors.items():
        layer: Any = peft.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(each.a)
        layer.lora_B["default"].weight.data.copy_(each.b)
    return peft.eval()


def differ(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().abs().max() / other.detach().abs().max())


@pytest.mark.parametrize("form", ["sum", "factor"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_a_batch_of_users_is_each_alone_and_each_is_its_plain_lora(model, base, form, dtype, most):
    model, net, c = model.to(dtype), gated(model, form=form, square_root=form == "factor").to(dtype), users().to(dtype)
    together, plain = logits(model, net, c), model(TOKENS).logits
    for user in range(3):
        tokens = TOKENS[user : user + 1]
        assert differ(logits(model, net, c[user : user + 1], tokens), together[user : user + 1]) <= most
        peft = with_peft(base, net, net.coefficients(c)[user], dtype)
        with torch.no_grad():
            assert differ(peft(tokens).logits, together[user : user + 1]) <= most
    assert min(differ(together[user], plain[user]) for user in range(3)) > 1e-3  # it does something
    assert differ(logits(model, net, c[:1], TOKENS), together) > 1e-3  # and not the same for all
    assert torch.equal(model(TOKENS).logits, plain)  # hooks are gone


def test_one_meta_lora_is_a_plain_lora_whoever_the_user_is(model, base):
    net = gated(model, metas=1)
    one = net.factors(torch.ones(len(net.modules_gated), 1))
    name = net.modules_gated[0]
    assert torch.equal(one[name].a, net.a[0][0].double())
    assert torch.equal(one[name].b, net.b[0][0].double())
    peft = with_peft(base, net, torch.ones(len(net.modules_gated), 1), torch.float32)
    with torch.no_grad():
        assert differ(peft(TOKENS).logits, logits(model, net, users())) <= 1e-5


def test_temperature_makes_users_alike(model):
    cold, hot = gated(model, temperature=0.1), gated(model, temperature=1e9)
    alpha = hot.coefficients(users())
    assert torch.allclose(alpha, torch.full_like(alpha, 1 / 3), atol=1e-6)
    assert torch.allclose(alpha[0], alpha[1], atol=1e-7)
    assert (cold.coefficients(users()) - 1 / 3).abs().max() > 0.3
    assert (cold.coefficients(users()[:1]) - cold.coefficients(users()[1:2])).abs().max() > 0.3
    assert torch.allclose(cold.coefficients(users()).sum(-1), torch.ones(3, 4))
    rooted = gated(model, temperature=0.1, square_root=True).coefficients(users())
    assert torch.allclose(rooted.square(), cold.coefficients(users()), atol=1e-6)


def test_factor_is_sum_and_exactly_the_cross_terms(model):
    both = [gated(model, form=form).double() for form in ("sum", "factor")]
    alpha = both[0].coefficients(users().double()).detach()
    for number, (a, b) in enumerate(_detached(both[0])):
        x = torch.randn(3, 5, a.shape[-1], dtype=torch.float64)
        given = [net.delta(number, x, alpha[:, number]) for net in both]
        cross = (
            torch.stack([x[user] @ _cross(alpha[user, number], a, b).T for user in range(3)]) * 8
        )  # alpha 16 / rank 2
        assert differ(given[1] - given[0], cross) < 1e-9
        assert cross.abs().max() > 1e-3


def _detached(net: GatedLora) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(a.detach(), b.detach()) for a, b in zip(net.a, net.b, strict=True)]


def _cross(alpha: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Σ over j, k of (alpha_j alpha_k, less alpha_k where j = k) · B_j A_k."""
    found = torch.zeros(b.shape[1], a.shape[2], dtype=torch.float64)
    for j in range(len(alpha)):
        for k in range(len(alpha)):
            found += (alpha[j] * alpha[k] - (alpha[k] if j == k else 0)) * (b[j] @ a[k])
    return found


def test_gates_learn_only_once_b_is_not_zero_and_the_base_never(model):
    before = {name: hashlib.sha256(each.numpy().tobytes()).digest() for name, each in model.state_dict().items()}
    net = gated(model, b=0)
    learned = []
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        with net.applied(model, net.coefficients(users())):
            model(TOKENS, labels=TOKENS).loss.backward()
        assert all(each.grad is not None and each.grad.abs().max() > 0 for each in net.b)
        gates = [net.norm_weight, net.norm_bias, net.hidden_weight, net.hidden_bias, net.out_weight, net.out_bias]
        learned.append([float(each.grad.abs().max()) > 0 for each in [*gates, *net.a]])
        optimiser.step()
    assert not any(learned[0])
    assert all(learned[1])
    assert all(each.grad is None for each in model.parameters())
    after = {name: hashlib.sha256(each.numpy().tobytes()).digest() for name, each in model.state_dict().items()}
    assert after == before


def test_parameters_go_through_a_file_and_others_are_refused(model):
    net, other = gated(model), gated(model, seed=4)
    other.fill(net.tensors())
    assert torch.equal(logits(model, other, users()), logits(model, net, users()))
    with pytest.raises(GatedLoraError, match="1 tensors"):
        other.fill({name: each for name, each in net.tensors().items() if "0.self_attn.q_proj.lora_A" not in name})
    with pytest.raises(GatedLoraError, match="not what the configuration says"):
        gated(model, rank=3).fill(net.tensors())


def test_what_does_not_fit_is_refused_by_name(model):
    with pytest.raises(GatedLoraError, match="c_attn"):
        gated(model, targets=("q_proj", "c_attn"))
    net = gated(model)
    with pytest.raises(GatedLoraError, match="a batch of 3 has coefficients of 2"):
        logits(model, net, users(2))
    with pytest.raises(GatedLoraError, match="4 gated modules"), net.applied(model, torch.ones(3, 2, 3)):
        pass
