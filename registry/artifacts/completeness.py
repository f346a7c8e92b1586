"""Whether an adapter's file has all that its configuration names, for the base that it is for.

An adapter that was saved from shards, or whose keys a wrapper changed, lacks part of what was trained and loads all the same:
the base's weights stay where its own should be. Which modules a configuration names follows from PEFT's rules (`targets`), and
which there are from the base's tensors. A checkpoint may hold more than the model that was trained, so parts that some models of
an architecture do not have count only where the file has some of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .lora import Contents, is_head, is_vocabulary, some
from .lora_config import LoraConfig, is_to_save
from .task_heads import TASK_CLASSES

if TYPE_CHECKING:
    from .facts import BaseFacts, BaseTensor

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")
# experts that are stored one by one are one parameter in today's models; heads of pretraining and layers for predicting
# several tokens are in checkpoints of models that are loaded without them
_OPTIONAL = re.compile(
    r"(?:^|\.)(?:experts|mtp|mtp_layers|nextn|pooler|cls|predictions|generator_predictions|discriminator_predictions"
    r"|qa_outputs|sop_classifier|seq_relationship)\."
)
# what is a matrix and not a linear layer: routers of experts are modules of their own in today's models
_NOT_LINEAR = re.compile(
    r"(?:^|\.)(?:gate|router|wg|score|classifier|wpe|relative_attention_bias|[a-z_]*embed(?:ding|dings|s)?(?:_[a-z]+)?|[a-z_]*_embed)$"
)
_BUFFERS = ("inv_freq", "position_ids", "masked_bias", "num_batches_tracked", "attn.bias", "attention.bias")


@dataclass(frozen=True)
class _Names:
    """Names of the base's tensors as the adapter's model has them, learned from the tensors that both name."""

    begins: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, str] = field(default_factory=dict)
    scope: tuple[str, ...] = ()  # the part of the base that the model is, where it is not all of it

    def of(self, tensor: str) -> str | None:
        """None for what the model that was trained does not have."""
        if self.scope and not tensor.startswith(self.scope):
            return None
        for theirs, ours in self.begins.items():
            if tensor.startswith(theirs):
                return self._inside(ours + tensor[len(theirs) :])
        return self._inside(tensor)

    def _inside(self, name: str) -> str:
        for theirs, ours in self.inner.items():
            name = name.replace(theirs, ours)
        return name


def missing_from(base: BaseFacts, config: LoraConfig, found: Contents) -> tuple[str, ...]:
    """What the configuration names and the file lacks, in words; `found` is placed in the base.

    Raises ValueError for an expression in the configuration that is none or takes too long.
    """
    looked = _Look(base, config, found)
    return (*looked.modules(), *looked.experts(), *looked.saved(), *looked.biases(), *found.lacking)


class _Look:
    def __init__(self, base: BaseFacts, config: LoraConfig, found: Contents) -> None:
        self._base, self._config, self._found = base, config, found
        self._adapted = {place.tensor for module in found.modules for place in module.places}
        self._kept = {tensor.place.tensor if tensor.place else tensor.name for tensor in found.saved}
        self._kinds = {_kind(name) for name in (*self._adapted, *self._kept)}
        names = _learned(found)
        self._names = {tensor: own for tensor in base.tensors if (own := names.of(tensor)) is not None}
        if base.embedding and base.head and base.head not in base.tensors and not names.scope:
            self._names[base.head] = base.head

    def modules(self) -> Iterator[str]:
        """Modules that get a LoRA by the configuration, and have none in the file."""
        config = self._config
        if config.targets.modules is None:
            return
        matrices = {
            own.removesuffix(".weight"): tensor
            for tensor, own in self._names.items()
            if own.endswith(".weight") and (tensor not in self._base.tensors or _is_matrix(self._base.tensors[tensor]))
        }
        targeted = config.targets.of(matrices)
        lacking = [name for name in targeted if matrices[name] not in self._adapted]
        if lacking and config.ensure_weight_tying:
            adapted = any(is_vocabulary(module.weight) for module in self._found.modules)
            lacking = [name for name in lacking if not (adapted and is_vocabulary(f"{name}.weight"))]
        yield from _lacking(
            "the factors of", [name for name in lacking if not self._may_lack(name, matrices[name])], len(targeted)
        )

    def experts(self) -> Iterator[str]:
        """PEFT gives factors to a parameter of experts in all layers."""
        kinds = {_kind(p.tensor) for module in self._found.modules if module.experts > 1 for p in module.places}
        every = [tensor for tensor in self._names if _kind(tensor) in kinds]
        yield from _lacking(
            "the factors of",
            [name for name in every if name not in self._adapted and not self._beyond(name)],
            len(every),
        )

    def saved(self) -> Iterator[str]:
        """Every parameter of the modules that are saved whole."""
        if not any(tensor.why in ("modules_to_save", "task_head") for tensor in self._found.saved):
            if self._config.task in TASK_CLASSES and self._base.head is not None and not self._config.modules_to_save:
                yield f"the head of its task_type {self._config.task}, which the base model does not have either"
            return  # all of them, which is among what is lacking already
        every = [
            tensor
            for tensor, own in self._names.items()
            if is_to_save(own, self._config) and not own.endswith(_BUFFERS)
        ]
        lacking = [name for name in every if name not in self._kept and not self._beyond(name)]
        if self._config.ensure_weight_tying and any(is_vocabulary(name) for name in self._kept):
            lacking = [name for name in lacking if not is_vocabulary(name)]
        yield from _lacking("of modules_to_save", lacking, len(every))

    def biases(self) -> Iterator[str]:
        """With `all` those of every module, with `lora_only` those of the modules that have factors."""
        if self._config.bias == "none":
            return
        every = [name for name in self._names if name.endswith(".bias") and not name.endswith(_BUFFERS)]
        if self._config.bias == "lora_only":
            every = [name for name in every if f"{name.removesuffix('.bias')}.weight" in self._adapted]
        lacking = [n for n in every if n not in self._kept and not is_head(n) and not self._may_lack(n, n)]
        yield from _lacking("of the biases", lacking, len(every))

    def _may_lack(self, module: str, tensor: str) -> bool:
        """Whether the model that was trained may have been one without it; not if the file has others of its kind."""
        if _kind(tensor) in self._kinds and not self._beyond(tensor):
            return False
        if _OPTIONAL.search(tensor) or self._beyond(tensor):
            return True
        if is_vocabulary(tensor) and (self._base.encoder_decoder or self._config.targets.all_linear):
            return True
        return self._config.targets.all_linear and _NOT_LINEAR.search(module) is not None

    def _beyond(self, tensor: str) -> bool:
        """In a layer after the last that the base's configuration counts."""
        layer = _LAYER.search(tensor)
        return self._base.layers is not None and layer is not None and int(layer[1]) >= self._base.layers


def _lacking(what: str, lacking: Collection[str], of: int) -> Iterator[str]:
    if lacking:
        yield f"{what} {some(lacking)} ({len(lacking)} of {of})"


def _is_matrix(tensor: BaseTensor) -> bool:
    return len(tensor.info.shape) > 1


def _kind(tensor: str) -> str:
    """The name with its layer and expert left open."""
    return _NUMBER.sub("*", tensor)


def _learned(found: Contents) -> _Names:
    """How the base's names differ from the adapter's. Vocabularies do not count: their names vary more than others."""
    pairs = {
        (module.weight, place.tensor)
        for module in found.modules
        for place in module.places
        if module.experts == 1 and not is_vocabulary(module.weight)
    }
    begins, inner, scope = dict[str, str](), dict[str, str](), set[str]()
    whole = not pairs
    for ours, theirs in pairs:
        own, stored = ours.split("."), theirs.split(".")
        while own and stored and own[-1] == stored[-1]:
            own, stored = own[:-1], stored[:-1]
        before = len(own), len(stored)
        while own and stored and own[0] == stored[0]:
            own, stored = own[1:], stored[1:]
        if (len(own), len(stored)) < before and own and stored:  # the same beginning and end: a part has another name
            inner[f".{'.'.join(stored)}."] = f".{'.'.join(own)}."
        elif own or stored:
            ours_first = "".join(f"{part}." for part in ours.split(".")[: before[0]])
            theirs_first = "".join(f"{part}." for part in theirs.split(".")[: before[1]])
            begins[theirs_first] = ours_first
            if before[1] > before[0]:
                scope.add(theirs_first)
            else:
                whole = True
        else:
            whole = True
    ordered = dict(sorted(begins.items(), key=lambda item: -len(item[0])))
    return _Names(ordered, inner, () if whole else tuple(sorted(scope)))
