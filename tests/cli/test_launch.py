"""Several processes train one adapter, and one of them registers it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def launch(prepared: Any) -> Callable[..., Any]:
    """(words, processes, path): the command under `accelerate launch` on CPUs; what it said, and its exit code."""

    def run(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        binaries = Path(sys.executable).parent
        # with --cpu it would start one process only
        command = [binaries / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
        command += ["--main_process_port", free_port(), binaries / "reccocktail", *words]
        environment = prepared.environment() | {"OMP_NUM_THREADS": "1"}
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        return subprocess.run(
            list(map(str, command)),
            env=environment,
            cwd=prepared.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    return run


def test_two_processes_train_what_one_trains(prepared: Any, launch: Any, tmp_path: Path) -> None:
    done = launch("train", "skin-care", *WORDS, "--json")
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)
    assert (both["ref"], both["context"]["processes"]) == ("skin-care@v2", 2)
    again = launch("train", "skin-care", *WORDS, "--json", "--resume")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["ref"] == "skin-care@v2"
    alone = prepared("train", "skin-care", *WORDS, "--json").json
    assert both["metrics"]["train_loss"] == pytest.approx(alone["metrics"]["train_loss"], abs=1e-4)
    found = [
        load_file(Path(prepared("adapter", "show", each["ref"], "--json").json["path"]) / "adapter_model.safetensors")
        for each in (both, alone)
    ]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-4, rtol=1e-3)


def test_a_failure_in_one_process_ends_the_others(launch: Any, tmp_path: Path) -> None:
    about = tmp_path / "site" / "failing-1.dist-info"
    about.mkdir(parents=True)
    (about.parent / "failing.py").write_text(FAILING)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[reccocktail.trainers]\nfailing = failing:Failing\n")
    path = os.pathsep.join(filter(None, [str(about.parent), os.environ.get("PYTHONPATH")]))
    done = launch("train", "skin-care", "--trainer", "failing", path=path)
    assert done.returncode != 0
    assert "trainer 'failing' failed: ValueError: the second one fails" in done.stderr


def test_what_the_first_process_refuses_keeps_nobody_waiting(prepared: Any, launch: Any) -> None:
    (prepared.home / "runs").write_text("in the way")
    done = launch("train", "skin-care", *WORDS, "--json")
    assert done.returncode != 0
    assert "error" in json.loads(done.stdout)
