"""What one adapter makes of one stored matrix: terms that are read from the adapter's file and added block by block.

A stored tensor is looked at as a matrix: a vector as one row, a stack of experts as their rows one below the other. A
term acts on the rows [start, stop) of that matrix and knows how to compute its delta, W_adapter - W, for any rows of it.
Sources: LoRA arXiv 2106.09685, rank-stabilised 2312.03732, DoRA 2402.09353 (eq. 5).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...registry.artifacts.lora import LoraModule, SavedTensor, TokenRows
from ...registry.artifacts.safetensors import TensorInfo, read_header
from ...registry.artifacts.tensor_names import Place
from ..errors import MergeError
from ..methods import Factors
from .checkpoint import bytes_of, read_into, torch_dtype

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BLOCK_VALUES = 1 << 20
EXPERT_FACTORS = 4  # modules whose factors for all experts are kept: those of one layer

OldRows = Callable[[int, int], Tensor]
"""Rows [start, stop) of the base's matrix in float32, for a term that has to look at more than its own block."""


@dataclass(frozen=True)
class LowRank:
    """s·B A as it lies in the stored matrix: `factors` is turned and cut to it, B [stop - start, r] and A [r, columns]."""

    start: int
    stop: int
    factors: Factors

    def delta(self, old: Tensor, row: int) -> Tensor:
        b = self.factors.b[row - self.start : row - self.start + old.shape[0]]
        return (b * self.factors.scale) @ self.factors.a


@dataclass(frozen=True)
class Decomposed:
    """DoRA: m/‖W + s·B A‖ ⊙ (W + s·B A) - W, with one norm per output feature.

    `share` is m/norm: a column where output features are rows, a row where the matrix lies transposed.
    """

    low_rank: LowRank
    share: Tensor

    @property
    def start(self) -> int:
        return self.low_rank.start

    @property
    def stop(self) -> int:
        return self.low_rank.stop

    def delta(self, old: Tensor, row: int) -> Tensor:
        share = self.share
        if share.shape[1] == 1:
            share = share[row - self.start : row - self.start + old.shape[0]]
        return share * (old + self.low_rank.delta(old, row)) - old


@dataclass(frozen=True)
class Saved:
    """A tensor that was trained whole: V - W. Its rows are read when they are needed, since it may be an embedding."""

    start: int
    stop: int
    file: AdapterFile
    info: TensorInfo
    columns: int

    def rows(self, row: int, count: int) -> Tensor:
        return self.file.rows(self.info, row - self.start, count, self.columns)

    def delta(self, old: Tensor, row: int) -> Tensor:
        return self.rows(row, old.shape[0]) - old


@dataclass(frozen=True)
class Tokens:
    """Some rows of an embedding that were trained: V_i - W_i there, zero elsewhere."""

    start: int
    stop: int
    values: dict[int, Tensor]

    def within(self, row: int, count: int) -> list[int]:
        return [index for index in self.values if row <= index < row + count]

    def delta(self, old: Tensor, row: int) -> Tensor:
        return self.over(old, row) - old

    def over(self, old: Tensor, row: int) -> Tensor:
        """The rows with those that were trained in their places."""
        new = old.clone()
        for index in self.within(row, old.shape[0]):
            new[index - row] = self.values[index]
        return new


@dataclass(frozen=True)
class BiasDelta:
    """lora_bias: s·b added to the module's bias, a vector stored as one row."""

    values: Tensor
    start: int
    stop: int

    def delta(self, old: Tensor, row: int) -> Tensor:
        return self.values[row - self.start : row - self.start + old.shape[0]]


Term = LowRank | Decomposed | Saved | Tokens | BiasDelta
"""One adapter's delta on rows [start, stop) of a stored matrix.

`delta(old, row)` is the delta, float32, of the rows that begin at `row` of the whole matrix and hold `old` [n, columns] now.
"""


def apply_terms(terms: Sequence[Term], old: Tensor, row: int) -> Tensor:
    """What one adapter alone makes of rows that hold `old`: what it saved, its LoRA on that, and its tokens over both."""
    new = old
    for term in terms:
        if isinstance(term, Saved):
            new = term.rows(row, old.shape[0])
    for term in terms:
        if not isinstance(term, (Saved, Tokens)):
            new = new + term.delta(new, row)
    for term in terms:
        if isinstance(term, Tokens):
            new = term.over(new, row)
    return new


class AdapterFile:
    """The tensors of one adapter, read when they are needed. Use as a context manager; threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.header = read_header(folder / ADAPTER_WEIGHTS)
        self._experts: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> AdapterFile:
        self._fd = os.open(self.header.path, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def tensor(self, info: TensorInfo) -> Tensor:
        """The whole tensor, in float32."""
        flat = torch.empty(info.elements, dtype=torch_dtype(info))
        read_into(self._fd, bytes_of(flat), self.header.data_start + info.start)
        return flat.float().reshape(info.shape)

    def rows(self, info: TensorInfo, row: int, count: int, columns: int) -> Tensor:
        """Rows [row, row + count) of a tensor looked at as a matrix of so many columns, in float32."""
        flat = torch.empty(count * columns, dtype=torch_dtype(info))
        read_into(self._fd, bytes_of(flat), self.header.data_start + info.start + row * columns * flat.itemsize)
        return flat.reshape(count, columns).float()

    def holds_the_same(self, one: TensorInfo, other: TensorInfo) -> bool:
        """Whether two tensors are equal, value by value."""
        return one.shape == other.shape and all(
            torch.equal(self.rows(one, row, 1, one.shape[-1]), self.rows(other, row, 1, one.shape[-1]))
            for row in range(one.elements // one.shape[-1])
        )

    def factors(self, module: LoraModule) -> tuple[Tensor, Tensor]:
        """(A, B) as stored. Those of experts are asked for once per expert, so the last ones are kept."""
        if module.experts == 1:
            return self.tensor(module.a), self.tensor(module.b)
        with self._lock:
            if module.weight not in self._experts:
                self._experts[module.weight] = self.tensor(module.a), self.tensor(module.b)
                if len(self._experts) > EXPERT_FACTORS:
                    self._experts.popitem(last=False)
            self._experts.move_to_end(module.weight)
            return self._experts[module.weight]

    def low_rank(self, module: LoraModule, place: Place, rows: Collection[int]) -> LowRank:
        """One module's factors as they act on the tensor of `place`; `rows` is how many the whole delta may have."""
        a, b = self.factors(module)
        if place.expert is not None:
            # PEFT stacks the experts' A, but lets B's columns take turns: expert e owns e, E + e, 2E + e, …
            rank = a.shape[0] // module.experts
            a = a[place.expert * rank : (place.expert + 1) * rank]
            b = b[:, place.expert :: module.experts]
        left, right = (a.T, b.T) if module.transposed else (b, a)
        if place.rows is not None:
            left = left[slice(*place.rows)]
        if place.transposed:
            left, right = right.T, left.T
        start = 0 if place.index is None else place.index * left.shape[0]
        if place.index is None and left.shape[0] not in rows:
            wanted = " or ".join(map(str, sorted(rows)))
            raise MergeError(f"{module.name}: its delta has {left.shape[0]} rows, but {place.tensor} has {wanted}")
        return LowRank(start, start + left.shape[0], Factors(right.contiguous(), left.contiguous(), module.scale))

    def decomposed(self, module: LoraModule, place: Place, rows: Collection[int], old: OldRows) -> Decomposed:
        """DoRA's shares, for which the base's matrix is read once, a block at a time.

        Raises MergeError where a norm is zero or no number.
        """
        assert module.magnitude is not None
        term = self.low_rank(module, place, rows)
        magnitude = self.tensor(module.magnitude).reshape(-1)
        sideways = module.transposed != place.transposed
        squares = []
        step = max(1, BLOCK_VALUES // max(1, term.factors.a.shape[1]))
        for row in range(term.start, term.stop, step):
            block = old(row, min(row + step, term.stop))
            squares.append((block + term.delta(block, row)).double().square().sum(dim=0 if sideways else 1))
        norms = (torch.stack(squares).sum(0) if sideways else torch.cat(squares)).sqrt()
        if not bool((norms > 0).all()):
            raise MergeError(
                f"{module.name}: DoRA divides by the norm of an output feature, and one is zero or no number"
            )
        if place.rows is not None:
            magnitude = magnitude[slice(*place.rows)]
        share = (magnitude.double() / norms).float()
        return Decomposed(term, share.reshape(1, -1) if sideways else share.reshape(-1, 1))

    def saved(self, tensor: SavedTensor, columns: int) -> Saved:
        """A saved tensor over all of its rows, which may be more than the base has."""
        return Saved(0, tensor.info.elements // columns, self, tensor.info, columns)

    def tokens(self, rows: TokenRows, count: int) -> Tokens:
        """The trained rows of an embedding of `count` rows."""
        return Tokens(0, count, dict(zip(rows.indices, self.tensor(rows.info), strict=True)))

    def shift(self, module: LoraModule, columns: int) -> BiasDelta:
        """The bias of lora_B, scaled as the rest of the delta is."""
        assert module.bias is not None
        values = self.tensor(module.bias).reshape(-1, columns) * module.scale
        return BiasDelta(values, 0, values.shape[0])


def load_factors(folder: Path, module: LoraModule) -> Factors:
    """One plain module's A and B in float32, as they are stored."""
    with AdapterFile(folder) as file:
        a, b = file.factors(module)
    return Factors(a, b, module.scale)


def slabs(terms: Sequence[Term], rows: int, old_rows: int) -> list[tuple[int, int]]:
    """A matrix of `rows` cut where a term begins or ends and where the base does: each term covers a slab or does not."""
    edges = {0, rows, old_rows, *(edge for term in terms for edge in (term.start, term.stop))}
    cuts = sorted(edge for edge in edges if edge <= rows)
    return list(itertools.pairwise(cuts))
