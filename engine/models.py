"""Language models as transformers loads them: on which device, in which dtype, and never with remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..registry.errors import UsageError
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

    Raises EvaluationError when transformers cannot load the folder.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # whoever called shows progress of its own
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or compute_dtype(device), trust_remote_code=False, local_files_only=True
        )
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"{folder} does not load as a causal language model: {error}") from error
    model.to(torch.device(device))  # pyright: ignore[reportArgumentType]  the stub takes no device
    return model.eval().requires_grad_(False), tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer; it must bring a chat template, since every prompt is a conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not tokenizer.chat_template:
        raise EvaluationError(
            f"the tokenizer in {folder} has no chat template", hint="use the instruction-tuned checkpoint of this model"
        )
    return tokenizer
