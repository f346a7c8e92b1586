"""`merge` takes what has a name, and configurations of mergekit, where folders do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def merged(shell: Any, out: Path, *words: object) -> dict[str, bytes]:
    shell("merge", *words, "-o", out, "--dtype", "float32")
    return weights(out)


def test_names_of_the_registry_are_what_their_folders_are(
    prepared: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    row = prepared("adapter", "show", "skin-care@v1", "--json").json
    with prepared.registry() as registry:
        spirit = registry.adapters.folder(registry.adapters.resolve("spirit"))
        ingredient = registry.adapters.folder(registry.adapters.resolve(row["ref"]))
    folders = merged(prepared, tmp_path / "a", tiny_base, "-a", f"{spirit}=0.4", "-a", f"{ingredient}=0.6")
    named = merged(prepared, tmp_path / "b", "tiny", "-a", "spirit=0.4", "-a", "skin-care@v1=0.6")
    assert named == folders
    alone = merged(prepared, tmp_path / "c", tiny_base, "-a", "skin-care@v1")
    assert alone == merged(prepared, tmp_path / "d", tiny_base, "-a", f"{ingredient}=1")
    for words in (("tinny", "-a", "spirit"), (tiny_base, "-a", "skincare"), (tiny_base, "-a", "skin-care@v9")):
        prepared("merge", *words, "-o", tmp_path / "e", code=1)
    assert not (tmp_path / "e").exists()
    # what it was made of is named
    assert "skin-care@v1" in (tmp_path / "b" / "recipe.json").read_text()
    assert "tiny" in (tmp_path / "b" / "README.md").read_text()


def test_a_name_without_a_registry_is_refused(bare: Any, tiny_base: Path, tmp_path: Path) -> None:
    answer = bare("merge", tiny_base, "-a", "spirit", "-o", tmp_path / "out", code=1)
    assert "no registry" in answer.err


def test_a_mergekit_configuration_is_merged_as_it_says(
    bare: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    one, other = sorted(loras.values())[:2]
    config = tmp_path / "mk.yaml"
    config.write_text(
        f"merge_method: linear\nmodels:\n"
        f"- {{model: {tiny_base}+{one}, parameters: {{weight: 1}}}}\n"
        f"- {{model: {tiny_base}+{other}, parameters: {{weight: 3}}}}\n"
    )
    by_hand = merged(bare, tmp_path / "a", tiny_base, "-a", f"{one}=0.25", "-a", f"{other}=0.75")
    assert merged(bare, tmp_path / "b", tiny_base, "-r", config) == by_hand
    assert merged(bare, tmp_path / "c", tiny_base, "-r", config, "-a", one, "-a", other) == by_hand
    bare("merge", tiny_base, "-r", config, "-a", one, "-o", tmp_path / "d", code=2)
    bare("merge", tiny_base, "-o", tmp_path / "d", code=2)


def test_import_writes_a_recipe_and_adds_it(prepared: Any, tmp_path: Path) -> None:
    config = tmp_path / "mk.yaml"
    config.write_text(
        "merge_method: ties\nmodels:\n"
        "- {model: o/b+o/x, parameters: {weight: 1, density: 0.5}}\n- {model: o/b+o/y, parameters: {weight: 1}}\n"
    )
    written = tmp_path / "house.yaml"
    written.write_text(prepared("recipe", "import", config).out)
    assert prepared("recipe", "check", written, "--json").json["recipe"]["method"] == "ties_mergekit"
    added = prepared("recipe", "import", config, "--role", "ingredient=o/x", "--add", "house", "--json").json
    assert (added["ref"], list(added["content"]["coefficients"])) == ("house@v1", ["spirit", "ingredient"])
    prepared("recipe", "import", written, code=2)
    prepared("domain", "add", "skin-care", "--recipe", config, code=1)
