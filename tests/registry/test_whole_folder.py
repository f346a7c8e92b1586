"""Folders that appear whole or not at all, and what a killed process leaves of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from reccocktail.registry.store.files import whole_folder

MAKING = """
import sys, time
from pathlib import Path
from reccocktail.registry.store.files import whole_folder
with whole_folder(Path(sys.argv[1])) as staged:
    staged.mkdir()
    (staged / "half").write_text("x")
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def another(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of making a folder beside ours."""
    command = [sys.executable, "-c", MAKING, str(tmp_path / "theirs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "at work\n"
    yield process
    process.kill()
    process.communicate()


def make(target: Path) -> None:
    with whole_folder(target) as staged:
        staged.mkdir()
        (staged / "file").write_text("whole")


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path: Path, another: subprocess.Popen[str]) -> None:
    another.kill()
    another.wait()
    assert len(list(tmp_path.iterdir())) == 1
    make(tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_what_a_living_process_is_making_stays(tmp_path: Path, another: subprocess.Popen[str]) -> None:
    before = set(tmp_path.rglob("*"))
    make(tmp_path / "ours")
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "ours", tmp_path / "ours" / "file"}
    assert before < set(tmp_path.rglob("*"))
    assert another.poll() is None


def test_what_others_named_alike_stays(tmp_path: Path) -> None:
    (tmp_path / ".mine.part").mkdir()
    (tmp_path / f".{'a' * 32}.part").symlink_to(tmp_path / ".mine.part")
    make(tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{'a' * 32}.part", ".mine.part", "ours"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "ours") as staged:
            staged.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
