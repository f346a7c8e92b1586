"""Coefficients: one number for an adapter, or one per layer, or one per module that it changes.

A recipe may write any of the three; what merges takes a number or a mapping from module names, which `spread` makes of a list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ..registry.artifacts.lora import LoraModule, SavedTensor, TokenRows
from .errors import MergeError

if TYPE_CHECKING:
    from ..registry.artifacts.facts import AdapterFacts, BaseFacts

Granularity = Literal["model", "layer", "module"]
Weight = float | Mapping[str, float]
"""What an adapter counts for: everywhere the same, or by the name of the module (`model.layers.0.mlp.up_proj`)."""

EVERYWHERE = "model"
_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<number>\d+)(?:\.|$)")


def layer_of(name: str) -> str | None:
    """`model.layers.3` of `model.layers.3.mlp.up_proj`; None outside the layers. Experts have numbers too, further right."""
    found = _LAYER.match(name)
    return found and f"{found['stack']}.{found['number']}"


def group_of(module: str, granularity: Granularity) -> str:
    """The name of the coefficient that a module has. What lies in no layer, such as the head, is a layer of its own."""
    if granularity == "model":
        return EVERYWHERE
    return (layer_of(module) or module) if granularity == "layer" else module


def module_of(what: LoraModule | SavedTensor | TokenRows) -> str:
    """The module whose coefficient something of an adapter has."""
    return what.name if isinstance(what, LoraModule) else what.name.rpartition(".")[0]


def modules_of(facts: AdapterFacts) -> list[str]:
    """Every module that an adapter changes, in its order."""
    return list(dict.fromkeys(map(module_of, (*facts.modules, *facts.saved, *facts.tokens))))


def expand_coefficients(
    coefficient: Weight | Sequence[float], facts: AdapterFacts, base: BaseFacts, who: str
) -> Weight:
    """A coefficient as merging takes it: a list, one number per layer, is dealt out to the modules that the adapter changes.

    What lies in no layer gets the list's mean. Raises MergeError where a list does not have one number per layer of the base,
    where a mapping lacks a module of the adapter, and for what is not finite.
    """
    if isinstance(coefficient, Mapping):
        weight: Weight = dict(coefficient)
        expect_finite(weight, who)
        if missing := [name for name in modules_of(facts) if name not in coefficient]:
            raise MergeError(
                f"the coefficients of {who} name no {missing[0]}, which the adapter changes"
                + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
                hint="give each module of the adapter a coefficient, or one number for all",
            )
        return weight
    if isinstance(coefficient, (int, float)):
        expect_finite(float(coefficient), who)
        return float(coefficient)
    layers = {found for name in base.tensors if (found := _LAYER.match(name))}
    stacks = {found["stack"] for found in layers}
    count = len({found["number"] for found in layers})
    if len(stacks) > 1:
        raise MergeError(
            f"the coefficients of {who} are a list, but the base has several stacks of layers: {', '.join(sorted(stacks))}",
            hint="give a mapping from module names instead",
        )
    if len(coefficient) != count:
        raise MergeError(f"{who} has {len(coefficient)} coefficients, but the base has {count} layers")
    middle = mean(coefficient)
    dealt = {}
    for name in modules_of(facts):
        found = _LAYER.match(name)
        dealt[name] = coefficient[int(found["number"])] if found else middle
    expect_finite(dealt, who)
    return dealt


def weight_at(weight: Weight, modules: Iterable[str], who: str) -> float:
    """What an adapter counts for in a tensor that it changes by way of `modules`; the mean where it leaves the tensor alone.

    Raises MergeError where two modules share the tensor and have different coefficients.
    """
    if not isinstance(weight, Mapping):
        return weight
    found = {name: weight[name] for name in modules}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{name}: {value:g}" for name, value in found.items())
        raise MergeError(f"{who}: one tensor would have several coefficients ({shown})", hint="give them the same one")
    return next(iter(found.values())) if found else mean(weight)


def mean(coefficient: Weight | Sequence[float]) -> float:
    """One number for people to read."""
    if isinstance(coefficient, (int, float)):
        return float(coefficient)
    values = list(coefficient.values()) if isinstance(coefficient, Mapping) else list(coefficient)
    return sum(value / len(values) for value in values)


def expect_finite(weight: Weight, who: str) -> None:
    """Raises MergeError naming what is no number."""
    for name, value in weight.items() if isinstance(weight, Mapping) else [("", weight)]:
        if not math.isfinite(value):
            raise MergeError(f"the weight of {who}{f' at {name}' if name else ''} is {value}, not a finite number")
