"""Low-rank algebra: the best approximation of a sum of products by one product of given rank, and its error."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_STEP = 1 << 22  # values of a dense delta that are in float64 at a time


def truncated(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The best approximation of B A of that rank (Eckart-Young), without forming B A: b [out, R], a [R, in], R > rank.

    Returns B [out, rank] and A [rank, in] of equal norms, the Frobenius norm of what was cut off, and that of B A.
    """
    left, core_left = torch.linalg.qr(b)
    right, core_right = torch.linalg.qr(a.T)
    u, values, vh = torch.linalg.svd(core_left @ core_right.T)
    b, a = _shared(left @ u[:, :rank], values[:rank], vh[:rank] @ right.T)
    return b, a, float(torch.linalg.vector_norm(values[rank:])), float(torch.linalg.vector_norm(values))


def nearest(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [out, rank] and A [rank, in] in float64, of equal norms, whose product is nearest to a dense delta [out, in].

    From the eigenvectors of the smaller Gram matrix, which cost a fraction of a full SVD. In float64 they are good to 1e-8 of the
    delta's norm, which is less than the delta's own float32 holds.
    """
    if delta.shape[0] > delta.shape[1]:
        b, a = nearest(delta.T, rank)
        return a.T, b.T
    gram = torch.zeros(delta.shape[0], delta.shape[0], dtype=torch.float64)
    for start, stop in row_steps(delta.T):
        piece = delta[:, start:stop].double()
        gram += piece @ piece.T
    u = torch.linalg.eigh(gram)[1][:, -rank:].flip(1)  # eigenvalues come in rising order
    projected = torch.cat([u.T @ delta[:, start:stop].double() for start, stop in row_steps(delta.T)], dim=1)
    values = projected.norm(dim=1)
    return _shared(u, values, projected / values.where(values > 0, 1)[:, None])


def _shared(u: Tensor, values: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values shared out evenly, which keeps both factors within a narrow dtype; signs such that each column of B
    has its largest entry positive, so that equal inputs give equal bytes."""
    largest = u.abs().argmax(dim=0)
    signs = torch.where(u[largest, torch.arange(u.shape[1])] < 0, -1.0, 1.0).to(u.dtype)
    root = values.sqrt() * signs
    return u * root, vh * root[:, None]


def norm_of_product(b: Tensor, a: Tensor) -> float:
    """|B A| from the small Gram matrices: |B A|² = <BᵀB, A Aᵀ>."""
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))


def row_steps(matrix: Tensor) -> Iterator[tuple[int, int]]:
    step = max(1, _STEP // matrix.shape[1])
    return ((start, min(start + step, matrix.shape[0])) for start in range(0, matrix.shape[0], step))
