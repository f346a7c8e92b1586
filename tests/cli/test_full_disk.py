"""Commands on a disk that is full: where, what to free, exit code 1, and nothing left over."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import digests
from reccocktail.registry.store import files
from safetensors import SafetensorError


def refuse(code: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def assert_told(answer: Any, place: Path, code: int) -> None:
    error = json.loads(answer.out)["error"]
    assert "store gc" in error["hint"]
    assert str(place) in error["message"]
    assert os.strerror(code) in error["message"]
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("format_", "step", "code"),
    [
        ("checkpoint", "pwrite", errno.ENOSPC),
        ("checkpoint", "posix_fallocate", errno.EDQUOT),
        ("checkpoint", "mkdir", errno.ENOSPC),
        ("adapter", "fsync", errno.EDQUOT),
    ],
)
def test_a_merge(
    bare: Any, tiny_base: Path, loras: Any, tmp_path: Path, monkeypatch: Any, step: str, code: int, format_: str
) -> None:
    (tmp_path / "here").mkdir()
    out = tmp_path / "here" / "merged"
    monkeypatch.setattr(os, step, refuse(code))
    words = ("merge", tiny_base, "-a", loras["spirit"], "-o", out, "--format", format_, "--json")
    assert_told(bare(*words, code=1), out.parent, code)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "step", "code"),
    [
        (shutil, "copyfile", errno.ENOSPC),
        (files, "sync_all", errno.EDQUOT),
        (os, "mkdir", errno.ENOSPC),
    ],
)
def test_an_export(built: Any, tmp_path: Path, monkeypatch: Any, where: Any, step: str, code: int) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(where, step, refuse(code))
    answer = built("build", "export", "skin-care", tmp_path / "here" / "out", "--json", code=1)
    assert_told(answer, tmp_path / "here", code)
    assert list((tmp_path / "here").iterdir()) == []


def test_an_evaluation_that_cannot_be_kept(prepared: Any, monkeypatch: Any) -> None:
    code = errno.EDQUOT
    monkeypatch.setattr(digests.tempfile, "mkstemp", refuse(code))
    words = ("evaluate", "popularity", "--domain", "skin-care", "--limit", 3, "--json")
    assert_told(prepared(*words, code=1), prepared.home / "evaluations", code)
    assert list((prepared.home / "evaluations").iterdir()) == []


def test_what_a_library_says_in_its_own_words(
    bare: Any, tiny_base: Path, loras: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("reccocktail.engine.merging.adapter_output.write_adapter", fail)
    words = ("merge", tiny_base, "-a", loras["spirit"], "-o", tmp_path / "out", "--format", "adapter", "--json")
    assert_told(bare(*words, code=1), tmp_path, errno.ENOSPC)
