"""The names of an adapter's tensors as PEFT writes them, whatever wrapped the model when it was saved.

PEFT takes its adapter's name off the keys, and expects no wrapper of torch in them. Files that were written past PEFT's
`save_pretrained` (a trainer's own saving, `model.state_dict()`) have both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InvalidArtifactError, UnsupportedAdapterError
from ..strict_json import shown
from .safetensors import Header, TensorInfo

PREFIX = "base_model.model."

# what torch.compile, FSDP and activation checkpointing put between a module and its parent
_BETWEEN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# what stands before the model: DistributedDataParallel and DataParallel, Lightning's strategies and its modules
_BEFORE = ("module", "_forward_module", "model")

_NAMED = re.compile(
    r"\.(?:lora_[AB]\.(?P<factor>[^.]+)\.(?:weight|bias)|lora_embedding_[AB]\.(?P<embedding>[^.]+)"
    r"|lora_magnitude_vector\.(?P<magnitude>[^.]+)(?:\.weight)?|token_adapter\.trainable_tokens_delta\.(?P<tokens>[^.]+))\Z"
)
_MAGNITUDE = ".lora_magnitude_vector.weight"


@dataclass(frozen=True)
class OwnNames:
    """Tensors by their names without wrappers, and what was taken off to get them."""

    tensors: dict[str, TensorInfo]
    taken_off: tuple[str, ...]


def own_names(header: Header) -> OwnNames:
    """Raises InvalidArtifactError where two tensors get one name, UnsupportedAdapterError for several adapters in one file."""
    wrappers: set[str] = set()
    plain = {name: _unwrapped(name, wrappers) for name in header.tensors}
    adapter = _adapter_name(header, plain.values())
    found: dict[str, TensorInfo] = {}
    for name, tensor in header.tensors.items():
        own = _without_adapter(plain[name], adapter)
        if own in found:
            raise InvalidArtifactError(f"{header.path}: {found[own].name!r} and {name!r} are the same parameter")
        found[own] = tensor
    return OwnNames(found, (*sorted(wrappers), *([adapter] if adapter else [])))


def _unwrapped(name: str, wrappers: set[str]) -> str:
    parts = name.split(".")
    if not wrappers.isdisjoint(parts) or any(part in _BETWEEN for part in parts):
        wrappers.update(part for part in parts if part in _BETWEEN)
        parts = [part for part in parts if part not in _BETWEEN]
    while parts[0] in _BEFORE and parts[1:2] in (["base_model"], [_BEFORE[0]], [_BEFORE[1]]):
        wrappers.add(parts.pop(0))
    # around the model within PEFT's; a PeftModel of a PeftModel has PEFT's own prefix twice
    while parts[:3] == ["base_model", "model", "module"]:
        wrappers.add(parts.pop(2))
    while parts[:4] == ["base_model", "model"] * 2:
        wrappers.add(PREFIX[:-1])
        del parts[:2]
    return ".".join(parts)


def _adapter_name(header: Header, names: Iterable[str]) -> str | None:
    """The one adapter whose name is in the keys; None where PEFT has taken it off."""
    found: dict[str, None] = {}
    for name in names:
        if (named := _NAMED.search(name)) and not name.endswith(_MAGNITUDE):
            found |= dict.fromkeys(group for group in named.groups() if group)
    if len(found) > 1:
        raise UnsupportedAdapterError(
            f"{header.path}: holds several adapters under their names: {', '.join(map(shown, sorted(found)[:5]))}",
            hint="save one alone: model.save_pretrained(…, selected_adapters=[NAME])",
        )
    return next(iter(found), None)


def _without_adapter(name: str, adapter: str | None) -> str:
    if adapter is None:
        return name.removesuffix(".weight") if name.endswith(_MAGNITUDE) else name
    parts = name.split(".")
    for at in range(len(parts) - 1, 0, -1):
        if parts[at] == adapter and parts[at - 1].startswith(("lora_", "trainable_tokens_")):
            del parts[at]
            break
        if parts[at] == adapter and parts[at - 1] == "modules_to_save":
            del parts[at - 1 : at + 1]
            break
    name = ".".join(parts)
    return name.removesuffix(".weight") if name.endswith(_MAGNITUDE) else name
