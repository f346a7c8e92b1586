"""Where a model's parameters lie in its checkpoint, whose names are not always those of the modules.

Transformers renames and fuses tensors while it loads (its `conversion_mapping` has the rules, read here at 5.23). Adapters
speak of the modules that come out of that, a merge writes the checkpoint that goes in, so each parameter has to be found.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

MOST_EXPERTS = 65_536
_DEPTH = 3  # rules that may have to be applied one after the other
_MOST_ROOTS = 32  # parts of one model that lie side by side in a checkpoint; more of them are no prefixes
_NEAR = 500  # names that are compared with one that is not there

# Text of a parameter's name and what a checkpoint may have instead, wherever it stands; the first two only at the beginning
_RENAMED_ROOTS = (
    ("lm_head.", "embed_out."),  # GPT-NeoX
    ("embed_out.", "lm_head."),
    ("lm_head.", "language_model.lm_head."),  # LLaVA and its kin, as they were saved before transformers 4.52
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "language_model.model."),
    ("language_model.model.", "model.language_model."),
    ("model.language_model.", "model."),  # Qwen-VL; and text models trained apart from the model that they belong to
    ("model.", "model.language_model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.visual.", "visual."),
)
_RENAMED_PARTS = (
    (".mlp.", ".block_sparse_moe."),  # Mixtral, MiniMax, PhiMoE
    (".block_sparse_moe.", ".mlp."),
    (".router.weight", ".gate.weight"),  # PhiMoE
    ("LayerNorm.weight", "LayerNorm.gamma"),  # checkpoints that came from TensorFlow
    ("LayerNorm.bias", "LayerNorm.beta"),
    (".block_sparse_moe.experts.gate_up_proj", ".block_sparse_moe.input_linear.weight"),  # Granite MoE
    (".block_sparse_moe.experts.down_proj", ".block_sparse_moe.output_linear.weight"),
    (".block_sparse_moe.router.weight", ".block_sparse_moe.router.layer.weight"),
)
# a fused parameter of experts, and the matrices of each expert that are stacked in it, first rows first
_FUSED = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "down_proj": (("w2",), ("down_proj",)),
}


T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a module's parameter, or a part of it, lies in the checkpoint.

    `expert` is the index in the first dimension of the module's 3-D parameter that lies there, None for a 2-D one; `rows`
    the rows [start, end) of that matrix, in the module's layout, that `tensor` holds, None for all; `index` the first
    index in `tensor` where the checkpoint too keeps experts fused; `transposed` that what is stored is the transpose.
    """

    tensor: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    index: int | None = None
    transposed: bool = False


class AmbiguousNameError(ValueError):
    """Two tensors of the checkpoint could be the parameter."""


@dataclass(frozen=True)
class TensorNameResolver:
    """The tensors of one checkpoint by name, with their shapes, and how parameters are found among them."""

    shapes: Mapping[str, tuple[int, ...]]
    _roots: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_roots", frozenset(name.partition(".")[0] for name in self.shapes))

    def place(self, parameter: str) -> Place | None:
        """The one tensor that is the whole parameter; None if there is none. Raises AmbiguousNameError."""
        found = self._first(parameter, lambda name: name if name in self.shapes else None)
        return Place(found) if found else None

    def expert_places(self, parameter: str) -> tuple[Place, ...]:
        """The places of a 3-D parameter `[experts, out, in]`, expert by expert; () if there are none.

        They lie in one tensor of that shape, or in one or two matrices for each expert. Raises AmbiguousNameError.
        """
        return self._first(parameter, self._experts_at) or ()

    def could_be(self, parameter: str, tensor: str) -> bool:
        """Whether the parameter would be stored under that name, if it were stored."""
        return any(name == tensor for name, _ in self._candidates(parameter))

    def near(self, parameter: str) -> list[str]:
        """Up to three stored names that are much like the parameter's."""
        words = re.split(r"[._]\d*", parameter)[-3:]
        alike: list[str] = []
        for name in self.shapes:
            if any(word and word in name for word in words):
                alike.append(name)
                if len(alike) == _NEAR:
                    break
        return difflib.get_close_matches(parameter, alike, n=3, cutoff=0.5)

    def _first(self, parameter: str, look: Callable[[str], T | None]) -> T | None:
        """What is found under the name itself, or else under one of the names that the fewest rules lead to."""
        found: dict[str, T] = {}
        depth = 0
        for name, steps in self._candidates(parameter):
            if found and steps > depth:
                break
            if (there := look(name)) is not None:
                if steps == 0:
                    return there
                found[name], depth = there, steps
        if len(found) > 1:
            raise AmbiguousNameError(f"{parameter!r} could be any of {', '.join(map(repr, found))}")
        return next(iter(found.values()), None)

    def _candidates(self, parameter: str) -> Iterator[tuple[str, int]]:
        """The names that the parameter may have in the checkpoint, and how many rules led to each; fewest first."""
        names, seen = [parameter], {parameter}
        for steps in range(_DEPTH + 1):
            yield from ((name, steps) for name in names)
            names = [other for name in names for other in self._renamed(name) if not (other in seen or seen.add(other))]

    def _renamed(self, name: str) -> Iterator[str]:
        for ours, theirs in _RENAMED_ROOTS:
            if name.startswith(ours):
                yield theirs + name[len(ours) :]
        for ours, theirs in _RENAMED_PARTS:
            if ours in name:
                yield name.replace(ours, theirs)
        # The prefix of the base model within the one with a head: it is missing where no tensor of the checkpoint begins
        # with it, and it was added where all those of the part begin with it. That answer is the same for all parameters.
        root, _, rest = name.partition(".")
        if rest and root not in self._roots:
            yield rest
            if len(self._roots) <= _MOST_ROOTS:
                yield from (f"{prefix}.{name}" for prefix in sorted(self._roots))

    def _experts_at(self, name: str) -> tuple[Place, ...] | None:
        shape = self.shapes.get(name)
        if shape is not None:
            fused = len(shape) == 3 and shape[0] <= MOST_EXPERTS
            return tuple(Place(name, expert=e, index=e) for e in range(shape[0])) if fused else None
        container, _, leaf = name.rpartition(".")
        for parts in _FUSED.get(leaf, ()):
            places: list[Place] = []
            for expert in range(MOST_EXPERTS):
                tensors = [f"{container}.{expert}.{part}.weight" for part in parts]
                there = [tensor for tensor in tensors if len(self.shapes.get(tensor, ())) == 2]
                if not there:
                    break
                if there != tensors:
                    return None  # half an expert
                start = 0
                for tensor in tensors:
                    end = start + self.shapes[tensor][0]
                    places.append(Place(tensor, expert, (start, end) if len(parts) > 1 else None))
                    start = end
            if places:
                return tuple(places)
        return None
