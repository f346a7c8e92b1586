"""What adapting will take of the device's memory, found out before it begins: weights from headers, activations by trying.

How much a backward pass has to keep follows from the architecture, the attention that is used and the libraries' versions. So it is
measured, on a few short prompts, and carried on to long ones: what is kept grows with the length, and at most with its square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

PROBES = (16, 32, 64)
CGROUP = Path("/sys/fs/cgroup")
MARGIN = 1.15  # beside what is kept: the tensors of the operation at work


def available(device: str) -> int | None:
    """Bytes that could be taken on a device now; None where that is unknown."""
    if device.startswith("cuda"):
        place = torch.device(device)
        kept = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)  # for what comes next
        return torch.cuda.mem_get_info(place)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    limits = [limit for limit in (free, _left_in_container()) if limit is not None]
    return min(limits) if limits else None


def total() -> int | None:
    """Bytes that this machine or container has in all; None where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
        limited = CGROUP / "memory.max"
        limit = limited.read_text(encoding="ascii").strip() if limited.is_file() else "max"
    except (OSError, ValueError, StopIteration):
        return None
    return found if limit == "max" else min(found, int(limit))


def _left_in_container() -> int | None:
    """Bytes up to the limit of the control group that this process is in, where there is one."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        return None if limit == "max" else int(limit) - int((CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def activation_bytes(forward: Callable[[], Tensor], weights: Sequence[Tensor]) -> int:
    """What a forward pass keeps for its backward pass, beside the model's own `weights`."""
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # held, so that no storage is freed and its place taken by another
    del result
    return sum(kept.values())


class MemoryModel:
    """Bytes of a pass over prompts by their length, the parabola through what `measure` says of three short ones.

    Its constant is there once, whatever the number of prompts; `each` is added for every prompt.
    """

    def __init__(self, measure: Callable[[int], int], each: int = 0) -> None:
        self._each = each
        x = torch.tensor(PROBES, dtype=torch.float64)
        y = torch.tensor([measure(length) for length in PROBES], dtype=torch.float64)
        powers = torch.stack([torch.ones_like(x), x, x * x], dim=1)
        self._coefficients = [max(0.0, c) for c in torch.linalg.solve(powers, y).tolist()]

    def __call__(self, length: int, prompts: int = 1) -> int:
        constant, slope, bend = self._coefficients
        return int(MARGIN * (constant + prompts * (slope * length + bend * length * length + self._each)))
