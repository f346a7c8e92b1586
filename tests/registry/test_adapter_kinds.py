"""Every kind of adapter, made by PEFT: the facts are enough to make of the base what PEFT makes of it without merging."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from reccocktail.registry import Registry, Settings
from reccocktail.registry.artifacts.facts import AdapterFacts
from reccocktail.registry.artifacts.inspect import inspect_adapter, inspect_base
from reccocktail.registry.artifacts.lora import LoraModule
from reccocktail.registry.artifacts.safetensors import read_header
from reccocktail.registry.artifacts.tensor_names import Place
from reccocktail.registry.catalog.registration import Checks
from reccocktail.registry.errors import InvalidArtifactError, UnsupportedAdapterError
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = 24
SMALL: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
GROUPED: dict[str, Any] = SMALL | {"num_key_value_heads": 1, "head_dim": 8}
SQUARE: dict[str, Any] = GROUPED | {"intermediate_size": 16}
START: dict[str, Any] = {"decoder_start_token_id": 0}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, attention_bias=True)),
    "tied llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    # square matrices, on which a forgotten transpose would not be seen by its shape
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.3)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**GROUPED, num_local_experts=3)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**GROUPED, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8)
    ),
    # as many hidden features as the experts have, so that down_proj is square
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**SQUARE, num_local_experts=3, num_experts_per_tok=2)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, d_model=16, d_kv=8, d_ff=12, num_layers=1, num_heads=2, **START)
    ),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
    "masked bert": lambda: BertForMaskedLM(BertConfig(**SMALL)),
}


@dataclass(frozen=True)
class Kind:
    model: str
    options: dict[str, Any]
    words: int = WORDS  # what the vocabulary is resized to before training
    save: dict[str, Any] = field(default_factory=dict)


QV = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS = {
    "plain": Kind("llama", {"target_modules": QV}),
    "rank-stabilised": Kind("llama", {"target_modules": QV, "use_rslora": True}),
    "patterns": Kind(
        "llama", {"target_modules": "all-linear", "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.mlp.*": 3}}
    ),
    "regular expression": Kind("llama", {"target_modules": r".*layers\.1\..*(q|down)_proj"}),
    "some layers": Kind("llama", {"target_modules": QV, "layers_to_transform": [1]}),
    "excluded modules": Kind("llama", {"target_modules": QV, "exclude_modules": r".*layers\.0.*"}),
    "conv1d": Kind("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d and linear": Kind("gpt2", {"target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "conv1d alone square": Kind("gpt2", {"target_modules": ["attn.c_proj"]}),
    "gpt-neox head": Kind("gpt_neox", {"target_modules": ["query_key_value", "lm_head"]}),
    "dora": Kind("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True}),
    "dora on conv1d": Kind("gpt2", {"target_modules": ["c_attn", "attn.c_proj", "wte"], "use_dora": True}),
    "lora bias": Kind("llama", {"target_modules": QV, "lora_bias": True}),
    "lora bias on conv1d": Kind("gpt2", {"target_modules": ["c_attn"], "lora_bias": True}),
    "all biases": Kind("llama", {"target_modules": QV, "bias": "all"}),
    "biases of adapted layers": Kind("llama", {"target_modules": QV, "bias": "lora_only"}),
    "biases and lora bias": Kind("llama", {"target_modules": QV, "bias": "all", "lora_bias": True}),
    "modules to save": Kind("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm", "o_proj"]}),
    "a whole mlp saved": Kind("llama", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "biases of modules to save": Kind(
        "llama", {"target_modules": ["q_proj"], "modules_to_save": ["o_proj"], "bias": "all"}
    ),
    "embedding": Kind("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding without its copy": Kind(
        "llama", {"target_modules": ["q_proj", "embed_tokens"]}, save={"save_embedding_layers": False}
    ),
    "tied embedding": Kind("tied llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied head": Kind("tied llama", {"target_modules": ["q_proj", "lm_head"]}),
    "tied head and embedding": Kind("tied llama", {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}),
    "tied head saved": Kind("tied llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied embedding saved": Kind("tied llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "embeddings copied": Kind("llama", {"target_modules": QV}, save={"save_embedding_layers": True}),
    "resized": Kind("llama", {"target_modules": QV}, words=WORDS + 3),
    "resized and tied": Kind("tied llama", {"target_modules": QV}, words=WORDS + 3),
    "resized and saved": Kind(
        "llama", {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]}, words=WORDS + 3
    ),
    "resized, tied and saved": Kind(
        "tied llama", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}, words=WORDS + 3
    ),
    "resized, tied and adapted": Kind("tied llama", {"target_modules": [*QV, "embed_tokens"]}, words=WORDS + 3),
    "tokens": Kind("llama", {"target_modules": QV, "trainable_token_indices": [5, 3]}),
    "tokens of both": Kind(
        "llama", {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [7]}}
    ),
    "tied tokens": Kind("tied llama", {"target_modules": QV, "trainable_token_indices": [5, 3]}),
    "tied tokens of both": Kind(
        "tied llama", {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [5, 3]}}
    ),
    "tied but different tokens": Kind(
        "tied llama", {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [7]}}
    ),
    "resized tokens": Kind(
        "llama", {"target_modules": QV, "trainable_token_indices": [WORDS, WORDS + 1]}, words=WORDS + 3
    ),
    "resized and tied tokens": Kind(
        "tied llama", {"target_modules": QV, "trainable_token_indices": [WORDS, 2]}, words=WORDS + 3
    ),
    "gpt2 tokens": Kind("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [5]}}),
    "mixtral experts": Kind(
        "mixtral", {"target_modules": QV, "target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 3}}
    ),
    "one parameter of the experts": Kind("mixtral", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "experts and their router": Kind(
        "mixtral", {"target_modules": [], "target_parameters": [*EXPERTS, "mlp.gate.weight"]}
    ),
    "qwen3 experts": Kind(
        "qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}
    ),
    "experts, rank-stabilised": Kind(
        "qwen3_moe", {"target_modules": [], "target_parameters": EXPERTS, "use_rslora": True}
    ),
    "transposed experts": Kind(
        "gpt_oss", {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    ),
    "biases of experts": Kind(
        "gpt_oss",
        {
            "target_modules": [],
            "target_parameters": ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"],
        },
    ),
    "t5": Kind("t5", {"target_modules": ["q", "wi"]}),
    "bert": Kind("bert", {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"}),
    "bert's norms": Kind("bert", {"target_modules": ["query"], "modules_to_save": ["LayerNorm", "classifier"]}),
    "bert's embedding": Kind("bert", {"target_modules": ["query", "word_embeddings"]}),
    "masked bert": Kind("masked bert", {"target_modules": ["query"]}),
}


@pytest.fixture(scope="module")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp("base")
            model = MODELS[name]()
            with torch.no_grad():
                for parameter in model.parameters():  # biases and norms too, so that losing one is seen
                    parameter += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(made[name])
        return made[name]

    return make


def train(folder: Path, base: Path, kind: Kind) -> Path:
    """An adapter as training leaves it: everything that can be trained is something else than at the start."""
    torch.manual_seed(1)
    model = type(MODELS[kind.model]()).from_pretrained(base)
    if kind.words != WORDS:
        model.resize_token_embeddings(kind.words)
    peft = get_peft_model(model, LoraConfig(**({"r": 2, "lora_alpha": 5, "init_lora_weights": False} | kind.options)))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    peft.save_pretrained(str(folder), **kind.save)
    return folder


def load_peft(base: Path, adapter: Path, kind: Kind) -> Any:
    model = type(MODELS[kind.model]()).from_pretrained(base)
    if kind.words != WORDS:
        model.resize_token_embeddings(kind.words)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def logits(model: Any, kind: Kind) -> torch.Tensor:
    tokens = torch.tensor([[5, 3, 9, 7, 2], [kind.words - 1, 4, 5, 8, WORDS - 1]])
    more = {"decoder_input_ids": tokens.flip(1)} if kind.model == "t5" else {}
    with torch.inference_mode():
        return model(input_ids=tokens, **more).logits


def delta(module: LoraModule, factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[out, in]`, or `[experts, out, in]`, by the definition in LoraModule's docstring."""
    a, b = factors[module.a.name].double(), factors[module.b.name].double()
    if module.experts == 1:
        return module.scale * b @ a
    parts = range(module.experts)
    ranks = [slice(e * module.rank, (e + 1) * module.rank) for e in parts]
    return torch.stack([module.scale * b[:, e :: module.experts] @ a[ranks[e]] for e in parts])


def apply(base: Path, adapter: Path, out: Path) -> AdapterFacts:
    """What one adapter makes of the base, put together from the facts alone."""
    about = inspect_base(base)
    facts = inspect_adapter(adapter, about)
    weights = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    given = load_file(adapter / "adapter_model.safetensors")
    changed = [place.tensor for module in facts.modules for place in module.places]
    changed += [about.head if tensor.place is None else tensor.place.tensor for tensor in facts.saved]
    changed += [rows.place.tensor for rows in facts.tokens if rows.place.tensor == about.head]
    tied = about.tied_embeddings and not {about.embedding, about.head} & {*changed}
    if about.tied_embeddings and not tied:
        assert about.head is not None
        assert about.embedding is not None
        weights.setdefault(about.head, weights[about.embedding].clone())

    for tensor in facts.saved:
        name = tensor.place.tensor if tensor.place else about.head
        assert name is not None
        weights[name] = given[tensor.info.name].double()
    for module in facts.modules:
        change = delta(module, given)
        if module.transposed:
            change = change.transpose(-1, -2)
        for place in module.places:
            part = change if place.expert is None else change[place.expert]
            part = part if place.rows is None else part[slice(*place.rows)]
            if place.index is not None:
                weights[place.tensor][place.index] += part
            else:
                weights[place.tensor] = weights[place.tensor] + part
        if module.magnitude is not None:
            (place,) = module.places
            dimension = 0 if module.transposed else 1
            norm = weights[place.tensor].norm(dim=dimension, keepdim=True)
            weights[place.tensor] *= given[module.magnitude.name].double().reshape(norm.shape) / norm
        if module.bias is not None:
            assert module.bias_place is not None
            weights[module.bias_place.tensor] += module.scale * given[module.bias.name].double()
    for rows in facts.tokens:
        weights[rows.place.tensor][list(rows.indices)] = given[rows.info.name].double()

    shutil.copytree(base, out)
    save_file(
        {name: t.float().contiguous() for name, t in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((out / "config.json").read_text())
    config |= {} if tied or not about.tied_embeddings else {"tie_word_embeddings": False}
    config |= {} if facts.vocabulary is None else {"vocab_size": facts.vocabulary}
    (out / "config.json").write_text(json.dumps(config))
    return facts


@pytest.mark.parametrize("name", KINDS)
def test_the_facts_make_of_the_base_what_peft_makes_of_it(
    name: str, make_base: Callable[[str], Path], tmp_path: Path
) -> None:
    kind = KINDS[name]
    base = make_base(kind.model)
    adapter = train(tmp_path / "adapter", base, kind)
    facts = apply(base, adapter, tmp_path / "merged")

    peft = load_peft(base, adapter, kind)
    expected = logits(peft, kind)
    merged = type(MODELS[kind.model]()).from_pretrained(tmp_path / "merged").eval()
    plain = type(MODELS[kind.model]()).from_pretrained(base).eval()
    if kind.words == WORDS:
        assert (logits(plain, kind) - expected).abs().max() > 0.01  # the adapter does something
    assert torch.allclose(logits(merged, kind), expected, atol=2e-4, rtol=1e-4)

    scales = sorted(module.scale for module in facts.modules)
    layers = [layer for layer in peft.modules() if isinstance(layer, LoraLayer)]
    assert scales == sorted(layer.scaling["default"] for layer in layers)
    assert sorted(module.rank for module in facts.modules) == sorted(layer.r["default"] for layer in layers)

    used = [info.name for m in facts.modules for info in (m.a, m.b, m.magnitude, m.bias) if info is not None]
    used += [part.info.name for part in (*facts.saved, *facts.tokens)] + [copy.name for copy in facts.copies]
    assert set(used) == read_header(adapter / "adapter_model.safetensors").tensors.keys()


def inspected(make_base: Callable[[str], Path], tmp_path: Path, name: str) -> AdapterFacts:
    kind = KINDS[name]
    base = make_base(kind.model)
    return inspect_adapter(train(tmp_path / "adapter", base, kind), inspect_base(base))


def test_dora_lora_bias_and_saved_tensors_have_their_names(make_base: Any, tmp_path: Path) -> None:
    facts = inspected(make_base, tmp_path / "1", "dora")
    magnitudes = {m.weight: m.magnitude.shape for m in facts.modules if m.magnitude}
    assert magnitudes["model.embed_tokens.weight"] == (16,)
    assert magnitudes["lm_head.weight"] == (WORDS,)
    facts = inspected(make_base, tmp_path / "2", "biases and lora bias")
    assert {m.bias_place.tensor for m in facts.modules if m.bias_place} == {f"{m.name}.bias" for m in facts.modules}
    assert {tensor.why for tensor in facts.saved} == {"bias"}
    facts = inspected(make_base, tmp_path / "3", "modules to save")
    names = {tensor.name for tensor in facts.saved if tensor.why == "modules_to_save"}
    # PEFT takes every module whose name ends so
    assert {"lm_head.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"} <= names


def test_a_tied_head_has_a_place_that_the_base_lacks(make_base: Any, tmp_path: Path) -> None:
    base = inspect_base(make_base("tied llama"))
    assert (base.tied_embeddings, base.embedding, base.head) == (True, "model.embed_tokens.weight", "lm_head.weight")
    facts = inspected(make_base, tmp_path / "1", "tied head")
    (head,) = (module for module in facts.modules if module.name == "lm_head")
    assert [place.tensor for place in head.places] == ["lm_head.weight"]
    assert "lm_head.weight" not in base.tensors
    facts = inspected(make_base, tmp_path / "2", "tied head saved")
    assert [(tensor.name, tensor.place) for tensor in facts.saved] == [("lm_head.weight", Place("lm_head.weight"))]


def test_bases_tell_head_embedding_and_kind(make_base: Any) -> None:
    def told(name: str) -> tuple[object, ...]:
        facts = inspect_base(make_base(name))
        return facts.model_type, facts.head, facts.input_embedding, facts.tied_embeddings, facts.encoder_decoder

    assert told("llama") == ("llama", "lm_head.weight", "model.embed_tokens.weight", False, False)
    assert told("gpt2") == ("gpt2", "lm_head.weight", "transformer.wte.weight", True, False)
    assert told("gpt_neox") == ("gpt_neox", "embed_out.weight", "gpt_neox.embed_in.weight", False, False)
    assert told("t5") == ("t5", "lm_head.weight", "shared.weight", True, True)
    words = "bert.embeddings.word_embeddings.weight"
    assert told("bert") == ("bert", None, words, False, False)
    assert told("masked bert") == ("bert", None, words, True, False)


def test_a_resized_vocabulary_is_told(make_base: Any, tmp_path: Path) -> None:
    assert inspected(make_base, tmp_path / "1", "resized").vocabulary == WORDS + 3
    assert inspected(make_base, tmp_path / "2", "embeddings copied").vocabulary is None


def test_an_adapter_with_tokens_of_its_own_keeps_its_tokenizer(make_base: Any, tmp_path: Path) -> None:
    with Registry.create(
        Settings.load(home=tmp_path / "home", cwd=tmp_path, environ={"HOME": str(tmp_path)})
    ) as registry:
        folder = shutil.copytree(make_base("llama"), tmp_path / "small")
        (folder / "tokenizer.json").write_text("{}")
        base = registry.bases.add("small", folder, source="org/small")
        for name, kept in (("resized", True), ("plain", False)):
            adapter = train(tmp_path / name, make_base("llama"), KINDS[name])
            (adapter / "tokenizer.json").write_text("{}")  # the base's own
            added = registry.adapters.add(adapter, checks=Checks(allow_base_mismatch=True), base=base, role="spirit")
            assert ("tokenizer.json" in registry.store.tree(added.digest).files) == kept
            assert ("tokenizer.json" in added.skipped) != kept


def test_experts_lie_in_the_matrices_of_the_checkpoint(make_base: Any, tmp_path: Path) -> None:
    facts = inspected(make_base, tmp_path, "mixtral experts")
    (gate,) = (m for m in facts.modules if m.weight == "model.layers.0.mlp.experts.gate_up_proj")
    assert (gate.experts, gate.rank, gate.a.shape, gate.b.shape) == (3, 2, (6, 16), (24, 6))
    assert [(place.tensor, place.expert, place.rows) for place in gate.places[:2]] == [
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", 0, (0, 12)),
        ("model.layers.0.block_sparse_moe.experts.0.w3.weight", 0, (12, 24)),
    ]
    (down,) = (m for m in facts.modules if m.weight == "model.layers.0.mlp.experts.down_proj")
    assert (down.rank, down.scale) == (3, 5 / 3)
    assert facts.target_modules == ("down_proj", "gate_up_proj", "q_proj", "v_proj")


def test_without_a_base_nothing_is_placed(make_base: Any, tmp_path: Path) -> None:
    adapter = train(tmp_path / "adapter", make_base("mixtral"), KINDS["mixtral experts"])
    assert all(module.places == () for module in inspect_adapter(adapter, None).modules)


REFUSED: dict[str, tuple[Kind, str]] = {
    "lora bias where there is none": (
        Kind("tied llama", {"target_modules": ["q_proj"], "lora_bias": True}), "is a bias for 'model.layers.0.self_attn.q_proj', which",
    ),
    "an embedding resized without its head": (
        Kind("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, WORDS + 3, {"save_embedding_layers": False}),
        "has a vocabulary of 27 tokens, but not all of the result would",
    ),
    "replicated layers": (
        Kind("llama", {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [0, 2]]}), "layer_replication is",
    ),
    "an activated LoRA": (
        Kind("llama", {"target_modules": ["q_proj"], "alora_invocation_tokens": [3], "task_type": "CAUSAL_LM"}), "alora_invocation_tokens",
    ),
    "PiSSA": (Kind("llama", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}), "init_lora_weights is 'pissa', which trained"),
    "OLoRA": (Kind("llama", {"target_modules": ["q_proj"], "init_lora_weights": "olora"}), "init_lora_weights is 'olora', which trained"),
    "experts to save": (
        Kind("mixtral", {"target_modules": ["q_proj"], "modules_to_save": ["experts"]}),
        "has no tensor 'model.layers.0.mlp.experts.down_proj' in the base model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(name: str, make_base: Callable[[str], Path], tmp_path: Path) -> None:
    kind, reason = REFUSED[name]
    base = make_base(kind.model)
    adapter = train(tmp_path / "adapter", base, kind)
    with pytest.raises(InvalidArtifactError) as caught:
        inspect_adapter(adapter, inspect_base(base))
    assert reason in str(caught.value)


def test_every_option_of_the_installed_peft_is_honoured_without_effect_or_refused(tmp_path: Path) -> None:
    """A new field of LoraConfig has to be looked at before an adapter that uses it is taken."""
    from dataclasses import fields

    from reccocktail.registry.artifacts.lora_config import LoraConfig as Ours

    known = {
        "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights",
        "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "task_type", "peft_type",
        "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "target_modules",
        "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_core", "loftq_config",
        "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying",
    }  # fmt: skip
    for option in sorted({item.name for item in fields(LoraConfig)} - known):
        raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, option: {"anything": 1}}
        with pytest.raises(UnsupportedAdapterError, match=option):
            Ours.parse(raw, tmp_path)


def test_the_scale_of_rank_stabilised_experts_is_by_the_root_of_one_experts_rank(
    make_base: Any, tmp_path: Path
) -> None:
    facts = inspected(make_base, tmp_path, "experts, rank-stabilised")
    assert {module.scale for module in facts.modules} == {5 / math.sqrt(2)}
