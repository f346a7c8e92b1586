"""Digests that are remembered: the same as without memory, whatever happens to the file or to the notes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from reccocktail.registry import digests
from reccocktail.registry.digests import DigestMemory
from reccocktail.registry.store.atomic import write_whole


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that has not changed for a while."""
    path = tmp_path / "weights"
    path.write_bytes(b"one" * 1000)
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all files had been written long ago."""
    monkeypatch.setattr(digests, "RACE_SECONDS", -10.0)


def expected(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_digest_is_asked_for_once(weights, settled, tmp_path, monkeypatch):
    memory = DigestMemory(tmp_path / "memory")
    assert memory.file_digest(weights) == expected(weights)
    monkeypatch.setattr(digests, "file_digest", lambda path: pytest.fail("read again"))
    assert memory.file_digest(weights) == expected(weights)
    assert DigestMemory(tmp_path / "memory").file_digest(weights) == expected(weights)


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_file_that_changed_is_read_again_even_if_it_claims_its_old_time(weights, settled, tmp_path, keep_time):
    memory = DigestMemory(tmp_path / "memory")
    before, seen = memory.file_digest(weights), weights.stat()
    time.sleep(0.02)
    weights.write_bytes(b"two" * 1000)
    if keep_time:
        os.utime(weights, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert memory.file_digest(weights) == expected(weights) != before


def test_a_file_in_anothers_place_is_read_again(weights, settled, tmp_path):
    memory = DigestMemory(tmp_path / "memory")
    memory.file_digest(weights)
    other = tmp_path / "other"
    other.write_bytes(b"two" * 1000)
    other.replace(weights)
    assert memory.file_digest(weights) == expected(weights)


def test_a_file_that_was_just_written_is_not_remembered(weights, tmp_path):
    memory = DigestMemory(tmp_path / "memory")
    assert memory.file_digest(weights) == expected(weights)
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize(
    "note", ["", "[]", "{}", '{"path": 1}', "nonsense", '{"path": null, "signs": [], "digest": "x"}']
)
def test_a_broken_note_is_no_harm(note, weights, settled, tmp_path):
    memory = DigestMemory(tmp_path / "memory")
    memory.file_digest(weights)
    (kept,) = (tmp_path / "memory").iterdir()
    kept.write_text(note)
    assert memory.file_digest(weights) == expected(weights)


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(weights, settled, tmp_path):
    (tmp_path / "memory").write_text("a file where the folder should be")
    assert DigestMemory(tmp_path / "memory").file_digest(weights) == expected(weights)


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path) -> tuple[Path, list[int], Callable[[], str]]:
    """A folder of two files, the calls made, and what computes its digest."""
    folder, calls = tmp_path / "data", []
    folder.mkdir()
    for name in ("items", "sequences"):
        (folder / name).write_text(name)

    def compute() -> str:
        calls.append(1)
        return f"sha256:{len(calls)}"

    return folder, calls, compute


def test_a_folder_is_digested_once_until_one_of_its_files_changes(made, settled, tmp_path):
    folder, calls, compute = made
    memory = DigestMemory(tmp_path / "memory", version="1")
    assert [memory.digest(folder, compute) for _ in range(2)] == ["sha256:1"] * 2
    (folder / "items").write_text("other")
    assert memory.digest(folder, compute) == "sha256:2"
    (folder / "more").write_text("more")
    assert memory.digest(folder, compute) == "sha256:3"
    (folder / "more").rename(folder / "most")
    assert memory.digest(folder, compute) == "sha256:4"
    assert memory.digest(folder, compute) == "sha256:4"
    assert len(calls) == 4


def test_a_digest_under_other_terms_is_not_reused(made, settled, tmp_path):
    folder, _, compute = made
    assert DigestMemory(tmp_path / "memory", version="1").digest(folder, compute) == "sha256:1"
    assert DigestMemory(tmp_path / "memory", version="2").digest(folder, compute) == "sha256:2"


def test_what_cannot_be_seen_is_not_remembered(settled, tmp_path):
    memory = DigestMemory(tmp_path / "memory")
    assert memory.digest(tmp_path / "gone", lambda: "sha256:1") == "sha256:1"
    assert memory.digest(tmp_path / "gone", lambda: "sha256:2") == "sha256:2"
    with pytest.raises(FileNotFoundError):
        memory.file_digest(tmp_path / "gone")


# --- files that are there as a whole ----------------------------------------------------------------------------------


def test_what_killed_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    script = (
        "import json, os, signal, sys; from pathlib import Path; from reccocktail.registry import digests\n"
        "Path.replace = lambda *told: (print('half', flush=True), sys.stdin.readline())\n"
        "digests.write_whole(Path(sys.argv[1]), 'x')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "note.json")]
    (tmp_path / ".foreign.tmp").touch()
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
    assert len(list(tmp_path.glob(".*.tmp"))) == 3
    killed, living = writers
    killed.kill()
    killed.communicate()
    write_whole(tmp_path / "note.json", "whole")
    assert (tmp_path / "note.json").read_text() == "whole"
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    living.kill()
    living.communicate()
    write_whole(tmp_path / "other.json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"note.json", "other.json", ".foreign.tmp"}


def test_nothing_is_left_of_a_text_that_cannot_be_written(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "note.json", "\ud800")
    assert list(tmp_path.iterdir()) == []
