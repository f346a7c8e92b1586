"""Small random models of many architectures, adapters of every kind that PEFT makes for them, and what PEFT says of them.

The matrix (architecture × adapter kind) is a test in `test_equality.py` and a table in `benchmarks/equality.py`. Nothing here
knows the engine but `measure`, which merges by `merge_folders`. What is right is what PEFT computes:

- one adapter: the logits of the *unmerged* model, which is what was trained. `PeftModel.merge_and_unload` gives the same, except
  where head and embedding share one tensor and only one of them is adapted: it then adds the delta to both. So PEFT's merge is made
  on a model whose head was untied before (`_alone`), and is itself held against the unmerged model, always.
- two adapters: W + Σ w_k·(W_k - W) in float64, with W_k the weights of PEFT's merge of adapter k alone. PEFT's own
  `add_weighted_adapter` drops saved modules and trained tokens, and is wrong for DoRA, rsLoRA and lora_bias; where it is right
  (plain LoRA, "cat") it is a second opinion, `peft_cat`. New rows of a resized vocabulary have no W: their mean, weighted by w_k.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, merge_folders
from reccocktail.engine.recipes import Output
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
)
from transformers.utils import logging as transformers_logging

VOCABULARY, ADDED = 64, 3
TOKENS = (3, 17, 40)
WEIGHTS = (0.6, 0.7)
TOLERANCE = (
    1e-4  # of the largest logit; float32 differs by 1e-6 from one order of additions to another, and T5 magnifies it
)
EFFECT = 0.02  # an adapter changes the logits by more than this share of the largest, so that a merge without it fails

Model = Any  # transformers' models and PEFT's, which have no common type that says what is used here
State = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """How to make a small model, and what its modules are called. `biased` modules have a bias; `norm` is one module."""

    auto: Any
    config: Callable[..., PretrainedConfig]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    embedding: str
    norm: str
    head: str | None = "lm_head"
    task: str = "CAUSAL_LM"
    layers: str = "layers"
    biased: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    conv1d: bool = False
    tied: bool = False
    both: bool = False  # it exists with tied and with untied head
    strength: float = 0.2  # standard deviation of the adapters' factors
    lacks: Mapping[str, str] = field(default_factory=dict)  # kind -> why there is no such adapter
    lacks_tied: Mapping[str, str] = field(default_factory=dict)  # the same where the head is tied

    @property
    def linear(self) -> tuple[str, ...]:
        return self.attention + self.mlp

    def why_not(self, kind: str, tied: bool | None = None) -> str | None:
        """Why there is no adapter of that kind for this architecture, tied as by default or as said; None if there is."""
        if kind in self.lacks:
            return self.lacks[kind]
        if kind in self.lacks_tied and (self.tied if tied is None else tied):
            return self.lacks_tied[kind]
        if kind in ("lora_bias", "bias all", "bias lora_only") and not self.biased:
            return "no module has a bias"
        if kind in ("experts", "each expert") and not self.experts:
            return "no experts"
        if kind in ("saved head", "head") and self.head is None:
            return "no head for tokens"
        return None


COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2}
SMALL_HEADS = GROUPED | {"head_dim": 8}
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight")


def _like_llama(config: type, settings: Mapping[str, Any] = GROUPED, **names: Any) -> Architecture:
    return Architecture(
        AutoModelForCausalLM,
        lambda tied: config(**settings, tie_word_embeddings=tied),
        **{"attention": QKVO, "mlp": GATED, "embedding": "embed_tokens", "norm": "model.norm", "both": True} | names,
    )


def _t5(tied: bool) -> T5Config:
    # transformers 5 ties the head always; what an untied T5 keeps of it is that its decoder's output is not scaled
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "dropout_rate": 0.0, "tie_word_embeddings": tied,
    }  # fmt: skip
    return T5Config(**settings)


def _bert(tied: bool) -> BertConfig:
    return BertConfig(**COMMON, tie_word_embeddings=tied, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


_BERT: dict[str, Any] = {
    "attention": ("query", "key", "value", "attention.output.dense"),
    "mlp": ("intermediate.dense", "layer.0.output.dense"),
    "embedding": "word_embeddings",
    "layers": "layer",
    "biased": ("query", "key", "value", "intermediate.dense"),
}
UNTYING = ("saved head", "embedding", "head", "DoRA embedding", "bias all", "motley")
_MASKED = "refused: the head of a masked language model has a bias that is tied as well"
_TWO_BIASES = "refused: the head's bias is stored under two names, and PEFT saves one of them"
_REFUSED = "refused: head and embedding are one tensor, and an encoder-decoder scales its output only while they are"

ARCHITECTURES: dict[str, Architecture] = {
    "Llama": _like_llama(LlamaConfig),
    "Qwen2": _like_llama(Qwen2Config, biased=("q_proj", "k_proj", "v_proj")),
    "Qwen3": _like_llama(Qwen3Config, SMALL_HEADS),
    "Gemma 3": _like_llama(
        Gemma3TextConfig,
        SMALL_HEADS | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        tied=True,
    ),
    "Mistral": _like_llama(MistralConfig, SMALL_HEADS),
    "Phi-3": _like_llama(Phi3Config, attention=("qkv_proj", "o_proj"), mlp=("gate_up_proj", "down_proj")),
    "GPT-2": Architecture(
        AutoModelForCausalLM,
        lambda tied: GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2, bos_token_id=1,
            eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=tied,
        ),
        attention=("c_attn", "attn.c_proj"), mlp=("c_fc", "mlp.c_proj"), embedding="wte", norm="ln_f", layers="h",
        biased=("c_attn", "c_fc"), conv1d=True, tied=True, both=True,
    ),
    "GPT-NeoX": Architecture(
        AutoModelForCausalLM, lambda tied: GPTNeoXConfig(**COMMON, tie_word_embeddings=tied),
        attention=("query_key_value", "attention.dense"), mlp=("dense_h_to_4h", "dense_4h_to_h"), embedding="embed_in",
        norm="final_layer_norm", biased=("query_key_value", "dense_h_to_4h"), both=True,
    ),
    "OLMo 2": _like_llama(Olmo2Config),
    "Falcon": Architecture(
        AutoModelForCausalLM,
        lambda tied: FalconConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, bias=True,
            new_decoder_architecture=True, initializer_range=0.2, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied,
        ),
        attention=("query_key_value", "self_attention.dense"), mlp=("dense_h_to_4h", "dense_4h_to_h"),
        embedding="word_embeddings", norm="ln_f", layers="h", biased=("query_key_value", "dense_h_to_4h"), tied=True, both=True,
    ),
    "Mixtral": _like_llama(MixtralConfig, GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, mlp=(), experts=FUSED),
    "Qwen3-MoE": _like_llama(
        Qwen3MoeConfig,
        SMALL_HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        mlp=(),
        experts=FUSED,
    ),
    "T5": Architecture(
        AutoModelForSeq2SeqLM, _t5, attention=("q", "k", "v", "o"), mlp=("wi_0", "wi_1", "wo"), embedding="shared",
        norm="decoder.final_layer_norm", layers="block", task="SEQ_2_SEQ_LM", tied=True, both=True,
        strength=0.1,  # its attention is not scaled down, and what is saturated magnifies rounding
        lacks=dict.fromkeys(("saved head", "embedding", "head", "DoRA embedding"), _REFUSED),
    ),
    "BERT": Architecture(
        AutoModelForMaskedLM, _bert, norm="predictions.transform", head="predictions.decoder", tied=True, both=True,
        task="FEATURE_EXTRACTION", lacks={"resized": _TWO_BIASES},
        lacks_tied=dict.fromkeys(UNTYING, _MASKED), **_BERT,
    ),
    "BERT classifier": Architecture(
        AutoModelForSequenceClassification, _bert, norm="classifier", head=None, tied=True, task="SEQ_CLS", **_BERT
    ),
}  # fmt: skip


Options = Callable[[Architecture, int], dict[str, Any]]
"""(architecture, 0 for the first adapter of a mix or 1 for the second): options of peft.LoraConfig."""


def _patterns(a: Architecture, which: int) -> dict[str, Any]:
    first, last = a.linear[0], a.linear[-1]
    inner = rf"{a.layers}\.1\..*{last}" if "." not in last else last
    return {"target_modules": a.linear} | (
        {"rank_pattern": {inner: 6, first: 2}, "alpha_pattern": {first: 7}}
        if which == 0
        else {"r": 3, "alpha_pattern": {rf"^.*\.{last}": 1}, "use_rslora": True}
    )


def _mixed(a: Architecture, which: int) -> dict[str, Any]:
    return {"r": 6, "target_modules": a.attention} if which == 0 else {"r": 2, "target_modules": a.linear[1:]}


def _motley(a: Architecture, which: int) -> dict[str, Any]:
    if which == 0:
        return {"r": 3, "target_modules": a.linear[:2], "use_dora": True, "modules_to_save": [a.norm]}
    return {"target_modules": a.linear, "use_rslora": True, "bias": "all"}


KINDS: dict[str, Options] = {
    "plain": lambda a, which: {"target_modules": a.linear},
    "rsLoRA": lambda a, which: {"target_modules": a.linear, "use_rslora": True, "r": (4, 9)[which]},
    "patterns": _patterns,
    "mixed": _mixed,
    "DoRA": lambda a, which: {"target_modules": a.linear, "use_dora": True, "r": (4, 2)[which]},
    "lora_bias": lambda a, which: {"target_modules": a.biased, "lora_bias": True},
    "bias all": lambda a, which: {"target_modules": a.linear, "bias": "all"},
    "bias lora_only": lambda a, which: {"target_modules": a.biased, "bias": "lora_only"},
    "saved norm": lambda a, which: {"target_modules": a.linear, "modules_to_save": [a.norm]},
    "saved head": lambda a, which: {"target_modules": a.linear, "modules_to_save": [a.head]},
    "embedding": lambda a, which: {"target_modules": (a.embedding, a.linear[0])},
    "head": lambda a, which: {"target_modules": (a.head, a.linear[0])},
    "DoRA embedding": lambda a, which: {"target_modules": (a.embedding, a.linear[0]), "use_dora": True},
    "tokens": lambda a, which: {
        "target_modules": a.linear, "trainable_token_indices": {a.embedding: list((TOKENS[:2], TOKENS[1:])[which])}
    },
    "resized": lambda a, which: {"target_modules": a.linear},
    "layers": lambda a, which: {"target_modules": a.attention, "layers_to_transform": [which], "layers_pattern": a.layers},
    "exclude": lambda a, which: {"target_modules": a.linear, "exclude_modules": [a.attention[which]]},
    "regex": lambda a, which: {
        "target_modules": rf".*\.{which}\..*({'|'.join(name.replace('.', '[.]') for name in a.attention)})"
    },
    "experts": lambda a, which: {"target_modules": a.attention, "target_parameters": list(a.experts), "r": (4, 3)[which]},
    "each expert": lambda a, which: {"target_modules": a.attention},
    "motley": _motley,
}  # fmt: skip
# The modules of each expert, as they were before transformers 5 stacked them: (prefix, gate, up, down). Adapters of that time
# have factors for each; PEFT puts them together when it loads them.
EXPERT_MODULES = {
    "Mixtral": ("block_sparse_moe.experts", "w1", "w3", "w2"),
    "Qwen3-MoE": ("mlp.experts", "gate_proj", "up_proj", "down_proj"),
}
# Of these, add_weighted_adapter(combination_type="cat") gives the exact sum; with layers_to_transform or exclude_modules it
# forgets the modules that the first adapter does not have.
SUMMED_BY_PEFT = ("plain", "mixed", "regex")


@dataclass(frozen=True)
class Cell:
    """Largest differences of logits, as shares of the largest logit: ours from PEFT's for one adapter (weight 1) and for
    two, and what the adapters change in the base's logits (the smaller of both)."""

    one: float
    two: float
    effect: float

    @property
    def worst(self) -> float:
        return max(self.one, self.two)

    @property
    def holds(self) -> bool:
        return self.worst <= TOLERANCE and self.effect >= EFFECT


class Catalogue:
    """Makes bases and adapters in one folder, once each; nobody writes into what is given out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._bases: dict[tuple[object, ...], Path] = {}
        self._models: dict[Path, Model] = {}
        self._adapters: dict[tuple[object, ...], Path] = {}
        self._alone: dict[tuple[Path, Path, int], tuple[State, Tensor]] = {}
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def base(self, name: str, *, tied: bool | None = None, dtype: str = "float32", shard: str = "1GB") -> Path:
        """The folder of a random model; `tied` as is usual for the architecture unless told."""
        architecture = ARCHITECTURES[name]
        tied = architecture.tied if tied is None else tied
        key = (name, tied, dtype, shard)
        if key not in self._bases:
            torch.manual_seed(0)
            model: Model = architecture.auto.from_config(architecture.config(tied))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:  # norms and biases begin as ones and zeros, which would hide mistakes
                        parameter.add_(0.1 * torch.randn_like(parameter))
                if name == "T5":  # its embedding is of deviation 1, so the head's logits drown everything else
                    model.shared.weight.mul_(0.3)
            folder = self.root / f"base-{len(self._bases)}-{name.replace(' ', '-')}"
            model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
            self._bases[key] = folder
        return self._bases[key]

    def model(self, name: str, base: Path) -> Model:
        """The base in float32, a copy for whoever asks."""
        if base not in self._models:
            self._models[base] = load(ARCHITECTURES[name].auto, base)
        return copy.deepcopy(self._models[base])

    def adapter(self, name: str, kind: str, which: int, base: Path) -> Path:
        """An adapter with random factors, magnitudes, saved tensors, biases and token rows, as PEFT saves it."""
        key = (name, kind, which, base)
        if key not in self._adapters:
            torch.manual_seed(1 + which)
            architecture = ARCHITECTURES[name]
            model = self.model(name, base)
            if kind == "resized":
                model.resize_token_embeddings(VOCABULARY + ADDED, mean_resizing=False)
                for part in (model.get_input_embeddings(), model.get_output_embeddings()):
                    if part is not None:
                        _disturb(part.weight)
            options: dict[str, Any] = {"r": 4, "lora_alpha": 8} | KINDS[kind](architecture, which)
            for option in ("target_modules", "exclude_modules"):
                if isinstance(options.get(option), tuple):
                    options[option] = list(options[option])
            config = LoraConfig(
                task_type=architecture.task, init_lora_weights=False, fan_in_fan_out=architecture.conv1d, **options
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about tied embeddings, which is what is tried out here
                peft = get_peft_model(model, config)
                for parameter_name, parameter in peft.named_parameters():
                    if parameter.requires_grad:
                        _train(parameter_name, parameter, architecture.strength)
                folder = self.root / f"adapter-{len(self._adapters)}-{name.replace(' ', '-')}-{kind.replace(' ', '-')}"
                peft.save_pretrained(str(folder))
            if kind == "each expert":
                _add_each_expert(folder, model, *EXPERT_MODULES[name])
            self._adapters[key] = folder
        return self._adapters[key]

    def alone(self, name: str, kind: str, base: Path, adapter: Path) -> tuple[State, Tensor]:
        """(weights in float64, logits) that PEFT gives one adapter of weight 1. Raises if its merge is not as its unmerged.

        A tied head is in the weights under its own name.
        """
        rows = VOCABULARY + (ADDED if kind == "resized" else 0)
        key = (base, adapter, rows)
        if key not in self._alone:
            unmerged = logits(ARCHITECTURES[name], self._peft(name, kind, base, adapter), rows)
            # Trained tokens stay tied, as in PEFT; for all else head and embedding are what they are on their own.
            model = self._peft(name, kind, base, adapter, untie=kind != "tokens", double=True).merge_and_unload()
            state = {n: t.detach().clone() for n, t in model.state_dict().items()}
            merged = logits(ARCHITECTURES[name], model.float(), rows)  # experts answer in float32 only
            head = model.get_output_embeddings()
            if kind == "tokens" and is_tied(model) and getattr(head, "bias", None) is not None:
                unmerged = unmerged + head.bias.detach()  # PEFT's layer for tokens forgets the bias of a tied head
            if apart(merged, unmerged) > TOLERANCE:
                raise AssertionError(f"PEFT's merge is {apart(merged, unmerged):.1e} from PEFT's unmerged model")
            self._alone[key] = state, unmerged
        return self._alone[key]

    def _peft(
        self, name: str, kind: str, base: Path, adapter: Path, *, untie: bool = False, double: bool = False
    ) -> Model:
        model = self._resized(name, kind, base)
        model = untied(model) if untie else model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(model.double() if double else model, adapter).eval()

    def _resized(self, name: str, kind: str, base: Path) -> Model:
        """PEFT wants a base of the adapter's vocabulary; what is in the new rows is replaced by what it saved."""
        model = self.model(name, base)
        if kind == "resized":
            model.resize_token_embeddings(VOCABULARY + ADDED, mean_resizing=False)
        return model

    def mixed(self, name: str, kind: str, base: Path, adapters: Sequence[tuple[Path, float]]) -> tuple[State, Tensor]:
        """(weights, logits) of a mix by float64 algebra on the weights that PEFT gives each adapter alone."""
        old = {n: t.double() for n, t in self._resized(name, kind, base).state_dict().items()}
        exact = dict(old)
        alone = [(self.alone(name, kind, base, folder)[0], weight) for folder, weight in adapters]
        for state, weight in alone:
            for tensor, value in state.items():
                exact[tensor] = exact[tensor] + weight * (value.double() - old[tensor])
        for tensor, value in exact.items():
            if kind == "resized" and value.shape[:1] == (VOCABULARY + ADDED,):
                total = sum(weight for _, weight in alone)
                new = (
                    torch.stack([weight * state[tensor][VOCABULARY:].double() for state, weight in alone]).sum(0)
                    / total
                )
                exact[tensor] = torch.cat([value[:VOCABULARY], new])
        model = untied(self._resized(name, kind, base))
        model.load_state_dict({n: t.float() for n, t in exact.items()})
        return exact, logits(ARCHITECTURES[name], model, VOCABULARY + (ADDED if kind == "resized" else 0))

    def peft_cat(self, name: str, base: Path, adapters: Sequence[tuple[Path, float]]) -> Tensor:
        """Logits of PEFT's own mix by concatenation, which is exact for plain LoRA."""
        model = PeftModel.from_pretrained(self.model(name, base), adapters[0][0], adapter_name="0")
        for number, (folder, _) in enumerate(adapters[1:], 1):
            model.load_adapter(folder, adapter_name=str(number))
        names, weights = [str(n) for n in range(len(adapters))], [weight for _, weight in adapters]
        model.add_weighted_adapter(names, weights, "mix", combination_type="cat")
        model.set_adapter("mix")
        return logits(ARCHITECTURES[name], model.merge_and_unload(), VOCABULARY)

    def measure(self, name: str, kind: str, out: Path, **how: Any) -> Cell:
        """Merge one adapter, and two, and hold the logits against PEFT's. `how`: tied, dtype, shard of the base."""
        architecture = ARCHITECTURES[name]
        base = self.base(name, **how)
        adapters = [self.adapter(name, kind, which, base) for which in (0, 1)]
        rows = VOCABULARY + (ADDED if kind == "resized" else 0)
        dtype = "float32" if how.get("dtype", "float32") != "float32" else None

        def ours(number: int, weights: Sequence[float]) -> Tensor:
            parts = [WeightedFolder(folder, weight) for folder, weight in zip(adapters, weights, strict=False)]
            folder = out / f"merged-{number}"
            merge_folders(base, parts, folder, MergeOptions(output=Output(dtype=dtype)))
            return logits(architecture, load(architecture.auto, folder), rows)

        _, one = self.alone(name, kind, base, adapters[0])
        _, two = self.mixed(name, kind, base, list(zip(adapters, WEIGHTS, strict=True)))
        before = logits(architecture, self._resized(name, kind, base), rows)
        return Cell(
            apart(ours(1, (1.0,)), one), apart(ours(2, WEIGHTS), two), min(apart(one, before), apart(two, before))
        )


def load(auto: Any, folder: Path) -> Model:
    """A checkpoint in float32, if every parameter is in it and nothing else. Raises ValueError with the names otherwise."""
    model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {problem: sorted(map(str, names)) for problem, names in info.items() if names}
    if wrong:
        raise ValueError(f"{folder.name} does not load cleanly: {wrong}")
    return model.eval()


def is_tied(model: Model) -> bool:
    """Whether head and embedding are one tensor."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def untied(model: Model) -> Model:
    """The same model, its head a tensor of its own."""
    # an encoder-decoder's embedding is tied to more than the head, and stays as it is
    if is_tied(model) and not model.config.is_encoder_decoder:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return model


@torch.inference_mode()
def logits(architecture: Architecture, model: Model, vocabulary: int) -> Tensor:
    """The answers to two texts in which every token stands once."""
    ids = torch.randperm(vocabulary - vocabulary % 2, generator=torch.Generator().manual_seed(5)).reshape(2, -1)
    if vocabulary > VOCABULARY:
        ids[:, -1] = torch.tensor([vocabulary - 1, vocabulary - 2])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if architecture.task == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = ids.flip(0)
    return model.eval()(**inputs).logits


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest logit; infinite where shapes differ or something is no number."""
    if one.shape != other.shape:
        return float("inf")
    distance = float((one - other).abs().max() / other.abs().max())
    return distance if distance == distance else float("inf")


def _add_each_expert(folder: Path, model: Model, prefix: str, gate: str, up: str, down: str) -> None:
    """Factors for every expert's matrices, written as PEFT wrote them when each was a module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] += [gate, up, down]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "adapter_model.safetensors")
    for layer, block in enumerate(model.get_decoder().layers):
        experts, hidden, inner = block.mlp.experts.down_proj.shape
        for expert in range(experts):
            for module, rows, columns in ((gate, inner, hidden), (up, inner, hidden), (down, hidden, inner)):
                there = f"base_model.model.model.layers.{layer}.{prefix}.{expert}.{module}"
                tensors[f"{there}.lora_A.weight"] = 0.2 * torch.randn(config["r"], columns)
                tensors[f"{there}.lora_B.weight"] = 0.2 * torch.randn(rows, config["r"])
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _train(name: str, parameter: Tensor, strength: float) -> None:
    with torch.no_grad():
        if "lora_magnitude_vector" in name:
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
        elif "lora_" in name:
            parameter.copy_(strength * torch.randn_like(parameter))
        else:
            _disturb(parameter)


def _disturb(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter.add_(0.2 * torch.randn_like(parameter))
