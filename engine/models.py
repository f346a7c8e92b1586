"""Language models as transformers loads them: on which device, in which dtype, and never with remote code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..registry.artifacts.inspect import CONFIG
from ..registry.artifacts.task_heads import TASK_CLASSES
from ..registry.errors import InvalidArtifactError, UsageError
from ..registry.strict_json import read_object
from .errors import EvaluationError


def pick_device(wanted: str) -> str:
    """`auto` is CUDA where there is one, else the CPU. Raises UsageError for a device that torch does not have."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {wanted!r} cannot be used: {str(error).splitlines()[0]}", hint="--device auto"
        ) from error
    return wanted


def compute_dtype(device: str) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32.

    On a CPU without AVX512-BF16 or AMX, bfloat16 is emulated and several times slower than float32.
    """
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def load_model(folder: Path, device: str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) from a local checkpoint, in evaluation mode and without gradients.

    Raises EvaluationError when transformers cannot load the folder, and where it would make up weights that the folder lacks.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the caller shows its own progress
    _expect_words(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or compute_dtype(device),
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model, found = loaded
        _expect_all(folder, found["missing_keys"])
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"{folder} does not load as a causal language model: {error}") from error
    model.to(torch.device(device))
    return model.eval().requires_grad_(False), tokenizer


def _expect_all(folder: Path, missing: Iterable[object]) -> None:
    if missing := sorted(map(str, missing)):
        raise EvaluationError(
            f"{folder} does not load as a causal language model: it lacks {missing[0]}, which would be random",
            hint="name a checkpoint of a model with a head for tokens",
        )


def _expect_words(folder: Path) -> None:
    """Raises EvaluationError for a classifier, which transformers would load with a head for tokens that was never trained."""
    try:
        names = read_object(folder / CONFIG).get("architectures")
    except InvalidArtifactError as error:
        raise EvaluationError(f"{folder} does not load as a causal language model: {error}") from error
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name.endswith(tuple(TASK_CLASSES.values())):
            raise EvaluationError(
                f"{folder} holds a {name}, which answers with labels and not with words",
                hint="ranking and adaptive recipes need a language model: load it with transformers, and measure its labels there",
            )


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer; it must bring a chat template, since every prompt is a conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not tokenizer.chat_template:
        raise EvaluationError(
            f"the tokenizer in {folder} has no chat template", hint="use the instruction-tuned checkpoint of this model"
        )
    return tokenizer
