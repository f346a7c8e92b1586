"""Recipes as files: the same recipe in YAML, TOML and JSON is the same recipe, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reccocktail.engine.errors import RecipeError
from reccocktail.engine.recipes import SHIPPED, Adaptive, Output, Recipe, load_recipe, parse_recipe


def as_toml(content: dict[str, Any]) -> str:
    """Plain tables of plain values, which is all that a recipe has."""

    def lines(table: dict[str, Any]) -> list[str]:
        return [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in table.items() if not isinstance(v, dict)]

    tables = [[f"[{key}]", *lines(value)] for key, value in content.items() if isinstance(value, dict)]
    return "\n".join(sum(tables, lines(content))) + "\n"


FORMATS = {".yaml": yaml.safe_dump, ".yml": yaml.safe_dump, ".json": json.dumps, ".toml": as_toml}

COEFFICIENTS = st.dictionaries(
    st.sampled_from(["spirit", "ingredient"]), st.floats(allow_nan=False, allow_infinity=False), min_size=1
)
ADAPTIVE = st.builds(
    Adaptive,
    tokens=st.integers(1, 64),
    prompts=st.integers(1, 10**6),
    points=st.integers(3, 101),
    template=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20),
    negatives=st.integers(1, 100),
    seed=st.integers(0, 2**31),
)
RECIPES = st.builds(
    lambda method, how, output: Recipe(method=method, output=output, **how),
    st.sampled_from(["linear", "factor"]),
    st.one_of(st.fixed_dictionaries({"coefficients": COEFFICIENTS}), st.fixed_dictionaries({"adaptive": ADAPTIVE})),
    st.builds(Output, dtype=st.sampled_from([None, "bfloat16", "float16", "float32"])),
)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_the_same_by_name_and_in_a_file(name, suffix, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / f"recipe{suffix}"
    path.write_text(FORMATS[suffix](recipe.to_json()))
    assert load_recipe(str(path)) == recipe
    assert load_recipe(str(path)).digest == recipe.digest


@given(RECIPES)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_recipe_survives_every_file_format(tmp_path: Path, recipe: Recipe):
    for suffix, write in FORMATS.items():
        path = tmp_path / f"recipe{suffix}"
        path.write_text(write(recipe.to_json()), encoding="utf-8")
        assert load_recipe(str(path)).digest == recipe.digest


def test_shipped_recipes_are_all_different():
    assert len({recipe.digest for _, recipe in SHIPPED.values()}) == len(SHIPPED)


def test_neither_the_order_of_keys_nor_how_a_number_is_written_shows():
    one = parse_recipe({"coefficients": {"spirit": 1, "ingredient": 0.5}, "method": "linear"}, where="one")
    other = parse_recipe({"method": "linear", "coefficients": {"ingredient": 0.5, "spirit": 1.0}}, where="other")
    assert one.digest == other.digest
    assert json.dumps(one.to_json()) == json.dumps(other.to_json())  # recipe.json of equal builds has equal bytes


def test_a_resolved_recipe_repeats_the_build_without_adapting():
    resolved = SHIPPED["reccocktail"][1].resolved({"spirit": 0.3, "ingredient": 0.7})
    assert parse_recipe(resolved.to_json(), where="again") == resolved
    assert (resolved.method, resolved.coefficients, resolved.adaptive) == (
        "factor",
        {"spirit": 0.3, "ingredient": 0.7},
        None,
    )


def test_a_recipe_needs_only_the_adapters_it_names():
    assert load_recipe("spirit-only").roles == ("spirit",)
    assert load_recipe("ingredient-only").roles == ("ingredient",)
    assert load_recipe("default").roles == ("spirit", "ingredient")
    assert Recipe(coefficients={"ingredient": 1.0, "spirit": 1.0}).roles == ("spirit", "ingredient")


HALF = {"spirit": 0.5, "ingredient": 0.5}
WRONG = {
    "unknown key": ({"coefficients": HALF, "colour": "red"}, "colour: unknown key"),
    "unknown key inside": ({"adaptive": {"learning_rate": 1}}, "adaptive.learning_rate: unknown key"),
    "unknown role": ({"coefficients": {"garnish": 1.0}}, "coefficients.garnish"),
    "unknown method": ({"method": "stir", "coefficients": HALF}, "method.*'stir'"),
    "wrong type": ({"coefficients": {"spirit": "half"}}, "coefficients.spirit.*'half'"),
    "list for a number": ({"coefficients": {"spirit": [0.5]}}, "coefficients.spirit"),
    "both ways": ({"coefficients": HALF, "adaptive": {}}, "either `coefficients` or `adaptive`"),
    "neither way": ({"method": "linear"}, "either `coefficients` or `adaptive`"),
    "no coefficient": ({"coefficients": {}}, "names no adapter"),
    "nan": ({"coefficients": {"spirit": float("nan")}}, "coefficients.spirit.*nan"),
    "infinity": ({"coefficients": {"spirit": float("inf")}}, "coefficients.spirit.*inf"),
    "too few points": ({"adaptive": {"points": 2}}, "adaptive.points.*2"),
    "no tokens": ({"adaptive": {"tokens": 0}}, "adaptive.tokens.*0"),
    "other dtype": ({"coefficients": HALF, "output": {"dtype": "int8"}}, "output.dtype.*'int8'"),
}


@pytest.mark.parametrize(("content", "named"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_what_is_wrong_in_a_recipe_is_named_with_its_file(content, named, suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    path.write_text(FORMATS[suffix](content))
    with pytest.raises(RecipeError, match=named) as refused:
        load_recipe(str(path))
    assert str(path) in str(refused.value)
    assert refused.value.hint


UNREADABLE = {
    "empty YAML": ("r.yaml", b"", "NoneType"),
    "empty JSON": ("r.json", b"", "not valid JSON"),
    "empty TOML": ("r.toml", b"", "either `coefficients`"),
    "list": ("r.yaml", b"- spirit\n- ingredient\n", "holds a list"),
    "JSON list": ("r.json", b"[1]", "holds a list"),
    "bad YAML": ("r.yaml", b"method: [linear\n", "not valid YAML"),
    "bad TOML": ("r.toml", b"method = linear\n", "not valid TOML"),
    "bad JSON": ("r.json", b"{'method': 1}", "not valid JSON"),
    "not text": ("r.yaml", b"\xff\xfe\x00", "not valid YAML"),
    "too deep": ("r.json", b"[" * 100_000, "not valid JSON"),
    "python in YAML": ("r.yaml", b"method: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
}


@pytest.mark.parametrize(("name", "data", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_holds_no_recipe_is_refused_by_name(name, data, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=said) as refused:
        load_recipe(str(path))
    assert str(path) in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"gone\.yaml cannot be read: No such file"):
        load_recipe(str(tmp_path / "gone.yaml"))


def test_an_unknown_name_lists_the_recipes_that_ship():
    with pytest.raises(RecipeError, match="no recipe 'martini'") as refused:
        load_recipe("martini")
    assert refused.value.hint is not None
    assert all(name in refused.value.hint for name in SHIPPED)
