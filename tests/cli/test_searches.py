"""What `build request`, `build show`, `build list` and `status` say of a build by ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reccocktail.cli.searches import outcome_of
from reccocktail.tasks import generate, write_domain

RECIPE = "adaptive: {objective: ranking, score: likelihood, scale: false, labels: 40, negatives: 3}\n"


def test_a_build_by_ranking_is_shown_with_what_ships_and_why(prepared: Any, tmp_path: Path) -> None:
    write_domain(generate("skin-care", users=100), tmp_path / "crowd")
    (tmp_path / "ranking.yaml").write_text(RECIPE)
    prepared("domain", "add", "skin-care", "--data", tmp_path / "crowd", "--recipe", tmp_path / "ranking.yaml")
    answer = prepared("build", "request", "skin-care", "--wait")
    assert "24 labelled users to choose by, 16 to judge by" in answer.err
    assert "may have seen labels" in answer.err
    build = prepared("build", "list", "--json").json[0]
    report = build["report"]
    assert report["outcome"] in ("mixed", "average", "parent")
    assert (report["win"], report["score"]) == (report["adaptation"]["win"], "likelihood")
    shown = prepared("build", "show", build["id"]).out
    assert "\noutcome: " in shown
    assert "← chosen" in shown
    assert shown.count("gain ") == len(report["adaptation"]["rungs"])
    state = prepared("status", "skin-care", "--json").json[0]
    assert state["outcome"] == report["outcome"]
    if report["outcome"] == "parent":
        assert "one adapter alone" in prepared("status", "skin-care").out
    assert report["outcome"] in prepared("build", "list", columns=120).out


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (None, None),
        ({}, None),
        ({"outcome": "parent", "win": False}, "parent"),
        ({"outcome": "mixed", "win": True}, "mixed, a win"),
    ],
)
def test_only_a_mix_that_was_shown_to_be_better_is_called_a_win(report, said):
    assert outcome_of(report) == said
