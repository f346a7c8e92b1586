"""Commands on a disk that is full: where, what to free, exit code 1, and nothing left over."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry.catalog.publications import Publications
from reccocktail.registry.store import atomic, files, local
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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_an_evaluation_that_cannot_be_kept_is_shown_all_the_same(prepared: Any, monkeypatch: Any, code: int) -> None:
    words = ("evaluate", "popularity", "--domain", "skin-care", "--limit", 3, "--json")
    with monkeypatch.context() as full:
        full.setattr(atomic, "_own_file", refuse(code))
        unkept = prepared(*words)
    assert str(prepared.home / "evaluations") in unkept.err
    assert os.strerror(code) in unkept.err
    assert ("store gc" in unkept.err) == (code != errno.EROFS)
    assert list((prepared.home / "evaluations").iterdir()) == []
    kept = prepared(*words)
    assert kept.json == unkept.json
    assert os.strerror(code) not in kept.err
    assert len(list((prepared.home / "evaluations").iterdir())) == 1


PACKING = [
    (Path, "write_text", errno.ENOSPC),
    (shutil, "copyfile", errno.EDQUOT),
    (local, "link_file", errno.EDQUOT),
    (os, "mkdir", errno.ENOSPC),
]


@pytest.mark.parametrize(("where", "step", "code"), PACKING)
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_publication(
    built: Any, loopback_hub: Any, monkeypatch: Any, where: Any, step: str, code: int, words: tuple[str, ...]
) -> None:
    command = ("publish", "skin-care", "--to", "acme/skin-care", *words, "--json")
    with monkeypatch.context() as full:
        full.setattr(where, step, refuse(code))
        answer = built(*command, code=1)
    assert_told(answer, built.home / "store", code)
    assert answer.json["error"]["code"] in ("os", "store")
    assert list((built.home / "store" / "staging").iterdir()) == []
    assert loopback_hub.repos == {}
    assert built("publication", "list", "--json").json == []
    told = [built("publication", "list", *only) for only in ((), ("--domain", "skin-care"))]
    assert ["nothing is published yet" in each.out + each.err for each in told] == [True, False]
    built(*command)


def test_a_publication_of_what_is_stale(built: Any, loopback_hub: Any, loras: Any, monkeypatch: Any) -> None:
    first = built("publish", "skin-care", "--to", "acme/skin-care", "--json").json
    built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    built("build", "request", "skin-care", "--wait")
    built("build", "promote", "skin-care@candidate")
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", refuse(errno.ENOSPC))
        answer = built("publish", "--stale", "--json", code=1)
    (failed,) = answer.json
    assert str(built.home / "store" / "staging") in failed["error"]["message"]
    assert "store gc" in failed["error"]["hint"]
    assert list((built.home / "store" / "staging").iterdir()) == []
    assert loopback_hub.head("acme/skin-care") == first["revision"]


def test_a_publication_whose_row_cannot_be_written(built: Any, loopback_hub: Any, monkeypatch: Any) -> None:
    command = ("publish", "skin-care", "--to", "acme/skin-care", "--json")
    with monkeypatch.context() as full:
        full.setattr(Publications, "add", refuse(errno.ENOSPC))
        answer = built(*command, code=1)
    assert "store gc" in answer.json["error"]["hint"]
    assert len(loopback_hub.history("acme/skin-care")) == 2
    assert built(*command).json["revision"] == loopback_hub.head("acme/skin-care")
    assert len(loopback_hub.history("acme/skin-care")) == 2


def test_what_a_library_says_in_its_own_words(
    bare: Any, tiny_base: Path, loras: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("reccocktail.engine.merging.adapter_output.write_adapter", fail)
    words = ("merge", tiny_base, "-a", loras["spirit"], "-o", tmp_path / "out", "--format", "adapter", "--json")
    assert_told(bare(*words, code=1), tmp_path, errno.ENOSPC)
