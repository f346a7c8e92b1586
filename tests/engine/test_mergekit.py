"""Configurations of mergekit, as its documentation describes them, read as recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reccocktail.engine.errors import RecipeError
from reccocktail.engine.mergekit import LoraMix, parse_mergekit
from reccocktail.engine.recipe_book import roles_of
from reccocktail.engine.recipes import load_recipe, parse_recipe
from reccocktail.registry.errors import UsageError

BASE = "org/base"


def config(method: str, *models: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"merge_method": method, "base_model": BASE, "models": list(models)} | more


def lora(name: str, **parameters: Any) -> dict[str, Any]:
    return {"model": f"{BASE}+{name}", "parameters": parameters}


def read(content: dict[str, Any]) -> LoraMix:
    return parse_mergekit(content, where="mk.yaml")


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("normalize", [None, True, False])
def test_weights_give_the_model_that_mergekit_describes(method: str, normalize: bool | None, with_base: bool) -> None:
    """`linear` is Σ w·model (÷ Σ w), `task_arithmetic` is base + λ Σ w·(model − base) (÷ Σ w)."""
    random = np.random.default_rng(0)
    base, a, b = random.normal(size=(3, 4, 5))
    weights = {"a": 0.5, "b": 0.25} | ({"base": 0.25} if with_base else {"b": 0.5})
    models = [lora("a", weight=weights["a"]), lora("b", weight=weights["b"])]
    if with_base:
        models.append({"model": BASE, "parameters": {"weight": weights["base"]}})
    whole = {"a": base + a, "b": base + b, "base": base}
    parameters: dict[str, Any] = {"normalize": normalize} if normalize is not None else {}
    scale = 1.0
    if method == "task_arithmetic":
        models, scale = models[:2], 0.7
        weights.pop("base", None)
        parameters["lambda"] = scale
    divisor = sum(weights.values()) if (normalize if normalize is not None else method == "linear") else 1.0
    if method == "linear":
        expected = sum(weight * whole[name] for name, weight in weights.items()) / divisor
    else:
        expected = base + scale * sum(weight * (whole[name] - base) for name, weight in weights.items()) / divisor
    mix = read(config(method, *models, parameters=parameters))
    assert (mix.base, mix.loras, mix.method, mix.options) == (BASE, ("a", "b"), "linear", {})
    np.testing.assert_allclose(base + mix.weights[0] * a + mix.weights[1] * b, expected, rtol=1e-12)


def test_methods_keep_their_parameters_and_the_dtype() -> None:
    mix = read(
        config(
            "ties",
            {"model": BASE},
            lora("org/a", weight=0.4, density=0.3),
            lora("./b", weight=0.6, density=0.3),
            parameters={"normalize": True, "lambda": 0.5, "int8_mask": True},
            dtype="bfloat16",
        )
    )
    recipe = parse_recipe(mix.recipe(roles_of(mix.loras, {})), where="mk.yaml")
    assert recipe.method == "ties_mergekit"
    assert recipe.options == {"density": 0.3, "normalize": True, "rescale": False, "scale": 0.5}
    assert recipe.coefficients == {"spirit": 0.4, "ingredient": 0.6}
    assert recipe.output.dtype == "bfloat16"


def test_slerp_begins_at_its_base_model() -> None:
    content = config("slerp", lora("a"), lora("b"), parameters={"t": 0.3})
    mix = read(content | {"base_model": f"{BASE}+b"})
    assert (mix.loras, mix.weights) == (("b", "a"), (0.7, 0.3))


A, B = lora("a", weight=1.0), lora("b", weight=1.0)
CANNOT = {
    "another method": (config("passthrough", A, B), "passthrough"),
    "a slip in the method": (config("tie", A, B), "did you mean 'ties'"),
    "a slip in a key": (config("ties", A, B, parameter={}), "did you mean 'parameters'"),
    "a slip in a parameter": (config("ties", lora("a", wieght=1.0)), "did you mean 'weight'"),
    "whole models": (config("ties", {"model": "org/other", "parameters": {"weight": 1}}), "whole model"),
    "two bases": (config("ties", A, {"model": "org/other+b"}), "several models"),
    "another base model": (config("ties", A, B) | {"base_model": "org/other"}, "base_model"),
    "slices": (config("linear", A) | {"slices": [{"sources": []}]}, "slices"),
    "a gradient": (config("linear", lora("a", weight=[0.0, 1.0])), "layers"),
    "a filter": (config("linear", lora("a", weight=[{"filter": "mlp", "value": 1}])), "layers"),
    "two densities": (config("ties", lora("a", weight=1, density=0.1), lora("b", weight=1, density=0.2)), "density"),
    "a tokenizer": (config("linear", A, tokenizer_source="union"), "tokenizer"),
    "no weight": (config("linear", lora("a")), "weight"),
    "the base scaled": (config("linear", A, B, parameters={"normalize": False}), "scale the base"),
    "no models": ({"merge_method": "linear"}, "models"),
    "a dtype": (config("linear", A, dtype="int8"), "int8"),
}


@pytest.mark.parametrize(("content", "why"), CANNOT.values(), ids=CANNOT.keys())
def test_what_means_something_else_is_refused_with_the_reason(content: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match="mergekit") as caught:
        read(content)
    assert why in str(caught.value)


def test_a_configuration_given_as_a_recipe_is_recognised(tmp_path: Path) -> None:
    file = tmp_path / "mk.yaml"
    file.write_text("merge_method: linear\nmodels: [{model: org/base+a, parameters: {weight: 1}}]\n")
    with pytest.raises(RecipeError, match="is a mergekit configuration, not a recipe") as caught:
        load_recipe(str(file))
    assert f"recipe import {file}" in (caught.value.hint or "")
    file.write_text("merge_method: passthrough\nslices: []\n")
    with pytest.raises(RecipeError, match="cannot be a recipe"):
        load_recipe(str(file))


def test_loras_get_roles_in_their_order_unless_they_are_given() -> None:
    assert roles_of(["a"], {}) == ("ingredient",)
    assert roles_of(["a", "b"], {}) == ("spirit", "ingredient")
    assert roles_of(["a", "b"], {"ingredient": "a"}) == ("ingredient", "spirit")
    assert roles_of(["a", "b", "c"], {"toys@v2": "b"}) == ("spirit", "toys@v2", "ingredient")
    for loras, given in ((["a", "b", "c"], {}), (["a"], {"spirit": "b"})):
        with pytest.raises(UsageError):
            roles_of(loras, given)


SLIPS = {
    "weights: {spirit: 1}": "did you mean 'coefficients'",
    "objective: ranking\nadaptive: {}": "did you mean 'adaptive.objective'",
    "density: 0.5\ncoefficients: {spirit: 1}": "did you mean 'options.density'",
    "dtype: float32\ncoefficients: {spirit: 1}": "did you mean 'output.dtype'",
    "method: task_arithmetic\ncoefficients: {spirit: 1}": "did you mean 'linear'",
    "method: ties\ncoefficients: {spirit: 1}": "did you mean 'ties_mergekit'",
}


@pytest.mark.parametrize(("text", "near"), SLIPS.items(), ids=SLIPS.keys())
def test_keys_and_methods_of_other_tools_lead_to_ours(tmp_path: Path, text: str, near: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert near in str(caught.value)
