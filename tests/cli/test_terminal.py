"""The installed command where people meet it: on a terminal, with progress, stopped by keys and signals, closed meanwhile."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"
BAR = re.compile("[━─]{5}.*left|#{3}.*left")
MANY = "method: linear\nadaptive: {points: 40, prompts: 60, tokens: 3}\noutput: {dtype: bfloat16}\n"


@pytest.fixture
def run(prepared: Any, on_warm_terminal: Callable[..., Any]) -> Callable[..., Any]:
    """(words, terminal's options): the command, started on a terminal with the prepared home."""
    how = {"environment": prepared.environment(), "folder": prepared.folder}
    return lambda *words, **options: on_warm_terminal(*words, **how, **options)


def statuses(shell: Any) -> list[str]:
    with sqlite3.connect(shell.home / "registry.sqlite") as database:
        return [status for (status,) in database.execute("select status from builds order by id")]


def assert_clean(terminal: Any) -> None:
    """Nothing of a bar is left, and nothing failed."""
    assert not [line for line in terminal.screen if BAR.search(line) or "Traceback" in line], terminal.written
    assert "has no attribute" not in terminal.written


@pytest.fixture
def endless(prepared: Any) -> Path:
    """A recipe whose search for coefficients lasts until somebody ends it."""
    path = prepared.folder / "many.yaml"
    path.write_text(MANY)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "lines", "term", "started"),
    [(80, 24, "xterm", "by a shell"), (120, 40, "xterm", "warm"), (80, 24, "dumb", "warm"), (0, 0, "xterm", "warm")],
)
def test_a_build_shows_progress_and_ends_in_a_table(
    columns: int, lines: int, term: str, started: str, run: Any, prepared: Any
) -> None:
    how = {"start": None} if started == "by a shell" else {}
    shown = run("build", "request", "skin-care", "--wait", columns=columns, lines=lines, term=term, **how)
    assert shown.ends() == 0
    assert_clean(shown)
    assert statuses(prepared) == ["succeeded"]
    # a dumb terminal gets lines, and none for work of a few seconds
    assert ("of skin-care is in" if term == "dumb" else "build skin-care: adapt") in shown.written
    assert [line for line in shown.screen if "succeeded" in line]
    assert ("\x1b[K" in shown.written) == (term != "dumb")


@pytest.mark.slow
def test_ctrl_c_ends_a_build_in_good_order(run: Any, prepared: Any, endless: Path) -> None:
    shown = run("build", "request", "skin-care", "--recipe", endless, "--wait")
    shown.wait_for("build skin-care: adapt")
    shown.press_ctrl_c()
    assert shown.ends() == 130
    assert_clean(shown)
    assert shown.screen[-2:][0].startswith("error: interrupted")
    assert statuses(prepared) == ["failed"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_no_build_running(
    number: signal.Signals, code: int, run: Any, prepared: Any, endless: Path
) -> None:
    shown = run("build", "request", "skin-care", "--recipe", endless, "--wait", "--keep-best")
    shown.wait_for("build skin-care: adapt")
    if number == signal.SIGHUP:
        shown.close_window()  # as a person does
    else:
        shown.send(number)
    assert shown.ends() == code
    assert statuses(prepared) == ["failed"]


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_changes_nothing(run: Any, prepared: Any, tmp_path: Path) -> None:
    prepared("build", "request", "skin-care")
    prepared("build", "request", "skin-care", "--recipe", "average")
    shown = run("worker", "--once", "--json", survives=True, answers_to=tmp_path / "answer")
    shown.wait_for("begins")
    shown.close_window()
    assert shown.ends() == 0
    assert {row["status"] for row in json.loads((tmp_path / "answer").read_text())} == {"succeeded"}
    assert statuses(prepared) == ["succeeded", "succeeded"]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 0), ("Ctrl-C", 130)])
def test_a_worker_that_is_stopped_gives_its_build_back(
    how: str, code: int, run: Any, prepared: Any, endless: Path
) -> None:
    prepared("build", "request", "skin-care", "--recipe", endless)
    shown = run("worker")
    shown.wait_for("build skin-care: adapt")
    shown.send(signal.SIGTERM) if how == "SIGTERM" else shown.press_ctrl_c()
    assert shown.ends() == code
    assert_clean(shown)
    assert statuses(prepared) == ["queued"]
    assert "postponed" in shown.written


@pytest.mark.slow
def test_a_worker_that_is_stopped_answers_with_what_it_ended(prepared: Any) -> None:
    prepared("build", "request", "skin-care", "--recipe", "average")
    command = [Path(_python()).with_name("reccocktail"), "worker", "--log-json", "--json"]
    process = subprocess.Popen(
        command,
        env=prepared.environment(),
        cwd=prepared.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(json.loads(line))
        if said[-1]["what"] == "succeeded":
            process.terminate()
    assert process.stdout is not None
    assert [row["status"] for row in json.loads(process.stdout.read())] == ["succeeded"]
    assert process.wait(120) == 0
    assert said[-1]["what"] == "ended"


def _python() -> str:
    import sys

    return sys.executable


def test_log_json_tells_a_failure_in_json_too(bare: Any) -> None:
    answer = bare.process("worker", "--once", "--log-json", code=1)
    (said,) = [json.loads(line) for line in answer.err.splitlines()]
    assert said["what"] == "error"
    assert said["hint"]
    usage = bare("worker", "--log-json", "--workers", "2", code=2)
    assert [json.loads(line)["code"] for line in usage.err.splitlines()] == ["usage"]


def test_quiet_says_nothing_but_errors(prepared: Any, loras: dict[str, Path]) -> None:
    words = ("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    assert prepared("--quiet", *words).err == ""
    assert prepared("--quiet", "adapter", "show", "nobody", code=1).err.startswith("error: ")


@pytest.mark.parametrize("closed", ["2>&-", "2>&- <&-", "0<&-"])
def test_a_process_without_standard_streams_works(closed: str, prepared: Any) -> None:
    command = f"{shlex.quote(str(Path(_python()).with_name('reccocktail')))} domain add toys --title Toys {closed}"
    done = subprocess.run(["sh", "-c", command], env=prepared.environment(), cwd=prepared.folder, check=False)
    assert done.returncode == 0
    assert "toys" in [row["name"] for row in prepared("domain", "list", "--json").json]
    with sqlite3.connect(prepared.home / "registry.sqlite") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
