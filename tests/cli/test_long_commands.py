"""Each command that takes long, on a terminal: it shows how far it is, can be ended at any time, and leaves a clean screen."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from reccocktail.tasks import generate, write_domain
from safetensors import safe_open
from safetensors.torch import save_file

BAR = re.compile("[━─]{5}.*left|left 0:")

CODES = {"Ctrl-C": 130, "SIGTERM": 143, "closed terminal": 129}
"""The exit codes, as docs/programs.md has them."""


@dataclass(frozen=True)
class _Long:
    """A command that takes long enough to be ended while it runs."""

    words: tuple[object, ...]
    shows: str
    """What is on the terminal while it works."""
    last: str
    """What its last line begins with when it has succeeded."""
    kept: Callable[[], object]
    """What an interrupted command must leave as it was."""
    done: Callable[[], bool]
    """Whether the command has done its work."""
    hint: str = "run the same command again"
    is_stuck: Callable[[], bool] = lambda: True
    """Whether it is also where it should be interrupted."""
    shorten: Callable[[], object] = lambda: None
    """What is done before the last attempt, which runs to the end."""


def _rows(shell: Any, table: str) -> int:
    with sqlite3.connect(shell.home / "registry.sqlite") as database:
        return database.execute(f"select count(*) from {table}").fetchone()[0]


def _train(shell: Any, **_: Any) -> _Long:
    return _Long(
        ("train", "skin-care", "--resume", "-o", "epochs=1", "-o", "examples=8"),
        shows="training ingredient",
        last="next: `reccocktail evaluate skin-care@v2",
        kept=lambda: _rows(shell, "adapters"),
        done=lambda: _rows(shell, "adapters") == 3,
        hint="--resume",
    )


def _evaluate(shell: Any, **_: Any) -> _Long:
    """Thousands of users, so that no machine has finished before it is interrupted; then hundreds."""
    data, kept = shell.folder / "many", shell.home / "evaluations"

    def generated(users: int) -> None:
        write_domain(generate("skin-care", users=users), data)
        shell("domain", "add", "many", "--data", data)

    generated(5000)
    return _Long(
        ("evaluate", "tiny", "--domain", "many"),
        shows="ranking with tiny ━",
        last="",  # a table
        kept=lambda: sorted(kept.rglob("*.json")),
        done=lambda: len(list(kept.glob("*.json"))) == 1,
        shorten=lambda: generated(100),
    )


def _recommend(shell: Any, **_: Any) -> _Long:
    template = shell.folder / "template.yaml"
    short = "name: own\nuser: '{history}'\n"
    template.write_text(short.replace("{", "much " * 150 + "{"))
    newest = shell("build", "list", "--json").json[0]["id"]
    return _Long(
        ("recommend", "skin-care", "--history", "Toner", "--compare", "--template", template, "-k", "3"),
        shows=f"ranking with build {newest} ─",  # a bar with nothing done: few batches are all
        last="",  # a table
        kept=lambda: _rows(shell, "builds"),
        done=lambda: not list(shell.home.rglob("*.part")),  # it writes nothing
        shorten=lambda: template.write_text(short),
    )


def _merge(shell: Any, tiny_base: Path, loras: dict[str, Path], **_: Any) -> _Long:
    base, out = shell.folder / "long" / "tiny", shell.folder / "merged"
    shutil.copytree(tiny_base, base)
    with safe_open(base / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors | {"untouched": torch.zeros(1 << 26)}, base / "model.safetensors", {"format": "pt"})
    return _Long(
        ("merge", base, "-a", f"{loras['spirit']}=0.4", "-a", f"{loras['ingredient']}=0.6", "-o", out),
        shows="merging ━",
        last="",  # a table
        kept=out.exists,
        done=lambda: [path.name for path in shell.folder.iterdir() if "merged" in path.name] == ["merged"],
    )


def _publish(shell: Any, loopback_hub: Any, **_: Any) -> _Long:
    stuck = type(loopback_hub).Fault("PUT /lfs/", delay=600, times=10**6)
    loopback_hub.faults.append(stuck)
    seen = 0

    def is_stuck() -> bool:
        nonlocal seen
        before, seen = seen, stuck.seen
        return seen > before

    return _Long(
        ("publish", "skin-care", "--to", "acme/skin-care"),
        shows="publishing build",
        last="published: acme/skin-care at commit",
        is_stuck=is_stuck,
        kept=lambda: _rows(shell, "publications"),
        done=lambda: _rows(shell, "publications") == 1,
        shorten=loopback_hub.faults.clear,
    )


def _store_verify(shell: Any, **_: Any) -> _Long:
    """One file has become a terabyte of zeros."""
    weights = max((shell.home / "store" / "blobs").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    before = weights.stat()
    weights.chmod(0o600)
    os.truncate(weights, 1 << 40)

    def mend() -> None:
        os.truncate(weights, before.st_size)
        weights.chmod(before.st_mode)

    return _Long(
        ("store", "verify", "--json"),
        shows="verifying",
        last="}",
        kept=lambda: sorted((shell.home / "store").rglob("*")),
        done=lambda: json.loads(shell("store", "verify", "--json").out)["ok"],
        shorten=mend,
    )


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [_train, _evaluate, _recommend, _merge, _publish, _store_verify])
def test_an_interrupted_command_says_what_to_do_leaves_all_as_it_was_and_then_succeeds(
    prepare: Callable[..., _Long],
    built: Any,
    on_warm_terminal: Callable[..., Any],
    tiny_base: Path,
    loras: dict[str, Path],
    loopback_hub: Any,
) -> None:
    long = prepare(built, tiny_base=tiny_base, loras=loras, loopback_hub=loopback_hub)
    how = {"environment": built.environment() | {"OMP_NUM_THREADS": "1"}, "folder": built.folder}
    before = long.kept()
    for end, code in CODES.items():
        shown = on_warm_terminal(*long.words, **how)
        shown.wait_for(long.shows)
        _wait_until(long.is_stuck)
        _interrupt(shown, end)
        assert shown.ends(120) == code, (end, shown.written)
        assert "Traceback" not in shown.written, (end, shown.written)
        if end != "closed terminal":
            _assert_interrupted(shown.screen, long.hint)
        assert long.kept() == before, end
    long.shorten()
    at_once = {"environment": how["environment"] | {"WARM_CHILDREN": "1"}, "folder": built.folder}
    shown = on_warm_terminal(*long.words, **at_once)
    assert shown.ends(300) == 0, shown.written
    assert long.shows.rstrip(" ━─") in shown.written
    assert shown.screen[-1].startswith(long.last), shown.screen
    assert not [line for line in shown.screen if BAR.search(line) or "Traceback" in line], shown.screen
    assert long.done()


def _interrupt(shown: Any, end: str) -> None:
    match end:
        case "Ctrl-C":
            shown.press_ctrl_c()
        case "SIGTERM":
            shown.send(signal.SIGTERM)
        case _:
            shown.close_window()


def _assert_interrupted(screen: list[str], hint: str) -> None:
    """The last lines are the error and what to do; nothing of a bar is left above them."""
    text = "\n".join(screen)
    assert not BAR.search(text), text
    if screen[-1] == "}":
        error = json.loads(text[text.index("{") :])["error"]
        assert (error["code"], hint in error["hint"]) == ("interrupted", True)
    else:
        assert screen[-2].startswith("error: "), text
        assert screen[-1].startswith("hint: "), text
        assert hint in screen[-1]


def _wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
