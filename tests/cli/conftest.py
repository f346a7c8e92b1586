"""The command in a home of its own, and a tiny model with adapters that the real libraries wrote.

Homes are prepared once per test process; a test gets a copy, which costs a few megabytes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reccocktail.cli import main
from reccocktail.registry import Registry, Settings
from reccocktail.tasks import generate, load_template, questions, write_domain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMALL_RECIPE = "method: linear\nadaptive: {points: 3, prompts: 4, tokens: 2}\noutput: {dtype: bfloat16}\n"


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Raises ValueError unless stdout is exactly one JSON document."""
        return json.loads(self.out)


class Terminal(io.StringIO):
    """What is written to it is laid out as for a person."""

    def isatty(self) -> bool:
        return True


class Shell:
    """The command with one home, in one working folder, undisturbed by the settings of whoever runs the tests."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home, self.folder = home, folder
        folder.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        theirs = ("XDG_CONFIG_HOME", "COLUMNS")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RECCOCKTAIL_") and k not in theirs}
        return kept | {"RECCOCKTAIL_HOME": str(self.home), "RECCOCKTAIL_DEVICE": "cpu", "HOME": str(self.folder)}

    def __call__(self, *words: object, code: int | None = 0, columns: int | None = None, **environment: str) -> Answer:
        """Run it in this process and expect this exit code, or any for None; with `columns`, on a terminal that is so wide."""
        out, err = io.StringIO() if columns is None else Terminal(), io.StringIO()
        variables = self.environment() | environment
        if columns is not None:
            variables |= {"COLUMNS": str(columns), "TERM": "dumb"}
        with patch.dict(os.environ, variables, clear=True), chdir(self.folder):  # noqa: SIM117
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
                main([str(word) for word in words])
        answer = Answer(int(ended.value.code or 0), out.getvalue(), err.getvalue())
        assert code in (answer.code, None), f"reccocktail {' '.join(map(str, words))}\n{answer.out}{answer.err}"
        return answer

    def registry(self) -> Registry:
        """The home's registry, to look behind the command."""
        return Registry.open(Settings.load(home=self.home, cwd=self.folder, environ={"HOME": str(self.folder)}))

    def process(self, *words: object, code: int = 0) -> Answer:
        """Run it as a user does, in a process of its own."""
        command = [Path(sys.executable).with_name("reccocktail"), *map(str, words)]
        done = subprocess.run(
            command, env=self.environment(), cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
        return Answer(done.returncode, done.stdout, done.stderr)


def asked(run: Any, *words: str) -> list[str]:
    """What bash is offered for the last of the words."""
    line = " ".join(("reccocktail", *words))
    answer = run(_RECCOCKTAIL_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words)))
    assert answer.err == ""
    return [entry.partition(",")[2] for entry in answer.out.split()]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights, and a tokenizer with a chat template that knows the sample domains' words."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    _, asked = questions(generate("skin-care", users=40), "test", load_template("pick-one"), limit=10)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([question.messages[-1]["content"] for question in asked], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", chat_template=CHATML)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=480,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_lora(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """(seed): a LoRA folder as PEFT writes it, for the base model `tiny`; both factors are random."""

    def make(seed: int) -> Path:
        folder = tmp_path_factory.mktemp("loras") / f"lora-{seed}"
        torch.manual_seed(seed)
        model = LlamaForCausalLM.from_pretrained(tiny_base)
        tuned = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        )
        tuned.save_pretrained(folder, save_embedding_layers=False)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "tiny"}))
        return folder

    return make


@pytest.fixture(scope="session")
def loras(make_lora: Callable[[int], Path]) -> dict[str, Path]:
    """A spirit and two ingredients."""
    return {"spirit": make_lora(1), "ingredient": make_lora(2), "newer": make_lora(3)}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folders of the sample domains `skin-care` and `kitchen`, of a few shoppers each."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("skin-care", "kitchen"):
        write_domain(generate(name, users=12), folder / name)
    return folder


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default recipe, but on fewer prompts and points."""
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(SMALL_RECIPE)
    return path


@pytest.fixture(scope="session")
def _prepared(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_base: Path,
    loras: dict[str, Path],
    data: Path,
    small_recipe: Path,
    remove_empty_shards: Callable[[Path], None],
) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    run = Shell(folder / "home", folder / "work")
    run("init")
    run("base", "add", "tiny", tiny_base)
    run("domain", "add", "skin-care", "--title", "Skin Care", "--data", data / "skin-care", "--recipe", small_recipe)
    run("domain", "add", "kitchen", "--data", data / "kitchen")
    run("adapter", "add", loras["spirit"], "--base", "tiny", "--spirit")
    run("adapter", "add", loras["ingredient"], "--base", "tiny", "--domain", "skin-care", "--metric", "HR@1=0.25")
    remove_empty_shards(folder / "home")
    return folder / "home"


@pytest.fixture(scope="session")
def _built(_prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(_prepared, folder / "home")
    run = Shell(folder / "home", folder / "work")
    run("build", "request", "skin-care", "--recipe", "average", "--wait")
    run("build", "request", "skin-care", "--wait")
    return folder / "home"


@pytest.fixture
def bare(tmp_path: Path) -> Shell:
    """Where nothing is: no home yet."""
    return Shell(tmp_path / "home", tmp_path / "work")


@pytest.fixture
def prepared(bare: Shell, _prepared: Path) -> Shell:
    """A base `tiny`, a spirit, `skin-care` with an ingredient and a small adaptive recipe, `kitchen` without either."""
    shutil.copytree(_prepared, bare.home)
    return bare


@pytest.fixture
def built(bare: Shell, _built: Path) -> Shell:
    """As `prepared`, with two builds of `skin-care`: by `average`, then by its own recipe."""
    shutil.copytree(_built, bare.home)
    return bare


def free_port() -> int:
    """One that nobody listens on at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
