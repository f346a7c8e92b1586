"""A tiny language model, LoRAs that PEFT makes for it, and a registry that holds them, for the tests of several packages.

Models and adapters are made once per session and given out by what was asked for; nobody writes into them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reccocktail.registry import Registry, Settings
from reccocktail.tasks import (
    SAMPLE_DOMAINS,
    ClickOptions,
    ClickRow,
    ClickUser,
    DomainData,
    Item,
    ItemEmbeddings,
    Question,
    RatedItem,
    generate,
    load_click_template,
    load_template,
    questions,
    write_domain,
)
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
    wording = [
        text for name in ("pick-one", "next-title") for text in (load_template(name).system, load_template(name).user)
    ]
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))  # pyright: ignore[reportCallIssue]
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    titles = [item.title for domain in SAMPLE_DOMAINS for item in generate(domain.name, users=0).items.values()]
    texts = [*wording, "system user assistant ||", *titles]
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


# --- a personalised LoRA


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    """(registry, folder, seed=1, target=False, form="sum", template="yes-no"): a personalised LoRA for its base `tiny`.

    It knows the users `user-a` and `user-b`, and six items.
    """
    return _make_bundle


def _make_bundle(
    registry: Registry,
    folder: Path,
    *,
    seed: int = 1,
    target: bool = False,
    form: Any = "sum",
    template: Any = "yes-no",
) -> Path:
    from reccocktail.networks.bundle import BundleOrigin, Retrieval, write_bundle
    from reccocktail.networks.click_fields import ClickVocabulary
    from reccocktail.networks.din import Din, DinOptions, FrozenDin
    from reccocktail.networks.gated_lora import GatedLora, GatedLoraConfig

    base = registry.bases.get("tiny")
    shapes: dict[str, Any] = {
        name.removesuffix(".weight"): tensor.info.shape
        for name, tensor in registry.bases.facts(base).tensors.items()
        if name.endswith(("q_proj.weight", "v_proj.weight"))
    }
    torch.manual_seed(seed)
    items = {f"item-{number}": Item(f"item-{number}", f"Thing {number}") for number in range(6)}
    users = [ClickUser(f"user-{name}", {}, tuple(RatedItem(item, 5.0) for item in items)) for name in "ab"]
    vocabulary = ClickVocabulary.of([ClickRow.candidate(user, "item-0") for user in users], items)
    din = FrozenDin(Din(vocabulary, DinOptions(target=target, embedding=4, hidden=8)), vocabulary, "sha256:rows")
    net = GatedLora(GatedLoraConfig(metas=3, rank=2, width=8, form=form, temperature=0.5), shapes)
    for each in net.b:
        torch.nn.init.normal_(each, std=0.1)
    vectors = ItemEmbeddings(tuple(items), np.eye(6, 3, dtype=np.float32))
    origin = BundleOrigin(base.digest, load_click_template(template), ClickOptions(by="user"), Retrieval(by="similar", count=3), seed)  # fmt: skip
    write_bundle(folder, origin, net, din, vectors)
    return folder


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
    for name in ("empty", "stocked"):
        remove_empty_shards(folder / name)
    return folder / "empty", folder / "stocked"


def remove_empty_shards(home: Path) -> None:
    """A store makes its 256 folders for blobs at once, or each when it is needed; the fewer are there, the quicker is a copy."""
    for shard in (home / "store" / "blobs" / "sha256").iterdir():
        if not any(shard.iterdir()):
            shard.rmdir()


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
