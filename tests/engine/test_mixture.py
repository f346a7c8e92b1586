"""A mixture held factored against PEFT on the same model, and its entropies against one prompt at a time in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from reccocktail.engine.adapting.entropy import TokenSelection, answer, entropies
from reccocktail.engine.adapting.mixture import Mixture
from reccocktail.engine.errors import MergeError, RecipeError
from transformers import AutoModelForCausalLM


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


CASES = {
    "llama": ("llama", {}),
    "some modules, rank-stabilised": ("llama", {"target_modules": ["q_proj", "lm_head"], "use_rslora": True}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_one_adapter_answers_as_peft_does(kind, options, make_base, make_adapter, parts_of, logits_of):
    base = make_base(kind)
    adapter = make_adapter(base, 1, **options)
    expected = logits_of(PeftModel.from_pretrained(load(base), adapter))
    with Mixture(model := load(base), parts_of(base, [(adapter, 1.0)]), "linear"):
        assert (logits_of(model) - expected).abs().max() < 1e-4
    assert (logits_of(base) - expected).abs().max() > 0.1


def test_two_weighted_adapters_answer_as_pefts_cat_does(base, make_adapter, parts_of, logits_of):
    first, second = make_adapter(base, 1), make_adapter(base, 2, r=7, target_modules=["q_proj", "down_proj"])
    mixed = PeftModel.from_pretrained(load(base), first, adapter_name="0")
    mixed.load_adapter(second, "1")
    with Mixture(model := load(base), parts_of(base, [(first, 1.0), (second, 1.0)]), "linear") as mixture:
        for number, weights in enumerate([[0.25, 0.75], [1.5, -0.5]]):
            mixed.add_weighted_adapter(["0", "1"], weights, f"mix {number}", combination_type="cat")
            mixed.set_adapter(f"mix {number}")
            mixture.set(weights)
            assert (logits_of(model) - logits_of(mixed)).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["linear", "factor"])
def test_a_mixture_answers_as_the_checkpoint_merged_from_it(method, base, make_adapter, parts_of, mix, logits_of):
    adapters = [(make_adapter(base, 1), 0.3), (make_adapter(base, 2), 0.7)]
    merged, _ = mix(base, adapters, method=method)
    with Mixture(model := load(base), parts_of(base, adapters), method):
        assert (logits_of(model) - logits_of(merged)).abs().max() < 1e-4


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_on_leaving_the_model_is_exactly_what_it_was(base, make_adapter, parts_of, logits_of):
    model = load(base)
    before = logits_of(model)

    def interrupted() -> None:
        with Mixture(model, parts_of(base, [(make_adapter(base), 1.0)]), "linear"):
            assert not torch.equal(logits_of(model), before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(logits_of(model), before)
    assert hooks(model) == 0


def test_a_target_that_the_loaded_model_lacks_is_refused_and_leaves_no_trace(base, make_base, make_adapter, parts_of):
    parts = parts_of(base, [(make_adapter(base), 1.0)])
    model = load(base)
    del model.model.layers[1]
    with pytest.raises(MergeError, match=r"no module model\.layers\.1\."):
        Mixture(model, parts, "linear")
    assert hooks(model) == 0


def test_adapters_that_the_method_cannot_mix_are_refused_and_leave_no_trace(base, make_adapter, parts_of):
    model = load(base)
    with pytest.raises(RecipeError, match="rank"):
        Mixture(model, parts_of(base, [(make_adapter(base, 1), 0.5), (make_adapter(base, 2, r=8), 0.5)]), "factor")
    assert hooks(model) == 0


@torch.inference_mode()
def naive_entropy(model, prompt: list[int], tokens: int, stop: int | None) -> float:
    """One prompt, no cache, no batch, float64."""
    ids, entropies = list(prompt), []
    for _ in range(tokens):
        p = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().softmax(-1)
        entropies.append(-float((p * p.log()).sum()))
        ids.append(int(p.argmax()))
        if ids[-1] == stop:
            break
    return sum(entropies) / len(entropies)


class Speaker:
    """As much of a tokenizer as decoding needs; a token is written as its number."""

    def __init__(self, stop: int | None, pad: int = 1) -> None:
        self.eos_token_id, self.pad_token_id = stop, pad

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def answer_entropies(model, prompts, tokens, pad, stop) -> torch.Tensor:
    """Those found while decoding; reading the answers in one pass has to find the same."""
    answers = answer(model, Speaker(stop, pad), prompts, TokenSelection(tokens))
    with torch.no_grad():
        assert (entropies(model, answers) - answers.entropies).abs().max() < 1e-4
    return answers.entropies


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("tokens", [1, 3, 6])
def test_entropies_are_those_of_each_prompt_read_alone(kind, tokens, make_base):
    model = load(make_base(kind))
    draw = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(4, model.config.vocab_size, (length,), generator=draw).tolist() for length in (1, 9, 30, 30, 17)
    ]
    expected = [naive_entropy(model, prompt, tokens, None) for prompt in prompts]
    assert answer_entropies(model, prompts, tokens, 1, None).tolist() == pytest.approx(expected, abs=1e-4)


def test_an_answer_that_ends_early_counts_up_to_its_stop_token(base):
    model = load(base)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12]]
    full = [naive_entropy(model, prompt, 6, None) for prompt in prompts]
    said = model.generate(torch.tensor([prompts[0]]), max_new_tokens=6, do_sample=False)[0, 3:].tolist()
    for stop in said[0], said[2]:
        expected = [naive_entropy(model, prompt, 6, stop) for prompt in prompts]
        assert expected[0] != full[0]
        assert answer_entropies(model, prompts, 6, 1, stop).tolist() == pytest.approx(expected, abs=1e-4)


def test_what_stands_in_the_padding_does_not_matter(base):
    model = load(base)
    prompts = [[5, 6, 7, 8, 9, 10], [11]]
    first, second = (answer_entropies(model, prompts, 3, pad, None) for pad in (0, 20))
    assert torch.equal(first, second)
