"""How two versions of an adapter differ: their metadata, and the deltas that they add to the base.

Deltas are compared in their factors. With Q R = B, [s₁B₁ | -s₂B₂] and [A₁; A₂] in place of B and A, the Frobenius norm of the
difference is that of two small triangles' product, which loses nothing to cancellation as ‖D₁‖² + ‖D₂‖² - 2⟨D₁, D₂⟩ would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..registry import Adapter, AdapterFacts, BaseFacts, Registry, inspect_adapter
from ..registry.artifacts.inspect import ADAPTER_CONFIG
from ..registry.artifacts.lora import LoraModule
from ..registry.artifacts.safetensors import TensorInfo
from ..registry.strict_json import read_object
from .apart import Apart, Weights
from .merging.deltas import BLOCK_VALUES, AdapterFile

# what no two versions share, and what `weights` shows better
_OF_EACH = {"ref", "version", "digest", "aliases", "archived_at", "created_at", "created_by"}


@dataclass(frozen=True)
class Field:
    """Metadata of the versions that differ, by a dotted name; None where one has none."""

    name: str
    one: Any
    other: Any


@dataclass(frozen=True)
class Comparison:
    """`weights` is None where the adapters were made for bases of other weights: deltas to different numbers say nothing together."""

    one: Adapter
    other: Adapter
    fields: tuple[Field, ...]
    weights: Weights | None


def compare(registry: Registry, one: Adapter, other: Adapter) -> Comparison:
    """Both are fetched to this machine. Raises StoreError, and InvalidArtifactError for files that changed."""
    folders = [registry.adapters.folder(adapter) for adapter in (one, other)]
    described = [
        _described(adapter, read_object(folder / ADAPTER_CONFIG))
        for adapter, folder in zip((one, other), folders, strict=True)
    ]
    names = dict.fromkeys([*described[0], *described[1]])
    fields = tuple(
        Field(name, described[0].get(name), described[1].get(name))
        for name in names
        if described[0].get(name) != described[1].get(name)
    )
    bases = [registry.bases.get(adapter.base) for adapter in (one, other)]
    if bases[0].digest != bases[1].digest:
        return Comparison(one, other, fields, None)
    return Comparison(one, other, fields, compare_weights(folders[0], folders[1], registry.bases.facts(bases[0])))


def compare_weights(one: Path, other: Path, base: BaseFacts) -> Weights:
    """Of two adapter folders for a base model. Raises InvalidArtifactError."""
    facts = [inspect_adapter(folder, base, allow_partial=True, scan=False) for folder in (one, other)]
    with AdapterFile(one) as first, AdapterFile(other) as second:
        return _weights((first, second), facts)


def _described(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the registry and of the adapter's configuration, by dotted names; lists whose order means nothing are sorted."""
    rows = {name: value for name, value in adapter.to_json().items() if name not in _OF_EACH}
    return dict(_flat(rows | {"config": config}))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif by_domain := _by_domain(value):
        yield from _flat(by_domain, name)
    elif isinstance(value, list | tuple):
        # targets and tags are sets; PEFT writes them in any order
        yield name, sorted(value, key=lambda each: json.dumps(each, sort_keys=True, default=str))
    else:
        yield name, value


def _by_domain(value: Any) -> dict[str, Any] | None:
    """A list of objects that each describe one domain, as trainers write them, under the domains' names."""
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(each, Mapping) and isinstance(each.get("domain"), str) for each in value):
        return None
    named = {each["domain"]: {key: inner for key, inner in each.items() if key != "domain"} for each in value}
    return named if len(named) == len(value) else None


def _weights(files: Sequence[AdapterFile], facts: Sequence[AdapterFacts]) -> Weights:
    modules = [{module.weight: module for module in each.modules} for each in facts]
    deltas = []
    squares, product = [0.0, 0.0, 0.0], 0.0
    for name in sorted(modules[0].keys() | modules[1].keys()):
        pair = [modules[0].get(name), modules[1].get(name)]
        found, inner = _delta(name, files, pair)
        deltas.append(found)
        squares = [
            sum_ + (norm or 0.0) ** 2
            for sum_, norm in zip(squares, (found.one, found.other, found.distance), strict=True)
        ]
        product += inner
    norms = [math.sqrt(square) for square in squares]
    equal = all(delta.equal for delta in deltas)
    total = Apart("all", norms[0], norms[1], norms[2], _cosine(product, norms[0], norms[1]), equal)
    beside = [dict(_beside(each)) for each in facts]
    tensors = tuple(
        _plain(key[0], files, [own.get(key) for own in beside]) for key in sorted(beside[0].keys() | beside[1].keys())
    )
    return Weights(total, tuple(deltas), tensors)


def _beside(facts: AdapterFacts) -> Iterator[tuple[tuple[str, tuple[int, ...]], TensorInfo]]:
    """What an adapter holds beside its pairs of factors, by a name that says what it is, and the tokens whose rows it is."""
    for module in facts.modules:
        if module.magnitude is not None:
            yield (f"{module.weight} (magnitude)", ()), module.magnitude
        if module.bias is not None:
            yield (f"{module.name}.bias (of lora_B)", ()), module.bias
    for saved in facts.saved:
        yield (f"{saved.name} (whole)", ()), saved.info
    for rows in facts.tokens:
        yield (f"{rows.name} (rows of {len(rows.indices)} tokens)", rows.indices), rows.info


def _delta(name: str, files: Sequence[AdapterFile], pair: Sequence[LoraModule | None]) -> tuple[Apart, float]:
    """Norms, distance and inner product of one parameter's two deltas; of experts, of all of them together."""
    sides = [_pairs(file, module) if module else [] for file, module in zip(files, pair, strict=True)]
    count = max(map(len, sides))
    norms, distance, product = [0.0, 0.0], 0.0, 0.0
    for expert in range(count):
        here = [side[expert] if side else None for side in sides]
        norms = [norm + (_norm([each]) ** 2 if each else 0.0) for norm, each in zip(norms, here, strict=True)]
        (first, second) = here
        negative = second and (-second[0], second[1])
        distance += _norm([each for each in (first, negative) if each is not None]) ** 2
        if first is not None and second is not None:
            product += float(((first[0].T @ second[0]) * (first[1] @ second[1].T)).sum())
    equal = None not in pair and all(
        torch.equal(x, y) for one, other in zip(*sides, strict=True) for x, y in zip(one, other, strict=True)
    )
    roots = [math.sqrt(norm) if module else None for norm, module in zip(norms, pair, strict=True)]
    found = Apart(
        name, roots[0], roots[1], 0.0 if equal else math.sqrt(distance), _cosine(product, roots[0], roots[1]), equal
    )
    return found, product


def _pairs(file: AdapterFile, module: LoraModule) -> list[tuple[Tensor, Tensor]]:
    """(s·B, A) in float64 as they act on the parameter, one for each expert."""
    a, b = file.factors(module)
    a, b = a.double(), module.scale * b.double()
    rank = a.shape[0] // module.experts
    pairs = [(b[:, e :: module.experts], a[e * rank : (e + 1) * rank]) for e in range(module.experts)]
    return [(a.T, b.T) for b, a in pairs] if module.transposed else pairs


def _norm(products: Sequence[tuple[Tensor, Tensor]]) -> float:
    """‖Σ B A‖."""
    left = torch.cat([b for b, _ in products], dim=1)
    right = torch.cat([a for _, a in products], dim=0)
    return float(torch.linalg.norm(_triangle(left) @ _triangle(right.T).T))


def _triangle(tall: Tensor) -> Tensor:
    return torch.linalg.qr(tall, mode="r").R


def _plain(name: str, files: Sequence[AdapterFile], pair: Sequence[TensorInfo | None]) -> Apart:
    """Two stored tensors, read a block at a time, for they may be embeddings; one that the other adapter lacks stands alone."""
    first, second = pair
    squares, product, equal = [0.0, 0.0, 0.0], 0.0, True
    if first is None or second is None or first.shape != second.shape:
        norms = [math.sqrt(_square(file, info)) if info else None for file, info in zip(files, pair, strict=True)]
        return Apart(name, norms[0], norms[1], math.hypot(*(norm or 0.0 for norm in norms)), None, False)
    for one, other in zip(_blocks(files[0], first), _blocks(files[1], second), strict=True):
        here = (one, other, one - other)
        squares = [square + float(block.square().sum()) for square, block in zip(squares, here, strict=True)]
        product += float((one * other).sum())
        equal = equal and torch.equal(one, other)
    norms = [math.sqrt(square) for square in squares]
    return Apart(name, norms[0], norms[1], norms[2], _cosine(product, norms[0], norms[1]), equal)


def _square(file: AdapterFile, info: TensorInfo) -> float:
    return sum(float(block.square().sum()) for block in _blocks(file, info))


def _blocks(file: AdapterFile, info: TensorInfo) -> Iterator[Tensor]:
    """The tensor's rows in float64, so many at a time."""
    columns = info.shape[-1] if info.shape else 1
    rows = info.elements // columns
    step = max(1, BLOCK_VALUES // columns)
    for row in range(0, rows, step):
        yield file.rows(info, row, min(step, rows - row), columns).double()


def _cosine(product: float, one: float | None, other: float | None) -> float | None:
    if not one or not other:
        return None
    return max(-1.0, min(1.0, product / one / other))
