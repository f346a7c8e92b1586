"""Merges that are killed, starved of disk or robbed of their base: no half result, and a next run that ends in the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, merge_folders
from reccocktail.registry.errors import RecCocktailError
from safetensors.torch import save_file

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
KILLS = 20 if SOAK else 4
LAYERS, HIDDEN, SHARDS = 12, 512, 6  # 100 MB: a merge of it lasts long enough to be killed in its middle


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in six files, and two adapters on all of its layers: random numbers, written as PEFT and transformers write."""
    folder = tmp_path_factory.mktemp("kitchen")
    random_ = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=random_) * 0.02).bfloat16()

    names = [f"model.layers.{n}.mlp.{part}_proj" for n in range(LAYERS) for part in ("gate", "up", "down")]
    shapes = {name: (HIDDEN, 4 * HIDDEN) if "down" in name else (4 * HIDDEN, HIDDEN) for name in names}
    base = folder / "base"
    base.mkdir()
    weight_map = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        here = {f"{name}.weight": noise(*shapes[name]) for name in names[number::SHARDS]}
        here[f"model.layers.{number}.input_layernorm.weight"] = noise(HIDDEN)
        save_file(here, base / file, {"format": "pt"})
        weight_map |= dict.fromkeys(here, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (base / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False})
    )
    for which in ("spirit", "ingredient"):
        adapter = folder / which
        adapter.mkdir()
        tensors = {}
        for name, (rows, columns) in shapes.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = noise(16, columns)
            tensors[f"base_model.model.{name}.lora_B.weight"] = noise(rows, 16)
        save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
        config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "base_model_name_or_path": str(base)}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def start(warm: Any) -> Callable[..., subprocess.Popen[str]]:
    """(kitchen, out, more words): the merge, in a process of its own."""

    def begin(kitchen: Path, out: Path, *more: str) -> subprocess.Popen[str]:
        mix = [
            word
            for name, weight in (("spirit", 0.4), ("ingredient", 0.6))
            for word in ("-a", f"{kitchen / name}={weight}")
        ]
        words = ["--home", out.parent / "home", "merge", kitchen / "base", *mix, "-o", out, "--json", *more]
        command = [Path(sys.executable).with_name("reccocktail"), *words]
        return warm.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


def digests(folder: Path) -> dict[str, str]:
    """Of every file but the card, which has the folder's name in it."""
    files = (path for path in sorted(folder.iterdir()) if path.name != "README.md")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(
    start: Callable[..., Any], kitchen: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], float]:
    """The digests of a merge that nobody disturbs, and the seconds that it takes."""
    out = tmp_path_factory.mktemp("undisturbed") / "merged"
    began = time.monotonic()
    merge = start(kitchen, out)
    _, errors = merge.communicate(timeout=300)
    assert merge.returncode == 0, errors
    return digests(out), time.monotonic() - began


@pytest.mark.slow
def test_a_merge_that_is_killed_again_and_again_ends_in_the_same_bytes(start, kitchen, undisturbed, tmp_path):
    """Every other kill comes at random over the time of a whole run, the rest when there is something to go on from."""
    wanted, seconds = undisturbed
    moments = random.Random(0)
    kills = resumed = 0
    while kills < KILLS:
        out = tmp_path / f"merged-{kills}"
        merge = start(kitchen, out)
        notes = tmp_path / f".{out.name}.partial" / ".progress.json"
        if kills % 2:
            until = time.monotonic() + 10 * seconds
            while not notes.exists() and merge.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
        else:
            time.sleep(moments.uniform(0, seconds))
        merge.send_signal(signal.SIGKILL)
        merge.communicate()
        if merge.returncode == 0:  # it was quicker than the signal
            assert digests(out) == wanted
            shutil.rmtree(out)
            continue
        if out.exists():  # the signal came between the rename and the end
            assert digests(out) == wanted
            shutil.rmtree(out)
            continue
        kills += 1
        again = start(kitchen, out)
        answer, errors = again.communicate(timeout=300)
        assert again.returncode == 0, errors
        resumed += json.loads(answer)["resumed_shards"] > 0
        assert digests(out) == wanted
        assert not notes.parent.exists()
        shutil.rmtree(out)
    assert resumed >= KILLS // 4


@pytest.mark.slow
def test_ctrl_c_leaves_no_result_and_says_how_to_go_on(start, kitchen, undisturbed, tmp_path):
    out = tmp_path / "merged"
    merge = start(kitchen, out)
    notes = tmp_path / ".merged.partial" / ".progress.json"
    while not notes.exists() and merge.poll() is None:
        time.sleep(0.001)
    merge.send_signal(signal.SIGINT)
    _, errors = merge.communicate(timeout=60)
    if merge.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert not out.exists()
    assert "resume after the finished shards" in errors
    again = start(kitchen, out)
    answer, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert json.loads(answer)["resumed_shards"] > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_said_at_once_and_nothing_is_left_on_it(start, kitchen, small_disk):
    merge = start(kitchen, small_disk / "merged")
    answer, errors = merge.communicate(timeout=60)
    assert merge.returncode == 1
    error = json.loads(answer)["error"]
    assert "MB are free: no space left on device" in error["message"], errors
    assert not [path for path in small_disk.iterdir() if path.name != "home"]


def merged(kitchen: Path, base: Path, out: Path, *, threads: int | None = None, progress: Any = None) -> None:
    options = MergeOptions(threads=threads, allow_base_mismatch=True)
    shown = {} if progress is None else {"progress": progress}
    merge_folders(base, [WeightedFolder(kitchen / "spirit", 0.4)], out, options, **shown)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_does_not_show_in_a_single_byte(threads, kitchen, tmp_path):
    for count in (1, threads):
        (tmp_path / str(count)).mkdir()
        merged(kitchen, kitchen / "base", tmp_path / str(count) / "merged", threads=count)
    assert digests(tmp_path / "1" / "merged") == digests(tmp_path / str(threads) / "merged")


@pytest.mark.parametrize("fault", ["shorter", "gone"])
def test_a_base_that_is_damaged_while_it_is_merged_leaves_nothing(fault, kitchen, tmp_path):
    base = shutil.copytree(kitchen / "base", tmp_path / "base")
    last = sorted(base.glob("*.safetensors"))[-1]
    damage: Callable[[], object] = (
        last.unlink if fault == "gone" else lambda: last.write_bytes(last.read_bytes()[:5000])
    )
    damaged: list[object] = []

    def progress(done: int, total: int) -> None:
        if not damaged:
            damaged.append(damage())

    with pytest.raises((RecCocktailError, OSError), match=r"shorter|truncated|No such file|cannot be read"):
        merged(kitchen, base, tmp_path / "merged", progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
