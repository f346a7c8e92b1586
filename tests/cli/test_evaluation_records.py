"""What `evaluate` records, and what is made of it without a model."""

from __future__ import annotations

import shutil
import sqlite3
from typing import Any

import pytest
from reccocktail.engine import figures

WORDS = ("--domain", "skin-care", "--limit", "6")


@pytest.fixture
def measured(built: Any) -> Any:
    built("evaluate", "tiny", "skin-care", "popularity", *WORDS)
    return built


def test_an_evaluation_is_recorded_shown_and_compared_without_a_model(measured: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(figures, "load_model", lambda *_: pytest.fail("a model was loaded"))
    found = measured("evaluate", "tiny", "skin-care", "popularity", *WORDS, "--json").json["systems"]
    rows = measured("evaluation", "list", "--domain", "skin-care", "--json").json
    assert [row["id"] for row in rows] == [system["evaluation"] for system in found][::-1]
    by_label = {row["label"]: row for row in rows}
    assert set(by_label) == {"tiny", "skin-care@v1", "popularity"}
    for system in found:
        assert by_label[system["label"]]["metrics"] == system["metrics"]
        shown = measured("evaluation", "show", system["evaluation"], "--ranks", "--json").json
        assert shown["user_ranks"] == system["ranks"]
    one = found[0]["evaluation"]
    assert measured("evaluation", "compare", one, one).out.count("equal") == len(found[0]["metrics"])
    assert "mode" not in measured("evaluation", "show", one).out, "what is called score elsewhere"
    pair = measured("evaluation", "compare", "skin-care@v1", "tiny", "--json").json
    against = measured("evaluate", "skin-care", "tiny", *WORDS, "--against", "tiny", "--json").json["systems"][0]
    for metric, interval in against["against"].items():
        assert pair["differences"][metric] == interval
    assert measured("evaluation", "compare", "skin-care", "popularity").out.count("[") == 5
    shown = measured("adapter", "show", "skin-care", "--json").json["evaluations"]
    assert [each["id"] for each in shown] == [by_label["skin-care@v1"]["id"]]


def test_another_machine_measures_nothing_again(measured: Any, monkeypatch: Any) -> None:
    first = measured("evaluate", "tiny", "skin-care", *WORDS, "--json")
    shutil.rmtree(measured.home / "evaluations")
    monkeypatch.setattr(figures, "load_model", lambda *_: pytest.fail("a model was loaded"))
    assert measured("evaluate", "tiny", "skin-care", *WORDS, "--json").json == first.json


def test_what_other_users_answered_is_not_compared(measured: Any) -> None:
    measured("evaluate", "tiny", "--domain", "skin-care", "--limit", "5")
    ids = [row["id"] for row in measured("evaluation", "list", "--system", "tiny", "--json").json]
    refused = measured("evaluation", "compare", *ids, "--json", code=2)
    assert refused.json["error"]["code"] == "usage"
    assert "limit 5 / 6" in refused.json["error"]["message"]
    # the newest pair of the same users is found by name, though the newest evaluation of tiny is of others
    assert measured("evaluation", "compare", "tiny", "skin-care", "--json").json["users"] == 6


def test_damaged_ranks_are_refused_by_name(measured: Any) -> None:
    (row,) = measured("evaluation", "list", "--system", "tiny", "--json").json
    tree = measured.home / "store" / "trees" / row["ranks"].removeprefix("sha256:")
    file = tree / "ranks.safetensors"
    data = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused = measured("evaluation", "show", row["id"], "--ranks", "--json", code=1)
    assert refused.json["error"]["code"] == "store"
    assert f"evaluation {row['id']}" in refused.json["error"]["message"]


def test_ranks_outlive_a_collection_of_the_store(measured: Any) -> None:
    measured("store", "gc", "--grace", "0s", code=None)
    with measured.registry() as registry:
        rows = registry.evaluations.list()
        assert {row.ranks for row in rows} <= registry.store.digests() & registry.digests()
        assert registry.collect(dry_run=True).trees == ()


def test_adapters_are_sorted_and_found_by_what_was_measured(measured: Any, loras: Any) -> None:
    measured("adapter", "add", loras["ingredient"], "--base", "tiny", "--domain", "kitchen", "--metric", "NDCG@3=2")
    rows = measured("adapter", "list", "--sort", "NDCG@3", "--json").json
    assert [row["ref"] for row in rows] == ["kitchen@v1", "skin-care@v1"]
    assert rows[0]["evaluation"] is None
    mean = rows[1]["evaluation"]["metrics"]["NDCG@3"]["mean"]
    for bound, there in ((f"NDCG@3>={mean - 0.01}", True), (f"NDCG@3<{mean - 0.01}", False)):
        refs = [row["ref"] for row in measured("adapter", "list", "--metric", bound, "--json").json]
        assert ("skin-care@v1" in refs) == there
    page = measured("adapter", "list", "--sort", "NDCG@3", "--limit", "1", "--after", "kitchen@v1", "--json").json
    assert [row["ref"] for row in page] == ["skin-care@v1"]
    assert "NDCG@3" in measured("adapter", "list", columns=80).out


def test_the_database_keeps_an_evaluation_as_it_was_recorded(measured: Any) -> None:
    with sqlite3.connect(measured.home / "registry.sqlite") as database:
        for statement in (
            "UPDATE evaluations SET users = 7",
            "DELETE FROM evaluations",
            "UPDATE evaluation_metrics SET value = 1",
            "DELETE FROM evaluation_metrics",
            "INSERT INTO evaluation_metrics VALUES ('mine', 1, 1.0)",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(statement)
    assert len(measured("log", "--kind", "evaluation.recorded", "--json").json) == 3
