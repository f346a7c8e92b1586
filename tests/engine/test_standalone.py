"""Merging folders without a registry: the same bytes as a build, and a folder that is there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from reccocktail.engine import standalone
from reccocktail.engine.builds import request, run
from reccocktail.engine.recipes import Recipe, load_recipe
from reccocktail.engine.standalone import WeightedFolder, folder_digest, merge_folders, weigh
from reccocktail.registry.errors import BaseMismatchError, ConflictError, InvalidArtifactError, UsageError

PLAIN = {"method": "linear", "dtype": None, "device": "cpu"}


@pytest.fixture
def adapters(base, make_adapter) -> list[WeightedFolder]:
    return [WeightedFolder(make_adapter(base, 1), 0.5), WeightedFolder(make_adapter(base, 2), 0.5)]


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "kitchen").mkdir()
    return tmp_path / "kitchen" / "merged"


def test_folders_merge_to_the_bytes_of_a_build(stocked, base, adapters, out):
    build = request(stocked, "skin-care", load_recipe("average")).build
    claimed = stocked.builds.claim("tester", build_id=build.id)
    built = run(stocked, claimed, worker="tester", device="cpu", progress=lambda *_: None)
    report = merge_folders(base, adapters, out, **PLAIN)
    assert {path.name for path in out.iterdir()} == {path.name for path in built.path.iterdir()}
    for path in built.path.iterdir():
        if path.name not in ("README.md", "recipe.json", "provenance.json"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    assert report.summary() == built.report["merge"]


def test_the_papers_name_each_folder_with_its_weight_and_digest(base, adapters, out):
    merge_folders(base, adapters, out, method="linear", dtype="bfloat16", device="cpu")
    first, second = (f"{number}-{part.folder.name}" for number, part in enumerate(adapters, 1))
    assert json.loads((out / "recipe.json").read_text()) == {
        "method": "linear",
        "coefficients": {first: 0.5, second: 0.5},
        "output": {"format": "checkpoint", "dtype": "bfloat16"},
    }
    statement = json.loads((out / "provenance.json").read_text())
    for entry in statement["subject"]:
        assert hashlib.sha256((out / entry["name"]).read_bytes()).hexdigest() == entry["digest"]["sha256"]
    went_in = {
        entry["name"]: entry["digest"]["sha256"]
        for entry in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    folders = {"base": base, first: adapters[0].folder, second: adapters[1].folder}
    assert went_in == {name: folder_digest(folder).removeprefix("sha256:") for name, folder in folders.items()}
    assert first in (out / "README.md").read_text()


def test_a_folders_digest_is_the_one_that_the_store_gives_it(registry, base):
    assert folder_digest(base) == registry.store.add_folder(base).digest


def test_the_same_merge_writes_the_same_bytes(base, adapters, out):
    other = out.parent / "elsewhere" / "merged"
    other.parent.mkdir()
    for folder in (out, other):
        merge_folders(base, adapters, folder, **PLAIN)
    assert all((other / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())


def test_progress_counts_the_bases_bytes_up_to_all_of_them(base, adapters, out):
    told = []
    merge_folders(base, adapters, out, **PLAIN, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["pwrite", "fsync", "copy_file_range"])
def test_a_merge_that_fails_leaves_no_folder_behind(step, base, adapters, out, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        merge_folders(base, adapters, out, **PLAIN)
    assert not list(out.parent.iterdir())


def test_a_merge_that_was_interrupted_before_a_shard_was_finished_leaves_no_folder_behind(base, adapters, out):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_folders(base, adapters, out, **PLAIN, progress=interrupt)
    assert not list(out.parent.iterdir())


def test_papers_that_cannot_be_written_leave_no_folder_behind(base, adapters, out, monkeypatch):
    monkeypatch.setattr(standalone, "write_papers", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        merge_folders(base, adapters, out, **PLAIN)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("content", [[], ["notes.txt"]], ids=["empty", "in use"])
def test_a_folder_that_is_there_is_refused_before_any_work(content, base, adapters, out, monkeypatch):
    out.mkdir()
    for name in content:
        (out / name).write_text("precious")
    monkeypatch.setattr(standalone, "_merged_checkpoint", lambda *_, **__: pytest.fail("merged"))
    with pytest.raises(ConflictError, match="is there already"):
        merge_folders(base, adapters, out, **PLAIN)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    assert [path.name for path in out.iterdir()] == content


def test_an_adapter_of_another_base_is_refused_unless_allowed(make_base, make_adapter, out):
    base, other = make_base(seed=0), make_base(seed=1)
    foreign = [WeightedFolder(make_adapter(other, 1), 1.0)]
    with pytest.raises(BaseMismatchError, match="was made for"):
        merge_folders(base, foreign, out, **PLAIN)
    merge_folders(base, foreign, out, **PLAIN, allow_base_mismatch=True)
    assert (out / "model.safetensors").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path, adapters, out):
    (tmp_path / "not a model").mkdir()
    with pytest.raises(InvalidArtifactError, match=r"has no config\.json"):
        merge_folders(tmp_path / "not a model", adapters, out, **PLAIN)
    assert not list(out.parent.iterdir())


# --- weights --------------------------------------------------------------------------------------------------------

A, B = Path("a"), Path("b")


def test_weights_are_the_adapters_own():
    assert weigh([(A, 0.2), (B, -1.5)], None) == [WeightedFolder(A, 0.2), WeightedFolder(B, -1.5)]
    assert weigh([(A, 0.0)], None) == [WeightedFolder(A, 0.0)]


def test_weights_are_the_recipes_spirit_first():
    recipe = Recipe(coefficients={"ingredient": 0.7, "spirit": 0.3})
    assert weigh([(A, None), (B, None)], recipe) == [WeightedFolder(A, 0.3), WeightedFolder(B, 0.7)]
    assert weigh([(A, None)], load_recipe("ingredient-only")) == [WeightedFolder(A, 1.0)]


@pytest.mark.parametrize(
    ("adapters", "recipe", "said"),
    [
        ([(A, 0.5), (B, None)], None, "b has no weight"),
        ([(A, 0.5), (B, None)], "average", "not from both"),
        ([(A, None)], "average", "mixes spirit, ingredient, but 1 adapters"),
        ([(A, None), (B, None)], "spirit-only", "mixes spirit, but 2 adapters"),
        ([(A, None), (B, None)], "default", "needs a domain's prompts"),
    ],
)
def test_weights_that_nobody_or_two_give_are_refused(adapters, recipe, said):
    with pytest.raises(UsageError, match=said):
        weigh(adapters, recipe and load_recipe(recipe))
