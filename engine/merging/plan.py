"""What a merge is made from: adapters with their weights, and what of them changes which tensor.

Nothing is computed here. A plan follows from headers alone, so what cannot be merged is refused before a byte is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...registry.artifacts.facts import AdapterFacts, BaseTensor
from ...registry.artifacts.lora import LoraModule, SavedTensor, TokenRows
from ...registry.artifacts.safetensors import TensorInfo
from ...registry.artifacts.tensor_names import Place
from ..coefficients import Weight, expect_finite, mean, module_of, weight_at
from ..errors import MergeError
from ..methods import Method
from ..recipes import DType
from .journal import Journal

if TYPE_CHECKING:  # imports torch
    from .deltas import AdapterFile, OldRows, Term


@dataclass(frozen=True)
class Part:
    """One adapter of a mix: where it lies, what it holds, its weight, and what it is called where that is not its folder's name."""

    folder: Path
    facts: AdapterFacts
    weight: Weight
    label: str | None = None

    @property
    def called(self) -> str:
        return self.label or self.folder.name


@dataclass(frozen=True)
class Mix:
    """One result to be made: adapters, how they are combined, and the folder that it is written into."""

    parts: Sequence[Part]
    out: Path
    method: str = "linear"
    options: Mapping[str, object] = field(default_factory=dict)
    dtype: DType | None = None
    journal: Journal | None = None


@dataclass(frozen=True)
class MatrixSize:
    """A tensor looked at as a matrix: its rows in the result and in the base, which differ where it is resized."""

    rows: int
    old_rows: int
    columns: int


@dataclass(frozen=True)
class Change:
    """Something of one adapter that changes a parameter of the model; `part` is the adapter's index in the mix."""

    part: int
    what: LoraModule | SavedTensor | TokenRows
    is_bias: bool

    @property
    def parameter(self) -> str:
        if isinstance(self.what, LoraModule):
            return f"{self.what.name}.bias" if self.is_bias else self.what.weight
        return self.what.name

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the parameter lies in the base."""
        if isinstance(self.what, SavedTensor):
            return (self.what.place or Place(self.what.name),)
        if isinstance(self.what, TokenRows):
            return (self.what.place,)
        if self.is_bias:
            assert self.what.bias_place is not None
            return (self.what.bias_place,)
        return self.what.places

    def at(self, place: Place) -> Use:
        return Use(self.part, self.what, self.is_bias, place)


@dataclass(frozen=True)
class Use(Change):
    """A change of the stored tensor of `place`, or of a part of it."""

    place: Place

    def term(self, file: AdapterFile, size: MatrixSize, old: OldRows) -> Term:
        """What the adapter makes of the stored tensor; `old` reads the base's rows, or those that DoRA's norm is of."""
        if isinstance(self.what, SavedTensor):
            return file.saved(self.what, size.columns)
        if isinstance(self.what, TokenRows):
            return file.tokens(self.what, size.rows)
        if self.is_bias:
            return file.shift(self.what, size.columns)
        if self.what.magnitude is None:
            return file.low_rank(self.what, self.place, {size.rows, size.old_rows})
        return file.decomposed(self.what, self.place, {size.old_rows}, old)


@dataclass(frozen=True)
class Target:
    """A tensor of the result: `info` as written, `source` where its old values are, `uses` what changes it.

    `weights` are what every part of the mix counts for here, in the parts' order.
    """

    info: TensorInfo
    source: BaseTensor
    uses: tuple[Use, ...]
    weights: tuple[float, ...]

    @property
    def rows(self) -> int:
        return matrix(self.info)[0]


def matrix(info: TensorInfo) -> tuple[int, int]:
    """A tensor looked at as a matrix: a vector is one row, experts lie one below the other."""
    columns = info.shape[-1] if info.shape else 1
    return (info.elements // columns if columns and len(info.shape) > 1 else 1), columns


def changes(parts: Sequence[Part]) -> Iterator[Change]:
    """All that the adapters change. Every tensor of an adapter is in exactly one of the facts: inspection refuses all others."""
    for index, part in enumerate(parts):
        for module in part.facts.modules:
            yield Change(index, module, is_bias=False)
            if module.bias is not None:
                yield Change(index, module, is_bias=True)
        for what in (*part.facts.saved, *part.facts.tokens):
            yield Change(index, what, is_bias=False)


def uses_by_tensor(parts: Sequence[Part]) -> dict[str, list[Use]]:
    """What changes which stored tensor."""
    uses: dict[str, list[Use]] = {}
    for change in changes(parts):
        for place in change.places:
            uses.setdefault(place.tensor, []).append(change.at(place))
    return uses


def expect_agreement(about: str, values: Sequence[tuple[str, object]], *, fields: str | None = None) -> None:
    """Raises MergeError unless all adapters have the same value; `values` are (adapter, value), `fields` the names of its parts."""
    if len({value for _, value in values}) > 1:
        listed = (", " if fields is None else "; ").join(f"{adapter}: {value}" for adapter, value in values)
        legend = "" if fields is None else f"{fields}: "
        raise MergeError(f"the adapters disagree about {about} ({legend}{listed})")


def check_weights(parts: Sequence[Part], method: Method) -> None:
    """Raises MergeError, RecipeError for weights that are no numbers or that the method does not take."""
    for part in parts:
        expect_finite(part.weight, str(part.folder))
    if method.kind != "factors" and (uneven := [p for p in parts if isinstance(p.weight, Mapping)]):
        raise MergeError(
            f"method {method.name!r} takes one weight per adapter, and {uneven[0].folder.name} has one per module",
            hint="methods linear and factor take weights per module",
        )
    method.check([mean(part.weight) for part in parts])


def weights_at(parts: Sequence[Part], uses: Sequence[Change]) -> tuple[float, ...]:
    """What every part counts for in a tensor that `uses` change. Raises MergeError where that is not one number."""
    return tuple(
        weight_at(part.weight, [module_of(use.what) for use in uses if use.part == index], part.folder.name)
        for index, part in enumerate(parts)
    )
