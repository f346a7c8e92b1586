"""PEFT LoRA adapters as written down: the configuration, and the pairs of factors in the file."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from .documents import shown
from .errors import InvalidArtifactError, UnsupportedAdapterError
from .headers import Header, TensorInfo
from .naming import Place

PREFIX = "base_model.model."
PATTERN_WORK = 20_000_000  # steps of patterns times modules: some seconds

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

# what a pattern may be made of: plain names, or single characters with quantifiers, in groups that never repeat
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-]|\\?\.)*")
_CHARACTER = re.compile(
    r"\\[dDwWsS]|\\[!-/:-@\[-`{-~]|[^\\^$*+?{}\[\]|()]"
    r"|\[\^?-?(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[A-Za-z0-9_.]|\\[dDwWsS.\-\[\]\\^])+-?\]"
)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{([0-9]{1,2})(?:,([0-9]{1,2}))?\})\??")  # what is lazy matches just as much
_DEEPEST = 10
_LONGEST = 500
_MOST_STEPS = 50_000


@dataclass(frozen=True)
class LoraConfig:
    """The part of `adapter_config.json` that decides the delta of a plain LoRA."""

    r: int
    alpha: float
    use_rslora: bool
    fan_in_fan_out: bool
    rank_pattern: NamePatterns[int]
    alpha_pattern: NamePatterns[float]
    base_name: str | None

    @classmethod
    def parse(cls, raw: Mapping[str, Any], path: Path) -> LoraConfig:
        """Raises UnsupportedAdapterError for what merging cannot honour, InvalidArtifactError for what is broken."""
        _refuse_unsupported(raw, path)
        base_name = raw.get("base_model_name_or_path")
        if base_name is not None and not isinstance(base_name, str):
            raise InvalidArtifactError(f"{path}: base_model_name_or_path must be text, not {shown(base_name)}")
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
        return self.rank_pattern.value_of(module, self.r)

    def alpha_of(self, module: str) -> float:
        return self.alpha_pattern.value_of(module, self.alpha)

    def scale_of(self, module: str) -> float:
        """`alpha / r`, or `alpha / sqrt(r)` for rank-stabilised LoRA."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True)
class NamePatterns(Generic[Number]):
    """Numbers for some modules: keys are regular expressions for the end of a dotted name, and the first that fits decides.

    The rule is that of `peft.utils.other.get_pattern_key`. The keys come from outside and could keep Python's engine busy
    for ever, so plain names are looked up, and others are followed through a name for all positions at once.
    Names must be printable. Raises ValueError for a key that is no expression, or one of another kind.
    """

    values: Mapping[str, Number]
    cost: int = field(init=False, repr=False, compare=False)  # steps that one name takes at most
    _keys: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _plain: dict[int, dict[tuple[int, ...], dict[tuple[str, ...], int]]] = field(init=False, repr=False, compare=False)
    _others: list[tuple[int, _Step]] = field(init=False, repr=False, compare=False)
    _known: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain: dict[int, dict[tuple[int, ...], dict[tuple[str, ...], int]]] = {}
        others: list[tuple[int, _Step]] = []
        cost = 0
        for order, key in enumerate(self.values):
            if _PLAIN.fullmatch(key):
                # a dot that is not escaped stands for any character, so what lies between the dots is looked up
                pieces = tuple(piece.replace("\\.", ".") for piece in re.split(r"(?<!\\)\.", key))
                lengths = tuple(map(len, pieces))
                alike = plain.setdefault(sum(lengths) + len(lengths) - 1, {})
                cost += 0 if lengths in alike else len(lengths)
                alike.setdefault(lengths, {})[pieces] = order
            else:
                step, steps = _parsed(key)
                others.append((order, step))
                cost += steps
            if cost > _MOST_STEPS:
                raise ValueError("has more patterns than can be matched in reasonable time")
        given = {"cost": cost, "_keys": tuple(self.values), "_plain": plain, "_others": others, "_known": {}}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def value_of(self, module: str, default: Number) -> Number:
        keys = self.keys_of(module)
        return self.values[keys[0]] if keys else default

    def keys_of(self, module: str) -> tuple[str, ...]:
        """All keys that fit, in their order."""
        if module not in self._known:
            found = sorted({*self._plain_keys(module), *self._other_keys(module)})
            self._known[module] = tuple(self._keys[order] for order in found)
        return self._known[module]

    def _plain_keys(self, module: str) -> Iterator[int]:
        if not self._plain:
            return
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", module))):
            for lengths, keys in self._plain.get(len(module) - start, {}).items():
                pieces, at = [], start
                for length in lengths:
                    pieces.append(module[at : at + length])
                    at += length + 1
                if (order := keys.get(tuple(pieces))) is not None:
                    yield order

    def _other_keys(self, module: str) -> Iterator[int]:
        if not self._others:
            return
        text = _Text(module)
        starts = 1 | text.where(r"\.") << 1
        for order, step in self._others:
            if step(text, starts) & text.end:
                yield order


@dataclass(frozen=True)
class LoraModule:
    """One pair of factors: the delta of `parameter` is `scale · B A`, or its transpose if `transposed`.

    `a` is `[rank, in]`, `b` is `[out, rank]`; the weight is `[out, in]`, or `[in, out]` if `transposed`. `places` and
    `bias_place` say where the parameters lie in the base; they are empty where no base was given.
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


@dataclass(frozen=True)
class SavedTensor:
    """A tensor that the adapter holds whole, as it was trained; `place` is None where the base has none of that name.

    `name` is the parameter's name in the model.
    """

    name: str
    info: TensorInfo
    why: Literal["modules_to_save", "bias", "embedding"]
    place: Place | None = None


@dataclass(frozen=True)
class TokenRows:
    """Rows of an embedding as they were trained: `info` is `[len(indices), dimension]`. `name` is the parameter's name."""

    name: str
    info: TensorInfo
    indices: tuple[int, ...]
    place: Place


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

    _check_patterns(header.path, "rank_pattern", config.rank_pattern, factors)
    _check_patterns(header.path, "alpha_pattern", config.alpha_pattern, factors)
    return tuple(_module(header.path, config, name, pair) for name, pair in sorted(factors.items()))


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
        name, "weight", a, b, rank, config.alpha_of(name), config.scale_of(name), config.fan_in_fan_out
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


def _check_patterns(path: Path, field: str, patterns: NamePatterns[Any], modules: Collection[str]) -> None:
    if patterns.cost * len(modules) > PATTERN_WORK:
        raise InvalidArtifactError(
            f"{path}: the patterns in {field} are too many or too long for {len(modules)} modules",
            hint="write plain module names, or fewer patterns",
        )
    unused = patterns.values.keys() - {key for module in modules for key in patterns.keys_of(module)}
    for pattern in patterns.values:
        if pattern in unused:
            raise InvalidArtifactError(f"{path}: {field} key {shown(pattern)} matches no module of the adapter")


def _refuse_unsupported(raw: Mapping[str, Any], path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise UnsupportedAdapterError(f"{path}: peft_type is {shown(raw.get('peft_type'))}; only LORA can be merged")
    if raw.get("bias", "none") not in ("none", None):
        raise UnsupportedAdapterError(f"{path}: bias is {shown(raw['bias'])}; merging does not change biases")
    start = raw.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        altered = isinstance(start, str) and start.lower().startswith(_ALTERED_BASE)
        raise UnsupportedAdapterError(
            f"{path}: init_lora_weights is {shown(start)}" + (", which trained on an altered base" if altered else ""),
            hint="convert it: save_pretrained(…, path_initial_model_for_weight_conversion=…)" if altered else None,
        )
    for key in sorted(raw.keys() - _READ_HERE - _WITHOUT_EFFECT):
        if raw[key]:
            field = key if key.isidentifier() and len(key) < 100 else shown(key)
            raise UnsupportedAdapterError(f"{path}: {field} is {shown(raw[key])}, which merging cannot honour")


class _Text:
    """A name, and where in it a character of some kind stands: bit i for the i-th character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 1 << len(text)
        self._masks: dict[str, int] = {}

    def where(self, character: str) -> int:
        if character not in self._masks:
            # one character at a time leaves the engine nothing to go back on
            self._masks[character] = sum(1 << found.start() for found in re.finditer(character, self.text))
        return self._masks[character]


_Step = Callable[[_Text, int], int]  # from the set of positions where it may begin to the set where it may end


def _parsed(key: str) -> tuple[_Step, int]:
    """The expression as one step, and of how many it is made. Raises ValueError."""
    if len(key) > _LONGEST:
        raise ValueError(f"key {shown(key)} is longer than {_LONGEST} characters")
    steps, at = 0, 0

    def refuse() -> ValueError:
        return ValueError(
            f"key {shown(key)} cannot be matched safely, from {shown(key[at:])} on: a pattern may have characters,"
            " classes like [0-9] and \\d, groups with |, and *, +, ? or {m,n} after a single character"
        )

    def choice(depth: int) -> _Step:
        nonlocal at
        options = [sequence(depth)]
        while key[at : at + 1] == "|":
            at += 1
            options.append(sequence(depth))
        return (
            options[0]
            if len(options) == 1
            else lambda text, starts: _united(option(text, starts) for option in options)
        )

    def sequence(depth: int) -> _Step:
        nonlocal at, steps
        parts: list[_Step] = []
        while at < len(key) and key[at] not in "|)":
            steps += 1
            if key[at] in "^$":
                parts.append(_at_start if key[at] == "^" else _at_end)
                at += 1
            elif key[at] == "(":
                parts.append(group(depth + 1))
            else:
                parts += quantified()
        return lambda text, starts: _in_turn(parts, text, starts)

    def group(depth: int) -> _Step:
        nonlocal at
        at += 3 if key.startswith("(?:", at) else 1
        if depth > _DEEPEST:
            raise refuse()
        inner = choice(depth)
        if key[at : at + 1] != ")":
            raise refuse()
        at += 1
        quantifier = _QUANTIFIER.match(key, at)
        if not quantifier:
            return inner
        if not quantifier[0].startswith("?"):
            raise refuse()
        at = quantifier.end()
        return lambda text, starts: starts | inner(text, starts)

    def quantified() -> list[_Step]:
        nonlocal at, steps
        character = _CHARACTER.match(key, at)
        if not character:
            raise refuse()
        try:
            re.compile(character[0])
        except re.error as error:
            raise ValueError(f"key {shown(key)} is not a regular expression: {error}") from error
        once, perhaps, often = _once(character[0]), _perhaps(character[0]), _often(character[0])
        at = character.end()
        quantifier = _QUANTIFIER.match(key, at)
        if not quantifier:
            return [once]
        at = quantifier.end()
        if quantifier[1] is None:
            return {"*": [often], "+": [once, often], "?": [perhaps]}[quantifier[0][0]]
        least, most = int(quantifier[1]), int(quantifier[2] or quantifier[1])
        if least > most:
            raise refuse()
        steps += most
        return [once] * least + [perhaps] * (most - least)

    whole = choice(0)
    if at < len(key):  # a bracket that was never opened
        raise refuse()
    return whole, steps


def _once(character: str) -> _Step:
    return lambda text, starts: (starts & text.where(character)) << 1


def _perhaps(character: str) -> _Step:
    return lambda text, starts: starts | (starts & text.where(character)) << 1


def _often(character: str) -> _Step:
    def step(text: _Text, starts: int) -> int:
        # the carry of an addition runs from each start to the end of its row of fitting characters
        fits = text.where(character)
        return starts | (((starts & fits) + fits) ^ fits) | starts & fits

    return step


def _at_start(text: _Text, starts: int) -> int:
    return starts & 1


def _at_end(text: _Text, starts: int) -> int:
    return starts & text.end


def _united(ends: Iterator[int]) -> int:
    return functools.reduce(operator.or_, ends)


def _in_turn(parts: list[_Step], text: _Text, positions: int) -> int:
    for part in parts:
        if not positions:
            break
        positions = part(text, positions)
    return positions


def _pattern(raw: Mapping[str, Any], field: str, path: Path, value: Any) -> NamePatterns[Any]:
    patterns = raw.get(field) or {}
    if not isinstance(patterns, dict):
        raise InvalidArtifactError(f"{path}: {field} must map names to numbers, not {shown(patterns)}")
    numbers = {key: value(number, f"{path}: {field}[{shown(key)}]") for key, number in patterns.items()}
    try:
        return NamePatterns(numbers)
    except ValueError as error:
        raise InvalidArtifactError(f"{path}: {field} {error}") from error


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
