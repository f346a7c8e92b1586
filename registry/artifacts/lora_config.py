"""The configuration of a PEFT LoRA adapter as written down in `adapter_config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidArtifactError, UnsupportedAdapterError
from ..strict_json import shown
from .config_keys import check_keys
from .patterns import NamePatterns
from .targets import Targets


@dataclass(frozen=True)
class LoraConfig:
    """The part of `adapter_config.json` that decides what the tensors of the adapter mean."""

    r: int
    alpha: float
    use_rslora: bool
    fan_in_fan_out: bool
    rank_pattern: NamePatterns[int]
    alpha_pattern: NamePatterns[float]
    base_name: str | None
    use_dora: bool = False
    lora_bias: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    token_indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # under "" those of the input embedding
    targets: Targets = field(default_factory=Targets)
    ensure_weight_tying: bool = False
    task: str | None = None
    noted: tuple[str, ...] = ()  # keys that are not known and change nothing

    @classmethod
    def parse(cls, raw: Mapping[str, Any], path: Path) -> LoraConfig:
        """Raises UnsupportedAdapterError for what merging cannot honour, InvalidArtifactError for what is broken."""
        noted = check_keys(raw, path)
        base_name = raw.get("base_model_name_or_path")
        if base_name is not None and not isinstance(base_name, str):
            raise InvalidArtifactError(f"{path}: base_model_name_or_path must be text, not {shown(base_name)}")
        to_save, task = _names(raw, "modules_to_save", path), raw.get("task_type")
        return cls(
            r=_rank(raw.get("r"), f"{path}: r"),
            alpha=_number(raw.get("lora_alpha"), f"{path}: lora_alpha"),
            use_rslora=_switch(raw, "use_rslora", path),
            fan_in_fan_out=_switch(raw, "fan_in_fan_out", path),
            rank_pattern=_pattern(raw, "rank_pattern", path, _rank),
            alpha_pattern=_pattern(raw, "alpha_pattern", path, _number),
            base_name=base_name or None,
            use_dora=_switch(raw, "use_dora", path),
            lora_bias=_switch(raw, "lora_bias", path),
            bias=_bias(raw, path),
            modules_to_save=to_save,
            target_parameters=_names(raw, "target_parameters", path),
            token_indices=_token_indices(raw, path),
            targets=Targets.parse(raw, path, to_save),
            ensure_weight_tying=_switch(raw, "ensure_weight_tying", path),
            task=task if isinstance(task, str) else None,
            noted=noted,
        )

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.value_of(module, self.r)

    def alpha_of(self, module: str) -> float:
        return self.alpha_pattern.value_of(module, self.alpha)

    def scale_of(self, module: str) -> float:
        """`alpha / r`, or `alpha / sqrt(r)` for rank-stabilised LoRA."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)


def is_to_save(name: str, config: LoraConfig) -> bool:
    """Whether a module around the parameter has a name that ends like one of `modules_to_save`, PEFT's rule."""
    while config.modules_to_save and (name := name.rpartition(".")[0]):
        if name.endswith(config.modules_to_save):
            return True
    return False


def _pattern(raw: Mapping[str, Any], field: str, path: Path, value: Any) -> NamePatterns[Any]:
    patterns = raw.get(field) or {}
    if not isinstance(patterns, dict):
        raise InvalidArtifactError(f"{path}: {field} must map names to numbers, not {shown(patterns)}")
    numbers = {key: value(number, f"{path}: {field}[{shown(key)}]") for key, number in patterns.items()}
    try:
        return NamePatterns(numbers)
    except ValueError as error:
        raise InvalidArtifactError(f"{path}: {field} {error}") from error


def _bias(raw: Mapping[str, Any], path: Path) -> Literal["none", "all", "lora_only"]:
    value = raw.get("bias") or "none"
    if value not in ("none", "all", "lora_only"):
        raise UnsupportedAdapterError(f"{path}: bias is {shown(value)}, not none, all or lora_only")
    return value


def _names(raw: Mapping[str, Any], field: str, path: Path) -> tuple[str, ...]:
    value = raw.get(field) or []
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise InvalidArtifactError(f"{path}: {field} must be a list of names, not {shown(value)}")
    return tuple(dict.fromkeys(value))


def _token_indices(raw: Mapping[str, Any], path: Path) -> Mapping[str, tuple[int, ...]]:
    value = raw.get("trainable_token_indices") or {}
    given = value if isinstance(value, dict) else {"": value}
    for indices in given.values():
        if (
            not isinstance(indices, list)
            or not all(type(index) is int and 0 <= index < 2**31 for index in indices)
            or len(set(indices)) < len(indices)
        ):
            raise InvalidArtifactError(
                f"{path}: trainable_token_indices must be different whole numbers from 0 on, not {shown(indices)}"
            )
    if isinstance(value, dict) and "" in value:
        raise InvalidArtifactError(f"{path}: trainable_token_indices has a name without letters")
    return {name: tuple(indices) for name, indices in given.items()}


def _rank(value: Any, where: str) -> int:
    if type(value) is not int or not 0 < value < 2**31:  # what the database's column holds
        raise InvalidArtifactError(f"{where} must be a positive whole number below 2^31, not {shown(value)}")
    return value


def _number(value: Any, where: str) -> float:
    # compared rather than converted first: JSON's whole numbers may be too large for a float
    if type(value) not in (int, float) or not -1e300 < value < 1e300:
        raise InvalidArtifactError(f"{where} must be a finite number, not {shown(value)}")
    return float(value)


def _switch(raw: Mapping[str, Any], field: str, path: Path) -> bool:
    value = raw.get(field) or False
    if value is not True and value is not False:
        raise InvalidArtifactError(f"{path}: {field} must be true or false, not {shown(value)}")
    return value
