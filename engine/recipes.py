"""Recipes: how spirit and ingredient are combined, as a validated file and as the ones that ship.

A recipe either names its coefficients or says how to find them (`adaptive`). Its digest is over canonical JSON, so the
same recipe in YAML, TOML or JSON is the same recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..registry.catalog.references import did_you_mean
from ..registry.digests import digest_of_json
from ..registry.strict_json import LIMIT, WRITTEN_LIMIT, parse_written, regular_bytes, shown
from .adaptive import MOST_ADAPTERS, OWN_ROLES, Adaptive, Strict, expect_reference
from .coefficients import Weight, mean
from .errors import RecipeError
from .mergekit import METHODS as MERGEKIT_METHODS
from .mergekit import is_mergekit, parse_mergekit, pointer
from .methods import METHODS

Role = str
"""`spirit`, `ingredient`, or the reference of another domain's ingredient, which is called a neighbour."""
DType = Literal["bfloat16", "float16", "float32"]
SUFFIXES = (".yaml", ".yml", ".toml", ".json")
Layers = Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
Modules = Annotated[dict[str, FiniteFloat], Field(min_length=1)]


def _kind_of_coefficient(value: object) -> str:
    return "modules" if isinstance(value, Mapping) else "layers" if isinstance(value, (list, tuple)) else "number"


Coefficient = Annotated[
    Annotated[FiniteFloat, Tag("number")] | Annotated[Layers, Tag("layers")] | Annotated[Modules, Tag("modules")],
    Discriminator(_kind_of_coefficient),
]
"""A number, one number per layer, or one per module by its name."""


def _in_order(coefficients: Mapping[Role, Any]) -> dict[Role, Any]:
    """Spirit and ingredient first, then the neighbours by name."""
    own = [role for role in OWN_ROLES if role in coefficients]
    return {role: coefficients[role] for role in (*own, *sorted(coefficients.keys() - set(own)))}


class Output(Strict):
    """What comes out: a full checkpoint in the base's dtype, or one adapter in float32, unless a dtype is named.

    `rank` cuts the adapter down to that rank by SVD; without it the adapter is exact.
    """

    format: Literal["checkpoint", "adapter"] = "checkpoint"
    dtype: DType | None = None
    rank: Annotated[int, Field(ge=1, description="cut the adapter to this rank by SVD")] | None = None

    @model_validator(mode="after")
    def _only_adapters_have_a_rank(self) -> Output:
        if self.rank is not None and self.format != "adapter":
            raise ValueError("`rank` is for `format: adapter`; a checkpoint has none")
        return self


class Recipe(Strict):
    """A way to combine a base spirit and an ingredient; see DESIGN's recipe file.

    `options` are the method's, complete with its defaults: a recipe that spells a default is the same recipe.
    """

    method: str = "linear"
    options: dict[str, bool | int | float | str] = Field(default_factory=dict, validate_default=True)
    coefficients: dict[Role, Coefficient] | None = None
    adaptive: Adaptive | None = None
    output: Output = Output()

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"there is no method {_short(name)}; one of {', '.join(METHODS)}{_near_method(name)}")
        return name

    @field_validator("options", mode="before")
    @classmethod
    def _with_defaults(cls, given: Any, info: ValidationInfo) -> Any:
        if "method" not in info.data:
            return {}  # an unknown method is reported on its own
        if not isinstance(given, Mapping):
            raise ValueError(f"must be a mapping of the method's options (got {_short(given)})")
        return METHODS[info.data["method"]].options.model_validate(given).model_dump(mode="json")

    @model_validator(mode="after")
    def _one_source_of_coefficients(self) -> Recipe:
        if (self.coefficients is None) == (self.adaptive is None):
            raise ValueError("give either `coefficients` or `adaptive`")
        if self.coefficients is not None:
            if not self.coefficients:
                raise ValueError("`coefficients` names no adapter; give spirit, ingredient or both")
            if len(self.coefficients) > MOST_ADAPTERS:
                raise ValueError(
                    f"`coefficients` names {len(self.coefficients)} adapters; at most {MOST_ADAPTERS} are mixed"
                )
            for role in self.coefficients.keys() - set(OWN_ROLES):
                expect_reference(role)
        return self

    @model_validator(mode="after")
    def _method_can_do_it(self) -> Recipe:
        method = METHODS[self.method]
        if method.kind != "factors":
            able = " or ".join(m.name for m in METHODS.values() if m.kind == "factors")
            if self.adaptive is not None:
                raise ValueError(f"`adaptive` works with method {able}; {self.method} needs `coefficients`")
            if self.output.format == "adapter" and self.output.rank is None:
                raise ValueError(f"`format: adapter` is exact with method {able} only; {self.method} needs a `rank`")
            if any(not isinstance(value, float) for value in (self.coefficients or {}).values()):
                raise ValueError(
                    f"coefficients per layer or module work with method {able}; {self.method} needs numbers"
                )
        if self.coefficients is not None:
            try:
                method.check([mean(value) for value in self.coefficients.values()])
            except RecipeError as error:
                raise ValueError(str(error)) from error
        return self

    @field_validator("coefficients")
    @classmethod
    def _spirit_first(cls, given: dict[Role, Coefficient] | None) -> dict[Role, Coefficient] | None:
        """Equal recipes are written with equal bytes, in whatever order their coefficients were given."""
        return given and _in_order(given)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The adapters that go in, spirit first. A role with no coefficient is not needed for the build at all.

        An adaptive recipe takes the ingredient where there is one: a domain without is mixed of spirit and neighbours.
        """
        if self.coefficients is not None:
            return tuple(self.coefficients)
        return (*OWN_ROLES, *(self.adaptive.neighbours if self.adaptive else ()))

    @property
    def digest(self) -> str:
        return digest_of_json(self.to_json())

    def to_json(self) -> dict:
        content = self.model_dump(mode="json", exclude_none=True)
        if not content["options"]:
            del content["options"]  # so that recipes from before there were options keep their digest
        if self.adaptive is not None:
            content["adaptive"] = self.adaptive.to_json()
        return content

    def complete(self) -> dict:
        """With every switch and its default, for people to begin from."""
        content = self.model_dump(mode="json", exclude_none=True)
        if self.adaptive is not None:
            content["adaptive"] = self.adaptive.complete()
        return content

    def with_absolute_template(self) -> Recipe:
        """The same recipe, whose prompt template is found from any folder."""
        if self.adaptive is None or not Path(self.adaptive.template).is_file():
            return self
        adaptive = self.adaptive.model_copy(update={"template": str(Path(self.adaptive.template).absolute())})
        return self.model_copy(update={"adaptive": adaptive})

    def resolved(self, coefficients: Mapping[Role, Coefficient | Weight]) -> Recipe:
        """The same recipe with its coefficients found: what `recipe.json` holds and what repeats the build."""
        return self.model_copy(update={"coefficients": _in_order(coefficients), "adaptive": None})


SHIPPED: dict[str, tuple[str, Recipe]] = {
    "default": (
        "exact sum of deltas, λ by ranking labelled users; ships the best adapter alone where no mix is as good",
        Recipe(method="linear", adaptive=Adaptive(objective="ranking")),
    ),
    "reccocktail": (
        "RecCocktail's paper: factor-wise mix (Eq. 6-7), one λ for the whole model by entropy (Eq. 8)",
        Recipe(method="factor", adaptive=Adaptive()),
    ),
    "molorec": (
        "the authors' code: λ per module by softmax, entropy of every title's first tokens on the test prompts",
        Recipe(
            method="linear",
            adaptive=Adaptive(
                granularity="module",
                constraint="softmax",
                adaptation_set="test_prompts",
                titles="every",
                template="top-five",
                prompts=100,
                learning_rates=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0, 5.0),
                epochs=1,
                batch=16,
                held_out=0.0,
                patience=0,
                negatives=29,
            ),
        ),
    ),
    "average": ("the mean of spirit and ingredient", Recipe(coefficients={"spirit": 0.5, "ingredient": 0.5})),
    "spirit-only": ("the base spirit only", Recipe(coefficients={"spirit": 1.0})),
    "ingredient-only": ("the ingredient alone", Recipe(coefficients={"ingredient": 1.0})),
}


def load_recipe(name_or_path: str) -> Recipe:
    """The shipped recipe of that name, or the one in that YAML, TOML or JSON file.

    Raises RecipeError: no such recipe, unreadable file, unknown key or value out of range (each named).
    """
    if name_or_path in SHIPPED:
        return SHIPPED[name_or_path][1]
    path = Path(name_or_path).expanduser()
    if path.suffix not in SUFFIXES:
        raise unknown_recipe(name_or_path)
    try:
        data = regular_bytes(path, limit=LIMIT if path.suffix == ".json" else WRITTEN_LIMIT)
    except OSError as error:
        raise RecipeError(f"recipe file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"recipe file {path} cannot be read: it {error}") from error
    try:
        content = parse_written(data, path.suffix)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"recipe file {path}, line {line}: is not UTF-8", hint="save it as UTF-8") from error
    except ValueError as error:
        raise RecipeError(f"recipe file {path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe file {path} holds a {type(content).__name__}, not a mapping")
    if is_mergekit(content):
        parse_mergekit(content, where=str(path))
        raise pointer(str(path))
    return parse_recipe(content, where=str(path))


def unknown_recipe(name: str, registered: Iterable[str] = ()) -> RecipeError:
    """For a name that no recipe has, with those that ship and, where they are known, those of the registry."""
    if Path(name).expanduser().is_file():
        endings = ", ".join(SUFFIXES)
        return RecipeError(
            f"recipe file {name} ends in none of {endings}, which say how it is read", hint="give it such an ending"
        )
    known = [*SHIPPED, *registered]
    return RecipeError(
        f"there is no recipe {name!r}{did_you_mean(name, known)}",
        hint=f"one of {', '.join(known)}, or a .yaml, .toml or .json file",
    )


def parse_recipe(content: Mapping[str, object], *, where: str) -> Recipe:
    """Validate a recipe's content; `where` names its origin in the error."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"recipe {where}: {'; '.join(_problems(error))}", hint=_hint(content)) from error


def parse_options(method: str, given: Mapping[str, object]) -> dict[str, bool | int | float | str]:
    """A method's options, complete with its defaults. Raises RecipeError naming the method or the option that is wrong."""
    if method not in METHODS:
        raise RecipeError(
            f"there is no method {_short(method)}{_near_method(method)}", hint=f"one of {', '.join(METHODS)}"
        )
    try:
        return METHODS[method].options.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        raise RecipeError(f"method {method!r}: {'; '.join(_problems(error))}", hint=_takes(method)) from error


def parse_output(given: Mapping[str, object]) -> Output:
    """What a merge without a recipe writes. Raises RecipeError naming what does not fit."""
    try:
        return Output.model_validate(given)
    except ValidationError as error:
        raise RecipeError(f"output: {'; '.join(_problems(error))}") from error


_MEANT = {
    "weights": "coefficients",
    "weight": "coefficients",
    "lambda": "coefficients",
    "parameters": "options",
    "dtype": "output.dtype",
    "format": "output.format",
    "rank": "output.rank",
}
"""Keys that other tools have where a recipe has another, or has it elsewhere."""


def _near_method(name: str) -> str:
    """`; did you mean …?` with the method of that name in mergekit or PEFT, or with the one that is written much like it."""
    ours = MERGEKIT_METHODS.get(name)
    return f"; did you mean {ours!r}?" if ours is not None else did_you_mean(name, METHODS)


def _near_key(key: Sequence[str]) -> str:
    """`; did you mean …?` with a key that could stand there, or with where the key belongs."""
    if near := did_you_mean(key[-1], _keys_beside(key)):
        return near
    if len(key) > 1:
        return ""
    inside = {name: f"adaptive.{name}" for name in Adaptive.model_fields}
    inside |= {name: f"options.{name}" for method in METHODS.values() for name in method.options.model_fields}
    found = ({**inside, **_MEANT}).get(key[0])
    return "" if found is None else f"; did you mean {found!r}?"


def _hint(content: Mapping[str, object]) -> str:
    method = content.get("method")
    if isinstance(method, str) and method in METHODS and ("options" in content or METHODS[method].options.model_fields):
        return _takes(method)
    return "`reccocktail recipe show default` prints a complete recipe, `reccocktail recipe methods` lists the methods"


def _takes(method: str) -> str:
    names = ", ".join(METHODS[method].options.model_fields)
    return f"method {method!r} takes {names or 'no options'}; `reccocktail recipe methods` describes them"


def _problems(error: ValidationError, *, within: tuple[str, ...] = ()) -> Iterator[str]:
    """Each problem with the key it is at; a method's options are checked by a model of their own, inside the recipe's."""
    for entry in error.errors():
        key = (*within, *map(str, entry["loc"]))
        cause = entry.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            yield from _problems(cause, within=key)
        elif entry["type"] == "extra_forbidden":
            yield f"{'.'.join(key)}: unknown key{_near_key(key)}"
        elif entry["type"] == "missing":
            yield f"{'.'.join(key)}: must be given"
        elif cause is not None:
            yield f"{'.'.join(key) or 'recipe'}: {cause}"
        else:
            expected = re.findall(r"'([^']*)'", str(entry.get("ctx", {}).get("expected", "")))
            near = did_you_mean(entry["input"], expected) if isinstance(entry["input"], str) else ""
            yield f"{'.'.join(key) or 'recipe'}: {entry['msg']} (got {_short(entry['input'])}){near}"


def _keys_beside(key: Sequence[str]) -> Iterable[str]:
    """The keys that could stand where an unknown one does; a method's options may be without the recipe around them."""
    of = {"adaptive": Adaptive, "output": Output}.get(key[0]) if len(key) > 1 else Recipe
    options = (name for method in METHODS.values() for name in method.options.model_fields)
    return of.model_fields if of is not None else options


def _short(value: object) -> str:
    text = shown(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
