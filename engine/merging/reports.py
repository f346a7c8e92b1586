"""What a merge reports: figures for each tensor that was written, and a summary of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorReport:
    """What became of one target weight. Norms are Frobenius norms; `lost` is |W' - (W + Δ)| / |Δ|, the share of the
    delta that rounding to the output dtype swallowed; `changed` is the share of weights that differ from the base;
    `rank` is 0 where the delta is of full rank."""

    name: str
    adapters: int
    rank: int
    delta_norm: float
    lost: float
    changed: float


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, per target weight, and which files of the base were carried or left out.

    `notes` are what a reader of the result should know, such as a head that is no longer tied. `digests` are the SHA-256 of
    the weight files. `tokenizer` says whose it is where it is not the base's. `seconds` per stage: while `merge` lasts, all shards but the last are synced too.
    """

    tensors: tuple[TensorReport, ...]
    copied_tensors: int
    carried: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    resumed_shards: int = 0
    tokenizer: str | None = None

    def summary(self) -> dict:
        """The figures that a person reads first; medians over the target weights."""
        lost = sorted(t.lost for t in self.tensors)
        changed = sorted(t.changed for t in self.tensors)
        return {
            "merged_tensors": len(self.tensors),
            "copied_tensors": self.copied_tensors,
            "median_lost_to_rounding": round(lost[len(lost) // 2], 4) if lost else 0.0,
            "worst_lost_to_rounding": round(lost[-1], 4) if lost else 0.0,
            "median_changed": round(changed[len(changed) // 2], 4) if changed else 0.0,
            "left_out": list(self.left_out),
            "notes": list(self.notes),
            "resumed_shards": self.resumed_shards,
        } | ({"tokenizer": self.tokenizer} if self.tokenizer else {})


@dataclass(frozen=True)
class AdapterTensorReport:
    """One tensor's delta as written. Norms are Frobenius norms; `relative_error` is |written - exact| / |exact|, and holds
    what the rank cut off and what rounding to the file's dtype took; `rank` is 0 for a tensor that is written whole."""

    name: str
    adapters: int
    rank: int
    delta_norm: float
    relative_error: float


@dataclass(frozen=True)
class AdapterReport:
    """What was written, per tensor of the model that the adapter changes; `bytes` counts the file's tensors."""

    tensors: tuple[AdapterTensorReport, ...]
    bytes: int
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, object]:
        """The figures that a person reads first."""
        worst = max(self.tensors, key=lambda tensor: tensor.relative_error)
        return {
            "tensors": len(self.tensors),
            "bytes": self.bytes,
            "largest_rank": max(tensor.rank for tensor in self.tensors),
            "median_relative_error": float(f"{statistics.median(t.relative_error for t in self.tensors):.4g}"),
            "worst_relative_error": float(f"{worst.relative_error:.4g}"),
            "worst_tensor": worst.name,
            "notes": list(self.notes),
        }
