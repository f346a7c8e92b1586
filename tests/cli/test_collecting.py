"""`store gc --builds-older-than`: what goes, and what the commands say of it."""

from __future__ import annotations

from typing import Any


def test_results_of_builds_that_nobody_needs_go_and_are_made_anew(built: Any) -> None:
    served, trial = (row["id"] for row in built("build", "list", "--json").json)
    words = ("store", "gc", "--grace", "0", "--builds-older-than")
    assert built(*words, "1", "--json").json["builds"] == []
    planned = built(*words, "0", "--dry-run", "--json").json
    assert [each["id"] for each in planned["builds"]] == [trial]
    assert planned["bytes"] > 0
    assert trial in built(*words, "0", "--dry-run", columns=80).out
    assert built("build", "show", trial, "--json").json["path"]
    done = built(*words, "0", "--json").json
    assert (done["builds"], done["trees"]) == (planned["builds"], planned["trees"])

    shown = built("build", "show", trial)
    assert "build request skin-care --recipe average" in shown.err
    (row,) = (line.split() for line in built("build", "list", columns=80).out.splitlines() if trial in line)
    assert row[2] == "removed"
    for refused in (
        ("resolve", trial, "--merged"),
        ("publish", trial, "--to", "org/name", "--dry-run"),
        ("rollback", "skin-care", "--to", trial, "--dry-run"),
        ("build", "promote", trial),
        ("build", "pin", trial),
        ("build", "export", trial, "out"),
        ("evaluate", trial, "--domain", "skin-care"),
    ):
        error = built(*refused, "--json", code=1).json["error"]
        assert error["code"] == "conflict", refused
        assert "build request skin-care --recipe average" in error["hint"], refused
    (again,) = built("build", "request", "skin-care", "--recipe", "average", "--wait", "--json").json
    assert (again["id"] == trial, again["status"]) == (False, "succeeded")
    assert built("resolve", "skin-care", "--merged", "--json").json["build"] == served
    assert built("store", "gc", "--builds-older-than", "nan", code=2).err
