"""Recipes and templates of one's own: added, listed, compared, and given to domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HALF = "coefficients: {spirit: 0.5, ingredient: 0.5}\n"
MORE = "coefficients: {spirit: 0.7, ingredient: 0.3}\n"
LESS = "coefficients: {spirit: 0.4, ingredient: 0.6}\n"


def test_a_file_is_read_in_and_what_becomes_of_it_changes_nothing(built: Any, tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text(MORE)
    answer = built("domain", "add", "skin-care", "--recipe", file, "--json")
    assert answer.json["recipe"] == "house@v1"
    assert "house@v1" in answer.err
    before = built("status", "skin-care", "--json").json
    file.write_text(LESS)
    assert built("status", "skin-care", "--json").json == before
    file.unlink()
    assert built("status", "skin-care", "--json").json == before
    built("build", "request", "skin-care", "--wait")
    built("build", "promote", "skin-care@candidate")
    assert built("status", "skin-care", "--json").json[0]["state"] == "fresh"
    # the next version says what moved
    file.write_text(LESS)
    added = built("recipe", "add", "house", file, "--note", "less spirit", "--json").json
    assert (added["ref"], added["created"], added["domains_on_other_versions"]) == ("house@v2", True, ["skin-care"])
    assert not built("recipe", "add", "house", file, "--json").json["created"]
    assert built("status", "skin-care", "--json").json[0]["state"] == "fresh"
    built("domain", "add", "skin-care", "--recipe", "house")
    (row,) = built("status", "skin-care", "--json").json
    assert (row["state"], row["reasons"]) == ("stale", ["recipe: v1 → v2"])
    # and back
    built("domain", "add", "skin-care", "--recipe", "house@v1")
    assert built("status", "skin-care", "--json").json[0]["state"] == "fresh"


def test_a_recipes_history_says_who_what_and_where_it_is_used(prepared: Any, tmp_path: Path) -> None:
    for text in (HALF, LESS):
        (tmp_path / "house.yaml").write_text(text)
        prepared("--as", "ann", "recipe", "add", "house", tmp_path / "house.yaml")
    prepared("domain", "add", "skin-care", "--recipe", "house@v1")
    newest, first = prepared("recipe", "log", "house", "--json").json
    assert newest["changes"] == [
        {"key": "coefficients.spirit", "before": 0.5, "after": 0.4},
        {"key": "coefficients.ingredient", "before": 0.5, "after": 0.6},
    ]
    assert (newest["created_by"], newest["domains"], first["domains"]) == ("ann", [], ["skin-care"])
    assert "coefficients.spirit: 0.5 → 0.4" in prepared("recipe", "diff", "house").out
    assert prepared("recipe", "diff", "house@v1", "average", "--json").json["changes"] == []
    assert prepared("recipe", "diff", "house", tmp_path / "house.yaml", "--json").json["changes"] == []
    listed = {row["name"]: row for row in prepared("recipe", "list", "--json").json}
    assert listed["house"]["ref"] == "house@v2"
    assert yaml.safe_load(prepared("recipe", "show", "house@v1").out)["coefficients"]["spirit"] == 0.5
    assert "ships" in prepared("recipe", "add", "average", tmp_path / "house.yaml", code=2).err
    assert "did you mean 'house'" in prepared("build", "request", "skin-care", "--recipe", "huose", code=1).err


def test_a_recipes_template_is_read_in_with_it(prepared: Any, tmp_path: Path) -> None:
    content = yaml.safe_load(prepared("template", "show", "pick-one").out)
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(content | {"name": "ours"}))
    (tmp_path / "house.yaml").write_text("adaptive: {template: ours.yaml, prompts: 4, points: 3}\n")
    prepared("domain", "add", "skin-care", "--recipe", tmp_path / "house.yaml")
    (tmp_path / "ours.yaml").unlink()
    assert prepared("recipe", "show", "house", "--json").json["adaptive"]["template"] == "ours@v1"
    assert [row["state"] for row in prepared("status", "skin-care", "--json").json] == ["unbuilt"]
    assert prepared("build", "request", "skin-care", "--json").json[0]["status"] == "queued"
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(content | {"system": "Choose well."}))
    assert prepared("template", "add", "ours", tmp_path / "ours.yaml", "--json").json["ref"] == "ours@v2"
    assert "system" in prepared("template", "diff", "ours").out
    nameless = {name: value for name, value in content.items() if name != "name"}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(nameless))
    assert prepared("template", "add", "theirs", tmp_path / "ours.yaml", "--json").json["content"]["name"] == "theirs"
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(content))
    assert "'pick-one'" in prepared("template", "add", "theirs", tmp_path / "ours.yaml").err
    assert [row["ref"] for row in prepared("template", "log", "ours", "--json").json] == ["ours@v2", "ours@v1"]
    assert prepared("template", "list", "--json").json[0]["ref"] == "ours@v2"


def test_what_ships_is_shown_without_a_registry(bare: Any) -> None:
    assert {row["name"] for row in bare("recipe", "list", "--json").json} >= {"default", "average"}
    assert bare("template", "show", "pick-one", "--json").json["name"] == "pick-one"
    assert "init" in bare("recipe", "show", "house", code=1).err
