"""Tensors that are changed by one product of two thin matrices, or only rounded: read once, written block by block."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...registry.artifacts.lora import LoraModule
from ...registry.artifacts.safetensors import TensorInfo
from ..errors import MergeError
from .blocks import Block, BufferPool
from .checkpoint import Shard, torch_dtype, write_from
from .plan import Target
from .reports import TensorReport
from .result import Result


@dataclass
class Tally:
    """What a job found out about the rows it made."""

    delta_squares: float = 0.0
    lost_squares: float = 0.0
    changed: int = 0


class TensorWriter:
    """One result's share of a tensor that is read once: its delta, or nothing but another dtype."""

    def __init__(self, result: Result, target: Target, shard: Shard, device: torch.device) -> None:
        self.result, self.target = result, target
        self.tallies: dict[int, Tally] = {}
        self._shard, self._device = shard, device
        self._position = shard.position(target.info.name)
        self._kind = torch_dtype(target.info)
        self._lock = threading.Lock()
        self._factors: tuple[Tensor, Tensor] | None = None

    def _loaded(self) -> tuple[Tensor, Tensor]:
        """(left [rows, R], right [R, columns]): their product is the combined delta. The first job to ask reads them."""
        with self._lock:
            if self._factors is None:
                terms = [
                    (use.part, self.result.files[use.part].low_rank(use.what, use.place, {self.target.rows}).factors)
                    for use in self.target.uses
                    if isinstance(use.what, LoraModule)
                ]
                left, right = self.result.method(
                    [factors for _, factors in terms], [self.target.weights[part] for part, _ in terms]
                )
                self._squares = _squared_norm(left, right)
                self._spread = math.sqrt(self._squares / max(1, self.target.info.elements))
                self._factors = left.to(self._device).contiguous(), right.to(self._device).contiguous()
            return self._factors

    def write_block(self, raw: Block, row: int, tally: Tally, buffers: BufferPool) -> None:
        """Add the delta to the block that begins at `row`, round it once and write it."""
        rows, columns = raw.tensor.shape
        position = self._position + row * columns * self._kind.itemsize
        new = buffers.block("new", rows, columns, self._kind)
        if not self.target.uses:
            new.tensor.copy_(raw.tensor)
            if not bool(torch.isfinite(new.tensor).all()):
                raise overflow(self.target.info)
            write_from(self._shard.fd, new.bytes, position)
            return
        left, right = self._loaded()
        left = left[row : row + rows]
        if self._device.type != "cpu":
            self._add_on_device(raw, left, right, tally, new)
        elif self._kind == torch.float32 or self._is_faint(raw):
            self._add_and_compare(raw, left, right, tally, new)
        else:
            self._add(raw, left, right, tally, new, buffers)
        if raw.tensor.dtype != self._kind:
            raw = buffers.block("old", rows, columns, self._kind, raw.tensor)
        differing = buffers.block("differing", rows, columns, torch.bool)
        tally.changed += int(np.count_nonzero(np.not_equal(raw.bits, new.bits, out=differing.bits)))
        write_from(self._shard.fd, new.bytes, position)

    def _add(self, raw: Block, left: Tensor, right: Tensor, tally: Tally, new: Block, buffers: BufferPool) -> None:
        size = len(raw.tensor), raw.tensor.shape[1]
        exact = buffers.block("exact", *size, torch.float32, raw.tensor)
        exact.tensor.addmm_(left, right)
        new.tensor.copy_(exact.tensor)
        error = buffers.block("error", *size, torch.float32, new.tensor)
        error.flat.sub_(exact.flat)
        lost = float(torch.dot(error.flat, error.flat))
        if not math.isfinite(lost):  # an infinity or NaN anywhere shows here, or the squares of huge weights
            if not bool(torch.isfinite(new.tensor).all()):
                raise overflow(self.target.info)
            lost = float(error.flat.double().square().sum())
        tally.lost_squares += lost

    def _is_faint(self, raw: Block) -> bool:
        """Whether the delta is so small beside the weights that float32's own rounding would show in what was lost."""
        first = raw.tensor[0].float()
        return self._spread * math.sqrt(max(1, first.numel())) < 2**-16 * math.sqrt(float(torch.dot(first, first)))

    def _add_and_compare(self, raw: Block, left: Tensor, right: Tensor, tally: Tally, new: Block) -> None:
        """The same sum; what was lost is measured against W and Δ apart, which also sees what float32 swallowed."""
        old = raw.tensor.float()
        change = left @ right
        new.tensor.copy_(torch.addmm(old, left, right))
        if not bool(torch.isfinite(new.tensor).all()):
            raise overflow(self.target.info)
        tally.lost_squares += float((new.tensor.float() - old - change).double().square().sum())

    def _add_on_device(self, raw: Block, left: Tensor, right: Tensor, tally: Tally, new: Block) -> None:
        """The same on CUDA, on the current thread's stream, from and to pinned memory."""
        with torch.cuda.stream(_stream(self._device)):
            old = raw.tensor.to(self._device, non_blocking=True).float()
            exact = torch.addmm(old, left, right)
            rounded = exact.to(self._kind)
            lost = (
                (rounded.float() - (exact if self._kind != torch.float32 else old + left @ right))
                .double()
                .square()
                .sum()
            )
            finite = torch.isfinite(rounded).all()
            new.tensor.copy_(rounded, non_blocking=True)
            tally.lost_squares += float(lost)  # waits for the stream, and so for `new`
            if not bool(finite):
                raise overflow(self.target.info)

    def done(self) -> tuple[Result, TensorReport | None, int]:
        """The report, once all rows are written."""
        if not self.target.uses:
            return self.result, None, 1
        _, right = self._loaded()
        total = Tally(delta_squares=self._squares)
        for _, tally in sorted(self.tallies.items()):
            total.lost_squares += tally.lost_squares
            total.changed += tally.changed
        self._factors = None
        return self.result, tensor_report(self.target, right.shape[0], total), 0


def _squared_norm(left: Tensor, right: Tensor) -> float:
    """|left right|² from the Gram matrices of the factors, without the product: tr(LᵀL · R Rᵀ)."""
    left, right = left.double(), right.double()
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def tensor_report(target: Target, rank: int, tally: Tally) -> TensorReport:
    if tally.delta_squares and not tally.changed:
        lost = 1.0  # below the resolution even of float32, in which what was lost is measured
    else:
        lost = math.sqrt(tally.lost_squares / tally.delta_squares) if tally.delta_squares else 0.0
    return TensorReport(
        name=target.info.name,
        adapters=len({use.part for use in target.uses}),
        rank=rank,
        delta_norm=math.sqrt(tally.delta_squares),
        lost=lost,
        changed=tally.changed / max(1, target.info.elements),
    )


def overflow(info: TensorInfo) -> MergeError:
    return MergeError(
        f"{info.name} does not stay finite in {info.dtype}",
        hint="check the base and the weights, or choose a wider dtype",
    )


_streams = threading.local()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of this thread's own, so that one thread's copies overlap with another's arithmetic."""
    if not hasattr(_streams, "stream"):
        _streams.stream = torch.cuda.Stream(device)
    return _streams.stream
