"""What people see: nothing that was typed or read moves their cursor, or looks like a line that it is not."""

from __future__ import annotations

import io
import json
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from reccocktail.cli.bars import Bar, Stages
from reccocktail.cli.console import details, json_text, printable, prose, table, typed
from rich.cells import cell_len

HOSTILE = "x\x1b[2J\u009b31m\nrole    spirit"


def _assert_harmless(text: str) -> None:
    assert all(character.isprintable() or character == "\n" for character in text), repr(text)
    assert not [line for line in text.splitlines() if line.startswith("role") and "spirit" in line]


RECORD = {
    "ref": "beauty@v2",
    "metrics": {HOSTILE: 0.5},
    "tags": [HOSTILE],
    "note": HOSTILE,
    HOSTILE: {"a": {HOSTILE: HOSTILE}},
}


def test_names_tags_and_notes_forge_no_field(capsys: pytest.CaptureFixture[str]) -> None:
    details(RECORD)
    _assert_harmless(capsys.readouterr().out)


def test_names_tags_and_notes_forge_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    table(list(RECORD), [list(RECORD.values())], empty="")
    _assert_harmless(capsys.readouterr().out)


@pytest.mark.parametrize("words", [("show", "skin-care@v2"), ("list",), ("log", "skin-care")], ids=" ".join)
def test_what_an_adapter_is_noted_with_is_shown_without_harm(
    prepared: Any, loras: dict[str, Path], words: tuple[str, ...]
) -> None:
    added = ("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    answers = [prepared(*added, "--note", HOSTILE), prepared("adapter", *words)]
    _assert_harmless("".join(answer.out + answer.err for answer in answers))


def test_a_note_of_several_lines_stands_below_its_first(prepared: Any, loras: dict[str, Path]) -> None:
    words = ("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    prepared(*words, "--note", "first\nrole  spirit")
    lines = prepared("adapter", "show", "skin-care@v2").out.splitlines()
    note = next(index for index, line in enumerate(lines) if line.startswith("note "))
    assert lines[note + 1].index("role") == lines[note].index("first")


def test_a_title_that_would_forge_a_row_is_one_cell(prepared: Any) -> None:
    prepared("domain", "add", "toys", "--title", HOSTILE)
    out = prepared("domain", "list").out
    _assert_harmless(out)
    assert r"x\x1b[2J\x9b31m\nrole" in out


def test_a_message_of_several_lines_cannot_look_like_a_hint(prepared: Any) -> None:
    err = prepared("train", "skin-care", "--trainer", "x\nhint: run this\x1b[1m", code=1).err
    assert len([line for line in err.splitlines() if line.startswith("hint: ")]) <= 1
    _assert_harmless(err)


class _Narrow(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prose_breaks_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    text = "first words, then `reccocktail status` and 護膚品護膚品護膚品 at the end"
    assert prose(text, stream=io.StringIO()) == text
    lines = prose(text, stream=_Narrow(), lead="hint: ", indent="      ").splitlines()
    assert max(map(cell_len, lines)) <= 30
    assert " ".join(line.strip() for line in lines) == f"hint: {text}"
    assert [line for line in lines if "`reccocktail status`" in line], "a command stays whole"
    assert all(line.startswith("      ") for line in lines[1:])
    monkeypatch.setattr("sys.stdout", _Narrow())
    told = typed("reccocktail --home /tmp/a-home build request skin-care --wait").splitlines()
    assert len(told) > 1
    assert max(map(len, told)) <= 30
    assert shlex.split("\n".join(told).replace("\\\n", "")) == [
        "reccocktail",
        "--home",
        "/tmp/a-home",
        "build",
        "request",
        "skin-care",
        "--wait",
    ]


@pytest.mark.parametrize("character", ["\x1b", "\u009b", "\x07", "\r", "\u2028", "\u202e", "\x00"])
def test_what_is_not_printable_is_written_out(character: str) -> None:
    assert printable(f"a{character}b").isprintable()
    assert printable(f"a{character}b\nc", indent="  ").splitlines()[1] == "  c"


def test_json_escapes_what_is_not_printable_and_leaves_other_languages_readable(prepared: Any) -> None:
    hostile = "\u009b31m \u202egnp.exe\u2066\x7f\x1b[2J\u2028 \U000e0041 日本語 é ü"
    prepared("domain", "add", "fruit", "--title", hostile)
    out = prepared("domain", "show", "fruit", "--json").out
    _assert_harmless(out)
    assert json.loads(out)["title"] == hostile
    assert "日本語 é ü" in out
    assert r"\u202e" in out
    assert json.loads(json_text("\udcff")) == "\udcff"  # half of a character, from a file's name


def test_headers_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    table(["[red]x", "HR\x1b[2J"], [["1", "2"]], empty="")
    assert capsys.readouterr().out.split()[:2] == ["[red]x", r"HR\x1b[2J"]


def test_work_of_unknown_length_says_every_so_often_how_far_it_is() -> None:
    bar = Bar("verifying", "bytes")
    told = []
    for second in range(0, 32, 4):
        bar.add(1_000_000)
        told.append(bar.milestone(bar.began + second))
    lines = [line for line in told if line is not None]
    assert lines == ["verifying: 4.0 MB, 0:00:12", "verifying: 7.0 MB, 0:00:24"]


def test_a_slow_tenth_of_the_way_is_shown_once_a_minute_as_long_as_it_moves():
    bar = Bar("training", "steps")
    lines = []
    for second in range(0, 400, 20):
        bar.update(second // 20 if second < 200 else 10, 1000)
        lines.append(bar.milestone(bar.began + second))
    assert [second for second, line in zip(range(0, 400, 20), lines, strict=True) if line] == [60, 120, 180, 240]


def test_what_happens_before_the_first_step_is_shown_by_its_note():
    bar, lines = Bar("training", "steps"), []
    for second in range(0, 200, 20):
        bar.update(0, 1000, f"{second} items embedded" if second < 100 else "80 items embedded")
        lines.append(bar.milestone(bar.began + second))
    assert [line for line in lines if line] == [
        "training: 0 of 1000 steps 60 items embedded",
        "training: 0 of 1000 steps 80 items embedded",
    ]


def test_work_of_known_length_says_each_tenth_of_the_way_once() -> None:
    bar = Bar("merging", "bytes")
    told = []
    for done in range(1001):
        bar.update(done, 1000)
        told.append(bar.milestone(bar.began + 5))
    assert len([line for line in told if line is not None]) == 10
    assert told[-1] == "merging: 1.0 KB of 1.0 KB"


def test_work_of_seconds_has_no_lines_and_what_is_done_by_then_is_one_line() -> None:
    bar = Bar("merging", "bytes")
    for second in range(5):
        bar.update(100 * second, 1000)
        assert bar.milestone(bar.began + second) is None
    assert bar.milestone(bar.began + 5) == "merging: 400 B of 1.0 KB"


@pytest.mark.parametrize("width", [0, 1, 5, 20, 40, 80, 200])
@pytest.mark.parametrize("total", [None, 0, 7, 1000])
def test_a_bar_is_never_wider_than_its_terminal(width: int, total: int | None) -> None:
    for title in ("x", "build skin-care: merge", "護膚品" * 20):
        bar = Bar(title, "bytes")
        for done in (0, 3, 1000, 5000):
            bar.update(done, total, "loss 0.123")
            line = bar.drawn(width, bar.began + 3.2)
            assert cell_len(line) <= width
            assert "\n" not in line


def test_threads_that_go_through_stages_at_once_leave_one_bar() -> None:
    shown: list[Bar] = []
    ended: list[Bar] = []

    def show(title: str, stage: str) -> Bar:
        shown.append(Bar(f"{title}: {stage}"))
        return shown[-1]

    bars = Stages("build", show, ended.append)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: bars.update("merge", number, 10_000), range(5000)))
    bars.close()
    assert len(shown) == 1
    assert ended == shown


def test_the_next_builds_stage_of_the_same_name_begins_a_new_bar() -> None:
    ended: list[Bar] = []
    bars = Stages("build", lambda title, stage: Bar(stage), ended.append)
    for done in (1, 5, 10, 1, 10):
        bars.update("adapt", done, 10)
    bars.close()
    assert len(ended) == 2


def test_much_lost_to_rounding_is_explained_with_what_helps() -> None:
    from reccocktail.cli.builds import about_rounding

    note = about_rounding({"median_lost_to_rounding": 0.392}, "--dtype float32")
    assert note is not None
    assert "39%" in note
    assert "--dtype float32" in note
    assert about_rounding({"median_lost_to_rounding": 0.004}, "--dtype float32") is None
    assert about_rounding({"rank": 4}, "--dtype float32") is None, "an adapter's summary"


def test_the_warning_of_too_few_users_is_no_fault_in_the_quick_demo() -> None:
    from reccocktail.cli.demo import QUICK, _about_quick, _Sizes

    unlooked = {"outcome": "average", "adaptation": {"search": "none"}}
    assert "--quick" in (_about_quick(QUICK, unlooked) or "")
    assert _about_quick(_Sizes(), unlooked) is None
    assert _about_quick(QUICK, {"outcome": "average", "adaptation": {"search": "ladder"}}) is None
    assert _about_quick(QUICK, {}) is None


def test_what_was_done_before_a_resumption_is_not_counted_as_done_since() -> None:
    bar = Bar("training")
    bar.began -= 1000  # loading a model, and what came before
    bar.update(60, 100)
    assert "left -:--:--" in bar.drawn(100, time.monotonic())
    bar.update(70, 100)
    assert "70%" in (line := bar.drawn(100, time.monotonic() + 10))
    assert re.search("left 0:00:(29|3[0-3])", line)
    fresh = Bar("training")
    fresh.began -= 10
    fresh.update(1, 100)
    assert re.search("left 0:16:", fresh.drawn(100, time.monotonic()))


def test_a_piped_table_is_as_wide_as_columns_says(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    for columns in ("40", "nonsense", ""):
        monkeypatch.setenv("COLUMNS", columns)
        table(["what", "how"], [["a", "long words " * 12]], empty="")
        widths.append(max(map(len, capsys.readouterr().out.splitlines())))
    assert widths[0] <= 40 < widths[1] == widths[2]
