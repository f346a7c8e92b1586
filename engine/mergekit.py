"""Configurations of mergekit: recognised, and read as a recipe where they mean LoRAs on one base model.

The format is mergekit's YAML (https://github.com/arcee-ai/mergekit, its README): `merge_method`, `base_model`, `models` with their
`parameters`. A LoRA is named there as `BASE+LORA`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..registry.catalog.references import did_you_mean
from ..registry.strict_json import WRITTEN_LIMIT, parse_written, regular_bytes, shown
from .errors import RecipeError

TELLING = ("merge_method", "models", "slices", "modules")
"""Keys that a recipe does not have and every configuration of mergekit has one of."""
KEYS = (
    *TELLING,
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)
METHODS = {
    "linear": "linear",
    "task_arithmetic": "linear",
    "ties": "ties_mergekit",
    "dare_linear": "dare_linear_mergekit",
    "dare_ties": "dare_ties_mergekit",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_ties": "breadcrumbs_ties",
    "della": "della",
    "della_linear": "della_linear",
    "sce": "sce",
    "slerp": "slerp",
}
"""Ours by mergekit's name."""
OPTIONS = {
    "density": "density",
    "gamma": "gamma",
    "epsilon": "epsilon",
    "select_topk": "select_topk",
    "normalize": "normalize",
    "rescale": "rescale",
    "lambda": "scale",
}
PARAMETERS = (*OPTIONS, "weight", "t", "int8_mask")
DTYPES = ("bfloat16", "float16", "float32")


class Unconvertible(Exception):  # noqa: N818  its text ends the sentence "… cannot be a recipe: "
    """Why a configuration means something else than LoRAs on one base."""


@dataclass(frozen=True)
class LoraMix:
    """What a configuration means: LoRAs with their weights, in its order, by one of our methods."""

    base: str
    loras: tuple[str, ...]
    weights: tuple[float, ...]
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None

    def recipe(self, roles: tuple[str, ...]) -> dict[str, Any]:
        """The content of a recipe, with a role for each LoRA."""
        content: dict[str, Any] = {"method": self.method}
        content |= {"options": dict(self.options)} if self.options else {}
        content |= {"coefficients": dict(zip(roles, self.weights, strict=True))}
        return content | ({"output": {"dtype": self.dtype}} if self.dtype else {})


def is_mergekit(content: Mapping[Any, Any]) -> bool:
    return any(key in content for key in TELLING)


def read_mergekit(path: Path) -> LoraMix | None:
    """What the file means; None if it is no configuration of mergekit.

    Raises RecipeError, with why in one sentence, for one that means no LoRAs on one base; OSError and ValueError for no file.
    """
    content = parse_written(regular_bytes(path, limit=WRITTEN_LIMIT), path.suffix)
    if not isinstance(content, dict) or not is_mergekit(content):
        return None
    return parse_mergekit(content, where=str(path))


def parse_mergekit(content: Mapping[Any, Any], *, where: str) -> LoraMix:
    """What the content means. Raises RecipeError with why it cannot be a recipe."""
    try:
        return _mix(content)
    except Unconvertible as error:
        raise RecipeError(
            f"{where} is a mergekit configuration and cannot be a recipe: {error}",
            hint="a recipe combines LoRAs on one base model (`BASE+LORA` in mergekit); docs/methods.md has the methods",
        ) from error


def pointer(where: str) -> RecipeError:
    """For a configuration that was given as a recipe, and could be one."""
    return RecipeError(
        f"{where} is a mergekit configuration, not a recipe",
        hint=f"`reccocktail recipe import {where} > recipe.yaml` writes it as one",
    )


def _mix(content: Mapping[Any, Any]) -> LoraMix:
    for key in content:
        if key not in KEYS:
            raise Unconvertible(f"mergekit has no key {shown(key)}{did_you_mean(str(key), KEYS)}")
    for key in ("slices", "modules"):
        if content.get(key):
            raise Unconvertible(f"`{key}` puts a model together of parts of others")
    method = content.get("merge_method")
    if method not in METHODS:
        near = did_you_mean(str(method), METHODS)
        raise Unconvertible(f"its merge_method {shown(method)} is none that combines LoRAs here{near}")
    if content.get("tokenizer") or content.get("tokenizer_source") not in (None, "base"):
        raise Unconvertible("it makes a new tokenizer, and a recipe keeps the base model's")
    if content.get("chat_template") not in (None, "auto"):
        raise Unconvertible("it sets a chat template, and a recipe keeps the base model's")
    common = _parameters(content.get("parameters"), "parameters")
    entries = [*_entries(content)]
    base = _one_base(content.get("base_model"), entries)
    return _weighed(str(method), base, entries, common, content)


@dataclass(frozen=True)
class _Entry:
    base: str
    lora: str | None
    parameters: Mapping[str, Any]


def _entries(content: Mapping[Any, Any]) -> Iterator[_Entry]:
    models = content.get("models")
    if not isinstance(models, list) or not models:
        raise Unconvertible("it lists no `models`")
    for each in models:
        if not isinstance(each, Mapping) or "model" not in each:
            raise Unconvertible(f"{shown(each)} in `models` names no `model`")
        if left := set(each) - {"model", "parameters"}:
            name = str(min(map(str, left)))
            raise Unconvertible(f"`models` has an unknown key {name!r}{did_you_mean(name, ('model', 'parameters'))}")
        base, lora = _named(each["model"])
        yield _Entry(base, lora, _parameters(each.get("parameters"), f"parameters of {lora or base}"))


def _named(model: object) -> tuple[str, str | None]:
    """The base and the LoRA on it, from `BASE+LORA` or the long form with `model` and `lora`."""
    if isinstance(model, Mapping):
        parts = [model.get("model"), model.get("lora")]
        base, lora = (part.get("path") if isinstance(part, Mapping) else part for part in parts)
    else:
        base, plus, lora = str(model).partition("+")
        lora = lora if plus else None
    if not isinstance(base, str) or not base or (lora is not None and (not isinstance(lora, str) or not lora)):
        raise Unconvertible(f"{shown(model)} does not name a model")
    return base, lora


def _parameters(given: object, where: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise Unconvertible(f"{where}: {shown(given)} is no mapping")
    for name, value in given.items():
        if name not in PARAMETERS:
            raise Unconvertible(f"{where}: unknown parameter {shown(name)}{did_you_mean(str(name), PARAMETERS)}")
        if not isinstance(value, (int, float)):
            raise Unconvertible(f"{where}: `{name}` differs between layers or modules, or is no number")
    return {str(name): value for name, value in given.items()}


def _one_base(named: object, entries: list[_Entry]) -> str:
    loras = [entry for entry in entries if entry.lora is not None]
    bases = {entry.base for entry in loras}
    if len(bases) > 1:
        raise Unconvertible(f"its LoRAs are on several models: {', '.join(sorted(bases))}")
    full = sorted({entry.base for entry in entries if entry.lora is None} - bases)
    if not loras or full:
        raise Unconvertible(f"{(full or [entries[0].base])[0]} is a whole model and no LoRA on the base")
    (base,) = bases
    if named is not None and _named(named)[0] != base:
        raise Unconvertible(f"its base_model is {shown(named)}, and its LoRAs are on {base}")
    return base


def _weighed(
    method: str, base: str, entries: list[_Entry], common: Mapping[str, Any], content: Mapping[Any, Any]
) -> LoraMix:
    options = dict(_options(entries, common))
    ours = METHODS[method]
    loras = [entry for entry in entries if entry.lora is not None]
    if method == "slerp":
        loras, weights = _along_the_arc(loras, common, content.get("base_model"))
    elif method == "sce":
        weights = [1.0] * len(loras)
    else:
        weights = [_weight(entry, common) for entry in loras]
    if ours == "linear":
        options.setdefault("normalize", method == "linear")
        counted = [_weight(entry, common) for entry in entries] if method == "linear" else weights
        if unknown := options.keys() - {"normalize", "scale"}:
            raise Unconvertible(f"merge_method {method} has no parameter {min(unknown)}")
        factor = float(options.pop("scale", 1.0)) if method == "task_arithmetic" else 1.0
        if options.pop("normalize"):
            if not sum(counted):
                raise Unconvertible("its weights sum to 0 and cannot be normalized")
            factor /= sum(counted)
        elif method == "linear" and abs(sum(counted) - 1) > 1e-6:
            raise Unconvertible("its weights do not sum to 1, which would scale the base model itself")
        weights = [weight * factor for weight in weights]
    dtype = content.get("out_dtype") or content.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise Unconvertible(f"its dtype {shown(dtype)} is none of {', '.join(DTYPES)}")
    return LoraMix(base, tuple(str(entry.lora) for entry in loras), tuple(weights), ours, options, dtype)


def _options(entries: list[_Entry], common: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The method's options; mergekit takes some per model, which have to agree."""
    for theirs, ours in OPTIONS.items():
        values = {entry.parameters.get(theirs, common.get(theirs)) for entry in entries if entry.lora is not None} - {
            None
        }
        if len(values) > 1:
            raise Unconvertible(f"`{theirs}` differs between its LoRAs, and is one number for all in a recipe")
        if values:
            yield ours, values.pop()


def _weight(entry: _Entry, common: Mapping[str, Any]) -> float:
    weight = entry.parameters.get("weight", common.get("weight"))
    if weight is None:
        raise Unconvertible(f"{entry.lora or entry.base} has no weight")
    return float(weight)


def _along_the_arc(
    loras: list[_Entry], common: Mapping[str, Any], base_model: object
) -> tuple[list[_Entry], list[float]]:
    if len(loras) != 2 or "t" not in common:
        raise Unconvertible("slerp needs two LoRAs and one `t`")
    first = [entry for entry in loras if base_model is not None and (entry.base, entry.lora) == _named(base_model)]
    if not first:
        raise Unconvertible("slerp begins at its base_model, which is none of the LoRAs")
    t = float(common["t"])
    return [first[0], *(entry for entry in loras if entry is not first[0])], [1.0 - t, t]
