"""A mix written as one adapter, against PEFT that loads it and against numpy in float64."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from reccocktail.engine.errors import MergeError, RecipeError
from reccocktail.engine.merging.adapter_output import write_adapter
from reccocktail.engine.merging.low_rank import nearest
from reccocktail.engine.merging.peft_names import rank_patterns, target_modules
from reccocktail.engine.merging.plan import Mix
from reccocktail.engine.merging.reports import AdapterReport
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, merge_folders
from reccocktail.engine.recipes import Output
from reccocktail.registry import inspect_adapter, inspect_base
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def mix_adapters(tmp_path: Path, parts_of) -> Callable[..., tuple[Path, AdapterReport]]:
    """(base folder, [(adapter folder, weight)], fields of Mix, options of write_adapter): the new adapter's folder, and the report."""
    numbers = itertools.count()

    def run(base: Path, adapters: Any, **options: Any) -> tuple[Path, AdapterReport]:
        out = tmp_path / f"mixed-{next(numbers)}"
        out.mkdir()
        of_writing = {name: options.pop(name) for name in ("rank", "base_folder", "threads") if name in options}
        return out, write_adapter(inspect_base(base), Mix(parts_of(base, adapters), out, **options), **of_writing)

    return run


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., Path]:
    """(base folder, [(adapter folder, weight)], method): the folder of the merged checkpoint, by the public way."""
    numbers = itertools.count()

    def run(base: Path, adapters: Any, method: str = "linear", dtype: Any = None) -> Path:
        out = tmp_path / f"merged-{next(numbers)}"
        folders = [WeightedFolder(folder, weight) for folder, weight in adapters]
        merge_folders(base, folders, out, MergeOptions(method=method, output=Output(dtype=dtype)))
        return out

    return run


def peft_cat(base: Path, adapters: Any) -> Any:
    """PEFT's exact mix, active on the base in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    mixed = PeftModel.from_pretrained(model, adapters[0][0], adapter_name="0")
    for number, (folder, _) in enumerate(adapters[1:], 1):
        mixed.load_adapter(folder, str(number))
    names = [str(number) for number in range(len(adapters))]
    mixed.add_weighted_adapter(names, [weight for _, weight in adapters], "mix", combination_type="cat")
    mixed.set_adapter("mix")
    return mixed


def peft_loaded(base: Path, adapter: Path) -> Any:
    """The adapter on the base in float32, loaded by PEFT without a word of complaint."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def weighted_deltas(deltas: Any, base: Path, adapters: Any) -> dict[str, np.ndarray]:
    mixed: dict[str, np.ndarray] = {}
    for folder, weight in adapters:
        for name, delta in deltas(base, folder).items():
            mixed[name] = mixed.get(name, 0.0) + weight * delta
    return mixed


# --- exact ----------------------------------------------------------------------------------------------------------

PAIRS = {
    "two alike": ("llama", {}, {}),
    "other ranks and alphas": ("llama", {"r": 2, "lora_alpha": 3}, {"r": 7, "lora_alpha": 16}),
    "other targets": ("llama", {"target_modules": ["q_proj", "up_proj"]}, {"target_modules": ["q_proj", "v_proj"]}),
    "a head of its own": ("llama", {"target_modules": ["lm_head"]}, {"target_modules": ["lm_head", "o_proj"]}),
    "Conv1D": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 3},
    ),
}
# PEFT mixes these wrongly, so only algebra judges them
ALGEBRA_ONLY = {
    "one layer only": (
        "llama",
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["v_proj"]},
    ),
    "rank-stabilised": ("llama", {"use_rslora": True}, {"use_rslora": True, "r": 9}),
    "rank and alpha patterns": (
        "llama",
        {"rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 6}, "alpha_pattern": {"v_proj": 32}},
        {"alpha_pattern": {r"layers\.0\.mlp\.up_proj": 1}},
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_the_written_adapter_answers_as_pefts_cat_and_as_the_merged_checkpoint(
    pair, make_base, make_adapter, mix_adapters, merged, logits_of
):
    kind, first, second = pair
    base = make_base(kind)
    adapters = [(make_adapter(base, 1, **first), 0.4), (make_adapter(base, 2, **second), -0.7)]
    out, _ = mix_adapters(base, adapters)
    answer = logits_of(peft_loaded(base, out))
    assert (answer - logits_of(base)).abs().max() > 0.1
    assert (answer - logits_of(peft_cat(base, adapters))).abs().max() < 1e-4
    assert (answer - logits_of(merged(base, adapters))).abs().max() < 1e-4


@pytest.mark.parametrize("pair", (PAIRS | ALGEBRA_ONLY).values(), ids=PAIRS | ALGEBRA_ONLY)
def test_the_deltas_that_peft_loads_are_the_weighted_sum(pair, make_base, make_adapter, mix_adapters, deltas):
    kind, first, second = pair
    base = make_base(kind)
    adapters = [(make_adapter(base, 1, **first), -0.4), (make_adapter(base, 2, **second), 1.3)]
    out, report = mix_adapters(base, adapters)
    exact, loaded = weighted_deltas(deltas, base, adapters), deltas(base, out)
    assert loaded.keys() == exact.keys()
    assert [tensor.name for tensor in report.tensors] == sorted(exact)
    for tensor in report.tensors:
        norm = np.linalg.norm(exact[tensor.name])
        off = np.linalg.norm(loaded[tensor.name] - exact[tensor.name]) / norm
        assert off < 1e-6, tensor.name
        assert tensor.relative_error == pytest.approx(off, rel=0.01, abs=1e-9)
        assert tensor.delta_norm == pytest.approx(norm, rel=1e-6)


def test_every_module_has_the_scale_1(base, make_adapter, mix_adapters):
    adapters = [(make_adapter(base, 1, rank_pattern={"q_proj": 2}), 0.5), (make_adapter(base, 2, r=3), 0.5)]
    model = peft_loaded(base, mix_adapters(base, adapters)[0])
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert {layer.scaling["default"] for layer in layers.values()} == {1.0}
    assert {layer.r["default"] for name, layer in layers.items() if name.endswith("q_proj")} == {5}
    assert {layer.r["default"] for name, layer in layers.items() if not name.endswith("q_proj")} == {7}


def test_a_is_kept_bit_for_bit_and_b_carries_weight_and_scale(base, make_adapter, mix_adapters):
    folders = [make_adapter(base, 1), make_adapter(base, 2, r=6)]
    out = load_file(mix_adapters(base, [(folders[0], 0.25), (folders[1], -2.0)])[0] / ADAPTER)
    one, two = (load_file(folder / ADAPTER) for folder in folders)
    for name, tensor in out.items():
        if ".lora_A." in name:
            assert torch.equal(tensor, torch.cat([one[name], two[name]]))
        else:
            scaled = torch.cat([one[name] * 0.25 * 2, two[name] * -2.0 * (8 / 6)], dim=1)
            torch.testing.assert_close(tensor, scaled, rtol=1e-6, atol=0)


def test_factor_is_written_with_one_rank_and_merges_to_the_same_weights(
    base, make_adapter, mix_adapters, merged, read_weights
):
    adapters = [(make_adapter(base, 1), 0.3), (make_adapter(base, 2), 0.7)]
    out, report = mix_adapters(base, adapters, method="factor")
    assert {tensor.rank for tensor in report.tensors} == {4}
    again, at_once = merged(base, [(out, 1.0)]), merged(base, adapters, "factor")
    for name, weight in read_weights(at_once).items():
        np.testing.assert_allclose(read_weights(again)[name], weight, rtol=1e-6, atol=1e-6, err_msg=name)


def test_factor_refuses_other_ranks(base, make_adapter, mix_adapters):
    with pytest.raises(RecipeError, match="rank 4 scale 2, rank 8 scale 1"):
        mix_adapters(base, [(make_adapter(base, 1), 0.5), (make_adapter(base, 2, r=8), 0.5)], method="factor")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_merging_the_written_adapter_gives_the_weights_of_merging_the_parts(
    dtype, make_base, make_adapter, mix_adapters, merged, read_weights
):
    base = make_base(dtype=dtype)
    adapters = [(make_adapter(base, 1), 0.4), (make_adapter(base, 2, r=7), 0.7)]
    out, _ = mix_adapters(base, adapters)
    again, at_once = read_weights(merged(base, [(out, 1.0)])), read_weights(merged(base, adapters))
    step = 2.0**-7 if dtype == "bfloat16" else 1e-6
    equal = sum(int((again[name] == at_once[name]).sum()) for name in at_once)
    for name, weight in at_once.items():
        assert (np.abs(again[name] - weight) <= step * np.abs(weight) + 1e-6).all(), name
    if dtype == "bfloat16":
        assert equal / sum(weight.size for weight in at_once.values()) > 0.999


def test_a_mix_of_a_mix_is_the_mix(base, make_adapter, mix_adapters, deltas):
    first, second = make_adapter(base, 1), make_adapter(base, 2, r=6, target_modules=["q_proj", "v_proj"])
    once, _ = mix_adapters(base, [(first, 0.5), (second, 0.5)])
    twice, _ = mix_adapters(base, [(once, 2.0), (second, -1.0)])
    for name, exact in weighted_deltas(deltas, base, [(first, 1.0), (second, 0.0)]).items():
        np.testing.assert_allclose(deltas(base, twice)[name], exact, rtol=1e-5, atol=1e-5, err_msg=name)


# --- what is more than plain LoRA -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[..., Path]:
    """(base folder, seed, options of LoraConfig): an adapter of PEFT in which all that can be trained has moved."""

    def train(base: Path, seed: int, **options: Any) -> Path:
        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp(f"trained-{seed}")
        model.save_pretrained(folder, save_embedding_layers=False)
        return folder

    return train


@pytest.fixture(scope="module")
def experts(tmp_path_factory, tokenizer) -> Path:
    """A tiny mixture of experts, whose checkpoint holds each expert's matrices apart."""
    torch.manual_seed(3)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("experts")
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def peft_weights(base: Path, adapter: Path | None = None) -> dict[str, np.ndarray]:
    """The weights of the model in float32, as PEFT merges the one adapter into it."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


GPT2 = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
KINDS = {
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["embed_tokens"], "r": 2}),
    "embedding and Conv1D": ("gpt2", GPT2 | {"target_modules": ["wte", "c_attn"]}, GPT2),
    "bias of LoRA": ("gpt2", GPT2 | {"lora_bias": True}, GPT2 | {"lora_bias": True, "r": 3}),
    "bias of LoRA in one": ("gpt2", GPT2 | {"target_modules": ["c_fc"], "lora_bias": True}, GPT2),
    "all biases": ("gpt2", GPT2 | {"bias": "all"}, GPT2 | {"target_modules": ["c_attn"], "bias": "all"}),
    "biases of targets": ("gpt2", GPT2 | {"bias": "lora_only"}, GPT2),
    "biases of both kinds": ("gpt2", GPT2 | {"bias": "lora_only"}, GPT2 | {"lora_bias": True}),
    "a saved head": ("llama", {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"], "r": 2}),
    "a saved head and a LoRA on it": ("llama", {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head", "q_proj"]}),
    "a saved module": ("gpt2", GPT2 | {"modules_to_save": ["ln_f"], "target_modules": ["c_attn"]}, GPT2),
    "tokens": ("llama", {"trainable_token_indices": [3, 1]}, {"trainable_token_indices": [3, 7, 5]}),
    "tokens by name": ("llama", {"trainable_token_indices": {"embed_tokens": [2, 4]}}, {}),
    "experts": ("experts", EXPERTS, EXPERTS | {"r": 3}),
    "experts in one": ("experts", EXPERTS, {"target_modules": ["q_proj", "k_proj"]}),
    "experts of one kind": ("experts", EXPERTS, EXPERTS | {"target_parameters": ["experts.down_proj"]}),
}  # fmt: skip


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_every_kind_is_mixed_as_its_weights_are(kinds, make_base, experts, trained, mix_adapters, recwarn):
    kind, first, second = kinds
    base = experts if kind == "experts" else make_base(kind)
    adapters = [(trained(base, 1, **first), 0.4), (trained(base, 2, **second), -0.7)]
    old = peft_weights(base)
    expected = dict(old)
    for folder, weight in adapters:
        for name, tensor in peft_weights(base, folder).items():
            expected[name] = expected[name] + weight * (tensor - old[name])
    recwarn.clear()
    out, report = mix_adapters(base, adapters, base_folder=base)
    mixed = peft_weights(base, out)
    assert not [warning for warning in recwarn if "adapter keys" in str(warning.message)]
    assert mixed.keys() == expected.keys()
    for name, exact in expected.items():
        np.testing.assert_allclose(mixed[name], exact, rtol=1e-5, atol=2e-6, err_msg=name)
    moved = {name for name in old if np.abs(expected[name] - old[name]).max() > 1e-5}
    assert {tensor.name for tensor in report.tensors} == moved
    for tensor in report.tensors:
        assert tensor.delta_norm == pytest.approx(np.linalg.norm(expected[tensor.name] - old[tensor.name]), rel=1e-4)
        assert tensor.relative_error < 1e-5
    facts = inspect_adapter(out, inspect_base(base))
    assert {m.weight for m in facts.modules} | {t.name for t in (*facts.saved, *facts.tokens)} <= moved


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_every_kind_answers_as_the_merged_checkpoint(
    kinds, make_base, experts, trained, mix_adapters, merged, logits_of
):
    kind, first, second = kinds
    base = experts if kind == "experts" else make_base(kind)
    adapters = [(trained(base, 1, **first), 0.4), (trained(base, 2, **second), -0.7)]
    out, _ = mix_adapters(base, adapters, base_folder=base)
    answer = logits_of(peft_loaded(base, out))
    assert (answer - logits_of(base)).abs().max() > 1e-3
    assert (answer - logits_of(merged(base, adapters))).abs().max() < 1e-4
    assert (answer - logits_of(merged(base, [(out, 1.0)]))).abs().max() < 1e-4


def test_one_saved_head_at_weight_1_is_kept_bit_for_bit(base, trained, mix_adapters):
    folder = trained(base, 1, modules_to_save=["lm_head"])
    out, _ = mix_adapters(base, [(folder, 1.0)], base_folder=base)
    name = "base_model.model.lm_head.weight"
    assert torch.equal(load_file(out / ADAPTER)[name], load_file(folder / ADAPTER)[name])


def test_a_saved_head_of_a_tied_base_stays_the_adapters_own(make_base, trained, mix_adapters, merged, logits_of):
    base = make_base(tied=True)
    folder = trained(base, 1, modules_to_save=["lm_head"])
    adapters = [(folder, 0.5), (trained(base, 2), 0.5)]
    out, _ = mix_adapters(base, adapters, base_folder=base)
    assert (logits_of(peft_loaded(base, out)) - logits_of(merged(base, adapters))).abs().max() < 1e-4
    alone, _ = mix_adapters(base, [(folder, 1.0)], base_folder=base)
    assert (logits_of(peft_loaded(base, alone)) - logits_of(peft_loaded(base, folder))).abs().max() < 1e-4


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_lora_on_one_side_of_a_tie_leaves_the_other(target, make_base, trained, mix_adapters, merged, logits_of):
    base = make_base(tied=True)
    adapters = [(trained(base, 1, target_modules=[target]), 0.5), (trained(base, 2), 0.5)]
    for options in ({}, {"rank": 3}):
        out, _ = mix_adapters(base, adapters, base_folder=base, **options)
        assert (logits_of(peft_loaded(base, out)) - logits_of(merged(base, [(out, 1.0)]))).abs().max() < 1e-4
        if not options:
            assert (logits_of(peft_loaded(base, out)) - logits_of(merged(base, adapters))).abs().max() < 1e-4


def test_tokens_of_a_tied_base_keep_the_tie(make_base, trained, mix_adapters, merged, logits_of):
    base = make_base(tied=True)
    folder = trained(base, 1, trainable_token_indices=[3, 1])
    adapters = [(folder, 0.5), (trained(base, 2, trainable_token_indices=[4]), 0.5)]
    out, _ = mix_adapters(base, adapters, base_folder=base)
    assert (logits_of(peft_loaded(base, out)) - logits_of(merged(base, adapters))).abs().max() < 1e-4
    alone, _ = mix_adapters(base, [(folder, 1.0)], base_folder=base)
    assert (logits_of(peft_loaded(base, alone)) - logits_of(peft_loaded(base, folder))).abs().max() < 1e-4


def test_an_embedding_saved_along_unchanged_is_not_written_again(base, make_adapter, mix_adapters, tmp_path, deltas):
    folder = make_adapter(base, 1, target_modules=["embed_tokens", "q_proj"])
    copy = tmp_path / "with-embedding"
    peft_loaded(base, folder).save_pretrained(copy, save_embedding_layers=True)
    assert any("base_layer" in name for name in load_file(copy / ADAPTER))
    out, _ = mix_adapters(base, [(copy, 0.5)], base_folder=base)
    without, _ = mix_adapters(base, [(folder, 0.5)], base_folder=base)
    assert (out / ADAPTER).read_bytes() == (without / ADAPTER).read_bytes()


@pytest.mark.parametrize(
    ("kind", "options"), [("llama", {}), ("llama", {"target_modules": ["embed_tokens", "v_proj"]}), ("gpt2", GPT2)]
)
def test_one_dora_is_kept_as_it_is(kind, options, make_base, trained, mix_adapters, logits_of):
    base = make_base(kind)
    folder = trained(base, 1, use_dora=True, **options)
    out, report = mix_adapters(base, [(folder, 1.0)], base_folder=base)
    assert config_of(out)["use_dora"] is True
    assert (logits_of(peft_loaded(base, out)) - logits_of(peft_loaded(base, folder))).abs().max() < 1e-5
    old, new = peft_weights(base), peft_weights(base, folder)
    for tensor in report.tensors:
        assert tensor.delta_norm == pytest.approx(np.linalg.norm(new[tensor.name] - old[tensor.name]), rel=1e-4)
        assert tensor.relative_error < 1e-5


@pytest.mark.parametrize(("kind", "options"), [("llama", {}), ("gpt2", GPT2)])
@pytest.mark.parametrize("rank", [5, 64])
def test_dora_in_a_mix_is_cut_to_a_rank(kind, options, rank, make_base, trained, mix_adapters):
    base = make_base(kind)
    adapters = [(trained(base, 1, use_dora=True, **options), 0.6), (trained(base, 2, **options), 0.5)]
    out, report = mix_adapters(base, adapters, base_folder=base, rank=rank)
    old, mixed = peft_weights(base), peft_weights(base, out)
    for tensor in report.tensors:
        delta = sum(
            weight * (peft_weights(base, folder)[tensor.name] - old[tensor.name]) for folder, weight in adapters
        )
        values = np.linalg.svd(delta, compute_uv=False)
        off = np.linalg.norm(mixed[tensor.name] - old[tensor.name] - delta) / np.linalg.norm(delta)
        assert tensor.relative_error == pytest.approx(np.linalg.norm(values[rank:]) / np.linalg.norm(delta), abs=1e-5)
        assert tensor.relative_error == pytest.approx(off, abs=1e-5)
        assert (tensor.relative_error < 1e-5) == (rank == 64)


def test_dora_in_a_mix_is_refused_without_a_rank(base, trained, mix_adapters):
    adapters = [(trained(base, 1, use_dora=True), 0.6), (trained(base, 2), 0.5)]
    with pytest.raises(MergeError, match=r"q_proj\.weight holds DoRA in .* full rank") as refused:
        mix_adapters(base, adapters, base_folder=base)
    assert "rank" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modules_to_save": ["lm_head"]}, r"lm_head\.weight is saved whole"),
        ({"trainable_token_indices": [1]}, "has single tokens trained"),
        ({"use_dora": True}, "is a DoRA"),
    ],
)
def test_what_depends_on_the_bases_weights_is_refused_without_them(options, said, base, trained, mix_adapters):
    with pytest.raises(MergeError, match=said):
        mix_adapters(base, [(trained(base, 1, **options), 1.0)])


def test_a_bias_of_lora_that_would_need_a_bias_elsewhere_is_refused(make_base, trained, mix_adapters):
    base = make_base("gpt2")
    adapters = [
        (trained(base, 1, **GPT2 | {"lora_bias": True}), 0.5),
        (trained(base, 2, **GPT2 | {"target_modules": ["wte"]}), 0.5),
    ]
    with pytest.raises(MergeError, match=r"lora_bias, which would apply to transformer\.wte\.weight"):
        mix_adapters(base, adapters, base_folder=base)


def test_tokens_and_a_lora_on_one_embedding_are_refused(base, trained, mix_adapters):
    adapters = [
        (trained(base, 1, trainable_token_indices=[1]), 0.5),
        (trained(base, 2, target_modules=["embed_tokens"]), 0.5),
    ]
    with pytest.raises(MergeError, match="no adapter can hold both"):
        mix_adapters(base, adapters, base_folder=base)


def test_a_mix_in_which_no_lora_is_left_is_refused(base, trained, mix_adapters):
    adapters = [
        (trained(base, 1, target_modules=["v_proj"], modules_to_save=["lm_head"]), 0.5),
        (trained(base, 2, target_modules=["lm_head"], modules_to_save=["v_proj"]), 0.5),
    ]
    with pytest.raises(MergeError, match="no LoRA is left"):
        mix_adapters(base, adapters, base_folder=base)


def test_parameters_that_no_adapter_has_all_of_are_refused(experts, trained, mix_adapters):
    adapters = [
        (trained(experts, 1, target_modules=[], target_parameters=["experts.gate_up_proj"]), 0.5),
        (trained(experts, 2, target_modules=[], target_parameters=["experts.down_proj"]), 0.5),
    ]
    with pytest.raises(MergeError, match="none has them all"):
        mix_adapters(experts, adapters, base_folder=experts)


def test_experts_are_cut_to_a_rank_one_by_one(experts, trained, mix_adapters):
    adapters = [(trained(experts, 1, **EXPERTS), 0.4), (trained(experts, 2, **EXPERTS), -0.7)]
    out, report = mix_adapters(experts, adapters, rank=3)
    old, mixed = peft_weights(experts), peft_weights(experts, out)
    for tensor in report.tensors:
        delta = sum(w * (peft_weights(experts, folder)[tensor.name] - old[tensor.name]) for folder, w in adapters)
        values = np.linalg.svd(delta, compute_uv=False)
        cut = np.linalg.norm(values[..., 3:]) / np.linalg.norm(delta)
        assert tensor.relative_error == pytest.approx(cut, rel=1e-4)
        off = np.linalg.norm(mixed[tensor.name] - old[tensor.name] - delta) / np.linalg.norm(delta)
        assert tensor.relative_error == pytest.approx(off, rel=1e-4)


# --- methods on dense deltas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [("ties_peft", {"density": 0.5}), ("dare_linear_peft", {"density": 0.5}), ("ties_mergekit", {"density": 0.3})],
)
def test_a_method_on_dense_deltas_is_the_nearest_to_its_checkpoint(
    method, options, make_base, make_adapter, mix_adapters, mix, read_weights
):
    base = make_base("gpt2")
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    adapters = [(make_adapter(base, 1, **settings), 0.6), (make_adapter(base, 2, **settings), 0.5)]
    whole, _ = mix(base, adapters, method=method, options=options)
    out, report = mix_adapters(base, adapters, method=method, options=options, rank=9, base_folder=base)
    old, wanted, mixed = read_weights(base), read_weights(whole), peft_weights(base, out)
    for tensor in report.tensors:
        name = next(stored for stored in old if tensor.name.endswith(stored))
        delta = wanted[name] - old[name]
        values = np.linalg.svd(delta, compute_uv=False)
        off = np.linalg.norm(mixed[tensor.name] - old[name] - delta) / np.linalg.norm(delta)
        assert tensor.relative_error == pytest.approx(np.linalg.norm(values[9:]) / np.linalg.norm(delta), abs=1e-5)
        assert tensor.relative_error == pytest.approx(off, abs=1e-5)
        assert 0.05 < tensor.relative_error < 1


def test_a_method_on_dense_deltas_needs_a_rank(base, make_adapter, mix_adapters):
    adapters = [(make_adapter(base, 1), 0.6), (make_adapter(base, 2), 0.5)]
    with pytest.raises(MergeError, match="mixed by 'ties_peft'") as refused:
        mix_adapters(base, adapters, method="ties_peft", options={"density": 0.5}, base_folder=base)
    assert "rank" in str(refused.value.hint)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_nearest_finds_what_a_full_svd_finds(shape):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    b, a = nearest(delta, 7)
    u, values, vh = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    np.testing.assert_allclose((b @ a).numpy(), (u[:, :7] * values[:7]) @ vh[:7], atol=1e-10)
    np.testing.assert_allclose(b.norm(dim=0), values[:7] ** 0.5)


# --- truncated ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_truncation_is_as_near_as_a_full_svd_of_the_delta_comes(
    kind, rank, make_base, make_adapter, mix_adapters, deltas
):
    base = make_base(kind)
    options = {} if kind == "llama" else {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}
    adapters = [(make_adapter(base, 1, **options), 0.6), (make_adapter(base, 2, **options | {"r": 9}), -0.8)]
    out, report = mix_adapters(base, adapters, rank=rank)
    exact, loaded = weighted_deltas(deltas, base, adapters), deltas(base, out)
    assert config_of(out)["r"] == rank
    for tensor in report.tensors:
        delta = exact[tensor.name]
        values = np.linalg.svd(delta, compute_uv=False)
        norm = np.linalg.norm(delta)
        assert tensor.rank == rank
        assert tensor.delta_norm == pytest.approx(norm, rel=1e-6)
        assert tensor.relative_error == pytest.approx(np.linalg.norm(values[rank:]) / norm, rel=1e-5)
        assert tensor.relative_error == pytest.approx(np.linalg.norm(loaded[tensor.name] - delta) / norm, rel=1e-5)


def test_a_module_within_the_rank_stays_exact(base, make_adapter, mix_adapters):
    adapters = [(make_adapter(base, 1), 0.5), (make_adapter(base, 2, target_modules=["q_proj"]), 0.5)]
    exact, short = mix_adapters(base, adapters)[0], mix_adapters(base, adapters, rank=5)
    kept = {tensor.name for tensor in short[1].tensors if tensor.relative_error < 1e-6}
    assert kept == {tensor.name for tensor in short[1].tensors if "q_proj" not in tensor.name}
    for name, tensor in load_file(exact / ADAPTER).items():
        if "q_proj" not in name:
            assert torch.equal(tensor, load_file(short[0] / ADAPTER)[name])
    assert config_of(short[0])["r"] == 4
    assert config_of(short[0])["rank_pattern"] == {"q_proj": 5}


def test_no_rank_is_larger_than_the_matrix(base, make_adapter, mix_adapters, deltas):
    adapters = [(make_adapter(base, 1, r=40), 0.5), (make_adapter(base, 2, r=40), 0.5)]
    out, report = mix_adapters(base, adapters, rank=70)
    by_name = {tensor.name: tensor for tensor in report.tensors}
    assert by_name["model.layers.0.self_attn.k_proj.weight"].rank == 32  # [32, 64]
    assert all(tensor.relative_error < 1e-6 for tensor in report.tensors)
    for name, exact in weighted_deltas(deltas, base, adapters).items():
        np.testing.assert_allclose(deltas(base, out)[name], exact, rtol=1e-4, atol=1e-4, err_msg=name)


def test_adapters_that_cancel_leave_an_adapter_of_nothing(base, make_adapter, mix_adapters, deltas):
    folder = make_adapter(base, 1)
    out, report = mix_adapters(base, [(folder, 1.0), (folder, -1.0)], rank=2)
    assert all(np.abs(delta).max() < 1e-6 for delta in deltas(base, out).values())
    json.dumps(report.summary(), allow_nan=False)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 3}, {"rank": 3, "method": "dare_linear_peft", "options": {"density": 0.5}}],
    ids=["exact", "cut", "of dense deltas"],
)
def test_the_same_inputs_give_the_same_bytes_whatever_the_threads(options, base, make_adapter, mix_adapters):
    adapters = [(make_adapter(base, 1), 0.5), (make_adapter(base, 2), 0.5)]
    first, report = mix_adapters(base, adapters, base_folder=base, threads=1, **options)
    second, again = mix_adapters(base, adapters, base_folder=base, threads=3, **options)
    assert report == again
    assert sorted(path.name for path in first.iterdir()) == ["adapter_config.json", ADAPTER]
    assert all((second / path.name).read_bytes() == path.read_bytes() for path in first.iterdir())


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_a_narrow_dtype_is_written_and_its_rounding_counts_as_error(
    dtype, step, base, make_adapter, mix_adapters, deltas
):
    adapters = [(make_adapter(base, 1), 0.4), (make_adapter(base, 2), 0.7)]
    for rank in (None, 3):
        out, report = mix_adapters(base, adapters, dtype=dtype, rank=rank)
        exact, loaded = weighted_deltas(deltas, base, adapters), deltas(base, out)
        assert {tensor.dtype for tensor in load_file(out / ADAPTER).values()} == {getattr(torch, dtype)}
        for tensor in report.tensors:
            off = np.linalg.norm(loaded[tensor.name] - exact[tensor.name]) / np.linalg.norm(exact[tensor.name])
            assert tensor.relative_error == pytest.approx(off, rel=1e-3)
            assert rank or step / 10 < off < step


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("dtype", "weight"), [("float16", 1e11), ("float32", 1e250)])
def test_factors_beyond_a_dtype_are_refused(dtype, weight, rank, base, make_adapter, mix_adapters):
    with pytest.raises(MergeError, match=f"does not stay finite in {dtype}"):
        mix_adapters(base, [(make_adapter(base, 1), weight)], dtype=dtype, rank=rank)


def test_inspection_accepts_what_was_written(base, make_adapter, mix_adapters):
    adapters = [
        (make_adapter(base, 1, rank_pattern={"layers.1.self_attn.q_proj": 2}), 0.5),
        (make_adapter(base, 2), 0.5),
    ]
    out, report = mix_adapters(base, adapters)
    facts = inspect_adapter(out, inspect_base(base), base_names=[str(base)])
    assert {module.scale for module in facts.modules} == {1.0}
    assert {module.weight: module.rank for module in facts.modules} == {t.name: t.rank for t in report.tensors}


def test_config_carries_what_the_parts_agree_on(base, make_adapter, mix_adapters):
    config = config_of(mix_adapters(base, [(make_adapter(base, 1), 0.5), (make_adapter(base, 2), 0.5)])[0])
    expected = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    assert expected.items() <= config.items()
    assert config["r"] == config["lora_alpha"] == 8
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def test_the_file_has_one_key_of_metadata_and_a_fixed_order(base, make_adapter, mix_adapters, read_layout):
    out, report = mix_adapters(base, [(make_adapter(base, 1), 0.5), (make_adapter(base, 2), 0.5)])
    header, tensors = read_layout(out / ADAPTER)
    assert header["__metadata__"] == {"format": "pt"}
    assert list(tensors) == [
        f"base_model.model.{tensor.name.removesuffix('weight')}lora_{side}.weight"
        for tensor in report.tensors
        for side in "AB"
    ]
    assert report.bytes == sum(map(len, tensors.values()))
    with safe_open(out / ADAPTER, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_person_reads_the_worst_and_the_median(base, make_adapter, mix_adapters):
    _, report = mix_adapters(base, [(make_adapter(base, 1), 0.5), (make_adapter(base, 2), 0.5)], rank=4)
    summary = report.summary()
    errors = sorted(tensor.relative_error for tensor in report.tensors)
    assert summary["worst_relative_error"] == pytest.approx(errors[-1], rel=1e-3)
    assert errors[0] <= summary["median_relative_error"] <= errors[-1]
    assert summary["worst_tensor"] in {tensor.name for tensor in report.tensors}
    json.dumps(summary)


# --- names ----------------------------------------------------------------------------------------------------------

LAYERS = [f"model.layers.{number}.self_attn.{kind}" for number in (1, 11, 111) for kind in ("q_proj", "k_proj")]
NESTED = ["lm_head", "draft.lm_head", "deep.draft.lm_head"]


@pytest.mark.parametrize("names", [LAYERS, NESTED], ids=["numbers that end alike", "names that end in a whole name"])
def test_rank_patterns_give_every_module_its_own_rank_in_peft(names):
    for ranks in itertools.product([1, 2, 3], repeat=len(names)):
        wanted = dict(zip(names, ranks, strict=True))
        patterns = rank_patterns(wanted, 2)
        assert {name: patterns.get(get_pattern_key(patterns, name), 2) for name in names} == wanted


def test_patterns_are_as_short_as_they_can_be():
    assert rank_patterns({name: 8 if name.endswith("k_proj") else 4 for name in LAYERS}, 4) == {"k_proj": 8}


def test_targets_are_last_names_only_where_those_mean_nothing_else():
    base = [f"{name}.weight" for name in LAYERS]
    assert target_modules(LAYERS, base) == ["k_proj", "q_proj"]
    assert target_modules(LAYERS[:3], base) == sorted(LAYERS[:3])
    assert target_modules(LAYERS[:1], [*base, "other.weight"]) == LAYERS[:1]
    assert target_modules(["language." + name for name in LAYERS], base) == [
        "language." + name for name in sorted(LAYERS)
    ]


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_rank_below_1_and_a_weight_that_is_no_number_are_refused(base, make_adapter, mix_adapters):
    with pytest.raises(MergeError, match="rank 0"):
        mix_adapters(base, [(make_adapter(base, 1), 1.0)], rank=0)
    with pytest.raises(MergeError, match="nan"):
        mix_adapters(base, [(make_adapter(base, 1), float("nan"))])
    with pytest.raises(MergeError, match="at least one"):
        mix_adapters(base, [])
