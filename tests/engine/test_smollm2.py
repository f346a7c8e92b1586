"""The merge on a real language model, SmolLM2-135M-Instruct, against PEFT and float64 algebra.

Weights are compared on its first layers alone, and on all of it by `make soak`; it generates text as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, merge_folders
from reccocktail.engine.recipes import Output
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow
WEIGHTS = (0.35, 0.65)
MESSAGES = [{"role": "user", "content": "Name a city in France."}]


@pytest.fixture(scope="module")
def adapters(smollm2_cut: Path, make_adapter: Callable[..., Path]) -> tuple[Path, Path]:
    """All-linear adapters of rank 16 whose deltas are of the size that training gives, a tenth of the weights'."""
    return make_adapter(smollm2_cut, 1, r=16, lora_alpha=0.5), make_adapter(smollm2_cut, 2, r=8, lora_alpha=0.5)


@pytest.fixture(scope="module")
def merge(
    smollm2_cut: Path, adapters: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    @cache
    def run(dtype: str | None) -> Path:
        out = tmp_path_factory.mktemp("out") / "merged"
        mix = [WeightedFolder(folder, weight) for folder, weight in zip(adapters, WEIGHTS, strict=True)]
        merge_folders(smollm2_cut, mix, out, MergeOptions(output=Output(dtype=dtype)))  # pyright: ignore
        return out

    return run


def answer_logits(model: AutoModelForCausalLM, folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**prompt).logits  # pyright: ignore


def test_float32_logits_equal_pefts_cat_merge(smollm2_cut, adapters, merge):
    """PEFT merges in float64 here, and both models answer in float64: what is left is what our weights were rounded by."""
    merged = AutoModelForCausalLM.from_pretrained(merge("float32"), dtype=torch.float32).double()
    model = AutoModelForCausalLM.from_pretrained(smollm2_cut, dtype=torch.float32).double()
    base = answer_logits(model, smollm2_cut).clone()
    peft = PeftModel.from_pretrained(model, adapters[0], adapter_name="spirit", autocast_adapter_dtype=False)
    peft.load_adapter(adapters[1], adapter_name="ingredient", autocast_adapter_dtype=False)
    peft.add_weighted_adapter(["spirit", "ingredient"], list(WEIGHTS), adapter_name="mix", combination_type="cat")
    peft.set_adapter("mix")
    expected = answer_logits(peft.double().merge_and_unload(), smollm2_cut)
    found = answer_logits(merged, smollm2_cut)
    assert (expected - base).abs().max() > 0.1  # the mix does something
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


def test_every_bfloat16_weight_is_within_a_step_of_the_float64_result(
    smollm2_cut, adapters, merge, deltas, read_weights
):
    base, merged = read_weights(smollm2_cut), read_weights(merge(None))
    first, second = (deltas(smollm2_cut, adapter) for adapter in adapters)
    layers = AutoConfig.from_pretrained(smollm2_cut).num_hidden_layers
    assert len(first) == len(second) == 7 * layers
    changed = exact = 0
    for name, weight in base.items():
        if name not in first:
            np.testing.assert_array_equal(merged[name], weight)
            continue
        wanted = weight + WEIGHTS[0] * first[name] + WEIGHTS[1] * second[name]
        once = torch.from_numpy(wanted).to(torch.bfloat16).double().numpy()
        step = np.exp2(np.floor(np.log2(np.maximum(np.abs(wanted), 2.0**-126))) - 7)
        assert (np.abs(merged[name] - wanted) <= step).all(), name
        moved = merged[name] != weight
        changed += int(moved.sum())
        exact += int((merged[name] == once)[moved].sum())
    assert changed > 1_600_000 * layers
    assert exact / changed >= 0.999


def test_the_merged_checkpoint_generates_text(smollm2, make_adapter, tmp_path):
    folder = tmp_path / "merged"
    merge_folders(
        smollm2, [WeightedFolder(make_adapter(smollm2, 1, r=16, lora_alpha=0.5), 0.35)], folder, MergeOptions()
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
