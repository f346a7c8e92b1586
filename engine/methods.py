"""How the deltas of one tensor are combined: pure functions, testable without a model, and the registry that describes them.

`linear` and `factor` work on LoRA factors and leave one low-rank GEMM. All others need whole tensors: they take the dense delta
of every adapter. Where PEFT and mergekit mean different things by one name, ours says whose it is. docs/methods.md has each formula.

A function's keyword-only parameters are its options: `METHODS` holds a pydantic model made from them, which recipes are checked
with. Torch is imported where it is used, since recipes are read and listed without it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from .dense_methods import (
    TASK_ARITHMETIC,
    Normalize,
    Rescale,
    Scale,
    dare_linear_peft,
    dare_ties_peft,
    magnitude_prune,
    prune_by_rank,
    sce,
    slerp,
    ties_peft,
    weighted_sum,
)
from .errors import RecipeError

if TYPE_CHECKING:
    from torch import Generator, Tensor

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
) -> Method:
    """The registry's entry for a function: its options are its keyword-only parameters, and a seed where it draws."""
    takes, fields = _signature(function)
    return Method(
        name=function.__name__,
        summary=(inspect.getdoc(function) or "").partition("\n")[0],
        kind="factors" if "factors" in takes else "deltas",
        options=create_model(f"{function.__name__} options", __base__=_Options, **fields),
        adapters=adapters,
        coefficients=coefficients,
        function=function,
        takes=takes,
    )


def _tabled(name: str) -> Method:
    """The registry's entry for a row of the table: the options of its pruning, and those that all rows have."""
    method = TASK_ARITHMETIC[name]
    takes, pruning = _signature(method.prune)
    common = {"normalize": (Normalize, method.normalize), "rescale": (Rescale, method.rescale), "scale": (Scale, 1.0)}
    seed = {"seed": pruning.pop("seed")} if "seed" in pruning else {}
    base = _DellaOptions if method.prune is prune_by_rank else _Options
    return Method(
        name=name,
        summary=method.summary,
        kind="deltas",
        options=create_model(f"{name} options", __base__=base, **pruning, **common, **seed),
        adapters=(1, None),
        coefficients="any",
        function=method,
        takes=("deltas", "weights", "generators") if "generators" in takes else ("deltas", "weights"),
    )


def _signature(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(names of the positional parameters, pydantic fields of the keyword-only ones and of a seed where it draws)."""
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
    return takes, fields


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _described(linear),
        _described(factor),
        _described(magnitude_prune),
        _described(ties_peft),
        _tabled("ties_mergekit"),
        _described(dare_linear_peft),
        _tabled("dare_linear_mergekit"),
        _described(dare_ties_peft),
        *map(_tabled, ("dare_ties_mergekit", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear")),
        _described(sce, coefficients="all 1"),
        _described(slerp, adapters=(2, 2), coefficients="sum to 1"),
    )
}
"""Every merging method by its name."""
