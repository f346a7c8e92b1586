"""Recipes as files: the same recipe in YAML, TOML and JSON is the same recipe, and what is wrong is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reccocktail.engine.errors import RecipeError
from reccocktail.engine.recipes import SHIPPED, Adaptive, Output, Recipe, load_recipe, parse_options, parse_recipe


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
DTYPES = st.sampled_from([None, "bfloat16", "float16", "float32"])
FACTORED = st.builds(
    lambda method, how, output: Recipe(method=method, output=output, **how),
    st.sampled_from(["linear", "factor"]),
    st.one_of(st.fixed_dictionaries({"coefficients": COEFFICIENTS}), st.fixed_dictionaries({"adaptive": ADAPTIVE})),
    st.one_of(
        st.builds(Output, dtype=DTYPES),
        st.builds(Output, format=st.just("adapter"), rank=st.none() | st.integers(1, 512), dtype=DTYPES),
    ),
)
DENSITY = st.floats(0.0625, 1)
WITH_OPTIONS = st.builds(
    lambda how, coefficients, output: Recipe(method=how[0], options=how[1], coefficients=coefficients, output=output),
    st.one_of(
        st.tuples(
            st.sampled_from(["ties_peft", "dare_ties_peft"]),
            st.fixed_dictionaries(
                {"density": DENSITY}, optional={"majority_sign": st.sampled_from(["total", "frequency"])}
            ),
        ),
        st.tuples(
            st.sampled_from(["dare_linear_mergekit", "dare_ties_mergekit"]),
            st.fixed_dictionaries(
                {"density": DENSITY},
                optional={"normalize": st.booleans(), "scale": st.floats(-4, 4), "seed": st.integers(0, 2**63)},
            ),
        ),
    ),
    COEFFICIENTS,
    st.builds(Output, dtype=DTYPES),
)
RECIPES = FACTORED | WITH_OPTIONS


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
    "no reference": ({"coefficients": {"Garnish!": 1.0}}, "'Garnish!' is not a reference"),
    "the spirit by another name": (
        {"coefficients": {"spirit@v1": 1.0}},
        "the own adapters are `spirit` and `ingredient`",
    ),
    "too many adapters": ({"coefficients": {f"d{n}": 0.1 for n in range(9)}}, "names 9 adapters; at most 8"),
    "unknown method": ({"method": "stir", "coefficients": HALF}, "method.*'stir'"),
    "wrong type": ({"coefficients": {"spirit": "half"}}, "coefficients.spirit.*'half'"),
    "empty list": ({"coefficients": {"spirit": []}}, "coefficients.spirit"),
    "text in a list": ({"coefficients": {"spirit": [0.5, "half"]}}, "coefficients.spirit.*'half'"),
    "nan of a module": ({"coefficients": {"spirit": {"lm_head": float("nan")}}}, "coefficients.spirit.*nan"),
    "layers for ties": (
        {"method": "ties_peft", "options": {"density": 0.5}, "coefficients": HALF | {"spirit": [0.5, 0.5]}},
        "per layer or module work with method linear or factor",
    ),
    "line per layer": ({"adaptive": {"search": "line", "granularity": "layer"}}, "`search: line` is for one λ"),
    "free line": ({"adaptive": {"search": "line", "constraint": "free"}}, "`search: line` is for one λ"),
    "line with neighbours": ({"adaptive": {"search": "line", "neighbours": ["toys"]}}, "is for two adapters"),
    "neighbour twice": ({"adaptive": {"neighbours": ["toys", "toys"]}}, "toys is named twice"),
    "seven neighbours": ({"adaptive": {"neighbours": [f"d{n}" for n in range(7)]}}, "adaptive.neighbours"),
    "spirit as neighbour": ({"adaptive": {"neighbours": ["spirit"]}}, "neighbours are ingredients of other domains"),
    "choice without labels": ({"adaptive": {"select": "validation"}}, "needs `labels`"),
    "epochs of a line": ({"adaptive": {"epochs": 7}}, "`epochs` is for a gradient search; use `search: gradient`"),
    "points of a descent": (
        {"adaptive": {"granularity": "layer", "points": 7}},
        "`points` is for a line search; use `search: line`",
    ),
    "longest of the first title": ({"adaptive": {"longest": 7}}, "`longest` is for `titles: every`"),
    "own role as neighbour": ({"adaptive": {"neighbours": ["ingredient"]}}, "the own adapters are `spirit` and"),
    "rate of zero": ({"adaptive": {"learning_rates": [0.0]}}, "adaptive.learning_rates"),
    "both ways": ({"coefficients": HALF, "adaptive": {}}, "either `coefficients` or `adaptive`"),
    "neither way": ({"method": "linear"}, "either `coefficients` or `adaptive`"),
    "no coefficient": ({"coefficients": {}}, "names no adapter"),
    "nan": ({"coefficients": {"spirit": float("nan")}}, "coefficients.spirit.*nan"),
    "infinity": ({"coefficients": {"spirit": float("inf")}}, "coefficients.spirit.*inf"),
    "too few points": ({"adaptive": {"points": 2}}, "adaptive.points.*2"),
    "no tokens": ({"adaptive": {"tokens": 0}}, "adaptive.tokens.*0"),
    "unknown option": (
        {"method": "ties_peft", "options": {"density": 0.5, "trim": 1}, "coefficients": HALF},
        "options.trim: unknown key",
    ),
    "option of another method": ({"options": {"density": 0.5}, "coefficients": HALF}, "options.density: unknown key"),
    "option out of range": (
        {"method": "ties_mergekit", "options": {"density": 1.5}, "coefficients": HALF},
        "options.density.*1.5",
    ),
    "option of the wrong kind": (
        {"method": "ties_peft", "options": {"density": 1, "majority_sign": "loudest"}, "coefficients": HALF},
        "options.majority_sign.*'loudest'",
    ),
    "option that is needed": ({"method": "dare_ties_peft", "coefficients": HALF}, "options.density: must be given"),
    "options that do not fit each other": (
        {"method": "della", "options": {"density": 0.9, "epsilon": 0.2}, "coefficients": HALF},
        "options: density ± epsilon.*0.9 ± 0.2",
    ),
    "options as a list": ({"options": [0.5], "coefficients": HALF}, "options: must be a mapping"),
    "slerp of one": ({"method": "slerp", "coefficients": {"spirit": 1.0}}, "'slerp' mixes exactly 2 adapters"),
    "slerp off the arc": (
        {"method": "slerp", "coefficients": {"spirit": 1.0, "ingredient": 1.0}},
        "'slerp' needs coefficients that sum to 1.*1, 1",
    ),
    "weights for sce": ({"method": "sce", "coefficients": HALF}, "'sce' finds its own weights"),
    "adaptive without factors": (
        {"method": "ties_peft", "options": {"density": 0.5}, "adaptive": {}},
        "adaptive.*linear or factor",
    ),
    "adapter without factors": (
        {"method": "ties_peft", "options": {"density": 0.5}, "coefficients": HALF, "output": {"format": "adapter"}},
        "format: adapter.*linear or factor",
    ),
    "rank of a checkpoint": ({"coefficients": HALF, "output": {"rank": 8}}, "output: `rank` is for `format: adapter`"),
    "rank of nothing": ({"coefficients": HALF, "output": {"format": "adapter", "rank": 0}}, "output.rank.*0"),
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


def test_a_wrong_option_is_answered_with_those_that_the_method_takes():
    with pytest.raises(RecipeError) as refused:
        parse_recipe({"method": "ties_peft", "options": {"k": 1}, "coefficients": HALF}, where="mine")
    assert refused.value.hint is not None
    assert "'ties_peft' takes density, majority_sign" in refused.value.hint


def test_an_option_spelled_with_its_default_makes_the_same_recipe():
    brief = {"method": "dare_ties_peft", "options": {"density": 0.5}, "coefficients": HALF}
    spelled = brief | {"options": {"seed": 42, "majority_sign": "total", "density": 0.5}}
    assert parse_recipe(brief, where="one").digest == parse_recipe(spelled, where="other").digest
    other = brief | {"options": {"density": 0.5, "seed": 43}}
    assert parse_recipe(other, where="another").digest != parse_recipe(brief, where="one").digest


DIGESTS = {
    "default": "69257b28fa3e67d544ea64cf981fc6eac246f1b45430a27ac1b94e4b2e571e28",
    "molorec": "3367a8270f4453ee5cabe257f48a5ca9f006fb46de1c8613ca5d091a419b264b",
    "reccocktail": "127a10e7bac43aecf0c88659811ecd05ac1cdb71fafc2ccaeccdd48831821ee1",
    "average": "d3354ff45fb30a5ac8b756b76e049cdc42a01edadf204cca0849f683ee62b238",
    "spirit-only": "644374486ac580acfef7eeb24dd521f8a267f484dd550c983745a2b36f53e2b9",
    "ingredient-only": "645737fc3f9c5996e176cc89fa294029e43ae42f06556f7f0db3d73c8a2eebda",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_a_recipe_from_before_there_were_options_keeps_its_digest(name):
    """Builds are found by keys that hold it."""
    assert load_recipe(name).digest == f"sha256:{DIGESTS[name]}"


def test_an_options_mapping_is_completed_or_refused_without_a_recipe():
    assert parse_options("ties_peft", {"density": 0.5}) == {"density": 0.5, "majority_sign": "total"}
    assert parse_options("linear", {}) == {}
    with pytest.raises(RecipeError, match=r"method 'sce': select_topk.*\(got 0\)"):
        parse_options("sce", {"select_topk": 0})
    with pytest.raises(RecipeError, match="no method 'ties'"):
        parse_options("ties", {})


def test_reading_a_recipe_takes_no_torch():
    code = "import sys; from reccocktail.engine.recipes import load_recipe; load_recipe('default').digest; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


UNREADABLE = {
    "empty YAML": ("r.yaml", b"", "NoneType"),
    "empty JSON": ("r.json", b"", "not valid JSON"),
    "empty TOML": ("r.toml", b"", "either `coefficients`"),
    "list": ("r.yaml", b"- spirit\n- ingredient\n", "holds a list"),
    "JSON list": ("r.json", b"[1]", "holds a list"),
    "bad YAML": ("r.yaml", b"method: [linear\n", "not valid YAML"),
    "bad TOML": ("r.toml", b"method = linear\n", "not valid TOML"),
    "bad JSON": ("r.json", b"{'method': 1}", "not valid JSON"),
    "not text": ("r.yaml", b"\xff\xfe\x00", "line 1: is not UTF-8"),
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


def test_neighbours_are_mixed_in_one_order_however_they_are_written():
    one, other = (Recipe(adaptive=Adaptive(neighbours=names)) for names in (("toys", "games"), ("games", "toys")))
    assert one.digest == other.digest
    assert one.roles == ("spirit", "ingredient", "games", "toys")
    found = {"spirit": 0.1, "ingredient": 0.2, "toys": 0.3, "games": 0.4}
    assert list(one.resolved(found).coefficients) == list(one.roles)


def test_a_complete_recipe_shows_every_switch_and_is_the_same_recipe():
    for _, recipe in SHIPPED.values():
        again = parse_recipe(recipe.complete(), where="shown")
        assert again.digest == recipe.digest
    shown = {name: set(SHIPPED[name][1].complete()["adaptive"]) for name in ("default", "molorec")}
    assert {"score", "guard", "margin", "labels", "neighbours"} <= shown["default"]
    assert {"epochs", "tokens", "labels", "neighbours"} <= shown["molorec"]
    assert not (shown["default"] & {"epochs", "tokens"} | shown["molorec"] & {"score", "guard"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"objective": "ranking", "tokens": 5}, "`tokens` is for `objective: entropy`"),
        ({"objective": "ranking", "search": "line"}, "`search` is for `objective: entropy`"),
        ({"guard": "off"}, "`guard` is for `objective: ranking`"),
        ({"objective": "ranking", "labels": 0}, "needs `labels`"),
        ({"objective": "ranking", "score": "pmi:x"}, "adaptive.score: .*no number"),
        ({"objective": "ranking", "metric": "NDCG"}, "adaptive.metric: no metric is called"),
        ({"objective": "ranking", "margin": 1.5}, "adaptive.margin"),
        ({"guard": "off"}, "`guard` is for `objective: ranking`; this is `objective: entropy`"),
        ({"objective": "agreement", "guard": "off"}, "`guard` is for `objective: ranking`"),
        ({"objective": "agreement", "tokens": 5}, "`tokens` is for `objective: entropy`"),
        ({"objective": "agreement", "labels": 50}, "`labels` is for `objective: ranking` or `objective: entropy`"),
        ({"objective": "agreement", "granularity": "layer"}, "`granularity` is for `objective: ranking` or"),
        ({"objective": "agreement", "prompts": 19}, "needs at least 20 `prompts`"),
        ({"objective": "agreement", "history": 0}, "adaptive.history"),
        ({"objective": "agreement", "beta": -1}, "adaptive.beta"),
        ({"objective": "agreement", "beta": float("nan")}, "adaptive.beta"),
        ({"objective": "agreement", "temperature": 0}, "adaptive.temperature"),
        ({"objective": "agreement", "score": "perplexity"}, "adaptive.score"),
        ({"objective": "agreement", "score": "hybrid"}, "hybrid:12"),
        ({"objective": "agrement"}, "adaptive.objective"),
        ({"beta": 2}, "`beta` is for `objective: agreement`"),
        ({"objective": "ranking", "history": 2}, "`history` is for `objective: agreement`"),
        ({"objective": "ranking", "prompts": 60}, "`prompts` is for `objective: entropy` or `objective: agreement`"),
    ],
)
def test_a_switch_of_the_other_objective_is_refused(content, said):
    with pytest.raises(RecipeError, match=said):
        parse_recipe({"adaptive": content}, where="mine")


def test_a_recipe_by_agreement_says_its_own_switches_alone():
    recipe = Recipe(adaptive=Adaptive(objective="agreement", neighbours=("toys",)))
    shown = recipe.complete()["adaptive"]
    assert shown == recipe.to_json()["adaptive"]
    assert set(shown) == {
        "objective",
        "prompts",
        "history",
        "score",
        "scale",
        "beta",
        "temperature",
        "neighbours",
        "template",
        "negatives",
        "seed",
    }
    again = parse_recipe(recipe.complete(), where="shown")
    assert (again.digest, again.roles) == (recipe.digest, ("spirit", "ingredient", "toys"))


def test_equal_scores_make_equal_recipes():
    one, other = (Recipe(adaptive=Adaptive(objective="ranking", score=text)) for text in ("pmi", "pmi:1.0"))
    assert one.digest == other.digest
    assert Recipe(adaptive=Adaptive(objective="ranking", labels=300)).digest == SHIPPED["default"][1].digest
