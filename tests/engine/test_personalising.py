"""One user's LoRA, written by the engine, loaded by PEFT and transformers, against the gated forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from reccocktail.engine.errors import MergeError
from reccocktail.engine.merging.standalone import MergeOptions
from reccocktail.engine.personalising import SpiritShare, personalise
from reccocktail.engine.recipes import Output
from reccocktail.networks.gated_lora import GatedLora, GatedLoraConfig
from transformers import AutoModelForCausalLM

TOKENS = torch.arange(4, 28).reshape(2, 12)
ADAPTER = MergeOptions(output=Output(format="adapter"))


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max() / other.abs().max()) <= 1e-5


@pytest.mark.parametrize(("form", "rank"), [("sum", 6), ("factor", 2)])
@torch.no_grad()
def test_a_users_lora_and_checkpoint_say_what_the_gated_model_says(base, make_adapter, tmp_path, form, rank):
    torch.manual_seed(1)
    model = loaded(base)
    net = GatedLora.beside(model, GatedLoraConfig(metas=3, rank=2, width=8, form=form)).eval()
    for b in net.b:
        b.normal_(std=0.1)
    alpha = net.coefficients(torch.randn(2, 8) * 5)
    with net.applied(model, alpha[:1]):
        wanted = model(TOKENS).logits
    personalise(base, net, alpha[0], tmp_path / "lora", ADAPTER)
    tuned: Any = PeftModel.from_pretrained(loaded(base), tmp_path / "lora")
    assert tuned.peft_config["default"].r == rank
    assert near(tuned.eval()(TOKENS).logits, wanted)
    assert not near(model(TOKENS).logits, wanted)
    personalise(base, net, alpha[0], tmp_path / "merged")
    assert near(loaded(tmp_path / "merged")(TOKENS).logits, wanted)

    spirit = make_adapter(base, 1)
    personalise(base, net, alpha[0], tmp_path / "mixed", ADAPTER, spirit=SpiritShare(spirit, 0.4))
    both: Any = PeftModel.from_pretrained(loaded(base), tmp_path / "mixed").merge_and_unload()
    parts = [PeftModel.from_pretrained(loaded(base), folder).merge_and_unload() for folder in (spirit, tmp_path / "lora")]  # fmt: skip
    for name, old in model.state_dict().items():
        deltas = [part.state_dict()[name] - old for part in parts]
        assert torch.allclose(both.state_dict()[name] - old, 0.4 * deltas[0] + 0.6 * deltas[1], atol=1e-5), name
    with pytest.raises(MergeError):
        personalise(base, net, alpha[0], tmp_path / "not", ADAPTER, spirit=SpiritShare(spirit, 1.5))
    assert not (tmp_path / "not").exists()
