"""How the deltas of one tensor are combined: pure functions, testable without a model, and the registry that describes them.

`linear` and `factor` work on LoRA factors and leave one low-rank GEMM. All others need whole tensors: they take the dense delta
of every adapter. Where PEFT and mergekit mean different things by one name, ours says whose it is. docs/methods.md has each formula.

A function's keyword-only parameters are its options: `METHODS` holds a pydantic model made from them, which recipes are checked
with. Torch is imported where it is used, since recipes are read and listed without it.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from .errors import RecipeError

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
Seed = Annotated[int, Field(ge=0, description="seed of the random masks")]
DEFAULT_SEED = 42


@dataclass(frozen=True)
class Factors:
    """One adapter's part in one weight: delta = scale · B A, with A [r, in] and B [out, r] in float32."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class Method:
    """A way to combine adapters, as the registry holds it.

    `kind` says what `function` takes: `factors` makes (B [out, R], A [R, in]) of factors and weights, for which calling the
    method is the way; `deltas` makes one dense delta, for which `combine` is the way.
    """

    name: str
    summary: str
    kind: Literal["factors", "deltas"]
    options: type[BaseModel]
    adapters: tuple[int, int | None]
    coefficients: Literal["any", "sum to 1", "all 1"]
    function: Callable[..., Any]
    takes: tuple[str, ...]

    def __call__(self, factors: Sequence[Factors], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """(B [out, R], A [R, in]) in float32, whose product is the combined delta.

        Raises RecipeError for a method that has no factored form.
        """
        if self.kind != "factors":
            raise RecipeError(
                f"method {self.name!r} combines dense deltas and has no factored form",
                hint=f"one of {', '.join(repr(m.name) for m in METHODS.values() if m.kind == 'factors')} has",
            )
        return self.function(factors, weights)

    def combine(
        self,
        tensor: str,
        base: Tensor,
        deltas: Sequence[Tensor | None],
        weights: Sequence[float],
        options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The combined delta of one whole tensor, float32, of the base's shape; the inputs stay as they are.

        `deltas` has one entry per adapter of the mix, float32 and of the base's shape, None where an adapter leaves the tensor
        alone: averages and variances count that one too. `tensor` names it, so that random masks depend on nothing but
        the seed, the name and the adapter's place. Methods on factors add dense deltas up. Raises RecipeError (`check`).
        """
        self.check(weights)
        if len(deltas) != len(weights):
            raise ValueError(f"{len(deltas)} deltas and {len(weights)} weights: one argument is shorter than the other")
        whole = base.float()
        present = [whole.new_zeros(whole.shape) if delta is None else delta.float() for delta in deltas]
        if self.kind == "factors":
            return weighted_sum(present, weights)
        settings = self.options.model_validate(options or {}).model_dump()
        given: dict[str, Any] = {"base": whole, "deltas": present, "weights": weights}
        if "generators" in self.takes:
            seed = settings.pop("seed")
            given["generators"] = [generator_for(seed, tensor, adapter) for adapter in range(len(present))]
        return self.function(*(given[name] for name in self.takes), **settings)

    def check(self, weights: Sequence[float]) -> None:
        """Raises RecipeError where this method cannot mix that many adapters, or with these coefficients."""
        least, most = self.adapters
        if len(weights) < least or (most is not None and len(weights) > most):
            wanted = f"exactly {least}" if most == least else f"at least {least}"
            raise RecipeError(f"method {self.name!r} mixes {wanted} adapters, there are {len(weights)}")
        shown = ", ".join(f"{weight:g}" for weight in weights)
        if self.coefficients == "sum to 1" and abs(sum(weights) - 1) > 1e-6:
            raise RecipeError(
                f"method {self.name!r} needs coefficients that sum to 1, these are {shown}",
                hint="the second adapter's coefficient is how far along the arc the result lies",
            )
        if self.coefficients == "all 1" and any(weight != 1 for weight in weights):
            raise RecipeError(
                f"method {self.name!r} finds its own weights and needs every coefficient to be 1, these are {shown}"
            )


def generator_for(seed: int, tensor: str, adapter: int) -> Generator:
    """A generator on the CPU for one adapter's mask on one tensor: the same whatever the device, the order or the threads."""
    import torch

    digest = hashlib.sha256(f"{seed}\n{adapter}\n{tensor}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# Sums of factors and of deltas


def linear(factors: Sequence[Factors], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Exact weighted sum of the deltas.

    Σ w·s·B A: the factors side by side, rank Σ r (the RecCocktail authors' code, v1).
    """
    import torch

    b = torch.cat([f.b * (weight * f.scale) for f, weight in zip(factors, weights, strict=True)], dim=1)
    a = torch.cat([f.a for f in factors], dim=0)
    return b, a


def factor(factors: Sequence[Factors], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """RecCocktail's mix of A and B apart, cross terms included.

    s·(Σ w·B)(Σ w·A), RecCocktail Eq. 6-7. Raises RecipeError where ranks or scales differ: the sums would not be defined.
    """
    if len({(f.a.shape[0], f.scale) for f in factors}) > 1:
        shown = ", ".join(f"rank {f.a.shape[0]} scale {f.scale:g}" for f in factors)
        raise RecipeError(
            f"method 'factor' needs adapters of one rank and one scale, these have {shown}",
            hint="method 'linear' takes any mix of ranks and scales",
        )
    b = weighted_sum([f.b for f in factors], weights)
    a = weighted_sum([f.a for f in factors], weights)
    return b * factors[0].scale, a


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


# mergekit's methods: its task arithmetic, written anew from the arithmetic


def ties_mergekit(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: Density,
    normalize: Normalize = True,
    rescale: Rescale = False,
    scale: Scale = 1.0,
) -> Tensor:
    """TIES as in mergekit: signs elected by weighted deltas, the sum divided by the agreeing weights (arXiv 2306.01708)."""
    kept = [_largest(delta, max(1, int(density * delta.numel()))) for delta in deltas]
    return _consensus(_rescaled(deltas, kept, rescale), weights, normalize=normalize) * scale


def dare_linear_mergekit(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    generators: Sequence[Generator],
    *,
    density: Density,
    normalize: Normalize = False,
    rescale: Rescale = True,
    scale: Scale = 1.0,
) -> Tensor:
    """DARE as in mergekit: random values kept and rescaled to the delta's L1 norm, then summed (arXiv 2311.03099)."""
    kept = _randomly_kept(deltas, generators, density)
    return _mean(_rescaled(deltas, kept, rescale), weights, normalize=normalize) * scale


def dare_ties_mergekit(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    generators: Sequence[Generator],
    *,
    density: Density,
    normalize: Normalize = False,
    rescale: Rescale = True,
    scale: Scale = 1.0,
) -> Tensor:
    """DARE's random pruning rescaled to the L1 norm, then mergekit's sign election (arXiv 2311.03099, 2306.01708)."""
    kept = _randomly_kept(deltas, generators, density)
    return _consensus(_rescaled(deltas, kept, rescale), weights, normalize=normalize) * scale


def breadcrumbs(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: Density,
    gamma: Gamma = 0.01,
    normalize: Normalize = False,
    rescale: Rescale = False,
    scale: Scale = 1.0,
) -> Tensor:
    """Model Breadcrumbs (mergekit): outliers and small values dropped, then summed (arXiv 2312.06795)."""
    kept = [_without_outliers(delta, density, gamma) for delta in deltas]
    return _mean(_rescaled(deltas, kept, rescale), weights, normalize=normalize) * scale


def breadcrumbs_ties(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: Density,
    gamma: Gamma = 0.01,
    normalize: Normalize = False,
    rescale: Rescale = False,
    scale: Scale = 1.0,
) -> Tensor:
    """Model Breadcrumbs with mergekit's sign election (arXiv 2312.06795, 2306.01708)."""
    kept = [_without_outliers(delta, density, gamma) for delta in deltas]
    return _consensus(_rescaled(deltas, kept, rescale), weights, normalize=normalize) * scale


def della(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    generators: Sequence[Generator],
    *,
    density: Density,
    epsilon: Epsilon = 0.15,
    normalize: Normalize = True,
    rescale: Rescale = True,
    scale: Scale = 1.0,
) -> Tensor:
    """DELLA (mergekit): values kept at random, larger ones likelier, then sign election (arXiv 2406.11617)."""
    kept = _kept_by_rank(deltas, generators, density, epsilon)
    return _consensus(_rescaled(deltas, kept, rescale), weights, normalize=normalize) * scale


def della_linear(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    generators: Sequence[Generator],
    *,
    density: Density,
    epsilon: Epsilon = 0.15,
    normalize: Normalize = False,
    rescale: Rescale = True,
    scale: Scale = 1.0,
) -> Tensor:
    """DELLA's pruning (mergekit), then summed without an election (arXiv 2406.11617)."""
    kept = _kept_by_rank(deltas, generators, density, epsilon)
    return _mean(_rescaled(deltas, kept, rescale), weights, normalize=normalize) * scale


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


def _consensus(deltas: Sequence[Tensor], weights: Sequence[float], *, normalize: bool) -> Tensor:
    """Σ w·Δ over those with the sign of the weighted sum; `normalize` divides by the sum of their weights, where not zero."""
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    majority = _sign(_sum(weighted))
    agree = [delta.sign() == majority for delta in weighted]
    mixed = _sum(delta * kept for delta, kept in zip(weighted, agree, strict=True))
    if not normalize:
        return mixed
    divisor = _sum(kept * weight for kept, weight in zip(agree, weights, strict=True))
    return mixed / divisor.masked_fill(divisor == 0, 1)


def _mean(deltas: Sequence[Tensor], weights: Sequence[float], *, normalize: bool) -> Tensor:
    """Σ w·Δ; `normalize` divides by Σ w, unless that is next to nothing."""
    mixed = weighted_sum(deltas, weights)
    return mixed / _or_one(sum(weights), 1e-8) if normalize else mixed


def _randomly_kept(deltas: Sequence[Tensor], generators: Sequence[Generator], density: float) -> list[Tensor]:
    if density == 1:
        return list(deltas)
    return [
        delta * _random_mask(delta, density, generator) for delta, generator in zip(deltas, generators, strict=True)
    ]


def _without_outliers(delta: Tensor, density: float, gamma: float) -> Tensor:
    """The largest γ·n values dropped, the next density·n kept; fewer outliers go where there are not so many to spare."""
    if density == 1:
        return delta
    count = delta.numel()
    kept = int(density * count)
    below = max(0, count - kept - int(gamma * count))
    outliers = _mask_of_largest(delta.abs(), count - below - kept)
    return delta * (_mask_of_largest(delta.abs(), count - below) & ~outliers)


def _kept_by_rank(
    deltas: Sequence[Tensor], generators: Sequence[Generator], density: float, epsilon: float
) -> list[Tensor]:
    """Each value kept with a chance that rises with its rank by magnitude in its row, density - ε to density + ε."""
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


def _rescaled(before: Sequence[Tensor], after: Sequence[Tensor], rescale: bool) -> list[Tensor]:
    """Pruned deltas with the L1 norm they had, where there is one to speak of."""
    if not rescale:
        return list(after)
    norms = [(_total(was.abs()), _total(now.abs())) for was, now in zip(before, after, strict=True)]
    return [now if min(norm) < 1e-7 else now * (norm[0] / norm[1]) for now, norm in zip(after, norms, strict=True)]


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


# The registry


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _DellaOptions(_Options):
    @model_validator(mode="after")
    def _chances(self) -> _DellaOptions:
        density, epsilon = (getattr(self, name) for name in ("density", "epsilon"))
        if density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
            raise ValueError(f"density ± epsilon must lie between 0 and 1 (got {density:g} ± {epsilon:g})")
        return self


def _described(
    function: Callable[..., Any],
    *,
    adapters: tuple[int, int | None] = (1, None),
    coefficients: Literal["any", "sum to 1", "all 1"] = "any",
    options: type[_Options] = _Options,
) -> Method:
    """The registry's entry for a function: its options are its keyword-only parameters, and a seed where it draws."""
    parameters = inspect.signature(function).parameters.values()
    takes = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    types = get_type_hints(function, localns={"Tensor": object, "Generator": object}, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (types[p.name], ... if p.default is p.empty else p.default)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY
    }
    if "generators" in takes:
        fields["seed"] = (Seed, DEFAULT_SEED)
    return Method(
        name=function.__name__,
        summary=(inspect.getdoc(function) or "").partition("\n")[0],
        kind="factors" if "factors" in takes else "deltas",
        options=create_model(f"{function.__name__} options", __base__=options, **fields),
        adapters=adapters,
        coefficients=coefficients,
        function=function,
        takes=takes,
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _described(linear),
        _described(factor),
        _described(magnitude_prune),
        _described(ties_peft),
        _described(ties_mergekit),
        _described(dare_linear_peft),
        _described(dare_linear_mergekit),
        _described(dare_ties_peft),
        _described(dare_ties_mergekit),
        _described(breadcrumbs),
        _described(breadcrumbs_ties),
        _described(della, options=_DellaOptions),
        _described(della_linear, options=_DellaOptions),
        _described(sce, coefficients="all 1"),
        _described(slerp, adapters=(2, 2), coefficients="sum to 1"),
    )
}
