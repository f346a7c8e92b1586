"""What happened to adapters, what a reference meant on a day that has passed, and taking versions out of use."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def moved(prepared: Any, loras: dict[str, Path]) -> Any:
    """skin-care has v1 and v2; champion was set to v1 by ann and moved to v2 by ben."""
    prepared("--as", "ann", "adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    prepared("--as", "ann", "adapter", "alias", "skin-care@v1", "champion")
    prepared("--as", "ben", "adapter", "alias", "skin-care@v2", "champion")
    return prepared


def _dated(home: Path, days: dict[str, str]) -> None:
    """Writes when things happened into the database's rows: event or version → moment."""
    with closing(sqlite3.connect(home / "registry.sqlite")) as database, database:
        for name in ("events_never_change", "adapters_never_change"):
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE adapters SET created_at = '2026-03-01 08:00:00.000000'")
        database.execute("UPDATE events SET created_at = '2026-03-01 08:00:00.000000'")
        for kind, moment in days.items():
            database.execute("UPDATE events SET created_at = ? WHERE kind = ?", (moment, kind))


# the log


def test_a_domains_log_says_who_did_what_newest_first(moved: Any) -> None:
    lines = moved("adapter", "log", "skin-care").out.splitlines()
    told = [" ".join(line.split()[2:]) for line in lines if "skin-care" in line]
    assert told[:3] == [
        "ben champion: skin-care@v1 → skin-care@v2",
        "ann champion: none → skin-care@v1",
        "ann skin-care@v2 added",
    ]
    assert len(told) == 4


def test_a_versions_log_leaves_the_others_out_and_spirit_has_one_too(moved: Any) -> None:
    kinds = [entry["kind"] for entry in moved("adapter", "log", "skin-care@v2", "--json").json]
    assert kinds == ["alias.moved", "adapter.added"]
    assert [entry["subject"] for entry in moved("adapter", "log", "spirit", "--json").json] == ["spirit@v1"]
    assert "base" not in moved("adapter", "log", "skin-care", "--base", "tiny").out


def test_an_aliass_log_has_all_its_moves_also_when_it_is_gone(moved: Any) -> None:
    moved("adapter", "alias", "skin-care@v1", "candidate")
    moved("adapter", "alias", "skin-care@champion", "--remove")
    told = [(e["kind"], e["created_by"]) for e in moved("adapter", "log", "skin-care@champion", "--json").json]
    assert [kind for kind, _ in told] == ["alias.removed", "alias.moved", "alias.set"]
    assert [who for _, who in told[1:]] == ["ben", "ann"]
    assert "candidate" not in moved("adapter", "log", "skin-care@champion").out


def test_removing_archiving_and_restoring_are_in_the_log(moved: Any) -> None:
    moved("adapter", "alias", "skin-care@champion", "--remove")
    moved("adapter", "archive", "skin-care@v1")
    moved("adapter", "archive", "skin-care@v1", "--undo")
    out = moved("adapter", "log", "skin-care", "--limit", "3").out
    assert [" ".join(line.split()[3:]) for line in out.splitlines() if "skin-care" in line] == [
        "skin-care@v1 restored", "skin-care@v1 archived", "champion: skin-care@v2 → none"
    ]  # fmt: skip


def test_the_log_goes_on_where_the_page_before_ended(moved: Any) -> None:
    whole = moved("adapter", "log", "skin-care", "--json").json
    first = moved("adapter", "log", "skin-care", "--limit", "2")
    after = str(whole[1]["id"])
    assert f"--after {after})" in first.err
    rest = moved("adapter", "log", "skin-care", "--after", after, "--json").json
    assert rest == whole[2:]
    assert "no more" in moved("adapter", "log", "skin-care", "--after", whole[-1]["id"]).err


def test_the_log_of_what_is_not_there(moved: Any) -> None:
    assert "there is no domain 'absent'" in moved("adapter", "log", "absent", code=1).err
    assert "there is no event for kitchen" in moved("adapter", "log", "kitchen").err
    assert "there is no 'skin-care@v9'" in moved("adapter", "log", "skin-care@v9", code=1).err


# what a reference meant


def test_a_reference_means_what_it_meant_on_that_day(moved: Any) -> None:
    _dated(moved.home, {"alias.set": "2026-03-02 12:00:00", "alias.moved": "2026-03-03 12:00:00"})

    def meant(when: str, ref: str = "skin-care@champion") -> str:
        return moved("adapter", "show", ref, "--at", when, "--json").json["ref"]

    assert meant("2026-03-02") == "skin-care@v1"
    assert meant("2026-03-03T11:59") == meant("2026-03-03T11:59:59Z") == "skin-care@v1"
    assert meant("2026-03-03T12:00") == meant("2026-03-03") == "skin-care@v2"
    assert meant("2026-03-03T13:30+02:00") == "skin-care@v1"
    assert meant("2026-03-01", "skin-care") == "skin-care@v2"
    answer = moved("adapter", "show", "skin-care@champion", "--at", "2026-03-01", code=1)
    assert "there was no 'skin-care@champion' at 2026-03-01T23:59:59.999999+00:00" in answer.err


def test_the_exact_moment_is_said_and_is_in_the_document(moved: Any) -> None:
    _dated(moved.home, {"alias.set": "2026-03-02 12:00:00", "alias.moved": "2026-03-03 12:00:00"})
    answer = moved("adapter", "show", "skin-care@v1", "--at", "2026-03-02T14:00+01:00", "--json")
    assert answer.err == "as of 2026-03-02T13:00:00+00:00\n"
    assert answer.json["at"] == "2026-03-02T13:00:00+00:00"
    assert answer.json["aliases"] == ["champion"]
    assert "builds" not in answer.json
    assert "as of 2026-03-02T23:59:59.999999+00:00" in moved("adapter", "show", "spirit", "--at", "2026-03-02").err


def test_the_future_is_refused_and_today_means_until_now(moved: Any) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    answer = moved("adapter", "show", "spirit", "--at", f"{tomorrow:%Y-%m-%dT%H:%M}", code=2)
    assert "is in the future" in answer.err
    answer = moved("adapter", "show", "spirit", "--at", f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}", code=2)
    assert "leave out --at" in answer.err
    begun = datetime.now(UTC)
    answer = moved(
        "adapter", "show", "spirit", "--at", f"{begun:%Y-%m-%d}", "--json"
    )  # also if midnight comes meanwhile
    assert begun.date() == datetime.fromisoformat(answer.json["at"]).date()
    assert datetime.fromisoformat(answer.json["at"]) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "text", ["yesterday", "", "2026-13-01", "20260303", "2026-03-03T25:00", "2026-W10-2", "\x1b[31m"]
)
def test_text_that_is_no_moment_is_refused(moved: Any, text: str) -> None:
    answer = moved("adapter", "show", "spirit", "--at", text, "--json", code=2)
    assert "is not a point in time" in answer.json["error"]["message"]


# out of use, and back


def test_a_version_in_use_is_not_archived_without_force(moved: Any) -> None:
    answer = moved("adapter", "archive", "skin-care@v2", code=1)
    assert "skin-care@v2 is in use: it is champion" in answer.err
    assert "--force" in answer.err
    answer = moved("adapter", "archive", "skin-care@v2", "--force", "--json")
    assert "warning: skin-care@v2 is in use: it is champion" in answer.err
    assert answer.json["uses"] == ["it is champion"]
    assert answer.json["archived_at"]
    assert moved("adapter", "show", "skin-care", "--json").json["ref"] == "skin-care@v1"
    assert moved("adapter", "archive", "skin-care@v2", "--force", "--json").json["uses"] == []


def test_an_archived_version_comes_back(moved: Any) -> None:
    moved("adapter", "archive", "skin-care@v2", "--force")
    assert "archived" in moved("adapter", "list").out
    assert "active again" in moved("adapter", "archive", "skin-care@v2", "--undo").err
    assert moved("adapter", "show", "skin-care", "--json").json["ref"] == "skin-care@v2"
    moved("adapter", "archive", "skin-care@v2", "--undo", "--force", code=2)


def test_an_adapter_of_the_build_that_is_served_is_in_use(built: Any) -> None:
    answer = built("adapter", "archive", "spirit@v1", code=1)
    assert "it is in skin-care@production" in answer.err


def test_an_alias_is_taken_away(moved: Any) -> None:
    assert (
        "skin-care@v2 no longer has the alias champion"
        in moved("adapter", "alias", "skin-care@champion", "--remove").err
    )
    assert moved("adapter", "show", "skin-care@v2", "--json").json["aliases"] == []
    assert "there is no 'skin-care@champion'" in moved("adapter", "alias", "skin-care@champion", "--remove", code=1).err
    assert "names no alias" in moved("adapter", "alias", "skin-care@v2", "--remove", code=2).err
    for words in ((), ("candidate", "--remove")):
        assert "--remove" in moved("adapter", "alias", "skin-care@v1", *words, code=2).err


# the whole event feed


def _events(run: Any, *words: str) -> list[dict[str, Any]]:
    return run("log", *words, "--json").json


def test_the_log_has_every_event_newest_first(moved: Any) -> None:
    found = _events(moved)
    kinds = [event["kind"] for event in found]
    assert kinds[:3] == ["alias.moved", "alias.set", "adapter.added"]
    assert {"base.added", "domain.added"} <= set(kinds)
    assert [event["id"] for event in found] == sorted((event["id"] for event in found), reverse=True)
    assert _events(moved, "--limit", "2") == found[:2]
    assert _events(moved, "--limit", "2", "--after", str(found[1]["id"])) == found[2:4]


def test_the_log_is_filtered_by_domain_person_kind_and_time(moved: Any) -> None:
    whole = _events(moved)

    def those(wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        found = [event for event in whole if wanted(event)]
        assert found
        return found

    assert _events(moved, "--actor", "ben") == those(lambda e: e["created_by"] == "ben")
    assert _events(moved, "--kind", "alias") == those(lambda e: e["kind"].startswith("alias."))
    assert _events(moved, "--kind", "alias.set") == those(lambda e: e["kind"] == "alias.set")
    assert _events(moved, "--domain", "skin-care") == those(lambda e: e["subject"].startswith("skin-care"))
    assert _events(moved, "--domain", "spirit") == those(lambda e: e["subject"].startswith("spirit"))
    _dated(moved.home, {"alias.set": "2026-03-02 09:00:00.000000", "alias.moved": "2026-03-03 09:00:00.000000"})
    assert [e["kind"] for e in _events(moved, "--since", "2026-03-02")] == ["alias.moved", "alias.set"]
    assert [e["kind"] for e in _events(moved, "--since", "2026-03-02T09:00:01")] == ["alias.moved"]
    assert _events(moved, "--since", f"{datetime.now(UTC):%Y-%m-%d}") == []
    assert moved("log", "--domain", "skincare", "--json", code=1).json["error"]["code"] == "not_found"
    assert moved("log", "--kind", "alias.move", "--json", code=2).json["error"]["code"] == "usage"
    assert moved("log", "--follow", "--after", "3", "--json", code=2).json["error"]["code"] == "usage"
    assert moved("log", "--since", "2999-01-01", "--json", code=2).json["error"]["code"] == "usage"
    assert "champion" in moved("log", "--kind", "alias").out


def test_who_follows_the_log_sees_each_new_event_once(moved: Any, on_warm_terminal: Callable[..., Any]) -> None:
    shown = on_warm_terminal("log", "--follow", environment=moved.environment(), folder=moved.folder)
    shown.wait_for("alias.moved")
    moved("--as", "cyd", "adapter", "alias", "skin-care@v1", "candidate")
    shown.wait_for("cyd  alias.set")
    moved("--as", "dan", "adapter", "archive", "spirit@v1")
    shown.wait_for("dan  adapter.archived")
    shown.press_ctrl_c()
    assert shown.ends(120) == 130
    assert "error" not in shown.written, "Ctrl-C is how it ends"
    assert shown.written.count("cyd  alias.set") == 1
    assert shown.written.index("ben  alias.moved") < shown.written.index("cyd  alias.set")


def test_a_followed_log_is_json_lines_for_programs(moved: Any, on_warm_terminal: Callable[..., Any]) -> None:
    words = ("log", "--follow", "--kind", "alias", "--json")
    shown = on_warm_terminal(*words, environment=moved.environment(), folder=moved.folder)
    shown.wait_for('"kind": "alias.moved"')
    shown.press_ctrl_c()
    assert shown.ends(120) == 130
    lines = [json.loads(line) for line in shown.written.replace("\r", "").splitlines() if line.startswith('{"id"')]
    assert [line["kind"] for line in lines] == ["alias.set", "alias.moved"]
