"""What an adapter's configuration names against what its file holds; PEFT is what says which modules those are."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from reccocktail.registry.artifacts.facts import BaseFacts
from reccocktail.registry.artifacts.inspect import inspect_adapter, inspect_base
from reccocktail.registry.artifacts.targets import Targets
from reccocktail.registry.errors import InvalidArtifactError, UnsupportedAdapterError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 20, "max_position_embeddings": 16,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=16),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, head_dim=8),
}
TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["q_proj", "v_proj", "not_there"]}),
    ("llama", {"target_modules": ["self_attn.q_proj", "model.layers.1.mlp.down_proj"]}),
    ("llama", {"target_modules": "all-linear"}),
    ("llama", {"target_modules": "ALL-LINEAR", "exclude_modules": ["down_proj", "model.layers.0.self_attn.q_proj"]}),
    ("llama", {"target_modules": r".*\.(q|k)_proj"}),
    ("llama", {"target_modules": r"^(?!.*layers\.1).*(?:q_proj|down_proj)$"}),
    ("llama", {"target_modules": r"(?:.*?(?:layers|text).*?(?:self_attn|mlp).*?(?:k_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:(?:down_proj)))"}),
    ("llama", {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.[02]\..*"}),
    ("llama", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]}),
    ("llama", {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}),
    ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["blocks", "lay.rs"]}),
    ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": []}),
    ("llama", {"target_modules": ["model.layers.0.self_attn.q_proj", "k_proj"], "layers_to_transform": [2]}),
    ("llama", {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens", "mlp"]}),
    ("llama", {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["layers.1"]}),
    ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    ("qwen2", {"target_modules": ["q_proj", "embed_tokens"], "exclude_modules": "model"}),
    ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"]}),
    ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": [1], "layers_pattern": "h"}),
    ("gpt2", {"target_modules": "all-linear"}),
    ("qwen3_moe", {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0, 1]}),
]  # fmt: skip


def on_meta(kind: str) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[kind])


@pytest.mark.parametrize(("kind", "options"), TARGETS, ids=str)
def test_a_configuration_targets_the_modules_that_peft_gives_factors_to(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = on_meta(kind)
    leaves = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding)) or type(module).__name__ == "Conv1D"]  # fmt: skip
    raw = json.loads(json.dumps(options))
    targets = Targets.parse(raw, tmp_path, tuple(raw.get("modules_to_save") or ()))
    if targets.all_linear:  # which are linear is a matter of the model
        leaves = [name for name in leaves if name != "lm_head" and not name.endswith(("embed_tokens", "wte", "wpe"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    assert targets.of(leaves) == set(peft.base_model.targeted_module_names)  # pyright: ignore
    assert DUMMY_TARGET_MODULES not in targets.of(leaves)


def test_an_expression_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reccocktail.registry.artifacts.safe_regex.SECONDS", 1)
    targets = Targets.parse({"target_modules": "(a+)+b"}, tmp_path, ())
    with pytest.raises(ValueError, match="takes more than"):
        targets.of(["a" * 60])
    with pytest.raises(ValueError, match="not a regular expression"):
        Targets.parse({"target_modules": "(q_proj"}, tmp_path, ()).of(["q_proj"])


# --- files that lack something, or have too much

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, BaseFacts]]:
    """(kind, options): an adapter that PEFT saved, with B that is not zero, and the facts of its base."""
    known: dict[str, tuple[Path, BaseFacts]] = {}

    def make(kind: str = "llama", **options: Any) -> tuple[Path, BaseFacts]:
        key = f"{kind} {options}"
        if key not in known:
            base = tmp_path_factory.mktemp("base")
            AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(base)
            model = AutoModelForCausalLM.from_pretrained(base)
            settings: dict[str, Any] = {"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM", "init_lora_weights": False}
            folder = tmp_path_factory.mktemp("adapter")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                get_peft_model(model, LoraConfig(**settings | options)).save_pretrained(folder)
            known[key] = folder, inspect_base(base)
        return known[key]

    return make


def changed(folder: Path, out: Path, change: Change, **config: Any) -> Path:
    shutil.copytree(folder, out)
    path = out / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    if config:
        file = out / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return out


def without(*parts: str) -> Change:
    return lambda tensors: {name: t for name, t in tensors.items() if not all(part in name for part in parts)}


LISTED = {"target_modules": ["q_proj", "down_proj"]}
LACKS: list[tuple[str, dict[str, Any], Change, str]] = [
    ("llama", LISTED, without("down_proj"), "model.layers.2.mlp.down_proj"),
    ("llama", LISTED, without(".layers.1."), "model.layers.1.self_attn.q_proj"),
    ("llama", LISTED, without(".layers.1.", "down_proj"), "model.layers.1.mlp.down_proj"),
    ("llama", {"target_modules": r".*(q|v)_proj"}, without("v_proj"), "v_proj"),
    ("llama", LISTED | {"layers_to_transform": [0, 2]}, without(".layers.2."), "layers.2"),
    ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, without("lm_head"), "lm_head"),
    ("qwen2", {"target_modules": ["q_proj", "lm_head"]}, without("lm_head"), "lm_head"),
    ("llama", LISTED | {"modules_to_save": ["embed_tokens", "lm_head"]}, without("lm_head"), "lm_head"),
    ("llama", LISTED | {"modules_to_save": ["lm_head"]}, without("lm_head"), "lm_head"),
    ("llama", LISTED | {"modules_to_save": ["layernorm"]}, without(".1.post_attention_layernorm"), "1.post_attention"),
    ("qwen2", LISTED | {"bias": "all"}, without("k_proj", "bias"), "k_proj.bias"),
    ("qwen2", LISTED | {"bias": "lora_only"}, without(".2.", "q_proj", "bias"), "layers.2.self_attn.q_proj.bias"),
    ("llama", LISTED | {"trainable_token_indices": [3, 4]}, without("trainable_tokens"), "trainable_token_indices"),
    ("gpt2", {"target_modules": ["c_attn"]}, without(".h.1."), "h.1.attn.c_attn"),
    ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}, without(".2.", "experts"), "layers.2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "change", "named"), LACKS, ids=lambda value: None if callable(value) else str(value)[:60]
)
def test_what_the_configuration_names_and_the_file_lacks_is_refused(
    made: Any, tmp_path: Path, kind: str, options: dict[str, Any], change: Change, named: str
) -> None:
    folder, base = made(kind, **options)
    assert inspect_adapter(folder, base).missing == ()
    broken = changed(folder, tmp_path / "a", change)
    with pytest.raises(InvalidArtifactError, match="lacks what") as caught:
        inspect_adapter(broken, base)
    assert named in str(caught.value)
    assert "--allow-partial" in (caught.value.hint or "")
    facts = inspect_adapter(broken, base, allow_partial=True)
    assert named in " ".join(facts.missing)
    assert any(facts.missing[0] in note for note in facts.notes)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_all_linear_is_complete_without_the_head_and_not_without_a_layer(made: Any, tmp_path: Path, kind: str) -> None:
    folder, base = made(kind, target_modules="all-linear")
    whole = changed(folder, tmp_path / "a", lambda tensors: tensors, target_modules="all-linear")
    assert inspect_adapter(whole, base).missing == ()
    with pytest.raises(InvalidArtifactError, match="lacks what"):
        inspect_adapter(changed(whole, tmp_path / "b", without(".1.")), base)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"]}, {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"target_modules": r".*q_proj"}, {"layers_to_transform": [0]}, {"modules_to_save": ["mlp"]}, {"target_modules": []},
    ],
    ids=str,
)  # fmt: skip
def test_factors_of_modules_that_are_not_targeted_are_refused(
    made: Any, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder, _ = made(**LISTED)
    if config == {"target_modules": []}:
        config = config | {"target_parameters": ["experts.down_proj"]}
    with pytest.raises(InvalidArtifactError, match=r"does not target|names no parameter"):
        inspect_adapter(changed(folder, tmp_path / "a", lambda tensors: tensors, **config), None)


def test_a_checkpoint_may_hold_layers_that_its_model_does_not_use(made: Any, tmp_path: Path) -> None:
    """Such as those that predict further tokens, which are stored after the last layer of the configuration."""
    folder, base = made(**LISTED)
    shorter = BaseFacts(**{**vars(base), "layers": 2})
    assert inspect_adapter(changed(folder, tmp_path / "a", without(".layers.2.")), shorter).missing == ()


def test_a_lora_that_training_never_touched_is_noted(made: Any, tmp_path: Path) -> None:
    folder, base = made(**LISTED)
    dead = changed(folder, tmp_path / "a", lambda ts: {n: t * 0 if "lora_B" in n else t for n, t in ts.items()})
    partly = changed(
        folder, tmp_path / "b", lambda ts: {n: t * -0.0 if "lora_B" in n and ".1." in n else t for n, t in ts.items()}
    )
    assert inspect_adapter(folder, base).notes == ()
    assert any("6 of 6" in note for note in inspect_adapter(dead, base).notes)
    assert any("2 of 6" in note for note in inspect_adapter(partly, base).notes)
    assert inspect_adapter(dead, base, scan=False).notes == ()


# --- names that wrappers have changed


def renamed(rename: Callable[[str], str]) -> Change:
    return lambda tensors: {rename(name): tensor.clone() for name, tensor in tensors.items()}


NAMED = ("lora_A.", "lora_B.")
RENAMES: dict[str, Callable[[str], str]] = {
    "adapter": lambda n: n.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
    "another adapter": lambda n: n.replace("lora_A.", "lora_A.spirit.").replace("lora_B.", "lora_B.spirit."),
    "compiled": lambda n: f"_orig_mod.{n}",
    "compiled within": lambda n: n.replace("base_model.model.", "base_model.model._orig_mod."),
    "fsdp": lambda n: "_fsdp_wrapped_module." + n.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."),
    "checkpointed": lambda n: n.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
    "ddp": lambda n: f"module.{n}",
    "ddp within": lambda n: n.replace("base_model.model.", "base_model.model.module."),
    "all": lambda n: "module._orig_mod." + n.replace("lora_A.", "_fsdp_wrapped_module.lora_A.default."),
    "lightning": lambda n: f"model.{n}",
    "twice": lambda n: f"base_model.model.{n}",
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
def test_wrappers_are_taken_off_the_names(made: Any, tmp_path: Path, rename: Callable[[str], str]) -> None:
    folder, base = made(**LISTED, modules_to_save=["lm_head"])
    plain = inspect_adapter(folder, base)
    if rename is RENAMES["all"]:
        rename = lambda n: RENAMES["all"](n).replace("lora_B.", "lora_B.default.")  # noqa: E731
    found = inspect_adapter(changed(folder, tmp_path / "a", renamed(rename)), base)
    assert [(m.weight, m.a.shape, m.places) for m in found.modules] == [
        (m.weight, m.a.shape, m.places) for m in plain.modules
    ]
    assert [(t.name, t.place) for t in found.saved] == [(t.name, t.place) for t in plain.saved]
    assert found.notes


def test_the_raw_state_of_a_peft_model_is_understood(made: Any, tmp_path: Path) -> None:
    """`model.state_dict()` without PEFT's `get_peft_model_state_dict`: the adapter's name, and copies of what was there before."""

    def raw(tensors: Tensors) -> Tensors:
        found = renamed(RENAMES["adapter"])(tensors)
        head = found.pop("base_model.model.lm_head.weight")
        return found | {
            "base_model.model.lm_head.modules_to_save.default.weight": head,
            "base_model.model.lm_head.original_module.weight": head * 0,
        }

    folder, base = made(**LISTED, modules_to_save=["lm_head"])
    facts = inspect_adapter(changed(folder, tmp_path / "a", raw), base)
    assert [tensor.info.name for tensor in facts.saved] == ["base_model.model.lm_head.modules_to_save.default.weight"]
    assert [copy.name for copy in facts.copies] == ["base_model.model.lm_head.original_module.weight"]


def test_two_adapters_in_one_file_are_refused(made: Any, tmp_path: Path) -> None:
    folder, base = made(**LISTED)
    both: Change = lambda ts: renamed(RENAMES["adapter"])(ts) | renamed(RENAMES["another adapter"])(ts)  # noqa: E731
    with pytest.raises(UnsupportedAdapterError, match="'default', 'spirit'"):
        inspect_adapter(changed(folder, tmp_path / "a", both), base)
    twice: Change = lambda ts: {**ts, **renamed(RENAMES["compiled"])(ts)}  # noqa: E731
    with pytest.raises(InvalidArtifactError, match="same parameter"):
        inspect_adapter(changed(folder, tmp_path / "b", twice), base)


# --- keys of configurations, and other files


@pytest.mark.parametrize(
    ("config", "noted"),
    [
        ({"lorap_emb_lr": 1e-6}, True), ({"lora_dtype": "float32"}, True), ({"unsloth_fixed": True}, True), ({"_note": "x"}, True),
        ({"alpha_pattern": {"fc1": 32}}, True), ({"rank_pattern": {"fc1": 32}}, True), ({"qafuture_size": 3, "use_qafuture": False}, True),
        ({"use_future": False}, False), ({"future_config": {"a": {"b": False}, "c": []}}, False), ({"enable_lora": None}, False),
    ],
    ids=str,
)  # fmt: skip
def test_keys_that_change_nothing_are_noted_or_passed_over(
    made: Any, tmp_path: Path, config: dict[str, Any], noted: bool
) -> None:
    folder, base = made(**LISTED)
    facts = inspect_adapter(changed(folder, tmp_path / "a", lambda tensors: tensors, **config), base)
    assert bool(facts.notes) == noted
    assert facts.modules == inspect_adapter(folder, base).modules


@pytest.mark.parametrize("config", [{"use_future": True}, {"lora_scale": 2}, {"enable_lora": [True]}], ids=str)
def test_keys_that_could_change_the_sum_are_refused(made: Any, tmp_path: Path, config: dict[str, Any]) -> None:
    folder, base = made(**LISTED)
    with pytest.raises(UnsupportedAdapterError, match=next(iter(config))):
        inspect_adapter(changed(folder, tmp_path / "a", lambda tensors: tensors, **config), base)


def test_a_pickle_counts_only_where_it_is_alone(made: Any, tmp_path: Path) -> None:
    folder, base = made(**LISTED)
    both = shutil.copytree(folder, tmp_path / "both")
    (both / "adapter_model.bin").write_bytes(b"\x80\x02.")
    assert inspect_adapter(both, base) == inspect_adapter(folder, base)
    (both / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidArtifactError, match="is a pickle") as caught:
        inspect_adapter(both, base)
    assert "weights_only=True" in (caught.value.hint or "")
