"""Every tensor of a PEFT LoRA adapter's file for what it is, by the configuration beside it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ..errors import InvalidArtifactError, UnsupportedAdapterError
from ..strict_json import shown
from .keys import PREFIX, own_names
from .lora import Contents, LoraModule, SavedTensor, TokenRows, is_head, is_vocabulary, some
from .lora_config import LoraConfig, is_to_save
from .safetensors import Header, TensorInfo
from .tensor_names import Place

PATTERN_WORK = 20_000_000  # steps of patterns times modules: some seconds

# In which order a module defines its parameters: PEFT wraps them one by one, so that of the factors in the file those of
# the last have the plain name, and each `base_layer` more leads to the one before.
_PARAMETER_ORDER = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")


def contents(header: Header, config: LoraConfig) -> Contents:
    """Every tensor of the file for what it is. Raises if one is left over, does not fit or is of a kind unknown here.

    Where a base is needed to know (which parameters a tied head shares, whether 3-D weights are transposed), the answer is
    the one that holds without it; `inspect_adapter` corrects it.
    """
    path = header.path
    factors: dict[str, dict[int, dict[str, TensorInfo]]] = {}
    rows: dict[str, TensorInfo] = {}
    whole: dict[str, TensorInfo] = {}
    copies: dict[str, TensorInfo] = {}
    named = own_names(header)
    for own, tensor in named.tensors.items():
        name = tensor.name
        if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
            raise UnsupportedAdapterError(f"{path}: tensor {name!r} is {tensor.dtype}, which has no exact delta here")
        if tensor.elements == 0:
            raise InvalidArtifactError(
                f"{path}: tensor {name!r} of shape {list(tensor.shape)} is empty",
                hint="gather the shards before saving, if the model was trained in shards",
            )
        if not own.startswith(PREFIX):
            raise UnsupportedAdapterError(f"{path}: tensor {name!r} {_STRANGE}")
        module, part = _module_and_part(own[len(PREFIX) :])
        if part in _FACTORS:
            plain = module
            while plain.endswith(".base_layer"):
                plain = plain.removesuffix(".base_layer")
            depth = (len(module) - len(plain)) // len(".base_layer")
            factors.setdefault(plain, {}).setdefault(depth, {})[part] = tensor
        elif part == "token_adapter.trainable_tokens_delta":
            rows[module] = tensor
        elif part.startswith(("modules_to_save.", "original_module.")):
            copies[own[len(PREFIX) :]] = tensor
        else:
            parameter = f"{module}.{part.rpartition('.')[2]}"
            if parameter in whole:
                raise InvalidArtifactError(f"{path}: {whole[parameter].name!r} and {name!r} are the same parameter")
            whole[parameter] = tensor
    if not factors:
        raise InvalidArtifactError(f"{path}: holds no LoRA tensors")
    modules, saved, tokens = _modules(path, config, factors), _saved(path, config, whole), _tokens(path, config, rows)
    _expect_targeted(path, config, modules)
    return Contents(
        modules=modules,
        saved=saved,
        tokens=tokens,
        copies=_checked_copies(path, config, copies, whole),
        lacking=(*_lacking_saved(config, saved), *_lacking_tokens(config, tokens)),
        notes=(*_notes(config, named.taken_off), *_unused_patterns(config, modules)),
    )


_FACTORS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
)
_STRANGE = f"is not a lora_A or lora_B weight of a module under {PREFIX!r}, nor of another known kind"
_PARTS = re.compile(
    r"\.((?:modules_to_save|original_module)\..+|token_adapter\.(?:trainable_tokens_delta|base_layer\.weight)"
    rf"|{'|'.join(map(re.escape, _FACTORS))}|base_layer\.(?:weight|bias)|[^.]+)\Z"
)


def _module_and_part(name: str) -> tuple[str, str]:
    """A tensor's name without prefix as that of the module and what it is of it: one of the above, or a parameter."""
    found = _PARTS.search(name)
    return (name[: found.start()], found[1]) if found else ("", name)


def _modules(
    path: Path, config: LoraConfig, factors: Mapping[str, Mapping[int, Mapping[str, TensorInfo]]]
) -> tuple[LoraModule, ...]:
    for field_, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        if patterns.cost * sum(map(len, factors.values())) * 2 > PATTERN_WORK:
            raise InvalidArtifactError(
                f"{path}: the patterns in {field_} are too many or too long for {len(factors)} modules",
                hint="write plain module names, or fewer patterns",
            )
    _bound_work(path, "target_parameters", config.target_parameters, len(factors))
    modules: list[LoraModule] = []
    wrapped: set[str] = set()
    for name, nested in sorted(factors.items()):
        for depth in range(len(nested)):
            if depth not in nested:
                raise InvalidArtifactError(f"{path}: {name!r} has factors within factors, but not those around them")
        parameters = _parameters(path, config, name, nested)
        for depth, parameter in enumerate(parameters):
            if parameter is not None:
                wrapped.add(f".{name}.{parameter}")
            modules.append(_module(path, config, name, parameter, nested[depth]))
    for target in config.target_parameters:
        if not any(name.endswith(f".{target}") for name in wrapped):
            raise InvalidArtifactError(f"{path}: target_parameters {shown(target)} names no parameter of the adapter")
    return tuple(modules)


def _parameters(
    path: Path, config: LoraConfig, name: str, nested: Mapping[int, Mapping[str, TensorInfo]]
) -> list[str | None]:
    """Which parameter each pair of a module is for, from the outside in; None for a layer's weight as usual."""
    exact, bare = [], []
    for target in config.target_parameters:
        module, _, parameter = target.rpartition(".")
        if not module:
            bare.append(parameter)
        elif f".{name}".endswith(f".{module}"):
            exact.append(parameter)
    if len(nested) == 1 and not exact:
        # a bare name may be of any module; those of experts have the factors of all of them
        a = nested[0].get("lora_A.weight")
        if name.rpartition(".")[2] != "experts" and (a is None or a.shape[:1] == (config.rank_of(name),)):
            return [None]
    found = list(dict.fromkeys([*exact, *bare]))
    if len(nested) == 1 and len(exact) == 1:
        return [exact[0]]
    if len(found) != len(nested) or (len(found) > 1 and not set(found) <= set(_PARAMETER_ORDER)):
        if not found and len(nested) == 1:
            return [None]
        raise UnsupportedAdapterError(
            f"{path}: the module {name!r} has {len(nested)} pairs of factors, and it is ambiguous for which parameters:"
            f" target_parameters has {shown(found)} for it"
        )
    return sorted(found, key=_PARAMETER_ORDER.index, reverse=True) if len(found) > 1 else list(found)


def _module(
    path: Path, config: LoraConfig, name: str, parameter: str | None, parts: Mapping[str, TensorInfo]
) -> LoraModule:
    embeds = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    sides = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A.weight", "lora_B.weight")
    first = next(iter(parts.values()))
    for side, other in (sides, sides[::-1]):
        if side not in parts:
            beside = parts.get(other, first)
            raise InvalidArtifactError(f"{path}: {beside.name!r} has no {side.removesuffix('.weight')} beside it")
    a, b = (parts[side] for side in sides)
    named = name if parameter is None else f"{name}.{parameter}"
    rank = config.rank_of(named)
    magnitude, bias = parts.get("lora_magnitude_vector"), parts.get("lora_B.bias")
    for tensor in parts.values():
        if tensor not in (a, b, magnitude, bias) or (tensor is bias and embeds):
            raise UnsupportedAdapterError(f"{path}: {tensor.name!r} does not belong to {a.name!r}, which is beside it")
    if len(a.shape) != 2 or len(b.shape) != 2:
        kind = "a convolution" if len(a.shape) > 2 else "not a matrix"
        raise UnsupportedAdapterError(
            f"{path}: {a.name!r} of shape {list(a.shape)} is {kind}; only linear layers and embeddings merge"
        )
    if a.shape[0] != b.shape[1]:
        raise InvalidArtifactError(f"{path}: {a.name!r} {list(a.shape)} and {b.name!r} {list(b.shape)} do not multiply")
    experts = a.shape[0] // rank if parameter is not None else 1
    if a.shape[0] != rank * max(experts, 1):
        raise InvalidArtifactError(
            f"{path}: {a.name!r} has rank {a.shape[0]}, but adapter_config.json says {rank}"
            + (" for each expert" if parameter is not None else "")
        )
    if parameter is not None and (magnitude or bias or config.use_dora or config.lora_bias):
        raise UnsupportedAdapterError(
            f"{path}: {a.name!r} is for a parameter, which neither use_dora nor lora_bias can be"
        )
    for tensor, field_, given in (
        (magnitude, "use_dora", config.use_dora),
        (bias, "lora_bias", config.lora_bias and not embeds),
    ):
        if (tensor is not None) != given:
            what = "lora_magnitude_vector" if field_ == "use_dora" else "lora_B.bias"
            raise InvalidArtifactError(
                f"{path}: {a.name!r} has {'a' if tensor else 'no'} {what} beside it, but {field_} is {str(given).lower()}"
            )
        if tensor is not None and tensor.shape != (b.shape[0],):
            raise InvalidArtifactError(
                f"{path}: {tensor.name!r} is {list(tensor.shape)}, but the layer has {b.shape[0]} outputs"
            )
    return LoraModule(
        name,
        parameter or "weight",
        a,
        b,
        rank,
        config.alpha_of(named),
        config.scale_of(named),
        transposed=embeds or config.fan_in_fan_out,
        experts=experts,
        magnitude=magnitude,
        bias=bias,
    )


def _saved(path: Path, config: LoraConfig, whole: Mapping[str, TensorInfo]) -> tuple[SavedTensor, ...]:
    _bound_work(path, "modules_to_save", config.modules_to_save, sum(name.count(".") for name in whole))
    saved = []
    for name, tensor in sorted(whole.items()):
        if is_to_save(name, config):
            why = "modules_to_save"
        elif name.endswith(".bias") and config.bias != "none":
            why = "bias"
        elif is_vocabulary(name):
            why = "embedding"
        else:
            raise UnsupportedAdapterError(f"{path}: tensor {tensor.name!r} {_why_not(tensor.name)}")
        saved.append(SavedTensor(name, tensor, why))
    return tuple(saved)


def _tokens(path: Path, config: LoraConfig, rows: Mapping[str, TensorInfo]) -> tuple[TokenRows, ...]:
    _bound_work(path, "trainable_token_indices", config.token_indices, len(rows))
    given: dict[str, tuple[int, ...]] = {}
    used: set[tuple[int, ...]] = set()
    for module, tensor in sorted(rows.items(), key=lambda item: is_head(f"{item[0]}.weight")):
        fits = {
            indices
            for name, indices in config.token_indices.items()
            if (module.endswith(name) if name else not is_head(f"{module}.weight"))
        }
        if not fits and is_head(f"{module}.weight"):
            fits = used  # a tied head has those of the embedding, and they are not written down twice
        if len(fits) != 1:
            raise InvalidArtifactError(
                f"{path}: trainable_token_indices does not say which tokens {tensor.name!r} is for"
            )
        (given[module],) = fits
        used.add(given[module])
        if len(tensor.shape) != 2 or tensor.shape[0] != len(given[module]):
            raise InvalidArtifactError(
                f"{path}: {tensor.name!r} is {list(tensor.shape)},"
                f" but trainable_token_indices has {len(given[module])} tokens for it"
            )
    return tuple(
        TokenRows(f"{module}.weight", rows[module], indices, Place(f"{module}.weight"))
        for module, indices in sorted(given.items())
    )


def _checked_copies(
    path: Path, config: LoraConfig, copies: Mapping[str, TensorInfo], whole: Mapping[str, TensorInfo]
) -> tuple[TensorInfo, ...]:
    """What PEFT adds for modules_to_save that are also biases or embeddings: it reads the tensor without the addition."""
    for own, copy in copies.items():
        name = re.sub(r"\.(?:modules_to_save|original_module)\.", ".", own, count=1)
        read = whole.get(name)
        if read is None or not is_to_save(name, config) or read.shape != copy.shape:
            raise UnsupportedAdapterError(
                f"{path}: tensor {copy.name!r} is neither a copy of one of the modules_to_save nor any other known tensor"
            )
    return tuple(copies.values())


def _why_not(name: str) -> str:
    for part, reason in (
        (".base_layer.", "is a copy of a base weight; save the adapter with save_embedding_layers=False"),
        (".lora_", "is a part of a LoRA variant that merging does not support"),
        (".bias", "is a bias, but adapter_config.json says that bias is 'none'"),
    ):
        if part in name:
            return reason
    return _STRANGE


def _bound_work(path: Path, field_: str, names: Collection[str], times: int) -> None:
    if len(names) * times > PATTERN_WORK // 10:  # slower than a step of a pattern
        raise InvalidArtifactError(f"{path}: {field_} has {len(names)} names, too many for {times} modules")


def _expect_targeted(path: Path, config: LoraConfig, modules: Collection[LoraModule]) -> None:
    """PEFT gives factors to the modules that the configuration names, and passes over those of others in the file."""
    if config.targets.modules is None:
        return
    left = {module.name for module in modules} - {
        module.name for module in modules if module.weight.endswith(config.target_parameters or ("\n",))
    }
    try:
        strange = left - config.targets.of(left)
    except ValueError as error:
        raise bad_targets(path, error) from error
    # PEFT gives both ends of a tied weight factors and names the embedding alone; files keep them where the key was changed by hand
    of_vocabulary = {name for name in left if is_vocabulary(f"{name}.weight")}
    if config.ensure_weight_tying or of_vocabulary - strange:
        strange -= of_vocabulary
    if strange:
        raise InvalidArtifactError(
            f"{path}: has factors for {len(strange)} modules that adapter_config.json does not target:"
            f" {some(strange)}; its target_modules: {shown(config.targets.modules)}",
            hint="correct the configuration or the file: PEFT would load the adapter without these",
        )


def bad_targets(path: Path, error: ValueError) -> InvalidArtifactError:
    return InvalidArtifactError(
        f"{path}: target_modules, exclude_modules, layers_pattern or modules_to_save of adapter_config.json: {error}"
    )


def _lacking_saved(config: LoraConfig, saved: Collection[SavedTensor]) -> Iterator[str]:
    """All of modules_to_save. Names that fit nothing are PEFT's own habit, as `classifier` beside `score`."""
    if config.modules_to_save and not any(tensor.why == "modules_to_save" for tensor in saved):
        yield f"any tensor of the modules_to_save {shown(list(config.modules_to_save))}"


def _lacking_tokens(config: LoraConfig, tokens: Collection[TokenRows]) -> Iterator[str]:
    used = {rows.indices for rows in tokens}
    for name, indices in config.token_indices.items():
        if indices and indices not in used:
            yield f"rows for the trainable_token_indices {f'of {name!r} ' if name else ''}{shown(list(indices))}"


def _notes(config: LoraConfig, taken_off: Collection[str]) -> Iterator[str]:
    if taken_off:
        yield f"names of its tensors were read without what a wrapper put into them: {', '.join(map(shown, taken_off))}"
    if config.noted:
        yield f"keys of adapter_config.json that change nothing here: {', '.join(config.noted)}"
    if config.targets.modules is None:
        yield "adapter_config.json has no target_modules, so it was not checked whether the file is complete"


def _unused_patterns(config: LoraConfig, modules: Collection[LoraModule]) -> Iterator[str]:
    """PEFT passes over a key that fits no module, and so do we."""
    named = {
        module.weight if module.parameter != "weight" or module.experts > 1 else module.name for module in modules
    } | {module.weight for module in modules if module.weight.endswith(config.target_parameters or ("\n",))}
    for field_, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        used = {key for name in named for key in patterns.keys_of(name)}
        if unused := [key for key in patterns.values if key not in used]:
            yield f"{field_} has keys that fit no module, which have no effect: {some(unused)}"
