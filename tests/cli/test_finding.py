"""Finding adapters, and going through long lists."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def found(prepared: Any, loras: dict[str, Path]) -> Callable[..., list[str]]:
    """(words): the references that `adapter list` answers; there are spirit@v1, skin-care@v1 and skin-care@v2."""
    prepared(
        "adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care", "--tag", "nightly", "--tag", "warm",
        "--note", "Trained on Größe data", "--metric", "HR@1=0.5", "--metric", "NDCG@3=0.4",
    )  # fmt: skip
    return lambda *words: [entry["ref"] for entry in prepared("adapter", "list", *words, "--json").json]


def test_adapters_are_found_by_tag_metric_and_text(found: Callable[..., list[str]]) -> None:
    assert found() == ["skin-care@v2", "skin-care@v1", "spirit@v1"]
    assert found("--tag", "nightly", "--tag", "warm") == ["skin-care@v2"]
    assert found("--tag", "nightly", "--tag", "cold") == []
    assert found("--metric", "HR@1") == ["skin-care@v2", "skin-care@v1"]
    assert found("--metric", "HR@1>0.25") == ["skin-care@v2"]
    assert found("--metric", "HR@1>=0.25", "--metric", "NDCG@3<0.4") == []
    assert found("--search", "größe") == ["skin-care@v2"]
    assert found("--search", "CARE", "--metric", "HR@1=0.25") == ["skin-care@v1"]
    assert found("--spirit") == ["spirit@v1"]
    assert found("--domain", "skin-care", "--base", "tiny", "--limit", "1") == ["skin-care@v2"]


def test_what_is_asked_wrongly_is_refused(prepared: Any) -> None:
    assert "is not a bound on a metric" in prepared("adapter", "list", "--metric", ">=1", code=2).err
    assert "not a number" in prepared("adapter", "list", "--metric", "HR@1>=much", code=2).err
    assert "not both" in prepared("adapter", "list", "--spirit", "--domain", "skin-care", code=2).err
    assert "no such adapter" in prepared("adapter", "list", "--tag", "absent").err


def _pages(shell: Any, *words: str) -> list[str]:
    """All references but the last, a page of one at a time, by doing what the hint says."""
    seen: list[str] = []
    after: list[str] = []
    while True:
        answer = shell("adapter", "list", *words, "--limit", "1", *after)
        hint = re.search(r"next page: (--after \S+)\)", answer.err)
        if hint is None:
            return seen
        after = hint[1].split()
        seen.append(after[1])


LISTS = [
    ("adapter", "list"),
    ("build", "list"),
    ("build", "list", "--sort", "domain"),
    ("build", "history", "skin-care"),
    ("evaluation", "list"),
    ("log",),
    ("adapter", "log", "skin-care"),
]


def test_a_next_page_is_offered_only_where_there_is_one_and_an_empty_one_is_no_error(built: Any) -> None:
    built("evaluate", "popularity", "tfidf", "--domain", "skin-care", "--limit", "5")
    built("adapter", "alias", "skin-care@v1", "shadow")
    for words in LISTS:
        whole = built(*words, "--json").json
        assert "next page" not in built(*words, "--limit", len(whole)).err
        less = ("--limit", len(whole) - 1)
        hint = re.search(r"next page: (--after \S+)\)", built(*words, *less).err)
        assert hint is not None, words
        assert len(built(*words, *less, "--json").json) == len(whole) - 1
        assert built(*words, "--json", *hint[1].split()).json == whole[-1:]
        last = whole[-1].get("ref") or whole[-1].get("event") or whole[-1]["id"]
        beyond = built(*words, "--after", last)
        assert (beyond.out, "no more" in beyond.err) == ("", True)
        assert built(*words, "--after", last, "--json").json == []


def test_the_hint_of_a_full_page_leads_to_the_next(found: object, prepared: Any) -> None:
    assert _pages(prepared) == ["skin-care@v2", "skin-care@v1"]
    assert _pages(prepared, "--metric", "HR@1") == ["skin-care@v2"]


def test_the_hint_names_the_base_where_there_are_several(
    found: object, prepared: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    (other / "generation_config.json").write_text('{"temperature": 0.5}')
    prepared("base", "add", "other", other)
    prepared("adapter", "add", loras["spirit"], "--base", "other", "--spirit", "--allow-base-mismatch")
    assert _pages(prepared) == ["other:spirit@v1", "tiny:skin-care@v2", "tiny:skin-care@v1"]
    assert _pages(prepared, "--base", "tiny") == ["skin-care@v2", "skin-care@v1"]


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("adapter", "list"),
        ("adapter", "log", "skin-care"),
        ("build", "list"),
        ("base", "list"),
        ("domain", "list"),
        ("doctor",),
        ("store", "gc", "--dry-run", "--grace", "0"),
    ],
    ids=" ".join,
)
def test_tables_fit_eighty_columns_and_break_no_name(
    built: Any, loras: dict[str, Path], words: tuple[str, ...]
) -> None:
    built("--as", "a-nightly-job", "adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    built("adapter", "alias", "skin-care@v2", "champion")
    (built.home / "store" / "staging" / f"build-{'0' * 32}").mkdir()
    out = re.sub(r"\x1b\[[0-9;]*m", "", built(*words, columns=80).out)
    grid = out.partition("\n\n")[0].splitlines() if words == ("status",) else out.splitlines()
    assert max(len(line) for line in grid if " is " not in line) <= 80, out
    assert "…" not in out
    if words[:2] == ("adapter", "log"):
        assert "champion: none → skin-care@v2" in out


LONG = "a" * 31 + "-" + "b" * 31


def test_the_longest_names_are_whole_at_eighty_columns_and_their_state_is_told(
    prepared: Any, loras: dict[str, Path]
) -> None:
    prepared("domain", "add", LONG, "--recipe", "ingredient-only")
    words = ("adapter", "add", loras["newer"], "--base", "tiny", "--domain", LONG)
    prepared(*words, "--metric", "HR@1=0.5", "--tag", "nightly")
    prepared("adapter", "alias", f"{LONG}@v1", "champion")
    prepared("adapter", "archive", f"{LONG}@v1", "--force")
    listed = prepared("adapter", "list", columns=80)
    for name, word in (("ref", f"{LONG}@v1"), ("labels", "@champion"), ("labels", "archived")):
        assert name in _plain(listed.out).splitlines()[1]
        assert word in _plain(listed.out).split() or f"{word}," in _plain(listed.out).split()
    assert "left out, for lack of room: size, rank, created, measured, registered; --json has all" in listed.err
    prepared("adapter", "archive", f"{LONG}@v1", "--undo")
    told = prepared("status", columns=80)
    row = next(line for line in _plain(told.out).splitlines() if LONG in line)
    assert row.split() == [LONG, "unbuilt"]
    assert max(len(line) for line in _plain(told.out).splitlines() if " is " not in line) <= 80
    assert "left out" not in prepared("adapter", "list").err, "a pipe is as wide as names need"


def test_the_base_is_listed_where_there_are_several(
    prepared: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    name = "another-base-of-ours1"
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    (other / "generation_config.json").write_text('{"temperature": 0.5}')
    assert "base" not in prepared("adapter", "list", columns=80).out
    prepared("base", "add", name, other)
    prepared("adapter", "add", loras["spirit"], "--base", name, "--spirit", "--allow-base-mismatch")
    out = _plain(prepared("adapter", "list", columns=80).out)
    assert name in out.split()
    assert max(map(len, out.splitlines())) <= 80
    assert "base" not in prepared("adapter", "list", "--base", name, columns=80).out.splitlines()[1]


def _plain(out: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", out)


# how two versions differ


def test_two_versions_are_told_apart_by_what_is_known_and_by_their_deltas(
    found: Callable[..., list[str]], prepared: Any
) -> None:
    assert found()
    answer = prepared("adapter", "diff", "skin-care@v1", "skin-care").out
    assert re.search(r"what +skin-care@v1 +skin-care@v2", answer)
    assert re.search(r"metrics\.HR@1 +0\.25 +0\.5", answer)
    assert re.search(r'tags +\[\] +\["nightly", "warm"\]', answer)
    assert re.search(r"deltas: norms [\d.]+ and [\d.]+, [\d.]+ apart, cosine -?[\d.]+", answer)
    document = prepared("adapter", "diff", "skin-care@v1", "skin-care", "--json").json
    assert [document[side]["ref"] for side in ("one", "other")] == ["skin-care@v1", "skin-care@v2"]
    assert not document["weights"]["total"]["equal"]
    assert all(each["distance"] > 0 for each in document["weights"]["deltas"])
    answer = prepared("adapter", "diff", "spirit", "spirit@v1")
    assert "their metadata are equal" in answer.err
    assert "their weights are the same" in answer.out
