"""Shell completion: a real bash that is asked by Tab, and silence where there is no registry."""

from __future__ import annotations

import os
import pty
import select
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import asked

SCRIPTS = {"bash": "complete ", "zsh": "#compdef", "fish": "complete "}


def test_names_of_the_registry_are_completed(built: Any) -> None:
    build = built("build", "list", "--json").json[0]["id"]
    built("adapter", "alias", "skin-care@v1", "candidate")
    assert asked(built, "domain", "show", "sk") == ["skin-care"]
    assert asked(built, "adapter", "show", "s") == ["skin-care", "spirit"]
    assert asked(built, "adapter", "edit", "skin-care@") == ["skin-care@candidate", "skin-care@v1"]
    assert build in asked(built, "build", "show", build[:4])
    assert "skin-care" in asked(built, "build", "show", "")
    assert asked(built, "build", "request", "kitchen", "--recipe", "aver") == ["average"]
    assert asked(built, "adapter", "alias", "skin-care@v1", "can") == ["candidate"]
    assert asked(built, "adapter", "list", "--base", "") == ["tiny"]
    assert asked(built, "domain", "add", "sk") == []


def test_without_a_registry_completion_is_silent_and_makes_none(bare: Any) -> None:
    assert asked(bare, "domain", "show", "") == []
    assert asked(bare, "domain", "sh") == ["show"]
    assert not bare.home.exists()
    broken = {"RECCOCKTAIL_DATABASE_URL": "postgresql://127.0.0.1:1/none"}
    answer = bare(
        _RECCOCKTAIL_COMPLETE="bash_complete", COMP_WORDS="reccocktail domain show ", COMP_CWORD="3", **broken
    )
    assert (answer.out.strip(), answer.err) == ("", "")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_there_is_a_script_for_each_shell(bare: Any, shell: str) -> None:
    script = bare("completion", shell).out
    assert SCRIPTS[shell] in script
    assert "_RECCOCKTAIL_COMPLETE" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash_completes_at_tab(prepared: Any, tmp_path: Path) -> None:
    (tmp_path / "reccocktail.sh").write_text(prepared("completion", "bash").out)
    child, terminal = pty.fork()
    if child == 0:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.execve(
            shutil.which("bash") or "bash",
            ["bash", "--norc", "--noprofile", "-i"],
            prepared.environment() | {"PATH": path, "TERM": "dumb"},
        )
    try:
        os.write(terminal, f"source {tmp_path}/reccocktail.sh\n".encode())
        os.write(terminal, b"echo ready-$((6*7))\n")
        assert "ready-42" in until(terminal, "ready-42")
        os.write(terminal, b"reccocktail domain show skin\t")
        assert "skin-care" in until(terminal, "skin-care")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def until(terminal: int, wanted: str, seconds: float = 20) -> str:
    seen, end = "", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen
