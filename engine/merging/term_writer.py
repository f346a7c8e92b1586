"""Tensors whose change is more than one product of thin matrices: made term by term, slab by slab."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...registry.artifacts.lora import LoraModule, SavedTensor
from ..methods import Factors
from .blocks import BLOCK_BYTES
from .checkpoint import Shard, StoredFile, bytes_of, read_into, torch_dtype, write_from
from .deltas import LowRank, Saved, Term, apply_terms, slabs
from .plan import MatrixSize, Target, Use, matrix
from .reports import TensorReport
from .result import Result
from .tensor_writer import Tally, overflow, tensor_report

Terms = list[tuple[int, Term]]
"""Each with the index of the adapter that it is of."""


def write_terms(result: Result, target: Target, shard: Shard, source: StoredFile) -> TensorReport | None:
    """Write a whole tensor; None for one that is only cut and rounded. Raises MergeError."""
    size = _size(target)
    old = _old_rows(target, size, source)
    terms = [(use.part, _term(result, use, target, size, old)) for use in target.uses]
    by_factors = result.method.kind == "factors"
    step = max(1, BLOCK_BYTES // max(1, size.columns * 4))
    position, row_bytes = shard.position(target.info.name), size.columns * torch_dtype(target.info).itemsize
    tally = Tally()
    for start, stop in slabs([term for _, term in terms], size.rows, size.old_rows):
        covering = [(part, term) for part, term in terms if term.start <= start and stop <= term.stop]
        step_here = step if by_factors else max(1, stop - start)
        for row in range(start, stop, step_here):
            end = min(row + step_here, stop)
            if row >= size.old_rows:
                before = torch.zeros(end - row, size.columns)
                exact = _averaged(target, covering, before, row)
            else:
                before = old(row, end)
                exact = _combined(result, target, start, covering, before, row)
            after = exact.to(torch_dtype(target.info))
            _count(tally, target, before, exact, after.float())
            write_from(shard.fd, bytes_of(after.contiguous()), position + row * row_bytes)
    ranks = [term.factors.a.shape[0] for _, term in terms if isinstance(term, LowRank)]
    rank = max(ranks, default=0) if len(ranks) == len(terms) and by_factors else 0
    return tensor_report(target, rank, tally) if target.uses else None


def _size(target: Target) -> MatrixSize:
    info = target.source.info
    if target.info.shape != info.shape and len(info.shape) == 1:  # a bias that grows is a column that gets longer
        return MatrixSize(target.info.elements, info.elements, 1)
    old_rows, columns = matrix(info)
    return MatrixSize(target.rows, old_rows, columns)


def _old_rows(target: Target, size: MatrixSize, source: StoredFile) -> Callable[[int, int], Tensor]:
    """Reads rows [start, stop) of the base in float32, as far as it has them."""
    info = target.source.info
    begin, row_bytes = source.header.data_start + info.start, size.columns * torch_dtype(info).itemsize

    def old(start: int, stop: int) -> Tensor:
        raw = torch.empty((max(0, min(stop, size.old_rows) - start), size.columns), dtype=torch_dtype(info))
        read_into(source.fd, bytes_of(raw), begin + start * row_bytes)
        return raw.float()

    return old


def _term(result: Result, use: Use, target: Target, size: MatrixSize, old: Callable[[int, int], Tensor]) -> Term:
    file = result.files[use.part]
    if isinstance(use.what, LoraModule) and use.what.magnitude is not None and not use.is_bias:
        saved = [u.what for u in target.uses if u.part == use.part and isinstance(u.what, SavedTensor)]
        if saved:  # the norm is that of what the same adapter saved
            own = file.saved(saved[0], size.columns)
            of_its_own = MatrixSize(size.rows, size.rows, size.columns)
            return use.term(file, of_its_own, lambda start, stop: own.rows(start, stop - start))
    return use.term(file, size, old)


def _count(tally: Tally, target: Target, before: Tensor, exact: Tensor, rounded: Tensor) -> None:
    if not bool(torch.isfinite(rounded).all()):
        raise overflow(target.info)
    tally.delta_squares += float((exact - before).double().square().sum())
    tally.lost_squares += float((rounded - exact).double().square().sum())
    tally.changed += int((rounded != before).sum())


def _combined(result: Result, target: Target, slab: int, terms: Terms, old: Tensor, row: int) -> Tensor:
    """W + the combined delta of a block, in float32."""
    of_part, weights = _by_part(terms), target.weights
    if not of_part:
        return old
    if len(of_part) == 1:
        ((part, alone),) = of_part.items()
        if weights[part] == 1 and result.method.name == "linear":
            return apply_terms(alone, old, row)  # to the last bit, where W + (V - W) would be V but for rounding
    if result.method.kind == "deltas":
        deltas = [apply_terms(of_part[p], old, row) - old if p in of_part else None for p in range(len(weights))]
        where = target.info.name if slab == 0 else f"{target.info.name}[{slab}:]"
        return old + result.method.combine(where, old, deltas, weights, result.mix.options)
    thin = [(part, t[0]) for part, t in of_part.items() if len(t) == 1 and isinstance(t[0], LowRank)]
    whole = [(part, t[0]) for part, t in of_part.items() if len(t) == 1 and isinstance(t[0], Saved)]
    new = old * (1 - sum(weights[part] for part, _ in whole)) if whole else old.clone()
    for part, term in whole:
        new += weights[part] * term.rows(row, old.shape[0])
    if thin:
        cut = [
            Factors(t.factors.a, t.factors.b[row - t.start : row - t.start + old.shape[0]], t.factors.scale)
            for _, t in thin
        ]
        left, right = result.method(cut, [weights[part] for part, _ in thin])
        new.addmm_(left, right)
    for part, several in of_part.items():
        if len(several) > 1 or not isinstance(several[0], (LowRank, Saved)):
            new += weights[part] * (apply_terms(several, old, row) - old)
    return new


def _averaged(target: Target, terms: Terms, old: Tensor, row: int) -> Tensor:
    """Rows that the base does not have: the weighted average of what the adapters that bring them make of them."""
    bring = {part: t for part, t in _by_part(terms).items() if any(isinstance(term, Saved) for term in t)}
    total = sum(target.weights[part] for part in bring)
    new = torch.zeros_like(old)
    for part, several in bring.items():
        new += (target.weights[part] / total) * apply_terms(several, old, row)
    return new


def _by_part(terms: Terms) -> dict[int, list[Term]]:
    of_part: dict[int, list[Term]] = {}
    for part, term in terms:
        of_part.setdefault(part, []).append(term)
    return of_part
