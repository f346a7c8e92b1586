"""A mix written as one LoRA that PEFT loads: exact by concatenation, or truncated by SVD to a rank, the error reported.

The adapter is written with PEFT's scaling at exactly 1 for every module (`lora_alpha` is the rank), so weights and
scales of the parts are all in its factors. One module is in memory at a time, in float64, and is rounded once to the
file's dtype; no delta is formed for methods that work on factors.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..registry.documents import read_object
from ..registry.inspect import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BaseFacts
from ..registry.lora import PREFIX, LoraModule
from .errors import MergeError
from .merge import FILE_DTYPES, TORCH_DTYPES, Part
from .methods import METHODS, Factors
from .recipes import DType


@dataclass(frozen=True)
class AdapterTensorReport:
    """One module's delta as written. Norms are Frobenius norms; `relative_error` is |written - exact| / |exact|, and holds
    what truncation cut off and what rounding to the file's dtype took."""

    name: str
    adapters: int
    rank: int
    delta_norm: float
    relative_error: float


@dataclass(frozen=True)
class AdapterReport:
    """What was written, per target weight."""

    tensors: tuple[AdapterTensorReport, ...]
    bytes: int

    def summary(self) -> dict[str, object]:
        """The figures that a person reads first."""
        errors = [tensor.relative_error for tensor in self.tensors]
        worst = max(self.tensors, key=lambda tensor: tensor.relative_error)
        return {
            "tensors": len(self.tensors),
            "bytes": self.bytes,
            "largest_rank": max(tensor.rank for tensor in self.tensors),
            "median_relative_error": float(f"{statistics.median(errors):.4g}"),
            "worst_relative_error": float(f"{worst.relative_error:.4g}"),
            "worst_tensor": worst.name,
        }


def write_adapter(
    base: BaseFacts,
    parts: Sequence[Part],
    out: Path,
    *,
    method: str = "linear",
    rank: int | None = None,
    dtype: DType | None = None,
) -> AdapterReport:
    """Write `adapter_config.json` and `adapter_model.safetensors` into the empty folder `out`.

    `rank` None keeps every delta exactly; a number bounds each module's rank by truncated SVD. `dtype` None is float32.
    `out` is left half-written when something fails: give a staging folder. Raises MergeError, RecipeError.
    """
    file_dtype = dtype or "float32"
    modules = _plan(parts, method, rank)
    slots = [slot for module in modules for slot in module.slots(FILE_DTYPES[file_dtype])]
    reports: list[AdapterTensorReport] = []

    def tensors() -> Iterable[Tensor]:
        for module in modules:
            b, a, report = _factors(module, method, TORCH_DTYPES[FILE_DTYPES[file_dtype]])
            reports.append(report)
            yield from (a, b)

    size = _write_tensors(out / ADAPTER_WEIGHTS, slots, tensors())
    config = _config(base, parts, modules)
    _write(out / ADAPTER_CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return AdapterReport(tuple(reports), size)


# --- what is written ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slot:
    """A tensor of the file to be: its size is known before its values are."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * TORCH_DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class _Module:
    """One target weight of the written adapter, and the parts' modules that go into it."""

    used: tuple[tuple[Part, LoraModule], ...]
    exact_rank: int
    rank: int

    @property
    def first(self) -> LoraModule:
        return self.used[0][1]

    def slots(self, dtype: str) -> tuple[_Slot, _Slot]:
        a, b = self.first.a, self.first.b
        return _Slot(a.name, dtype, (self.rank, a.shape[1])), _Slot(b.name, dtype, (b.shape[0], self.rank))


def _plan(parts: Sequence[Part], method: str, rank: int | None) -> list[_Module]:
    if not parts:
        raise MergeError("a mix needs at least one adapter")
    if rank is not None and rank < 1:
        raise MergeError(f"rank {rank} leaves nothing of the adapters", hint="give a rank of 1 or more")
    for part in parts:
        if not math.isfinite(part.weight):
            raise MergeError(f"the weight of {part.folder} is {part.weight}, not a finite number")
    uses: dict[str, list[tuple[Part, LoraModule]]] = {}
    for part in parts:
        for module in part.facts.modules:
            uses.setdefault(module.weight, []).append((part, module))
    modules = []
    for _, used in sorted(uses.items()):
        shapes = {(m.b.shape[0], m.a.shape[1], m.transposed) for _, m in used}
        if len(shapes) > 1:
            said = "; ".join(f"{p.folder.name}: {m.b.shape[0]} x {m.a.shape[1]}" for p, m in used)
            raise MergeError(f"the adapters disagree about the shape or the layout of {used[0][1].weight} ({said})")
        exact = used[0][1].rank if method == "factor" else sum(m.rank for _, m in used)
        # no more than the matrix can have: a longer SVD would be padding
        kept = exact if rank is None or exact <= rank else min(rank, used[0][1].b.shape[0], used[0][1].a.shape[1])
        modules.append(_Module(tuple(used), exact, kept))
    return modules


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _factors(module: _Module, method: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, AdapterTensorReport]:
    """B [out, r] and A [r, in] as they are written, and how far their product is from the exact delta."""
    loaded = [_load(part, lora) for part, lora in module.used]
    b, a = METHODS[method](loaded, [part.weight for part, _ in module.used])
    cut, norm = 0.0, _norm_of_product(b, a)
    if module.rank < module.exact_rank:
        b, a, cut, norm = truncated(b, a, module.rank)
    # A goes as it was trained and B carries weight, sign and scale: that is one rounding, and of B alone
    written_b, written_a = b.to(dtype), a.to(dtype)
    if not bool(written_b.isfinite().all() and written_a.isfinite().all()):
        raise MergeError(
            f"the factors of {module.first.weight} do not stay finite in {str(dtype).removeprefix('torch.')}",
            hint="choose bfloat16 or float32",
        )
    off_b, off_a = written_b.double() - b, written_a.double() - a
    rounded = _norm_of_product(torch.cat([off_b, b], 1), torch.cat([written_a.double(), off_a], 0))
    # rounding acts within the kept directions, the cut is what lies outside them: the two stand at a right angle
    error = math.hypot(cut, rounded) / norm if norm else 0.0
    return written_b, written_a, AdapterTensorReport(module.first.weight, len(module.used), module.rank, norm, error)


def truncated(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The best approximation of B A of that rank (Eckart-Young), without forming B A: b [out, R], a [R, in], R > rank.

    Returns B [out, rank] and A [rank, in] of equal norms, the Frobenius norm of what was cut off, and that of B A.
    The sign of each pair is fixed by the largest entry of B's column, so that equal inputs give equal bytes.
    """
    left, core_left = torch.linalg.qr(b)
    right, core_right = torch.linalg.qr(a.T)
    u, values, vh = torch.linalg.svd(core_left @ core_right.T)
    u, vh = left @ u[:, :rank], vh[:rank] @ right.T
    largest = u.abs().argmax(dim=0)
    signs = torch.where(u[largest, torch.arange(rank)] < 0, -1.0, 1.0).to(u.dtype)
    # equal shares to both sides keep both within the range of a narrow dtype
    root = values[:rank].sqrt() * signs
    cut = float(torch.linalg.vector_norm(values[rank:]))
    return u * root, vh * root[:, None], cut, float(torch.linalg.vector_norm(values))


def _norm_of_product(b: Tensor, a: Tensor) -> float:
    """|B A| from the small Gram matrices: |B A|² = <BᵀB, A Aᵀ>."""
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))


def _load(part: Part, module: LoraModule) -> Factors:
    with safe_open(part.folder / ADAPTER_WEIGHTS, framework="pt") as file:
        a, b = (file.get_tensor(info.name).double() for info in (module.a, module.b))
    return Factors(a, b, module.scale)


# --- configuration --------------------------------------------------------------------------------------------------


def _config(base: BaseFacts, parts: Sequence[Part], modules: Sequence[_Module]) -> dict[str, object]:
    """`adapter_config.json`: the fields of PEFT 0.21's LoraConfig that say something; others have their defaults."""
    raw = [read_object(part.folder / ADAPTER_CONFIG) for part in parts]
    ranks = {module.first.name: module.rank for module in modules}
    # ties go to the larger, so that the order of modules does not decide
    common = max(Counter(ranks.values()).items(), key=lambda item: (item[1], item[0]))[0]
    patterns = rank_patterns(ranks, common)
    return {
        "peft_type": "LORA",
        "task_type": _agreed(raw, "task_type"),
        "base_model_name_or_path": _agreed(raw, "base_model_name_or_path"),
        "revision": _agreed(raw, "revision"),
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "fan_in_fan_out": any(module.first.transposed for module in modules),
        "modules_to_save": None,
        "target_modules": target_modules(ranks, base.tensors),
    }


def _agreed(configs: Sequence[Mapping[str, object]], field: str) -> object:
    """What all parts say; where they differ nothing is said."""
    first = configs[0].get(field)
    return first if all(config.get(field) == first for config in configs) else None


def rank_patterns(ranks: Mapping[str, int], common: int) -> dict[str, int]:
    """PEFT's `rank_pattern` for modules whose rank is not `common`: {regular expression for the end of a name: rank}.

    PEFT takes the first key that fits `(.*\\.)?(key)$`. Each key here is the shortest dotted end that only modules of one
    rank have, so at most one rank fits a name; names that end in another's whole name are told apart by `^`.
    Short keys also keep PEFT quick, which tries every key on every module.
    """
    by_end: dict[str, set[int]] = {}
    for name, rank in ranks.items():
        for end in _ends(name):
            by_end.setdefault(end, set()).add(rank)
    patterns: dict[str, int] = {}
    for name, rank in sorted(ranks.items()):
        if rank != common:
            end = next((end for end in _ends(name) if by_end[end] == {rank}), f"^{name}")
            patterns[end.replace(".", "\\.")] = rank
    return patterns


def target_modules(adapted: Collection[str], tensors: Collection[str]) -> list[str]:
    """PEFT's `target_modules`: last names (`q_proj`) if those name no other module of the base, else whole names."""
    known = {end for tensor in tensors for end in _beginnings(tensor)}
    last = {name.rpartition(".")[2] for name in adapted}
    others = {name for name in known - set(adapted) if name.rpartition(".")[2] in last}
    # a name that is not the checkpoint's tells that the model's modules may have yet other names
    plain = all(name in known for name in adapted)
    return sorted(last) if plain and not others else sorted(adapted)


def _ends(name: str) -> list[str]:
    """`a.b.c` -> `c`, `b.c`, `a.b.c`."""
    pieces = name.split(".")
    return [".".join(pieces[start:]) for start in reversed(range(len(pieces)))]


def _beginnings(tensor: str) -> list[str]:
    """The modules around a tensor: `a.b.weight` -> `a`, `a.b`."""
    pieces = tensor.split(".")
    return [".".join(pieces[:end]) for end in range(1, len(pieces))]


# --- files ----------------------------------------------------------------------------------------------------------


def _write_tensors(path: Path, slots: Sequence[_Slot], tensors: Iterable[Tensor]) -> int:
    """A safetensors file, header first, then each tensor as it comes; returns the bytes of its tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # a single key, as everywhere here
    end = 0
    for slot in slots:
        header[slot.name] = {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [end, end + slot.nbytes],
        }
        end += slot.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for slot, tensor in zip(slots, tensors, strict=True):
            if tensor.dtype != TORCH_DTYPES[slot.dtype] or tuple(tensor.shape) != slot.shape:
                raise MergeError(f"{slot.name} came out as {tensor.dtype} {list(tensor.shape)}, planned was {slot}")
            file.write(memoryview(tensor.contiguous().view(torch.uint8).reshape(-1).numpy()))
        file.flush()
        os.fsync(file.fileno())
    return end


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
