"""Merging methods on whole deltas, and their steps: pure functions of float32 tensors, testable without a model.

Where PEFT and mergekit mean different things by one name, ours says whose it is. docs/methods.md has each formula. A function's
keyword-only parameters are its options. Torch is imported where it is used, since recipes are read and listed without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import Generator, Tensor

Density = Annotated[float, Field(gt=0, le=1, description="share of each delta's values that is kept")]
MajoritySign = Annotated[
    Literal["total", "frequency"], Field(description="elect signs by the sum of the values, or by their number")
]
Normalize = Annotated[bool, Field(description="divide by the sum of the coefficients that take part")]
Rescale = Annotated[bool, Field(description="after pruning, give each delta its former sum of absolute values")]
Scale = Annotated[float, Field(description="factor on the combined delta (mergekit's lambda)")]
Gamma = Annotated[float, Field(ge=0, lt=1, description="share of the largest values that is dropped first")]
Epsilon = Annotated[
    float, Field(ge=0, lt=0.5, description="the smallest value is kept with chance density - epsilon, the largest +")
]
SelectTopK = Annotated[
    float, Field(gt=0, le=1, description="share of the values kept: those that vary most between the adapters")
]


def weighted_sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w·Δ, in the order given: what `linear` and `factor` do where there are no factors (DoRA, saved tensors, biases)."""
    return _sum(delta * weight for delta, weight in zip(deltas, weights, strict=True))


# PEFT's methods: peft.utils.merge_utils, Apache-2.0


def magnitude_prune(deltas: Sequence[Tensor], weights: Sequence[float], *, density: Density) -> Tensor:
    """Weighted sum of the largest values of each delta (PEFT)."""
    return weighted_sum([_largest(delta, int(density * delta.numel())) for delta in deltas], weights)


def ties_peft(
    deltas: Sequence[Tensor], weights: Sequence[float], *, density: Density, majority_sign: MajoritySign = "total"
) -> Tensor:
    """TIES as in PEFT: signs elected without weights, the sum divided by the number of agreeing deltas (arXiv 2306.01708)."""
    return _agreeing_mean(
        [_largest(delta, int(density * delta.numel())) for delta in deltas], weights, majority_sign=majority_sign
    )


def dare_linear_peft(
    deltas: Sequence[Tensor], weights: Sequence[float], generators: Sequence[Generator], *, density: Density
) -> Tensor:
    """DARE as in PEFT: random values kept and divided by the density, then summed (arXiv 2311.03099)."""
    return weighted_sum(_dropped_out(deltas, generators, density), weights)


def dare_ties_peft(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    generators: Sequence[Generator],
    *,
    density: Density,
    majority_sign: MajoritySign = "total",
) -> Tensor:
    """DARE's random pruning, then PEFT's TIES without its pruning (arXiv 2311.03099, 2306.01708)."""
    return _agreeing_mean(_dropped_out(deltas, generators, density), weights, majority_sign=majority_sign)


def _dropped_out(deltas: Sequence[Tensor], generators: Sequence[Generator], density: float) -> list[Tensor]:
    """Each delta with random values kept and divided by the density, which keeps its expected value."""
    if density == 1:
        return list(deltas)
    pairs = zip(deltas, generators, strict=True)
    return [delta * _random_mask(delta, density, generator) / density for delta, generator in pairs]


def _agreeing_mean(deltas: Sequence[Tensor], weights: Sequence[float], *, majority_sign: str) -> Tensor:
    """Σ w·Δ over the deltas with the majority's sign, divided by how many they are; zero counts as positive majority."""
    total = _sum(delta if majority_sign == "total" else delta.sign() for delta in deltas)
    agree = [delta.sign() == _sign(total) for delta in deltas]
    mixed = weighted_sum([delta * kept for delta, kept in zip(deltas, agree, strict=True)], weights)
    return mixed / _sum(kept.float() for kept in agree).clamp(min=1)


# mergekit's methods: its generalised task arithmetic, written anew from the arithmetic


@dataclass(frozen=True)
class TaskArithmetic:
    """A method of mergekit's: prune each delta, rescale it, then sum, with a sign election or without.

    `prune` takes (deltas, generators) and keeps a share of each delta's values; its keyword-only parameters are options of the
    method. `normalize` and `rescale` are the defaults of the options of that name.
    """

    summary: str
    prune: Callable[..., list[Tensor]]
    elects_sign: bool
    normalize: bool
    rescale: bool

    def __call__(
        self,
        deltas: Sequence[Tensor],
        weights: Sequence[float],
        generators: Sequence[Generator] = (),
        *,
        normalize: bool | None = None,
        rescale: bool | None = None,
        scale: float = 1.0,
        **pruning: float,
    ) -> Tensor:
        normalize = self.normalize if normalize is None else normalize
        rescale = self.rescale if rescale is None else rescale
        kept = _rescaled(deltas, self.prune(deltas, generators, **pruning), rescale)
        merge = disjoint_merge if self.elects_sign else mean
        return merge(kept, weights, normalize=normalize) * scale


def prune_smallest(deltas: Sequence[Tensor], _generators: Sequence[Generator], *, density: Density) -> list[Tensor]:
    """TIES trims: the largest values of each delta are kept, one at least."""
    return [_largest(delta, max(1, int(density * delta.numel()))) for delta in deltas]


def prune_at_random(deltas: Sequence[Tensor], generators: Sequence[Generator], *, density: Density) -> list[Tensor]:
    """DARE drops: values are kept with the chance `density`."""
    if density == 1:
        return list(deltas)
    return [
        delta * _random_mask(delta, density, generator) for delta, generator in zip(deltas, generators, strict=True)
    ]


def prune_outliers(
    deltas: Sequence[Tensor], _generators: Sequence[Generator], *, density: Density, gamma: Gamma = 0.01
) -> list[Tensor]:
    """Model Breadcrumbs mask: the largest γ·n values dropped, the next density·n kept.

    Fewer outliers are dropped where there are not so many to spare.
    """
    if density == 1:
        return list(deltas)
    pruned = []
    for delta in deltas:
        count = delta.numel()
        kept = int(density * count)
        below = max(0, count - kept - int(gamma * count))
        outliers = _mask_of_largest(delta.abs(), count - below - kept)
        pruned.append(delta * (_mask_of_largest(delta.abs(), count - below) & ~outliers))
    return pruned


def prune_by_rank(
    deltas: Sequence[Tensor], generators: Sequence[Generator], *, density: Density, epsilon: Epsilon = 0.15
) -> list[Tensor]:
    """DELLA's MAGPRUNE: each value kept with a chance that rises with its rank by magnitude in its row, density ± ε."""
    if density == 1:
        return list(deltas)
    kept = []
    for delta, generator in zip(deltas, generators, strict=True):
        rows = delta if delta.ndim > 1 else delta.unsqueeze(0)
        ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1, stable=True).float()
        share = ranks / max(1, rows.shape[1] - 1)
        chances = (density - epsilon) + share * 2 * epsilon
        kept.append(delta * chances.cpu().bernoulli(generator=generator).to(delta.device).reshape(delta.shape))
    return kept


def elect_sign(weighted: Sequence[Tensor]) -> Tensor:
    """The sign of the sum, value by value; zero counts as positive."""
    return _sign(_sum(weighted))


def disjoint_merge(deltas: Sequence[Tensor], weights: Sequence[float], *, normalize: bool) -> Tensor:
    """Σ w·Δ over those with the elected sign; `normalize` divides by the sum of their weights, where not zero."""
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    majority = elect_sign(weighted)
    agree = [delta.sign() == majority for delta in weighted]
    mixed = _sum(delta * kept for delta, kept in zip(weighted, agree, strict=True))
    if not normalize:
        return mixed
    divisor = _sum(kept * weight for kept, weight in zip(agree, weights, strict=True))
    return mixed / divisor.masked_fill(divisor == 0, 1)


def mean(deltas: Sequence[Tensor], weights: Sequence[float], *, normalize: bool) -> Tensor:
    """Σ w·Δ; `normalize` divides by Σ w, unless that is next to nothing."""
    mixed = weighted_sum(deltas, weights)
    return mixed / _or_one(sum(weights), 1e-8) if normalize else mixed


def _rescaled(before: Sequence[Tensor], after: Sequence[Tensor], rescale: bool) -> list[Tensor]:
    """Pruned deltas with the L1 norm they had, where there is one to speak of."""
    if not rescale:
        return list(after)
    norms = [(_total(was.abs()), _total(now.abs())) for was, now in zip(before, after, strict=True)]
    return [now if min(norm) < 1e-7 else now * (norm[0] / norm[1]) for now, norm in zip(after, norms, strict=True)]


TASK_ARITHMETIC = {
    "ties_mergekit": TaskArithmetic(
        "TIES as in mergekit: signs elected by weighted deltas, the sum divided by the agreeing weights (arXiv 2306.01708).",
        prune_smallest, elects_sign=True, normalize=True, rescale=False,
    ),
    "dare_linear_mergekit": TaskArithmetic(
        "DARE as in mergekit: random values kept and rescaled to the delta's L1 norm, then summed (arXiv 2311.03099).",
        prune_at_random, elects_sign=False, normalize=False, rescale=True,
    ),
    "dare_ties_mergekit": TaskArithmetic(
        "DARE's random pruning rescaled to the L1 norm, then mergekit's sign election (arXiv 2311.03099, 2306.01708).",
        prune_at_random, elects_sign=True, normalize=False, rescale=True,
    ),
    "breadcrumbs": TaskArithmetic(
        "Model Breadcrumbs (mergekit): outliers and small values dropped, then summed (arXiv 2312.06795).",
        prune_outliers, elects_sign=False, normalize=False, rescale=False,
    ),
    "breadcrumbs_ties": TaskArithmetic(
        "Model Breadcrumbs with mergekit's sign election (arXiv 2312.06795, 2306.01708).",
        prune_outliers, elects_sign=True, normalize=False, rescale=False,
    ),
    "della": TaskArithmetic(
        "DELLA (mergekit): values kept at random, larger ones likelier, then sign election (arXiv 2406.11617).",
        prune_by_rank, elects_sign=True, normalize=True, rescale=True,
    ),
    "della_linear": TaskArithmetic(
        "DELLA's pruning (mergekit), then summed without an election (arXiv 2406.11617).",
        prune_by_rank, elects_sign=False, normalize=False, rescale=True,
    ),
}  # fmt: skip


def sce(deltas: Sequence[Tensor], *, select_topk: SelectTopK = 1.0) -> Tensor:
    """SCE (mergekit): select what varies, weigh deltas by their energy, erase minority signs (arXiv 2408.07990).

    Takes no weights. Where the mean squares of the deltas sum to less than 1e-6 they count alike, as in mergekit.
    """
    selected = list(deltas)
    if select_topk < 1:
        mean = _sum(deltas) / len(deltas)
        variance = _sum((delta - mean).square() for delta in deltas) / len(deltas)
        kept = _mask_of_largest(variance, int(variance.count_nonzero() * select_topk))
        selected = [delta * kept for delta in deltas]
    energies = [_total(delta.square()) / delta.numel() for delta in selected]
    total = sum(energies)
    shares = [1 / len(selected)] * len(selected) if total < 1e-6 else [energy / total for energy in energies]
    majority = _sign(_sum(selected))
    agree = [delta.sign() == majority for delta in selected]
    mixed = weighted_sum([delta * kept for delta, kept in zip(selected, agree, strict=True)], shares)
    return mixed / _sum(kept * share for kept, share in zip(agree, shares, strict=True)).clamp(min=1e-6)


def slerp(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Spherical interpolation from the first adapter's full weight to the second's (mergekit).

    With U = W + Δ₁, V = W + Δ₂, θ the angle between them and t the second coefficient: [sin((1-t)θ) U + sin(tθ) V] / sin θ - W, the
    whole tensor as one vector; linear where |cos θ| > 0.9995. LoRAs move weights so little that this is the usual case.
    """
    first, second = (base + delta for delta in deltas)
    lengths = [_or_one(math.sqrt(_total(full.square())), 1e-8) for full in (first, second)]
    cosine = min(1.0, max(-1.0, _total(first * second) / lengths[0] / lengths[1]))
    toward_first, toward_second = 1 - weights[1], weights[1]
    if abs(cosine) <= 0.9995:
        angle = math.acos(cosine)
        toward_first, toward_second = (
            math.sin(share * angle) / math.sin(angle) for share in (toward_first, toward_second)
        )
    # a·U + b·V - W with W taken out first: no digits are lost in a difference of two near-equal weights
    return base * (toward_first + toward_second - 1) + deltas[0] * toward_first + deltas[1] * toward_second


# Steps that both share


def _largest(delta: Tensor, count: int) -> Tensor:
    return delta if count >= delta.numel() else delta * _mask_of_largest(delta.abs(), count)


def _mask_of_largest(values: Tensor, count: int) -> Tensor:
    """Where the `count` largest values are; of equal ones the first, so that no sorting routine decides."""
    import torch

    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    flat = values.reshape(-1)
    least = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > least
    mask[(flat == least).nonzero()[: count - int(mask.count_nonzero()), 0]] = True
    return mask.reshape(values.shape)


def _random_mask(like: Tensor, density: float, generator: Generator) -> Tensor:
    """Ones with the chance `density`, drawn on the CPU, so that every device gets the same."""
    import torch

    return torch.full(like.shape, density).bernoulli(generator=generator).to(like.device)


def _sign(total: Tensor) -> Tensor:
    """+1 or -1; nothing is positive."""
    return (total >= 0) * 2.0 - 1


def _or_one(value: float, least: float) -> float:
    return value if abs(value) > least else 1.0


def _total(tensor: Tensor) -> float:
    """The sum of all values, added up in float64, so that the order in which threads take them does not show."""
    import torch

    return float(tensor.sum(dtype=torch.float64))


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """Σ from left to right, holding one sum; the tensors are not changed."""
    left = iter(tensors)
    total = next(left).clone()
    for tensor in left:
        total += tensor
    return total
