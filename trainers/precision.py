"""In which floating-point type a base model is trained beside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .plugin import TrainerError

if TYPE_CHECKING:
    import torch


def precision(device: str) -> tuple[torch.dtype, bool]:
    """(base weights' dtype, autocast): bfloat16 where the device multiplies it natively, else float32.

    The adapter is float32 either way: its updates are small against its weights, and bfloat16 would round most of them away.
    Raises TrainerError when there is no such device, for which training would silently be on the CPU.
    """
    import torch

    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise TrainerError(f"there is no device {device}", hint="--device cpu, or auto")
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = Path("/proc/cpuinfo")
        native = flags.exists() and any(f in flags.read_text() for f in ("avx512_bf16", "amx_bf16"))
    return (torch.bfloat16, True) if native else (torch.float32, False)
