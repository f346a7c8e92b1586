"""Parameters are found in checkpoints where transformers finds them: what it loads is the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reccocktail.registry.artifacts.tensor_names import AmbiguousNameError, Place, TensorNameResolver
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SMALL: dict[str, Any] = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
HEADS: dict[str, Any] = {"head_dim": 8}
GPT2 = GPT2Config(vocab_size=24, n_embd=16, n_layer=1, n_head=2, n_positions=8)
BERT: dict[str, Any] = {name: SMALL[name] for name in SMALL if name != "num_key_value_heads"}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**BERT)),
    "bert": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=3)),
    "phimoe": lambda: PhimoeForCausalLM(PhimoeConfig(**SMALL, num_local_experts=3)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=6, **HEADS)
    ),
    "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**SMALL, num_experts=3, num_experts_per_tok=2)),
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **BERT, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1, moe_intermediate_size=8, n_group=1,
            topk_group=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        )
    ),
    "gemma3": lambda: Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=SMALL | HEADS, vision_config=VISION, mm_tokens_per_image=4)
    ),
    "granitemoe": lambda: GraniteMoeForCausalLM(
        GraniteMoeConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2)
    ),
    "jamba": lambda: JambaForCausalLM(
        JambaConfig(**SMALL, num_experts=3, attn_layer_period=2, attn_layer_offset=0, use_mamba_kernels=False)
    ),
}  # fmt: skip


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def assembled(
    naming: TensorNameResolver, name: str, stored: dict[str, torch.Tensor], dimensions: int
) -> torch.Tensor | None:
    """The parameter put together from its places, and from nothing else."""
    if dimensions != 3:
        place = naming.place(name)
        return None if place is None else stored[place.tensor]
    experts: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for place in naming.expert_places(name):
        assert place.expert is not None
        assert not place.transposed
        piece = stored[place.tensor] if place.index is None else stored[place.tensor][place.index]
        start, end = place.rows or (0, len(piece))
        assert end - start == len(piece)
        experts.setdefault(place.expert, []).append((start, piece))
    rows = [
        torch.cat([piece for _, piece in sorted(pieces, key=lambda p: p[0])]) for _, pieces in sorted(experts.items())
    ]
    return torch.stack(rows) if rows else None


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_where_the_loaded_model_has_it_from(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    model = type(MODELS[kind]()).from_pretrained(tmp_path)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    naming = TensorNameResolver(shapes(stored))
    for name, parameter in model.named_parameters():
        found = assembled(naming, name, stored, 3 if ".experts." in name or parameter.ndim == 3 else 1)
        if ".conv1d." in name:  # a true convolution, which is one tensor of three dimensions
            found = assembled(naming, name, stored, 1)
        assert found is not None, name
        assert torch.equal(found, parameter), name
    for name in tied:
        place = naming.place(name)
        assert place is None or torch.equal(stored[place.tensor], model.get_parameter(name))


@pytest.mark.parametrize(("kind", "prefix"), [("gpt2", "transformer."), ("bert", "bert."), ("llama", "model.")])
def test_a_checkpoint_of_the_base_model_alone_lacks_the_prefix(kind: str, prefix: str, tmp_path: Path) -> None:
    """As the official files of GPT-2 and BERT: transformers loads them into the class with a head."""
    torch.manual_seed(0)
    whole = MODELS[kind]()
    whole.save_pretrained(tmp_path)
    stored = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if name.startswith(prefix)
    }
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = type(whole).from_pretrained(tmp_path)
    naming = TensorNameResolver(shapes(stored))
    inner = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    assert inner
    for name in inner:
        place = naming.place(name)
        assert place is not None
        assert torch.equal(stored[place.tensor], model.get_parameter(name))


def test_an_adapter_of_the_base_model_alone_is_found_in_the_checkpoint_with_a_head() -> None:
    naming = TensorNameResolver({"transformer.h.0.attn.c_attn.weight": (4, 12), "lm_head.weight": (9, 4)})
    assert naming.place("h.0.attn.c_attn.weight") == Place("transformer.h.0.attn.c_attn.weight")
    assert naming.place("h.1.attn.c_attn.weight") is None


def test_a_prefix_that_the_checkpoint_has_is_never_dropped() -> None:
    naming = TensorNameResolver({"model.layers.0.weight": (2, 2), "layers.1.weight": (2, 2)})
    assert naming.place("model.layers.1.weight") is None


def test_experts_that_the_checkpoint_keeps_fused_are_found_by_their_index() -> None:
    naming = TensorNameResolver({"model.layers.0.mlp.experts.down_proj": (2, 4, 3)})
    assert naming.expert_places("model.layers.0.mlp.experts.down_proj") == (
        Place("model.layers.0.mlp.experts.down_proj", expert=0, index=0),
        Place("model.layers.0.mlp.experts.down_proj", expert=1, index=1),
    )


def test_gate_and_up_are_the_rows_of_each_expert_in_this_order() -> None:
    naming = TensorNameResolver(
        {f"m.mlp.experts.{e}.{part}.weight": (3, 4) for e in (0, 1) for part in ("up_proj", "gate_proj")}
    )
    assert naming.expert_places("m.mlp.experts.gate_up_proj") == (
        Place("m.mlp.experts.0.gate_proj.weight", expert=0, rows=(0, 3)),
        Place("m.mlp.experts.0.up_proj.weight", expert=0, rows=(3, 6)),
        Place("m.mlp.experts.1.gate_proj.weight", expert=1, rows=(0, 3)),
        Place("m.mlp.experts.1.up_proj.weight", expert=1, rows=(3, 6)),
    )


def test_half_an_expert_is_no_place() -> None:
    naming = TensorNameResolver({f"m.mlp.experts.{name}.weight": (3, 4) for name in ("0.w1", "0.w3", "1.w1")})
    assert naming.expert_places("m.mlp.experts.gate_up_proj") == ()


@pytest.mark.parametrize(
    ("parameter", "stored"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("embed_out.weight", "lm_head.weight"),
        ("model.visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
        ("bert.embeddings.LayerNorm.bias", "embeddings.LayerNorm.beta"),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
    ],
)  # fmt: skip
def test_names_that_changed_with_transformers_are_found_under_the_other(parameter: str, stored: str) -> None:
    naming = TensorNameResolver(
        {stored: (2, 2), "model.norm.weight": (2,)} if stored.startswith("model.") else {stored: (2, 2)}
    )
    assert naming.place(parameter) == Place(stored)


def test_the_name_itself_comes_before_any_other() -> None:
    naming = TensorNameResolver({"lm_head.weight": (2, 2), "embed_out.weight": (2, 2)})
    assert naming.place("lm_head.weight") == Place("lm_head.weight")


def test_two_tensors_that_could_be_the_parameter_are_ambiguous() -> None:
    naming = TensorNameResolver({"language_model.model.norm.weight": (2,), "model.norm.weight": (2,)})
    with pytest.raises(AmbiguousNameError, match=r"language_model\.model\.norm.*model\.norm"):
        naming.place("model.language_model.norm.weight")


def test_what_cannot_be_placed_has_near_names_that_help() -> None:
    naming = TensorNameResolver({f"model.layers.{n}.self_attn.qkv_proj.weight": (2, 2) for n in range(40)})
    assert naming.place("model.layers.0.self_attn.q_proj.weight") is None
    assert "model.layers.0.self_attn.qkv_proj.weight" in naming.near("model.layers.0.self_attn.q_proj.weight")


def test_gpt2_files_name_no_tensor_twice_and_have_no_masks(tmp_path: Path) -> None:
    """What the naming of a tied head rests on: it is not stored."""
    GPT2LMHeadModel(GPT2).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    naming = TensorNameResolver(shapes(stored))
    assert naming.place("lm_head.weight") is None
    assert naming.could_be("lm_head.weight", "lm_head.weight")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
