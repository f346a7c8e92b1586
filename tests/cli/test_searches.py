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


def test_a_build_by_agreement_says_that_nobody_measured_it(prepared: Any, tmp_path: Path) -> None:
    write_domain(generate("skin-care", users=0), tmp_path / "catalogue")
    (tmp_path / "mine.yaml").write_text(
        "adaptive: {objective: agreement, prompts: 20, negatives: 3, scale: false, template: pick-one}\n"
    )
    added = prepared("domain", "add", "skin-care", "--data", tmp_path / "catalogue", "--recipe", tmp_path / "mine.yaml")
    assert "`objective: agreement`" in added.out + added.err
    answer = prepared("build", "request", "skin-care", "--wait")
    assert "20 pseudo-users made of the catalogue, score pmi" in answer.err
    assert "chosen without labels" in answer.err
    build = prepared("build", "list", "--json").json[0]
    report = build["report"]
    assert (report["win"], report["score"], report["adaptation"]["measured"]) == (False, "pmi", False)
    shown = prepared("build", "show", build["id"]).out
    assert "chosen without labels; nobody has measured it" in shown
    assert "as the spirit alone for" in shown
    assert "← chosen" in shown
    assert prepared("status", "skin-care", "--json").json[0]["outcome"] == report["outcome"]
    listed = prepared("recommend", "skin-care", "--history", "Coral Mask 1", "-k", "3", "--json").json
    assert (listed["build"]["outcome"], listed["score"]) == (report["outcome"], "pmi")


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (None, None),
        ({}, None),
        ({"outcome": "parent", "win": False}, "parent"),
        ({"outcome": "mixed", "win": True}, "mixed, a win"),
        ({"outcome": "mixed", "win": False, "adaptation": {"comparison": {"safe": False}}}, "mixed, not sure"),
        ({"outcome": "parent", "win": False, "adaptation": {"comparison": {"safe": False}}}, "parent"),
        ({"outcome": "mixed", "win": False, "adaptation": {"measured": False}}, "mixed, not measured"),
        ({"outcome": "parent", "win": False, "adaptation": {"objective": "ranking"}}, "parent"),
    ],
)
def test_only_a_mix_that_was_shown_to_be_better_is_called_a_win(report, said):
    assert outcome_of(report) == said
