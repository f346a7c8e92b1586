"""How the deltas of one target weight are combined: pure functions on LoRA factors, testable without a model.

Every method returns factors (B, A) in float32 whose product is the combined delta, so that one GEMM applies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import RecipeError


@dataclass(frozen=True)
class Factors:
    """One adapter's part in one weight: delta = scale · B A, with A [r, in] and B [out, r] in float32."""

    a: Tensor
    b: Tensor
    scale: float


Method = Callable[[Sequence[Factors], Sequence[float]], tuple[Tensor, Tensor]]


def linear(factors: Sequence[Factors], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Exact weighted sum of deltas, Σ w·s·B A: the factors side by side, rank Σ r (the authors' code, v1)."""
    b = torch.cat([f.b * (weight * f.scale) for f, weight in zip(factors, weights, strict=True)], dim=1)
    a = torch.cat([f.a for f in factors], dim=0)
    return b, a


def factor(factors: Sequence[Factors], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """A and B mixed separately, s·(Σ w·B)(Σ w·A): RecCocktail Eq. 6-7, cross terms included.

    Raises RecipeError where ranks or scales differ: the sums would not be defined.
    """
    if len({(f.a.shape[0], f.scale) for f in factors}) > 1:
        shown = ", ".join(f"rank {f.a.shape[0]} scale {f.scale:g}" for f in factors)
        raise RecipeError(
            f"method 'factor' needs adapters of one rank and one scale, these have {shown}",
            hint="method 'linear' takes any mix of ranks and scales",
        )
    b = sum((f.b * weight for f, weight in zip(factors, weights, strict=True)), start=torch.zeros(()))
    a = sum((f.a * weight for f, weight in zip(factors, weights, strict=True)), start=torch.zeros(()))
    return b * factors[0].scale, a


METHODS: dict[str, Method] = {"linear": linear, "factor": factor}
