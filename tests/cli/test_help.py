from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from reccocktail.cli import commands

HEAVY = {"torch", "transformers", "peft", "sqlalchemy", "pydantic", "huggingface_hub", "numpy", "rich"}


def _paths(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _paths(below, (*path, name))


COMMANDS = [path for command in commands.ALL for path in _paths(command, (str(command.name),))]


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", Path(sys.executable).with_name("reccocktail"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "reccocktail.cli" in imported, "the trace was read"
    assert not {name.partition(".")[0] for name in imported} & HEAVY


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(bare: Callable[..., Any], path: tuple[str, ...]) -> None:
    answer = bare(*path, "--help")
    assert f"Usage: reccocktail {' '.join(path)}" in answer.out
    assert not answer.err
    assert "Example:" in answer.out


@pytest.mark.parametrize("words", [(), ("build",)])
def test_without_a_command_the_help_is_shown_and_nothing_is_called_an_error(
    bare: Callable[..., Any], words: tuple[str, ...]
) -> None:
    answer = bare(*words, code=2)
    assert answer.err.startswith("Usage: reccocktail")
    assert "error:" not in answer.err
    assert not answer.out


def test_the_readme_and_the_help_state_the_same_minutes_for_the_demo(bare: Callable[..., Any]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    measured = re.findall(r"(\d+) minutes", readme.partition("<!-- demo-table -->")[2].partition("\n\n")[0])
    assert re.findall(r"(\d+) minutes", bare("demo", "--help").out) == measured != []


GROUPS = (None, *(command for command in commands.ALL if isinstance(command, click.Group)))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: getattr(group, "name", None) or "reccocktail")
def test_each_command_is_listed_once_and_in_whole(
    group: click.Group | None, bare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    wanted = [each.name for each in commands.ALL] if group is None else sorted(group.commands)
    lines = bare(*([group.name] if group else []), "--help").out.splitlines()[1:]
    assert [found[1] for line in lines if (found := re.match(r"  ([a-z]+)  ", line))] == wanted
    assert not [line for line in lines if line.endswith("...")]


def test_no_name_is_broken_at_its_hyphens(bare: Callable[..., Any]) -> None:
    for command in ("evaluate", "train", "publish"):
        told = bare(command, "--help", columns=80).out
        assert not [line for line in told.splitlines() if line.rstrip().endswith("-")]
        assert told.isascii() or "\N{NON-BREAKING HYPHEN}" not in told
