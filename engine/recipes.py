"""Recipes: how spirit and ingredient are combined, as a validated file and as the ones that ship.

A recipe either names its coefficients or says how to find them (`adaptive`). Its digest is over canonical JSON, so the
same recipe in YAML, TOML or JSON is the same recipe.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from ..registry.digests import digest_of_json
from ..tasks import DEFAULT_TEMPLATE
from .errors import RecipeError

Role = Literal["spirit", "ingredient"]
DType = Literal["bfloat16", "float16", "float32"]
_ROLES: tuple[Role, ...] = ("spirit", "ingredient")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Adaptive(_Strict):
    """Find the coefficients by minimising entropy on the domain's own prompts (RecCocktail Eq. 8).

    With two adapters and λ₁ + λ₂ = 1 the objective has one dimension; it is evaluated on `points` evenly spaced values
    of the ingredient's λ from 0 to 1 and the smallest wins.
    """

    objective: Literal["entropy"] = "entropy"
    granularity: Literal["model"] = "model"
    constraint: Literal["simplex"] = "simplex"
    adaptation_set: Literal["validation"] = "validation"
    tokens: Annotated[int, Field(ge=1, le=64, description="first tokens of the answer that count")] = 3
    prompts: Annotated[int, Field(ge=1, description="unlabelled prompts of the domain")] = 50
    points: Annotated[int, Field(ge=3, le=101, description="λ values tried, end points included")] = 11
    template: Annotated[str, Field(description="prompt template")] = DEFAULT_TEMPLATE
    negatives: Annotated[int, Field(ge=1, description="candidates beside the target in a prompt")] = 9
    seed: int = 42


class Output(_Strict):
    """What comes out: a full checkpoint, in the base's dtype unless one is named."""

    format: Literal["checkpoint"] = "checkpoint"
    dtype: DType | None = None


class Recipe(_Strict):
    """A way to combine a base spirit and an ingredient; see DESIGN's recipe file."""

    method: Literal["linear", "factor"] = "linear"
    coefficients: dict[Role, FiniteFloat] | None = None
    adaptive: Adaptive | None = None
    output: Output = Output()

    @model_validator(mode="after")
    def _one_source_of_coefficients(self) -> Recipe:
        if (self.coefficients is None) == (self.adaptive is None):
            raise ValueError("give either `coefficients` or `adaptive`")
        if self.coefficients is not None and not self.coefficients:
            raise ValueError("`coefficients` names no adapter; give spirit, ingredient or both")
        return self

    @field_validator("coefficients")
    @classmethod
    def _spirit_first(cls, given: dict[Role, float] | None) -> dict[Role, float] | None:
        """Equal recipes are written with equal bytes, in whatever order their coefficients were given."""
        return given and {role: given[role] for role in _ROLES if role in given}

    @property
    def roles(self) -> tuple[Role, ...]:
        """The adapters that go in, spirit first. A role with no coefficient is not needed for the build at all."""
        return _ROLES if self.coefficients is None else tuple(self.coefficients)

    @property
    def digest(self) -> str:
        return digest_of_json(self.to_json())

    def to_json(self) -> dict:
        return self.model_dump(mode="json", exclude_none=True)

    def with_absolute_template(self) -> Recipe:
        """The same recipe, whose prompt template is found from any folder."""
        if self.adaptive is None or not Path(self.adaptive.template).is_file():
            return self
        adaptive = self.adaptive.model_copy(update={"template": str(Path(self.adaptive.template).absolute())})
        return self.model_copy(update={"adaptive": adaptive})

    def resolved(self, coefficients: Mapping[Role, float]) -> Recipe:
        """The same recipe with its coefficients found: what `recipe.json` holds and what repeats the build."""
        return self.model_copy(update={"coefficients": dict(coefficients), "adaptive": None})


SHIPPED: dict[str, tuple[str, Recipe]] = {
    "default": (
        "exact sum of deltas, one λ for the whole model by entropy on the domain's prompts",
        Recipe(method="linear", adaptive=Adaptive()),
    ),
    "reccocktail": (
        "the paper: factor-wise mix (Eq. 6-7), one λ for the whole model by entropy (Eq. 8)",
        Recipe(method="factor", adaptive=Adaptive()),
    ),
    "average": ("half spirit, half ingredient", Recipe(coefficients={"spirit": 0.5, "ingredient": 0.5})),
    "spirit-only": ("the base spirit alone", Recipe(coefficients={"spirit": 1.0})),
    "ingredient-only": ("the ingredient alone", Recipe(coefficients={"ingredient": 1.0})),
}


def load_recipe(name_or_path: str) -> Recipe:
    """The shipped recipe of that name, or the one in that YAML, TOML or JSON file.

    Raises RecipeError: no such recipe, unreadable file, unknown key or value out of range (each named).
    """
    if name_or_path in SHIPPED:
        return SHIPPED[name_or_path][1]
    path = Path(name_or_path)
    if path.suffix not in _PARSERS:
        raise RecipeError(
            f"there is no recipe {name_or_path!r}", hint=f"one of {', '.join(SHIPPED)}, or a .yaml, .toml or .json file"
        )
    try:
        content = _PARSERS[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe file {path} cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"recipe file {path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe file {path} holds a {type(content).__name__}, not a mapping")
    return parse_recipe(content, where=str(path))


def parse_recipe(content: Mapping[str, object], *, where: str) -> Recipe:
    """Validate a recipe's content; `where` names its origin in the error."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {_plain(e)}" for e in error.errors())
        raise RecipeError(
            f"recipe {where}: {problems}", hint="`reccocktail recipe show default` prints a complete recipe"
        ) from error


def _plain(error: object) -> str:
    assert isinstance(error, dict)
    if error["type"] == "extra_forbidden":
        return "unknown key"
    return (
        f"{error['msg']} (got {_short(error['input'])})"
        if error["type"] != "value_error"
        else str(error["ctx"]["error"])
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


_PARSERS = {".yaml": yaml.safe_load, ".yml": yaml.safe_load, ".toml": tomllib.loads, ".json": json.loads}
