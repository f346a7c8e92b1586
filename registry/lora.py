"""PEFT LoRA adapters as written down: the configuration, and the pairs of factors in the file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import InvalidArtifactError, UnsupportedAdapterError
from .headers import Header, TensorInfo

PREFIX = "base_model.model."

Number = TypeVar("Number", int, float)

# adapters that start from the base's own singular vectors or quantisation, and whose training began on a changed base
_ALTERED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")

_READ_HERE = {
    "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "base_model_name_or_path",
    "peft_type", "bias", "init_lora_weights",
}  # fmt: skip
# how the adapter was trained or where it was placed; the tensors themselves say what remains of it
_WITHOUT_EFFECT = {
    "auto_mapping", "revision", "inference_mode", "task_type", "peft_version", "lora_dropout", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "runtime_config",
}  # fmt: skip


@dataclass(frozen=True)
class LoraConfig:
    """The part of `adapter_config.json` that decides the delta of a plain LoRA."""

    r: int
    alpha: float
    use_rslora: bool
    fan_in_fan_out: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base_name: str | None

    @classmethod
    def parse(cls, raw: Mapping[str, Any], path: Path) -> LoraConfig:
        """Raises UnsupportedAdapterError for what merging cannot honour, InvalidArtifactError for what is broken."""
        _refuse_unsupported(raw, path)
        base_name = raw.get("base_model_name_or_path")
        if base_name is not None and not isinstance(base_name, str):
            raise InvalidArtifactError(f"{path}: base_model_name_or_path must be text, not {base_name!r}")
        return cls(
            r=_rank(raw.get("r"), f"{path}: r"),
            alpha=_number(raw.get("lora_alpha"), f"{path}: lora_alpha"),
            use_rslora=_switch(raw, "use_rslora", path),
            fan_in_fan_out=_switch(raw, "fan_in_fan_out", path),
            rank_pattern=_pattern(raw, "rank_pattern", path, _rank),
            alpha_pattern=_pattern(raw, "alpha_pattern", path, _number),
            base_name=base_name or None,
        )

    def rank_of(self, module: str) -> int:
        return _decided(self.rank_pattern, module, self.r)

    def alpha_of(self, module: str) -> float:
        return _decided(self.alpha_pattern, module, self.alpha)

    def scale_of(self, module: str) -> float:
        """`alpha / r`, or `alpha / sqrt(r)` for rank-stabilised LoRA."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True)
class LoraModule:
    """One adapted module: its delta is `scale · B A`, added to the base tensor `weight` (to its transpose if `transposed`).

    `a` is `[rank, in]`, `b` is `[out, rank]`; the weight is `[out, in]`, or `[in, out]` if `transposed`.
    """

    name: str
    weight: str
    a: TensorInfo
    b: TensorInfo
    rank: int
    alpha: float
    scale: float
    transposed: bool


def lora_modules(header: Header, config: LoraConfig) -> tuple[LoraModule, ...]:
    """Every tensor of the file paired up, by module name. Raises if one is left over, does not fit or is not LoRA."""
    factors: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in header.tensors.items():
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", name)
        if not match:
            raise UnsupportedAdapterError(f"{header.path}: tensor {name!r} {_why_not(name)}")
        if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
            raise UnsupportedAdapterError(
                f"{header.path}: tensor {name!r} is {tensor.dtype}, which has no exact delta here"
            )
        factors.setdefault(match[1], {})[match[2]] = tensor
    if not factors:
        raise InvalidArtifactError(f"{header.path}: holds no LoRA tensors")

    modules = tuple(_module(header.path, config, name, pair) for name, pair in sorted(factors.items()))
    for field, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        _check_used(header.path, field, patterns, factors)
    return modules


def _module(path: Path, config: LoraConfig, name: str, pair: Mapping[str, TensorInfo]) -> LoraModule:
    if len(pair) < 2:
        (there,) = pair
        raise InvalidArtifactError(f"{path}: {pair[there].name!r} has no lora_{'B' if there == 'A' else 'A'} beside it")
    a, b, rank = pair["A"], pair["B"], config.rank_of(name)
    if len(a.shape) != 2 or len(b.shape) != 2:
        kind = "a convolution" if len(a.shape) > 2 else "not a matrix"
        raise UnsupportedAdapterError(
            f"{path}: {a.name!r} of shape {list(a.shape)} is {kind}; only linear layers merge"
        )
    if a.shape[0] != b.shape[1]:
        raise InvalidArtifactError(f"{path}: {a.name!r} {list(a.shape)} and {b.name!r} {list(b.shape)} do not multiply")
    if a.shape[0] != rank:
        raise InvalidArtifactError(f"{path}: {a.name!r} has rank {a.shape[0]}, but adapter_config.json says {rank}")
    return LoraModule(
        name, f"{name}.weight", a, b, rank, config.alpha_of(name), config.scale_of(name), config.fan_in_fan_out
    )


def _why_not(name: str) -> str:
    for part, reason in (
        ("lora_embedding_", "adapts an embedding, which merging does not support"),
        ("lora_magnitude_vector", "belongs to DoRA, which merging does not support"),
        ("base_layer.", "is a copy of a base weight; save the adapter with save_embedding_layers=False"),
        ("lora_B.bias", "is a LoRA bias, which merging does not support"),
    ):
        if part in name:
            return reason
    return f"is not a lora_A or lora_B weight of a module under {PREFIX!r}"


def _refuse_unsupported(raw: Mapping[str, Any], path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise UnsupportedAdapterError(f"{path}: peft_type is {raw.get('peft_type')!r}; only LORA can be merged")
    if raw.get("bias", "none") not in ("none", None):
        raise UnsupportedAdapterError(f"{path}: bias is {raw['bias']!r}; merging does not change biases")
    start = raw.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        altered = isinstance(start, str) and start.lower().startswith(_ALTERED_BASE)
        raise UnsupportedAdapterError(
            f"{path}: init_lora_weights is {start!r}" + (", which trained on an altered base" if altered else ""),
            hint="convert it: save_pretrained(…, path_initial_model_for_weight_conversion=…)" if altered else None,
        )
    for key in sorted(raw.keys() - _READ_HERE - _WITHOUT_EFFECT):
        if raw[key]:
            raise UnsupportedAdapterError(f"{path}: {key} is {raw[key]!r}, which merging cannot honour")


def _matches(pattern: str, module: str) -> bool:
    # the rule of peft.utils.other.get_pattern_key: a regular expression for the end of the dotted name
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _decided(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    return next((value for pattern, value in patterns.items() if _matches(pattern, module)), default)


def _check_used(path: Path, field: str, patterns: Iterable[str], modules: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(_matches(pattern, module) for module in modules):
            raise InvalidArtifactError(f"{path}: {field} key {pattern!r} matches no module of the adapter")


def _pattern(raw: Mapping[str, Any], field: str, path: Path, value: Any) -> dict[str, Any]:
    patterns = raw.get(field) or {}
    if not isinstance(patterns, dict):
        raise InvalidArtifactError(f"{path}: {field} must map names to numbers, not {patterns!r}")
    for key in patterns:
        try:
            re.compile(rf"(.*\.)?({key})$")
        except re.error as error:
            raise InvalidArtifactError(f"{path}: {field} key {key!r} is not a regular expression: {error}") from error
    return {key: value(number, f"{path}: {field}[{key!r}]") for key, number in patterns.items()}


def _rank(value: Any, where: str) -> int:
    if type(value) is not int or value < 1:
        raise InvalidArtifactError(f"{where} must be a positive whole number, not {value!r}")
    return value


def _number(value: Any, where: str) -> float:
    # compared rather than converted first: JSON's whole numbers may be too large for a float
    if type(value) not in (int, float) or not -1e300 < value < 1e300:
        raise InvalidArtifactError(f"{where} must be a finite number, not {value!r}")
    return float(value)


def _switch(raw: Mapping[str, Any], field: str, path: Path) -> bool:
    value = raw.get(field) or False
    if value is not True and value is not False:
        raise InvalidArtifactError(f"{path}: {field} must be true or false, not {value!r}")
    return value
