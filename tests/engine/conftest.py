"""Tiny language models, adapters made by PEFT, and oracles that share no code with the engine.

Models and adapters are made once per session and given out by what was asked for; nobody writes into them.
"""

from __future__ import annotations

import itertools
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reccocktail.engine import merge as merging
from reccocktail.engine.merge import MergeReport, Part
from reccocktail.registry import Registry, Settings, inspect_adapter, inspect_base
from reccocktail.tasks import SAMPLE_DOMAINS, DomainData, Question, generate, load_template, questions, write_domain
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|> ' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
HIDDEN = 64

Weighted = Sequence[tuple[Path, float]]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they save on models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shop() -> DomainData:
    """The sample domain that every test here recommends in; its titles are the tokenizer's words."""
    return generate("skin-care", users=12)


@pytest.fixture(scope="session")
def asked(shop: DomainData) -> list[Question]:
    """Four validation questions."""
    return questions(shop, "validation", load_template("pick-one"), limit=4)[1]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, and a chat template."""
    template = load_template("pick-one")
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))  # pyright: ignore[reportCallIssue]
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    titles = [item.title for domain in SAMPLE_DOMAINS for item in generate(domain.name, users=0).items.values()]
    texts = [template.system, template.user, "system user assistant ||", *titles]
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>", chat_template=CHATML
    )


@pytest.fixture(scope="session")
def make_base(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(kind, dtype, tied, shard, seed): the folder of a random model that is sure of its answers, and its tokenizer."""
    made: dict[tuple[object, ...], Path] = {}
    vocabulary = len(tokenizer)

    def llama(tied: bool) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    def gpt2(tied: bool) -> GPT2Config:
        return GPT2Config(
            vocab_size=vocabulary,
            n_embd=HIDDEN,
            n_layer=2,
            n_head=4,
            n_positions=512,
            initializer_range=0.2,
            tie_word_embeddings=tied,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.eos_token_id,
        )

    def make(
        kind: str = "llama", *, dtype: str = "float32", tied: bool = False, shard: str = "1GB", seed: int = 0
    ) -> Path:
        key = (kind, dtype, tied, shard, seed)
        if key not in made:
            torch.manual_seed(seed)
            model = LlamaForCausalLM(llama(tied)) if kind == "llama" else GPT2LMHeadModel(gpt2(tied))
            folder = tmp_path_factory.mktemp(f"{kind}-{dtype}")
            model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)  # pyright: ignore
            tokenizer.save_pretrained(folder)
            (folder / "LICENSE").write_text("do what you like\n")
            (folder / "README.md").write_text("# the base's own card\n")
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def base(make_base: Callable[..., Path]) -> Path:
    """The plain one: a Llama in float32, one file, a head of its own."""
    return make_base()


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(base folder, seed, options of peft.LoraConfig): a LoRA with random A and B, saved by PEFT."""
    from peft import LoraConfig, get_peft_model

    made: dict[str, Path] = {}

    def make(base: Path, seed: int = 1, **options: Any) -> Path:
        key = f"{base} {seed} {sorted(options.items())}"
        if key not in made:
            torch.manual_seed(seed)
            settings = {"r": 4, "lora_alpha": 8, "target_modules": list(LINEAR), "init_lora_weights": False} | options
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            folder = tmp_path_factory.mktemp(f"adapter-{seed}")
            get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).save_pretrained(
                folder, save_embedding_layers=False
            )
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """(base folder, {module: (A, B)}): an adapter whose delta is B A, for planted cases."""
    numbers = itertools.count()

    def write(base: Path, modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
        folder = tmp_path / f"planted-{next(numbers)}"
        folder.mkdir()
        (rank,) = {a.shape[0] for a, _ in modules.values()}
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        tensors = {}
        for name, (a, b) in modules.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return write


@pytest.fixture(scope="session")
def parts_of() -> Callable[[Path, Weighted], list[Part]]:
    """(base folder, [(adapter folder, weight)]): the engine's view of a mix."""

    def parts(base: Path, adapters: Weighted) -> list[Part]:
        facts = inspect_base(base)
        return [Part(folder, inspect_adapter(folder, facts, scan=False), weight) for folder, weight in adapters]

    return parts


@pytest.fixture
def mix(tmp_path: Path, parts_of: Callable[..., list[Part]]) -> Callable[..., tuple[Path, MergeReport]]:
    """(base folder, [(adapter folder, weight)], options of merge): the new folder, and the report."""
    numbers = itertools.count()

    def run(base: Path, adapters: Weighted, **options: Any) -> tuple[Path, MergeReport]:
        out = tmp_path / f"merged-{next(numbers)}"
        out.mkdir()
        return out, merging.merge(base, inspect_base(base), parts_of(base, adapters), out, **options)

    return run


@pytest.fixture(scope="session")
def deltas() -> Callable[[Path, Path], dict[str, np.ndarray]]:
    """(base folder, adapter folder): each weight's delta in float64, from the factors and scales that PEFT loads."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    found: dict[tuple[Path, Path], dict[str, np.ndarray]] = {}

    def load(base: Path, adapter: Path) -> dict[str, np.ndarray]:
        if (base, adapter) not in found:
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            found[base, adapter] = {}
            for name, layer in PeftModel.from_pretrained(model, adapter).named_modules():
                if isinstance(layer, LoraLayer):
                    a = layer.lora_A["default"].weight.detach().double().numpy()
                    b = layer.lora_B["default"].weight.detach().double().numpy()
                    delta = layer.scaling["default"] * (b @ a)
                    weight = name.removeprefix("base_model.model.") + ".weight"
                    found[base, adapter][weight] = delta.T if getattr(layer, "fan_in_fan_out", False) else delta
        return found[base, adapter]

    return load


@pytest.fixture(scope="session")
def read_weights() -> Callable[[Path], dict[str, np.ndarray]]:
    """(folder): every tensor of a checkpoint in float64, read by the safetensors library."""

    def read(folder: Path) -> dict[str, np.ndarray]:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_tensor(name).double().numpy() for name in file.keys()}  # noqa: SIM118
        return found

    return read


@pytest.fixture(scope="session")
def read_layout() -> Callable[[Path], tuple[dict[str, Any], dict[str, bytes]]]:
    """(safetensors file): its header and each tensor's bytes, in the file's order, by hand."""

    def read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        start = 8 + length
        tensors = {
            name: data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
            for name, entry in header.items()
            if name != "__metadata__"
        }
        return header, tensors

    return read


@pytest.fixture(scope="session")
def logits_of(asked: list[Question], tokenizer: PreTrainedTokenizerFast) -> Callable[[Any], torch.Tensor]:
    """(model or folder): float32 logits for one of the questions."""
    prompt = tokenizer.apply_chat_template(asked[0].messages, add_generation_prompt=True, return_tensors="pt")

    @torch.inference_mode()
    def logits(model: Any) -> torch.Tensor:
        if isinstance(model, Path):
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        return model.eval()(prompt["input_ids"]).logits  # pyright: ignore

    return logits


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine computes in float32 even where the processor has bfloat16, so that it can be compared exactly."""
    from reccocktail.engine import evaluation, models

    for module in (evaluation, models):
        monkeypatch.setattr(module, "compute_dtype", lambda device: torch.float32)


# --- a registry with something in it --------------------------------------------------------------------------------


def settings_in(home: Path) -> Settings:
    return Settings.load(home=home, cwd=home, environ={"HOME": str(home)})


@pytest.fixture(scope="session")
def homes(base: Path, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two homes to be copied, which is quicker than making them: an empty one, and one with a model and adapters."""
    folder = tmp_path_factory.mktemp("homes")
    Registry.create(settings_in(folder / "empty")).close()
    with Registry.create(settings_in(folder / "stocked")) as registry:
        row = registry.bases.add("tiny", base, source=str(base))
        registry.domains.add("skin-care", title="Skin Care")
        registry.adapters.add(make_adapter(base, 1), base=row, role="spirit")
        registry.adapters.add(make_adapter(base, 2), base=row, role="ingredient", domain="skin-care")
    return folder / "empty", folder / "stocked"


@pytest.fixture
def registry(homes: tuple[Path, Path], tmp_path: Path) -> Iterator[Registry]:
    """A registry with nothing in it."""
    with Registry.open(settings_in(shutil.copytree(homes[0], tmp_path / "home"))) as registry:
        yield registry


@pytest.fixture
def stocked(homes: tuple[Path, Path], shop: DomainData, tmp_path: Path) -> Iterator[Registry]:
    """A registry with the base `tiny`, the domain skin-care and its data, spirit@v1 and skin-care@v1."""
    write_domain(shop, tmp_path / "data")
    with Registry.open(settings_in(shutil.copytree(homes[1], tmp_path / "home"))) as registry:
        registry.domains.add("skin-care", data=str(tmp_path / "data"))
        yield registry
