"""Several processes train one adapter, and one of them registers it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .conftest import free_port

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_children")]

OPTIONS = ("epochs=1", "examples=8", "batch_size=4", "negatives=2", "rank=2", "dropout=0", "validation_examples=4")
WORDS = [word for option in OPTIONS for word in ("-o", option)]

FAILING = """
import os

from pydantic import BaseModel


class Options(BaseModel):
    pass


class Failing:
    name, summary, Options = "failing", "fails in the second process", Options

    def train(self, job):
        from torch import distributed, ones

        distributed.init_process_group("gloo")
        if os.environ["RANK"] == "1":
            raise ValueError("the second one fails")
        distributed.all_reduce(ones(1))
"""


@pytest.fixture
def launch(prepared: Any, warm: Any, tmp_path: Path) -> Callable[..., Any]:
    """(words): the command under `accelerate launch` on CPUs; what it said, and its exit code."""
    at_once = warm.command(tmp_path)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        binaries = Path(sys.executable).parent
        # with --cpu it would start one process only
        command = [binaries / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
        command += ["--main_process_port", free_port(), tmp_path / "reccocktail", *words]
        environment = prepared.environment() | {"OMP_NUM_THREADS": "1"} | at_once
        return warm.run([sys.executable, *command], env=environment, cwd=prepared.folder)

    return run


@pytest.fixture
def together(prepared: Any, warm: Any) -> Callable[..., Any]:
    """(words, path): the command in two processes with the variables that `accelerate launch` gives them; how each ended."""

    def run(*words: str, path: str | None = None) -> list[subprocess.CompletedProcess[str]]:
        environment = prepared.environment() | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        if path is not None:
            environment["PYTHONPATH"] = path

        def one(rank: str) -> subprocess.CompletedProcess[str]:
            own = {"RANK": rank, "LOCAL_RANK": rank}
            command = [Path(sys.executable).with_name("reccocktail"), *words]
            return warm.run(command, env=environment | own, cwd=prepared.folder)

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(one, ("0", "1")))

    return run


def test_two_processes_train_what_one_trains(prepared: Any, launch: Any, together: Any) -> None:
    done = launch("train", "skin-care", *WORDS, "--json")
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)
    assert (both["ref"], both["context"]["processes"]) == ("skin-care@v2", 2)
    assert [
        json.loads(done.stdout)["ref"]
        for done in together("train", "skin-care", *WORDS, "--json", "--resume")
        if done.stdout
    ] == ["skin-care@v2"]
    alone = prepared("train", "skin-care", *WORDS, "--json").json
    assert both["metrics"]["train_loss"] == pytest.approx(alone["metrics"]["train_loss"], abs=1e-4)
    found = [
        load_file(Path(prepared("adapter", "show", each["ref"], "--json").json["path"]) / "adapter_model.safetensors")
        for each in (both, alone)
    ]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-4, rtol=1e-3)


def test_a_failure_in_one_process_ends_the_others(together: Any, tmp_path: Path) -> None:
    about = tmp_path / "site" / "failing-1.dist-info"
    about.mkdir(parents=True)
    (about.parent / "failing.py").write_text(FAILING)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[reccocktail.trainers]\nfailing = failing:Failing\n")
    path = os.pathsep.join(filter(None, [str(about.parent), os.environ.get("PYTHONPATH")]))
    first, second = together("train", "skin-care", "--trainer", "failing", path=path)
    assert first.returncode
    assert second.returncode
    assert "trainer 'failing' failed: ValueError: the second one fails" in second.stderr


def test_what_the_first_process_refuses_keeps_nobody_waiting(prepared: Any, together: Any) -> None:
    (prepared.home / "runs").write_text("in the way")
    first, _ = together("train", "skin-care", *WORDS, "--json")
    assert first.returncode  # the other one has ended too, with nothing to say
    assert "error" in json.loads(first.stdout)
