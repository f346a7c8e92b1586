"""`evaluate --task full` on a sample domain, and what is recorded of it."""

from __future__ import annotations

from typing import Any

import pytest
from reccocktail.engine import full_scorers
from reccocktail.networks import bert4rec
from reccocktail.publishing.measurements import evaluations_of
from reccocktail.registry.catalog.evaluations import Weights
from reccocktail.tasks import (
    FULL_METRICS,
    PopularityScorer,
    SasRecOptions,
    TfidfScorer,
    examples,
    full_ranks,
    full_task,
    paired_difference,
    read_domain,
    train_sasrec,
)

SYSTEMS = ("popularity", "tfidf", "tfidf-last", "sasrec", "bert4rec")
FULL = ("--domain", "skin-care", "--task", "full")
SASREC = SasRecOptions(width=8, blocks=1, heads=1, epochs=1)
BERT = bert4rec.Bert4RecOptions(width=8, blocks=1, heads=1, length=5, epochs=1)


@pytest.fixture
def quick(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As `prepared`, with networks that are quickly trained."""
    monkeypatch.setattr(
        full_scorers, "train_sasrec", lambda data, part, **more: train_sasrec(data, part, SASREC, **more)
    )
    monkeypatch.setattr(
        full_scorers, "train_bert4rec", lambda data, part, **more: bert4rec.train_bert4rec(data, part, BERT, **more)
    )
    return prepared


def test_baselines_rank_the_whole_catalogue_and_are_recorded(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("evaluate", *SYSTEMS, *FULL, "--against", "tfidf-last")
    first = quick(*command, "--json")
    found = first.json["systems"]
    with quick.registry() as registry:
        data = read_domain(registry.domains.get("skin-care").data, "skin-care")
    task = full_task(data, "test")
    expected = [full_ranks(task, PopularityScorer(data, "test")), full_ranks(task, TfidfScorer(data))]
    assert [tuple(each["ranks"]) for each in found[:2]] == expected
    assert [each["mode"] for each in found] == list(SYSTEMS)
    assert list(found[4]["metrics"]) == list(FULL_METRICS)
    assert (first.json["task"]["kind"], first.json["task"]["n_candidates"]) == ("full", len(data.titled))
    assert first.json["task"]["digest"] == task.spec.digest
    apart = paired_difference(found[3]["ranks"], found[2]["ranks"], "NDCG@10")
    assert found[3]["against"]["NDCG@10"] == {
        "mean": apart.mean, "low": apart.low, "high": apart.high, "n": apart.n
    }  # fmt: skip

    for name in ("train_sasrec", "train_bert4rec", "TfidfScorer"):
        monkeypatch.setattr(full_scorers, name, lambda *_, **__: pytest.fail("it was measured again"))
    assert quick(*command, "--json").json == first.json
    table = quick(*command, columns=170).out
    assert "minus tfidf-last" in table
    assert "Recall@50" in table
    assert "Recall@10" in quick(*command, columns=80).out
    rows = quick("evaluation", "list", "--split", "full-test", "--sort", "NDCG@10", "--json").json
    assert {row["id"] for row in rows} == {each["evaluation"] for each in found}
    assert "bert4rec" in quick("evaluation", "list", columns=150).out
    pair = quick("evaluation", "compare", "sasrec", "tfidf-last", "--domain", "skin-care", "--json").json
    assert pair["differences"] == found[3]["against"]
    shown = quick("evaluation", "show", found[4]["evaluation"], "--ranks", "--json").json
    assert shown["user_ranks"] == found[4]["ranks"]
    with quick.registry() as registry:
        own = Weights(found[4]["system"])
        (card,) = evaluations_of(registry, {own: "bert4rec"}, own)
    assert set(card.rows["bert4rec"]) == {"MRR", "Recall@10", "NDCG@10"}
    assert card.asked is not None
    assert (card.asked.split, card.users) == ("full-test", len(task.examples))


def test_cold_targets_stand_apart_and_other_tasks_are_not_compared(quick: Any) -> None:
    with quick.registry() as registry:
        data = read_domain(registry.domains.get("skin-care").data, "skin-care")
    (cold,) = quick("evaluate", "popularity", *FULL, "--split", "cold", "--json").json["systems"]
    assert cold["users"] == len(examples(data, "cold")) > 0
    assert set(cold["ranks"]) == {len(data.titled) - 1}, "nobody took them: they tie for the last place"
    (some,) = quick("evaluate", "popularity", *FULL, "--limit", 6, "--json").json["systems"]
    assert some["users"] == 6
    refused = quick("evaluation", "compare", cold["evaluation"], some["evaluation"], "--json", code=2)
    assert "split full-cold / full-test" in refused.json["error"]["message"]
    quick("evaluate", "popularity", "--domain", "skin-care", "--limit", 6)
    newest = quick("evaluation", "list", "--system", "popularity", "--json").json[0]["id"]
    refused = quick("evaluation", "compare", some["evaluation"], newest, "--json", code=2)
    assert "task full / none" in refused.json["error"]["message"]


def test_what_cannot_rank_a_catalogue_is_refused_with_what_to_do(quick: Any) -> None:
    for command in (
        ("tiny", *FULL),
        ("skin-care", *FULL),
        ("din", *FULL),
        ("popularity", *FULL, "--negatives", 4),
        ("popularity", *FULL, "--template", "pick-one"),
        ("popularity", *FULL, "--score", "pmi"),
        ("popularity", *FULL, "--threshold", 4),
        ("popularity", *FULL, "--split", "time"),
        ("popularity", *FULL, "--against", "tfidf"),
        ("bert4rec", "--domain", "skin-care"),
        ("tfidf-last", "--domain", "skin-care", "--task", "clicks"),
    ):
        error = quick("evaluate", *command, "--json", code=2).json["error"]
        assert error["code"] == "usage", command
        assert error["hint"], command
