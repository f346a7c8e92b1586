"""The gate of a domain: what champion has to show, who approves it, and what is recorded."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np
import pytest
from reccocktail.engine import records
from reccocktail.engine.measured import Evaluation
from reccocktail.registry.catalog.evaluations import Measurement, Weights
from reccocktail.registry.errors import GateError
from reccocktail.tasks import TaskSpec

TASK = TaskSpec("sha256:d", "test", "sha256:t", 9, 42, None)
USERS = 200


@pytest.fixture
def shop(prepared: Any, loras: Any) -> Any:
    """skin-care with two versions, of which bob registered the second."""
    prepared("--as", "bob", "adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    return prepared


def measure(shop: Any, ref: str, ranks: np.ndarray, *, questions: str = "sha256:q") -> int:
    """An evaluation as `evaluate` records it, with these ranks."""
    with shop.registry() as registry:
        row = registry.adapters.resolve(ref)
        base = registry.bases.get(row.base)
        found = Evaluation(row.ref, "sha256:s", TASK, "pmi", "float32", tuple(int(rank) for rank in ranks))
        return registry.evaluations.add(
            Measurement(
                key=f"{ref} {questions}",
                system=f"sha256:{ref}",
                weights=Weights(row.digest, base.digest),
                label=row.ref,
                domain="skin-care",
                mode="pmi",
                dtype="float32",
                task_digest=TASK.digest,
                task={"split": "test", "n_negatives": 9},
                questions=questions,
                users=len(ranks),
                metrics={"HR@1": {"mean": float((ranks == 0).mean()), "low": 0.0, "high": 1.0, "n": len(ranks)}},
                detail={},
                ranks=records.store_ranks(registry, found.ranks),
                version="test",
            )
        ).id


def refused(shop: Any, *words: str) -> dict[str, Any]:
    error = shop(*words, "--json", code=1).json["error"]
    assert error["code"] == "gate"
    return error


def hits(share: float) -> np.ndarray:
    """Ranks of which this share are hits, each user's draw the same for all shares."""
    return np.where(np.random.default_rng(0).random(USERS) < share, 0, 5)


def test_champion_moves_only_to_what_passes_and_the_event_says_why(shop: Any, on_warm_terminal: Any) -> None:
    move = ("adapter", "alias", "skin-care@v1", "champion")
    shop("domain", "gate", "skin-care", "--require", "metric=HR@1,margin=0.02")
    error = refused(shop, *move)
    assert "no evaluation of skin-care@v1" in error["message"]
    assert "reccocktail evaluate skin-care@v1 --domain skin-care" in error["hint"]
    first = measure(shop, "skin-care@v1", hits(0.5))
    shop(*move)
    (event,) = shop("log", "--kind", "alias.set", "--json").json
    assert event["detail"]["evaluation"] == first

    other = ("adapter", "alias", "skin-care@v2", "champion")
    error = refused(shop, *other)
    assert "reccocktail evaluate skin-care@v2 skin-care@v1 --domain skin-care" in error["hint"]
    measure(shop, "skin-care@v2", hits(0.5), questions="sha256:other users")
    assert "never evaluated on the same users" in refused(shop, *other)["message"]
    worse = measure(shop, "skin-care@v2", hits(0.3))
    message = refused(shop, *other)["message"]
    # the oracle: mean difference less Student's 95 % quantile (1.6525 of 199 degrees) times its standard error
    difference = (hits(0.3) == 0).astype(float) - (hits(0.5) == 0)
    low = difference.mean() - 1.6525 * difference.std(ddof=1) / np.sqrt(USERS)
    assert f"{low:+.2f}" in message
    shop("domain", "gate", "skin-care", "--require", "metric=HR@1")
    assert "(above 0)" in refused(shop, *other)["message"]

    shop("adapter", "alias", "skin-care@v2", "champion", "--override", "the campaign starts today")
    (event,) = shop("log", "--kind", "alias.moved", "--json").json
    assert event["detail"]["override"] == "the campaign starts today"
    for words in (("log", "--kind", "alias.moved"), ("adapter", "log", "skin-care@champion")):  # whole at 80 columns
        shown = on_warm_terminal(*words, environment=shop.environment(), folder=shop.folder)
        assert shown.ends(120) == 0
        assert {"campaign", "starts", "today"} <= {*" ".join(shown.screen).split()}
    shop(*move)  # which is better than what is champion now
    event = shop("log", "--kind", "alias.moved", "--limit", "1", "--json").json[0]
    assert [each["evaluation"] for each in event["detail"]["against"]] == [worse]


def test_a_negative_margin_asks_for_so_much_more_and_few_users_decide_nothing(shop: Any) -> None:
    measure(shop, "skin-care@v1", hits(0.3))
    measure(shop, "skin-care@v2", hits(0.6))
    shop("adapter", "alias", "skin-care@v1", "champion")
    move = ("adapter", "alias", "skin-care@v2", "champion")
    shop("domain", "gate", "skin-care", "--require", "metric=HR@1,margin=-0.4")
    refused(shop, *move)
    shop("domain", "gate", "skin-care", "--require", "metric=HR@1,margin=-0.1,against=parents")
    assert "no evaluation of tiny" in refused(shop, *move)["message"]
    shop("domain", "gate", "skin-care", "--require", "metric=HR@1,margin=-0.1")
    for ref, share in (("skin-care@v1", 0.3), ("skin-care@v2", 0.6)):
        measure(shop, ref, hits(share)[:10], questions="sha256:few")
    assert "10 users" in refused(shop, *move)["message"]


def test_somebody_else_approves(shop: Any) -> None:
    shop("domain", "gate", "skin-care", "--approvals", "1")
    move = ("--as", "bob", "adapter", "alias", "skin-care@v2", "champion")
    assert "0 of 1 approvals" in refused(shop, *move)["message"]
    approve = ("adapter", "approve", "skin-care@v2", "--json")
    assert shop("--as", "bob", *approve, code=1).json["error"]["code"] == "conflict"
    assert shop("--as", "ann", *approve).json["approved_by"] == ["ann"]
    shop(*move)
    # without a champion the name would mean nothing
    refused(shop, "adapter", "alias", "skin-care@champion", "--remove")
    refused(shop, "adapter", "archive", "skin-care@v2", "--force")
    shop("adapter", "alias", "skin-care@champion", "--remove", "--override", "withdrawn")


def test_the_database_and_other_callers_are_held_to_the_gate_too(shop: Any) -> None:
    shop("domain", "gate", "skin-care", "--require", "metric=HR@1")
    with shop.registry() as registry, pytest.raises(GateError):
        registry.adapters.alias("skin-care@v1", "champion")
    insert = (
        "INSERT INTO events (id, kind, subject, base_id, domain_id, adapter_id, alias, detail, created_at, created_by)"
        " SELECT (SELECT max(id) + 1 FROM events), 'alias.set', 'x', base_id, domain_id, id, 'champion', '{}',"
        " '2099-01-01 00:00:00.000000', 'eve' FROM adapters WHERE version = 1 AND role = 'ingredient'"
    )
    with sqlite3.connect(shop.home / "registry.sqlite") as database:
        with pytest.raises(sqlite3.IntegrityError, match="gate"):
            database.execute(insert)
        row = (
            "INSERT INTO approvals (adapter_id, created_at, created_by) SELECT id, created_at, created_by FROM adapters"
        )
        with pytest.raises(sqlite3.IntegrityError, match="approve"):
            database.execute(row)


def test_without_a_champion_a_gated_name_is_refused_and_every_place_says_so(shop: Any) -> None:
    promote = "reccocktail adapter alias skin-care@v2 champion"
    assert promote in shop("domain", "gate", "skin-care", "--approvals", "1").err
    assert promote in shop("domain", "gate", "skin-care").err
    for words in (("adapter", "show"), ("resolve",), ("build", "request"), ("adapter", "approve")):
        assert promote in refused(shop, *words, "skin-care")["hint"]
    (state,) = shop("status", "skin-care", "--json").json
    assert (state["state"], state["ingredient"]) == ("blocked", None)
    assert "gate" in state["reasons"][0]
    shop("adapter", "alias", "skin-care@v1", "champion", "--override", "the first one")
    assert "champion" not in shop("domain", "gate", "skin-care").err
    assert shop("adapter", "show", "skin-care", "--json").json["ref"] == "skin-care@v1"


def test_a_gate_is_read_from_a_file_shown_and_removed(shop: Any) -> None:
    (shop.folder / "gate.yaml").write_text("require: {metric: NDCG@3, against: champion, margin: 0.02}\napprovals: 1\n")
    shop("domain", "gate", "skin-care", "gate.yaml")
    shown = shop("domain", "gate", "skin-care", "--json").json
    assert (shown["require"]["margin"], shown["require"]["confidence"], shown["approvals"]) == (0.02, 0.95, 1)
    for wrong in ("metric=NDCG", "metric=HR@1,margin=a", "metric=HR@1,sure=1", "margin=1", "metric=HR@1,confidence=95"):
        shop("domain", "gate", "skin-care", "--require", wrong, "--json", code=2)
    shown = [line.split() for line in shop("domain", "show", "skin-care").out.splitlines()]
    assert ["trainer", "sft"] in shown
    assert ["gate", "v1:", "metric=NDCG@3,"] in [words[:3] for words in shown]
    less = shop("domain", "gate", "skin-care", "--approvals", "2").err
    assert "gate v2 no longer asks for metric=NDCG@3, against=champion, margin=0.02" in less
    assert "approval" not in less.partition("hint")[0]
    shop("domain", "gate", "skin-care", "--require", "metric=HR@1")
    assert "margin=0," in shop("domain", "gate", "skin-care", "--log").out
    assert "gate v3 of skin-care is removed" in shop("domain", "gate", "skin-care", "--remove").err
    assert "has no gate" in shop("domain", "gate", "skin-care", "--remove").err
    assert shop("domain", "gate", "skin-care", "--json").json is None
    shop("adapter", "alias", "skin-care@v1", "champion")


def test_a_build_passes_the_gate_before_it_is_served(built: Any) -> None:
    trial, own = (row["id"] for row in built("build", "list", "--domain", "skin-care", "--json").json[::-1])
    built("build", "promote", own)
    built("domain", "gate", "skin-care", "--require", "metric=HR@1")
    error = refused(built, "build", "promote", trial)
    assert f"reccocktail evaluate {trial} {own} --domain skin-care" in error["hint"]
    refused(built, "build", "alias", trial, "production")
    served = refused(built, "build", "alias", "skin-care@production", "--remove")
    assert "reccocktail build alias skin-care@production --remove --override" in served["hint"]
    refused(built, "build", "policy", "skin-care", "--alias", "live")
    built("build", "promote", trial, "--override", "a trial in the open")
    event = built("log", "--kind", "build.aliased", "--limit", "1", "--json").json[0]
    assert event["detail"]["override"] == "a trial in the open"
