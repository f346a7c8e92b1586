"""What is kept with a trained adapter, and what never is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from reccocktail.trainers.context import discreet, git_commit
from reccocktail.trainers.launch import Launch
from reccocktail.trainers.plugin import TrainerError


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, whose hooks and file monitor leave a trace if they are run."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    folder = tmp_path / "repository"
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path / 'trace'}\n")
    trap.chmod(0o755)
    git = ["git", "-C", str(folder), "-c", "user.name=ann", "-c", "user.email=ann@example.org"]
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / "train.sh").write_text("true\n")
    subprocess.run([*git, "add", "train.sh"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    subprocess.run([*git, "config", "core.fsmonitor", str(trap)], check=True)
    return folder


def test_the_commit_is_told_and_whether_anything_differs(repository: Path, tmp_path: Path) -> None:
    head = subprocess.run(
        ["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (repository / "below").mkdir()
    assert git_commit(repository / "below") == {"commit": head, "dirty": False}
    (repository / "notes.txt").write_text("not tracked")
    assert git_commit(repository) == {"commit": head, "dirty": False}
    (repository / "train.sh").write_text("false\n")
    assert git_commit(repository) == {"commit": head, "dirty": True}
    assert not (tmp_path / "trace").exists(), "nothing of the repository's was run"


def test_without_a_repository_or_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(Path(__file__).parent) is None


def test_secrets_and_the_home_folder_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    told = {
        "hub_token": "hf_x",
        "api_key": "k",
        "tokens": 12,
        "tokenizer": "bpe",
        "options": {"template": "/home/ann/t.yaml", "password": ["p"], "other": "/home/anna/t.yaml"},
        "source": "s3://ann:secret@host/bucket",
        "log": ["see /home/ann/log", "/srv/home/ann/x"],
    }
    assert discreet(told) == {
        "hub_token": "***",
        "api_key": "***",
        "tokens": 12,
        "tokenizer": "bpe",
        "options": {"template": "~/t.yaml", "password": ["***"], "other": "/home/anna/t.yaml"},
        "source": "s3://ann:***@host/bucket",
        "log": ["see ~/log", "/srv/home/ann/x"],
    }


def test_a_process_knows_its_place_in_a_launch() -> None:
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert Launch.current({}) is None
    assert Launch.current({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert Launch.current({"WORLD_SIZE": "2", "RANK": "1", **place}) == Launch(1, 2)


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "two", "RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "1"},
    ],
)
def test_variables_that_name_no_place_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(TrainerError, match="WORLD_SIZE"):
        Launch.current(variables)
