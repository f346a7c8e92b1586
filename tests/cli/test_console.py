"""What people see: nothing that was typed or read moves their cursor, or looks like a line that it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reccocktail.cli.console import details, json_text, printable, progress, table

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


def test_work_of_unknown_length_says_every_so_often_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("reccocktail.cli.console.time.monotonic", lambda: float(next(clock)))
    with progress("verifying", unit="bytes") as update:
        for done in range(1, 8):
            update(done * 1_000_000, None, "")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "verifying: 3.0 MB"
    assert 2 <= len(told) < 7
    assert "%" not in "".join(told)
