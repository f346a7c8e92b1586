"""What the tensors of a PEFT LoRA adapter are: pairs of factors, whole tensors, rows of an embedding."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ..strict_json import shown
from .keys import PREFIX as PREFIX
from .safetensors import TensorInfo
from .tensor_names import Place

# leaves of the names under which models have their vocabulary, which PEFT saves when it was resized or adapted
_EMBEDDINGS = {
    "embed_tokens", "wte", "shared", "word_embeddings", "embed_in", "tok_embeddings", "word_embedding", "tokens_embed",
    "embeddings",
}  # fmt: skip
_HEADS = {"lm_head", "embed_out", "vocab_projector"}
_HEADS_WITHIN = ("predictions.decoder", "lm_head.decoder")


@dataclass(frozen=True)
class LoraModule:
    """One pair of factors: the delta of `parameter` is `scale · B A`, or its transpose if `transposed`.

    `a` is `[rank, in]`, `b` is `[out, rank]`; the parameter is `[out, in]`, or `[in, out]` if `transposed` (Conv1D, and
    embeddings, which count as `[tokens, dimension]`). A 3-D parameter `[experts, …]` has `experts` such pairs in one: `a`
    is `[rank · experts, in]`, whose rows go expert by expert, and `b` is `[out, rank · experts]`, whose columns go rank by
    rank. So that of expert e is `b[:, e::experts] · a[e · rank : (e + 1) · rank]` (PEFT's `ParamWrapper`).

    With a `magnitude`, `[out]`, the adapter is DoRA; `bias`, `[out]`, is added times `scale` to `{name}.bias`. `places` and
    `bias_place` say where the parameters lie in the base, and are empty where no base was given. A tensor that is named
    there and not in the base is a head of its own that the base, which ties it to its embedding, lacks.
    """

    name: str
    parameter: str
    a: TensorInfo
    b: TensorInfo
    rank: int
    alpha: float
    scale: float
    transposed: bool
    experts: int = 1
    magnitude: TensorInfo | None = None
    bias: TensorInfo | None = None
    places: tuple[Place, ...] = ()
    bias_place: Place | None = None

    @property
    def weight(self) -> str:
        """The parameter's name in the model."""
        return f"{self.name}.{self.parameter}"

    @property
    def embeds(self) -> bool:
        return ".lora_embedding_" in self.a.name


@dataclass(frozen=True)
class SavedTensor:
    """A tensor that the adapter holds whole, as it was trained. `name` is the parameter's name in the model.

    `place` is None where no base was given; for a tied head that the base does not store, it is the name it would have there.
    A `task_head` is part of a head that the base does not have, such as a classifier's.
    """

    name: str
    info: TensorInfo
    why: Literal["modules_to_save", "bias", "embedding", "task_head"]
    place: Place | None = None


@dataclass(frozen=True)
class TokenRows:
    """Rows of an embedding as they were trained: `info` is `[len(indices), dimension]`. `name` is the parameter's name."""

    name: str
    info: TensorInfo
    indices: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class Contents:
    """All tensors of an adapter's file by what they are for, each in one of these.

    `copies` are those that PEFT writes beside a tensor of the same value, and does not read itself. `lacking` is what the
    configuration names and the file has not, and `notes` what was left aside, both in words.
    """

    modules: tuple[LoraModule, ...]
    saved: tuple[SavedTensor, ...] = ()
    tokens: tuple[TokenRows, ...] = ()
    copies: tuple[TensorInfo, ...] = ()
    lacking: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def is_vocabulary(parameter: str) -> bool:
    """Whether the parameter's name is that of an embedding of tokens, or of a head that gives their logits."""
    module = parameter.rpartition(".")[0]
    return is_head(parameter) or module.rpartition(".")[2] in _EMBEDDINGS


def is_head(parameter: str) -> bool:
    module = parameter.rpartition(".")[0]
    return module.rpartition(".")[2] in _HEADS or module.endswith(_HEADS_WITHIN)


def some(names: Collection[str], most: int = 5) -> str:
    """The first few in their order, and how many more there are."""
    first = sorted(names)[:most]
    more = len(names) - len(first)
    return ", ".join(map(shown, first)) + (f" and {more} more" if more else "")
