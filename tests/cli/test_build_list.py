"""`build list`: what it shows, in 80 columns too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from reccocktail.cli.build_list import SORTS
from reccocktail.cli.build_table import age
from reccocktail.registry.catalog import build_lists
from sqlalchemy import Engine, event


def test_builds_are_shown_with_recipe_requester_age_and_progress(built: Any) -> None:
    built("recipe", "add", "mine", "ingredient-only")
    built("--as", "a-nightly-job", "build", "request", "skin-care", "--recipe", "mine", "--force")
    with built.registry() as registry:
        (waiting,) = registry.builds.claim_batch("w", 1)
        registry.builds.progress(waiting.id, "w", 9, 20, "merge")
    out = built("build", "list", columns=80).out
    assert max(map(len, out.splitlines())) <= 80, out
    (row,) = (line.split() for line in out.splitlines() if waiting.id in line)
    assert row[:7] == [waiting.id, "skin-care", "merge", "45%", "mine@v1", "a-nightly-job", "now"], out
    wide = built("build", "list").out
    assert "coefficients" in wide
    assert all(name in out.splitlines()[1] for name in ("id", "domain", "status", "recipe", "by", "age")), out

    (mine,) = built("build", "list", "--requester", "a-nightly-job", "--since", str(waiting.created_at), "--json").json
    shown = ("id", "recipe_ref", "created_by", "stage", "done", "total", "started_at")
    assert [mine[name] for name in shown[:-1]] == [waiting.id, "mine@v1", "a-nightly-job", "merge", 9, 20]
    assert mine["started_at"]
    assert [each["recipe_ref"] for each in built("build", "list", "--recipe", "average", "--json").json] == ["average"]
    assert built("build", "list", "--since", "2099-01-01", code=2).err
    assert built("build", "list", "--since", datetime.now(UTC).isoformat(), "--json").json == []


def test_every_order_pages_with_the_same_few_queries(built: Any) -> None:
    assert build_lists.SORTS == SORTS
    file = built.folder / "mine.yaml"
    file.write_text("method: linear\ncoefficients: {spirit: 0.25, ingredient: 0.75}\n")
    assert "a file" in built("build", "request", "skin-care", "--recipe", file).out
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for sort in SORTS:
            everything = [each["id"] for each in built("build", "list", "--sort", sort, "--json").json]
            asked.clear()
            first = built("build", "list", "--sort", sort, "--limit", "1", "--json").json
            of_one = len(asked)
            asked.clear()
            built("build", "list", "--sort", sort, "--json")
            assert len(asked) == of_one
            rest = built("build", "list", "--sort", sort, "--after", first[0]["id"], "--json").json
            assert [each["id"] for each in first + rest] == everything
            assert len(everything) == 3
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("passed", "shown"),
    [({"seconds": -3}, "now"), ({"seconds": 60}, "1 min"), ({"hours": 25}, "1 d"), ({"minutes": 119}, "1 h")],
)
def test_an_age_is_in_one_unit(passed: dict[str, float], shown: str) -> None:
    assert age(timedelta(**passed)) == shown
