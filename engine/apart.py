"""How far the weights of two adapters are apart, as it is told; measured by `engine.comparing`, which loads torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Apart:
    """Two tensors or deltas: Frobenius norms of each (None where one adapter has none) and of the difference, and the cosine.

    `equal` means that the values and their scales are the same. The cosine is None beside a zero.
    """

    name: str
    one: float | None
    other: float | None
    distance: float
    cosine: float | None
    equal: bool


@dataclass(frozen=True)
class Weights:
    """`deltas` has every module's s·B A, by the parameter's name; `tensors` what an adapter holds beside factors, as it is stored.

    `total` is of all deltas together, as of one long vector. Of DoRA the deltas are those before the base's norms come in, which
    the magnitudes among `tensors` belong to.
    """

    total: Apart
    deltas: tuple[Apart, ...]
    tensors: tuple[Apart, ...]
