"""What a merge goes on from, and what it does not: stopped at any moment, by other threads, of other inputs, beside others.

What is compared are the bytes of every file of the result.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from reccocktail.engine.merging.journal import NOTES
from reccocktail.engine.merging.reports import MergeReport
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, merge_folders
from reccocktail.registry.errors import ConflictError, RecCocktailError
from transformers import LlamaConfig, LlamaForCausalLM

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
KILLS, MOST_ROUNDS = (20 if SOAK else 8), 100
WEIGHTS = (0.4, 0.6)
COMMAND = Path(sys.executable).with_name("reccocktail")
Digests = dict[str, str]


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 54 MB in bfloat16 and eight files, so that there is a middle to be killed in."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("large") / "base"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="8MB")  # pyright: ignore
    assert len(list(folder.glob("model-*.safetensors"))) >= 7
    return folder


@pytest.fixture(scope="session")
def mix(large: Path, make_adapter: Callable[..., Path]) -> list[WeightedFolder]:
    folders = (make_adapter(large, 1), make_adapter(large, 2, r=8))
    return [WeightedFolder(folder, weight) for folder, weight in zip(folders, WEIGHTS, strict=True)]


@pytest.fixture(scope="session")
def undisturbed(large: Path, mix: list[WeightedFolder], tmp_path_factory: pytest.TempPathFactory) -> Digests:
    out = tmp_path_factory.mktemp("undisturbed") / "merged"
    run(large, mix, out)
    return digests(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a result is to be; its name is in its card, so it is the same everywhere."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "merged"


def run(base: Path, mix: Sequence[WeightedFolder], out: Path, **options: Any) -> MergeReport:
    report = merge_folders(base, mix, out, MergeOptions(**options))
    assert isinstance(report, MergeReport)
    return report


def digests(folder: Path) -> Digests:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def words(base: Path, mix: Sequence[WeightedFolder], out: Path, *more: str) -> list[str]:
    adapters = [word for part in mix for word in ("-a", f"{part.folder}={part.weight}")]
    return [str(COMMAND), "merge", str(base), *adapters, "-o", str(out), "--device", "cpu", *more]


@dataclass
class After:
    """Calls for something when a share of the base's bytes has been read; of several threads only one gets to do it."""

    share: float
    action: Callable[[], None]

    def __post_init__(self) -> None:
        self._once = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        if done >= self.share * total and self._once.acquire(blocking=False):
            self.action()


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupted(base: Path, mix: Sequence[WeightedFolder], out: Path, share: float = 0.8, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        merge_folders(base, mix, out, MergeOptions(**options), progress=After(share, interrupt))
    assert not out.exists()


def noted_shards(partial: Path) -> list[str]:
    path = partial / NOTES
    return sorted(json.loads(path.read_text())["shards"]) if path.exists() else []


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_merge_killed_at_any_moment_leaves_no_result_and_the_next_run_makes_the_same(
    large: Path, mix: list[WeightedFolder], undisturbed: Digests, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    # a server that has everything imported already gives a process that does nothing but merge
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["reccocktail.engine.merging.standalone", "reccocktail.engine.merging.stream"])

    def start(out: Path) -> Any:
        process = processes.Process(target=merge_folders, args=(large, mix, out, MergeOptions(threads=2)))
        process.start()
        return process

    (tmp_path / "first").mkdir()
    for name in ("started", "usual"):  # the first starts the server
        began = time.monotonic()
        process = start(tmp_path / "first" / name)
        process.join(timeout=300)
        assert process.exitcode == 0
    usual = time.monotonic() - began

    rounds = kills = left = resumed = 0
    # until some of them hit where something is to go on with: it is the rare machine that needs more than the first
    while kills < KILLS or not resumed:
        assert rounds < MOST_ROUNDS
        out = tmp_path / str(rounds) / "merged"
        out.parent.mkdir()
        rounds += 1
        process = start(out)
        time.sleep(draw.uniform(0, usual))
        process.kill()
        process.join()
        if process.exitcode:  # otherwise it was quicker
            kills += 1
            left += any(out.parent.iterdir())
            if not out.exists():  # it may have been killed after its last step
                resumed += run(large, mix, out, threads=draw.choice((1, 2))).resumed_shards > 0
        assert digests(out) == undisturbed
        assert [path.name for path in out.parent.iterdir()] == ["merged"]
        shutil.rmtree(out.parent)
    print(
        f"{kills} of {rounds} merges were killed within {usual:.2f} s; {left} left files, {resumed} were gone on from"
    )


def test_threads_and_interruptions_do_not_show_in_the_bytes(
    large: Path, mix: list[WeightedFolder], undisturbed: Digests, out: Path
) -> None:
    for threads in (1, 2, 5):
        run(large, mix, out, threads=threads)
        assert digests(out) == undisturbed
        shutil.rmtree(out)
    for before, after in ((1, 2), (2, 1)):
        interrupted(large, mix, out, threads=before)
        report = run(large, mix, out, threads=after)
        assert report.resumed_shards > 0
        assert digests(out) == undisturbed
        shutil.rmtree(out)


def test_a_merge_that_was_interrupted_several_times_ends_in_the_same_bytes(
    large: Path, mix: list[WeightedFolder], undisturbed: Digests, out: Path
) -> None:
    for share in (0.4, 0.6, 0.9):
        interrupted(large, mix, out, share)
    assert run(large, mix, out).resumed_shards > 0
    assert digests(out) == undisturbed


def test_a_shard_that_was_noted_but_is_gone_or_cut_is_made_again(
    large: Path, mix: list[WeightedFolder], undisturbed: Digests, out: Path
) -> None:
    partial = out.with_name(".merged.partial")

    def interrupt_once_noted() -> None:
        """Other threads may be behind with the shards that come before."""
        deadline = time.monotonic() + 60
        while len(noted_shards(partial)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        merge_folders(large, mix, out, progress=After(0.9, interrupt_once_noted))
    noted = noted_shards(partial)
    assert len(noted) > 2
    (partial / noted[0]).unlink()
    os.truncate(partial / noted[1], 100)
    assert run(large, mix, out).resumed_shards == len(noted) - 2
    assert digests(out) == undisturbed


def other_alpha(mix: list[WeightedFolder]) -> None:
    path = mix[0].folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 9}))


def other_order(mix: list[WeightedFolder]) -> None:
    mix.reverse()


@pytest.mark.parametrize("change", [other_alpha, other_order])
def test_a_merge_starts_over_when_the_same_tensors_mean_something_else(
    large: Path,
    mix: list[WeightedFolder],
    out: Path,
    tmp_path: Path,
    change: Callable[[list[WeightedFolder]], None],
) -> None:
    base = shutil.copytree(large, tmp_path / "base")
    mix = [WeightedFolder(shutil.copytree(p.folder, tmp_path / f"lora-{i}"), p.weight) for i, p in enumerate(mix)]
    interrupted(base, mix, out, allow_base_mismatch=True)
    change(mix)
    report = run(base, mix, out, allow_base_mismatch=True)
    assert report.resumed_shards == 0
    found = digests(out)
    shutil.rmtree(out)
    run(base, mix, out, allow_base_mismatch=True)
    assert found == digests(out)


# --- crowded --------------------------------------------------------------------------------------------------------


def test_a_second_merge_to_the_same_folder_is_refused_while_the_first_works(
    large: Path, mix: list[WeightedFolder], undisturbed: Digests, out: Path
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        assert go_on.wait(timeout=120)

    first = threading.Thread(target=merge_folders, args=(large, mix, out), kwargs={"progress": After(0.5, hold)})
    first.start()
    try:
        assert reached.wait(timeout=120)
        with pytest.raises(ConflictError, match="another process"):
            merge_folders(large, mix, out)
        done = subprocess.run(words(large, mix, out), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "another process" in done.stderr
    finally:
        go_on.set()
        first.join()
    assert digests(out) == undisturbed


@pytest.mark.parametrize("what", ["a folder", "an empty folder", "a file", "a link to nowhere"])
def test_a_target_that_is_there_is_refused_and_left_as_it_is(
    large: Path, mix: list[WeightedFolder], out: Path, what: str
) -> None:
    if "folder" in what:
        out.mkdir()
        if what == "a folder":
            (out / "kept").write_text("mine")
    elif what == "a file":
        out.write_text("mine")
    else:
        out.symlink_to("nowhere")
    with pytest.raises(ConflictError, match="there already"):
        merge_folders(large, mix, out)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    if what == "a folder":
        assert (out / "kept").read_text() == "mine"
    elif what == "a file":
        assert out.read_text() == "mine"
    elif what == "a link to nowhere":
        assert out.readlink() == Path("nowhere")


# --- starved --------------------------------------------------------------------------------------------------------


def test_a_limit_on_file_sizes_is_told_and_nothing_is_left(large: Path, mix: list[WeightedFolder], out: Path) -> None:
    done = subprocess.run(
        words(large, mix, out),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    assert "too large" in done.stderr
    assert list(out.parent.iterdir()) == []


def test_a_base_of_which_a_shard_cannot_be_read_is_refused_by_its_name(
    large: Path, mix: list[WeightedFolder], out: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(large, tmp_path / "base")
    last = max(base.glob("*.safetensors"))
    last.chmod(0)
    if os.access(last, os.R_OK):
        last.unlink()  # for root nothing is unreadable but what loops
        last.symlink_to(last.name)
    with pytest.raises(RecCocktailError, match=last.name):
        merge_folders(base, mix, out, MergeOptions(allow_base_mismatch=True))
    assert list(out.parent.iterdir()) == []
