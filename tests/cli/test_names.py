"""What people name by a slip, or by the other of two names that would do."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file


def test_a_domain_stands_for_its_newest_build_and_an_id_for_a_domain(built: Any, tmp_path: Path) -> None:
    newest, oldest = (row["id"] for row in built("build", "list", "--json").json)
    assert built("build", "show", "skin-care", "--json").json["id"] == newest
    assert built("build", "logs", "skin-care", "--json").json == built("build", "logs", newest, "--json").json
    assert built("build", "export", "skin-care", tmp_path / "out", "--json").json["id"] == newest
    start = next(oldest[:length] for length in range(1, 17) if not newest.startswith(oldest[:length]))
    assert built("resolve", start, "--merged", "--json").json["build"] == oldest
    assert "succeeded" in built("build", "cancel", "skin-care", code=1).err
    for words in (("build", "show", "kitchen"), ("build", "export", "kitchen", tmp_path / "none")):
        assert "build request kitchen" in built(*words, code=1).err
    assert "absent" in built("build", "show", "absent", code=1).err
    assert "no domain and no build" in built("resolve", "absent", "--merged", code=1).err


def test_all_by_a_recipe_asks_that_recipe_what_can_be_built(prepared: Any) -> None:
    prepared("domain", "add", "garden", "--recipe", "ingredient-only")
    asked = prepared("build", "request", "--all", "--recipe", "spirit-only", "--json").json
    assert {row["domain"] for row in asked} == {"garden", "kitchen", "skin-care"}
    answer = prepared("build", "request", "--all", "--recipe", "average", "--json")
    assert {row["domain"] for row in answer.json} == {"skin-care"}
    assert "garden cannot be built" in answer.err


def test_a_domain_with_a_lora_and_no_data_hears_of_recipes_that_need_none(
    prepared: Any, loras: dict[str, Path]
) -> None:
    prepared("domain", "add", "garden", "--recipe", "reccocktail")
    prepared("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "garden")
    for words in (("build", "request", "garden"), ("status", "garden"), ("build", "request", "--all")):
        answer = prepared(*words, code=2 if words == ("build", "request", "garden") else 0)
        assert "average, spirit-only, ingredient-only need none" in " ".join((answer.out + answer.err).split())
    (row,) = prepared("status", "garden", "--json").json
    assert row["state"] == "unbuilt"
    prepared("status", "garden", "--check")
    # all by a recipe that needs no data asks that recipe
    asked = prepared("build", "request", "--all", "--recipe", "ingredient-only", "--json").json
    assert "garden" in {each["domain"] for each in asked}
    assert "garden" not in {each["domain"] for each in prepared("build", "request", "--all", "--json").json}
    assert prepared("build", "request", "garden", "--recipe", "average", "--json").json[0]["status"] == "queued"
    answer = prepared("build", "request", "garden", "--recipe", "default", "--json")
    assert answer.json[0]["status"] == "queued"
    assert "the average will be taken" in answer.err


SLIPS = {
    "a domain": (("domain", "show", "skincare"), "'skin-care'"),
    "a base": (("base", "show", "tinny"), "'tiny'"),
    "a domain of a version": (("adapter", "show", "skincare@v1"), "'skin-care'"),
    "a domain that is resolved": (("resolve", "skincare@v1"), "'skin-care'"),
    "an alias": (("adapter", "show", "skin-care@chmpion"), "'skin-care@champion'"),
    "a version": (("adapter", "show", "skin-care@v11"), "'skin-care@v1'"),
    "a recipe": (("recipe", "show", "averge"), "'average'"),
    "a trainer": (("trainers", "show", "stf"), "'sft'"),
    "a trainer's option": (("train", "skin-care", "-o", "epoch=1"), "'epochs'"),
    "a command": (("biuld", "list"), "build"),
    "an option": (("build", "list", "--domian", "x"), "--domain"),
}


@pytest.mark.parametrize(("words", "meant"), SLIPS.values(), ids=SLIPS)
def test_a_slip_of_a_name_is_answered_with_the_name_that_was_meant(
    prepared: Any, words: tuple[str, ...], meant: str
) -> None:
    prepared("adapter", "alias", "skin-care@v1", "champion")
    told = prepared(*words, "--json", code=2 if words[0] == "biuld" or "--domian" in words else 1)
    assert meant in told.json["error"]["message"].partition("id you mean")[2]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "skin-care", "--trainer", ""),
        ("train", "skin-care", "--trainer="),
        ("build", "request", "skin-care", "--recipe", ""),
        ("build", "list", "--domain", ""),
        ("adapter", "list", "--search="),
        ("domain", "add", "skin-care", "--title", ""),
        ("--home", "", "status"),
        ("merge", "", "-a", "x", "-o", "y"),
        ("status", ""),
    ],
)
def test_an_empty_value_never_stands_for_the_default(prepared: Any, words: tuple[str, ...]) -> None:
    assert prepared(*words, "--json", code=2).json["error"]["code"] == "usage"
    option = next((word for word in words if word.startswith("--")), "argument").rstrip("=")
    assert option in prepared(*words, code=2).err


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("metod: linear\ncoefficients: {spirit: 1}", "'method'"),
        ("method: linaer\ncoefficients: {spirit: 1}", "'linear'"),
        ("adaptive: {granularty: model}", "'granularity'"),
        ("adaptive: {granularity: modul}", "'module'"),
        ("output: {dtpye: float16}\ncoefficients: {spirit: 1}", "'dtype'"),
        ("output: {dtype: bfloat}\ncoefficients: {spirit: 1}", "'bfloat16'"),
        ("method: ties_mergekit\noptions: {densty: 0.5}\ncoefficients: {spirit: 1.0}", "'density'"),
    ],
)
def test_a_slip_in_a_recipe_is_too(bare: Any, tmp_path: Path, text: str, meant: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    told = bare("recipe", "check", tmp_path / "mine.yaml", "--json", code=1)
    assert meant in told.json["error"]["message"].partition("did you mean")[2]


def test_a_result_outside_the_home_has_the_modes_that_the_umask_gives(
    built: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    before = os.umask(0o007)
    try:
        built("merge", tiny_base, "-a", loras["spirit"], "-o", tmp_path / "merged")
        built("build", "export", "skin-care", tmp_path / "exported")
    finally:
        os.umask(before)
    for folder in ("merged", "exported"):
        found = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / folder).rglob("*") if path.is_file()}
        assert (stat.S_IMODE((tmp_path / folder).stat().st_mode), found) == (0o770, {0o660})


def test_one_adapter_alone_is_merged_with_weight_one(
    bare: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    bare("merge", tiny_base, "-a", loras["spirit"], "-o", tmp_path / "alone")
    bare("merge", tiny_base, "-a", f"{loras['spirit']}=1", "-o", tmp_path / "said")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "said"))
    assert all((one[name] == other[name]).all() for name in one)
    bare("merge", tiny_base, "-a", loras["spirit"], "-a", loras["newer"], "-o", tmp_path / "two", code=2)
