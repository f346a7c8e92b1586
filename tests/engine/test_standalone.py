"""Merging folders without a registry: the same bytes as a build, and a folder that is there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reccocktail.engine.building.execution import run
from reccocktail.engine.building.job import RunOptions
from reccocktail.engine.building.planning import request
from reccocktail.engine.merging import standalone
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, folder_digest, merge_folders, weigh
from reccocktail.engine.recipes import Output, Recipe, load_recipe
from reccocktail.registry.errors import BaseMismatchError, ConflictError, InvalidArtifactError, UsageError
from safetensors.torch import load_file


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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
    built = run(stocked, claimed, RunOptions(worker="tester", device="cpu"), progress=lambda *_: None)
    report = merge_folders(base, adapters, out)
    assert {path.name for path in out.iterdir()} == {path.name for path in built.path.iterdir()}
    for path in built.path.iterdir():
        if path.name not in ("README.md", "recipe.json", "provenance.json"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    assert report.summary() == built.report["merge"]


def test_the_papers_name_each_folder_with_its_weight_and_digest(base, adapters, out):
    merge_folders(base, adapters, out, MergeOptions(output=Output(dtype="bfloat16")))
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
    assert went_in == {
        name: folder_digest(folder, names(folder)).removeprefix("sha256:") for name, folder in folders.items()
    }
    assert first in (out / "README.md").read_text()


def test_a_merge_carries_what_the_registry_keeps_of_a_base_and_leaves_the_rest(base, adapters, out, tmp_path, registry):
    folder = shutil.copytree(base, tmp_path / "with-programs")
    for name in ("modeling_tiny.py", "handler.py", "libfast.so", "run.sh", "requirements.txt", "tokenizer.py"):
        (folder / name).write_text("x")
    (folder / "additional_chat_templates").mkdir()
    for name in ("rag.jinja", "evil.py"):
        (folder / "additional_chat_templates" / name).write_text(name)
    report = merge_folders(folder, adapters, out, MergeOptions(allow_base_mismatch=True))
    added = registry.bases.add("with-programs", folder, source="here")
    kept = {*registry.store.tree(added.digest).files}
    made = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert made == kept | {"README.md", "recipe.json", "provenance.json"}
    assert {*report.left_out} - {"README.md"} == {*added.skipped}
    assert (out / "additional_chat_templates" / "rag.jinja").read_text() == "rag.jinja"
    statement = json.loads((out / "provenance.json").read_text())
    assert {each["name"] for each in statement["subject"]} == made - {"README.md", "provenance.json"}
    (went_in,) = [
        each["digest"]["sha256"]
        for each in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        if each["name"] == "base"
    ]
    assert f"sha256:{went_in}" == added.digest


def cached(folder: Path, hub: Path, name: str) -> Path:
    """The folder as `huggingface_hub` keeps it in its cache."""
    snapshot = hub / f"models--me--{name}" / "snapshots" / ("0123456789" * 4)
    blobs = hub / f"models--me--{name}" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(path, blobs / f"{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_snapshots_of_the_hubs_cache_are_merged_like_the_folders_that_they_are(base, adapters, out, tmp_path):
    merge_folders(base, adapters, out)
    snapshots = [
        WeightedFolder(cached(part.folder, tmp_path / "hub", f"lora{number}"), 0.5)
        for number, part in enumerate(adapters)
    ]
    other = tmp_path / "of-snapshots"
    merge_folders(cached(base, tmp_path / "hub", "base"), snapshots, other, MergeOptions(allow_base_mismatch=True))
    for name in names(out) - {"README.md", "recipe.json", "provenance.json"}:
        assert (other / name).read_bytes() == (out / name).read_bytes(), name


@pytest.mark.parametrize("name", ["model.safetensors", "LICENSE", "tokenizer.json"])
def test_a_base_that_links_to_elsewhere_is_not_merged(base, adapters, out, tmp_path, name):
    folder = shutil.copytree(base, tmp_path / "linked")
    (folder / name).rename(tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidArtifactError, match="leads out of the folder") as caught:
        merge_folders(folder, adapters, out, MergeOptions(allow_base_mismatch=True))
    assert caught.value.hint
    assert not out.exists()


def test_a_folders_digest_is_the_one_that_the_store_gives_it(registry, base):
    assert folder_digest(base, names(base)) == registry.store.add_folder(base).digest


def test_the_same_merge_writes_the_same_bytes(base, adapters, out):
    other = out.parent / "elsewhere" / "merged"
    other.parent.mkdir()
    for folder in (out, other):
        merge_folders(base, adapters, folder)
    assert all((other / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())


def test_progress_counts_the_bases_bytes_up_to_all_of_them(base, adapters, out):
    told = []
    merge_folders(base, adapters, out, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["pwrite", "fsync", "copy_file_range"])
def test_a_merge_that_fails_leaves_no_folder_behind(step, base, adapters, out, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        merge_folders(base, adapters, out)
    assert not list(out.parent.iterdir())


def test_a_merge_that_was_interrupted_before_a_shard_was_finished_leaves_no_folder_behind(base, adapters, out):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_folders(base, adapters, out, progress=interrupt)
    assert not list(out.parent.iterdir())


def test_papers_that_cannot_be_written_leave_no_folder_behind(base, adapters, out, monkeypatch):
    monkeypatch.setattr(standalone, "write_metadata", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        merge_folders(base, adapters, out)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("content", [[], ["notes.txt"]], ids=["empty", "in use"])
def test_a_folder_that_is_there_is_refused_before_any_work(content, base, adapters, out, monkeypatch):
    out.mkdir()
    for name in content:
        (out / name).write_text("precious")
    monkeypatch.setattr(standalone, "_merged_checkpoint", lambda *_, **__: pytest.fail("merged"))
    with pytest.raises(ConflictError, match="is there already"):
        merge_folders(base, adapters, out)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    assert [path.name for path in out.iterdir()] == content


def test_an_adapter_of_another_base_is_refused_unless_allowed(make_base, make_adapter, out):
    base, other = make_base(seed=0), make_base(seed=1)
    foreign = [WeightedFolder(make_adapter(other, 1), 1.0)]
    with pytest.raises(BaseMismatchError, match="was made for"):
        merge_folders(base, foreign, out)
    merge_folders(base, foreign, out, MergeOptions(allow_base_mismatch=True))
    assert (out / "model.safetensors").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path, adapters, out):
    (tmp_path / "not a model").mkdir()
    with pytest.raises(InvalidArtifactError, match=r"has no config\.json"):
        merge_folders(tmp_path / "not a model", adapters, out)
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


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(make_base, make_adapter, tmp_path):
    """A base in several files, and a mix for it."""
    base = make_base(dtype="bfloat16", shard="15KB")
    assert len(list(base.glob("*.safetensors"))) > 6
    (tmp_path / "a").mkdir()
    return base, [WeightedFolder(make_adapter(base, 1), 0.5), WeightedFolder(make_adapter(base, 2), 0.5)]


def interrupted(base, adapters, out):
    """Ctrl-C as soon as one shard is noted as finished."""
    notes = out.with_name(f".{out.name}.partial") / ".progress.json"

    def interrupt(done: int, total: int) -> None:
        if notes.exists():
            raise KeyboardInterrupt
        time.sleep(0.02)

    with pytest.raises(KeyboardInterrupt):
        merge_folders(base, adapters, out, progress=interrupt)
    assert not out.exists()
    assert notes.exists()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_merge_goes_on_with_what_is_finished_and_ends_in_the_same_bytes(shards, tmp_path):
    base, adapters = shards
    undisturbed = merge_folders(base, adapters, tmp_path / "a" / "merged")
    interrupted(base, adapters, tmp_path / "merged")
    report = merge_folders(base, adapters, tmp_path / "merged")
    assert report.resumed_shards > 0
    assert report.tensors == undisturbed.tensors
    assert report.copied_tensors == undisturbed.copied_tensors
    assert contents(tmp_path / "merged") == contents(tmp_path / "a" / "merged")
    assert not (tmp_path / ".merged.partial").exists()


@pytest.mark.parametrize("changed", ["weight", "dtype", "method", "adapter", "base"])
def test_a_merge_of_other_inputs_starts_over(changed, shards, make_adapter, tmp_path):
    base, adapters = shards
    interrupted(base, adapters, tmp_path / "merged")
    options = MergeOptions()
    if changed == "weight":
        adapters = [adapters[0], WeightedFolder(adapters[1].folder, 0.25)]
    elif changed == "adapter":
        adapters = [adapters[0], WeightedFolder(make_adapter(base, 3), 0.5)]
    elif changed == "base":
        base = shutil.copytree(base, tmp_path / base.name)
        file = sorted(base.glob("*.safetensors"))[-1]
        file.write_bytes(file.read_bytes()[:-2] + b"\x00\x3f")
    else:
        options = {
            "dtype": MergeOptions(output=Output(dtype="float16")),
            "method": MergeOptions(method="ties_peft", options={"density": 0.5}),
        }[changed]
    report = merge_folders(base, adapters, tmp_path / "merged", replace(options, allow_base_mismatch=True))
    assert report.resumed_shards == 0
    merge_folders(base, adapters, tmp_path / "a" / "merged", replace(options, allow_base_mismatch=True))
    assert contents(tmp_path / "merged") == contents(tmp_path / "a" / "merged")


def test_notes_of_a_merge_in_between_do_not_vouch_for_the_shards_of_another(shards, tmp_path):
    """First one mix, then another that is stopped before it notes anything, then the first again."""
    base, adapters = shards
    interrupted(base, adapters, tmp_path / "merged")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    other = [adapters[0], WeightedFolder(adapters[1].folder, 0.25)]
    with pytest.raises(KeyboardInterrupt):
        merge_folders(base, other, tmp_path / "merged", progress=interrupt)
    assert merge_folders(base, adapters, tmp_path / "merged").resumed_shards == 0
    merge_folders(base, adapters, tmp_path / "a" / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "a" / "merged")


def test_notes_that_are_nonsense_are_not_believed(shards, tmp_path):
    base, adapters = shards
    interrupted(base, adapters, tmp_path / "merged")
    (tmp_path / ".merged.partial" / ".progress.json").write_text('{"key": 1, "shards": []}')
    assert merge_folders(base, adapters, tmp_path / "merged").resumed_shards == 0


def test_a_result_that_is_being_made_is_refused_to_a_second_process(base, adapters, out):
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir()
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ConflictError, match="is being made by another process"):
            merge_folders(base, adapters, out)
    finally:
        os.close(handle)
    merge_folders(base, adapters, out)
    assert out.is_dir()


# --- one adapter instead of a checkpoint ----------------------------------------------------------------------------


def test_folders_mix_to_an_adapter_that_merges_to_the_same_weights(base, adapters, out, tmp_path):
    merge_folders(base, adapters, out, MergeOptions(output=Output(format="adapter")))
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.json", "provenance.json"
    }  # fmt: skip
    merge_folders(base, adapters, tmp_path / "direct")
    merge_folders(base, [WeightedFolder(out, 1.0)], tmp_path / "by way of one")
    direct, indirect = (load_file(tmp_path / n / "model.safetensors") for n in ("direct", "by way of one"))
    for name, weight in direct.items():
        torch.testing.assert_close(indirect[name], weight, rtol=1e-5, atol=1e-6)
