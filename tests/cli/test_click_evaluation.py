"""`evaluate --task clicks` on a small shop with ratings, and what is recorded of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from reccocktail.cli import evaluation_records
from reccocktail.engine import click_scorers, figures, models
from reccocktail.engine.systems import find_system
from reccocktail.networks import din
from reccocktail.networks.bundle import BundleOrigin, Retrieval, open_bundle, write_bundle
from reccocktail.networks.click_fields import ClickVocabulary
from reccocktail.networks.gated_lora import GatedLora, GatedLoraConfig
from reccocktail.publishing.measurements import evaluations_of
from reccocktail.tasks import (
    ClickOptions,
    ClickScores,
    DomainData,
    History,
    Item,
    click_data,
    click_question,
    click_questions,
    load_click_template,
    paired_click_difference,
    read_domain,
    recent,
    roc_auc,
    write_domain,
)
from reccocktail.tasks.click_baselines import score_by_means
from reccocktail.tasks.click_scores import score_clicks
from transformers import AutoModelForCausalLM, AutoTokenizer

CLICKS = ("--domain", "shop", "--task", "clicks", "--split", "user")
SMALL = din.DinOptions(embedding=4, hidden=8, attention=4, length=5, epochs=1, layers=1)


def shop(folder: Path, *, dataset: str = "", rating: float | None = None) -> Path:
    rng = random.Random(3)
    items = [Item(f"i{number:02d}", f"Title {number}") for number in range(20)]
    histories = []
    for user in range(8):
        taken = rng.sample(items, 14)
        ratings = [rng.choice([1.0, 2.0, 4.0, 5.0]) if rating is None else rating for _ in taken]
        histories.append(
            History(f"u{user}", tuple(i.item_id for i in taken), {"ratings": ratings, "timestamps": list(range(14))})
        )
    write_domain(DomainData.of("shop", items, histories), folder)
    if dataset:
        (folder / "dataset.yaml").write_text(dataset)
    return folder


@pytest.fixture
def words(tiny_base: Path, tmp_path: Path) -> Path:
    """A template whose answers are one token each of the tiny model's tokenizer."""
    path = tmp_path / "words.yaml"
    path.write_text(
        yaml.safe_dump({"name": "words", "user": "{history} then {target}", "positive": "Y", "negative": "N"})
    )
    return path


@pytest.fixture
def rated(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As `prepared`, with a domain `shop` that has ratings, and a DIN that is quickly trained."""
    monkeypatch.setattr(
        click_scorers, "train_din", lambda clicks, progress: din.train_din(clicks, SMALL, progress=progress)
    )
    prepared("domain", "add", "shop", "--data", shop(tmp_path / "shop"))
    return prepared


def test_systems_are_compared_on_the_same_rows_and_recorded(
    rated: Any, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", "item-mean", "din", "tiny", "skin-care", *CLICKS, "--template", words)
    first = rated(*command, "--against", "item-mean", "--json")
    found = first.json["systems"]
    clicks = click_data(read_domain(tmp_path / "shop", "shop"), ClickOptions(by="user"))
    asked = click_questions(clicks, "test", load_click_template(words))
    expected = asked.scored(score_by_means(clicks, clicks.test, "item-mean"))
    assert found[0]["scores"] == expected.scores.tolist()
    assert found[0]["metrics"]["roc_auc"]["mean"] == roc_auc(expected)
    assert [each["mode"] for each in found] == ["item-mean", "din", "answers", "answers"]
    assert found[2]["scores"] != found[3]["scores"]
    model = ClickScores(expected.labels, np.array(found[2]["scores"]), expected.users)
    difference = paired_click_difference(model, expected, "log_loss")
    assert found[2]["against"]["log_loss"] == {
        "mean": difference.mean, "low": difference.low, "high": difference.high, "n": difference.n
    }  # fmt: skip
    assert first.json["task"]["kind"] == "clicks"
    assert (found[0]["rows"], found[0]["users"]) == (len(clicks.test), 8)

    monkeypatch.setattr(figures, "load_model", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(click_scorers, "train_din", lambda *_, **__: pytest.fail("DIN was trained"))
    assert rated(*command, "--against", "item-mean", "--json").json == first.json
    rows = rated("evaluation", "list", "--split", "clicks-user", "--sort", "roc_auc", "--json").json
    assert {row["id"] for row in rows} == {each["evaluation"] for each in found}
    pair = rated("evaluation", "compare", "tiny", "item-mean", "--domain", "shop", "--json").json
    assert pair["differences"] == found[2]["against"]
    shown = rated("evaluation", "show", found[3]["evaluation"], "--ranks", "--json").json
    assert (shown["row_scores"], shown["row_labels"]) == (found[3]["scores"], found[3]["labels"])
    assert found[3]["label"] in rated("evaluation", "list", columns=120).out
    with rated.registry() as registry:
        own = find_system(registry, "skin-care").weights
        (card,) = evaluations_of(registry, {own: "skin-care"}, own)
    assert set(card.rows["skin-care"]) == {"roc_auc", "log_loss", "accuracy"}
    assert card.asked is not None
    assert (card.asked.split, card.users) == ("clicks-user", 8)
    table = rated(*command, "--against", "item-mean", columns=160).out
    assert "minus item-mean" in table
    assert "roc_auc" in table


def test_a_bundle_reads_each_row_with_its_users_own_lora_and_only_rows_it_has_not_learned_from(
    rated: Any, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_cpu_has_bf16", lambda: False)
    clicks = click_data(read_domain(tmp_path / "shop", "shop"), ClickOptions(by="user"))
    bundle = tmp_path / "bundle"
    with rated.registry() as registry:
        base = registry.bases.get("tiny")
        checkpoint = registry.bases.folder(base)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    vocabulary = ClickVocabulary.of(clicks.train, clicks.items)
    net = gated(model, SMALL.hidden)
    origin = BundleOrigin(base.digest, load_click_template(words), clicks.options, Retrieval(count=2), 1)
    write_bundle(bundle, origin, net, din.FrozenDin(din.Din(vocabulary, SMALL), vocabulary, clicks.digest))
    told, plain = rated("evaluate", f"{bundle}/", "tiny", *CLICKS, "--template", words, "--json").json["systems"]
    assert told["mode"] == "personalised"
    c = open_bundle(bundle).recommender.user_vectors(clicks.test)
    for place in (0, len(clicks.test) - 1):
        asked = [click_question(clicks.test[place], clicks.items, load_click_template(words), recent(2))]
        with net.applied(model, net.coefficients(c[place : place + 1])):
            alone = score_clicks(model, tokenizer, asked)[0]
        assert told["scores"][place] == pytest.approx(alone, abs=1e-4)
        assert told["scores"][place] != pytest.approx(plain["scores"][place], abs=1e-3)
    rated("adapter", "add", bundle, "--base", "tiny", "--domain", "shop")
    (again,) = rated("evaluate", "shop@v1", *CLICKS, "--template", words, "--json").json["systems"]
    assert (again["mode"], again["scores"]) == ("personalised", told["scores"])
    (row,) = rated("evaluation", "list", "--system", "shop@v1", "--json").json
    assert (row["id"], row["split"]) == (again["evaluation"], "clicks-user")
    words.write_text(words.read_text().replace("name: words", "name: renamed"))  # which changes no word of a question
    assert rated("evaluate", "shop@v1", *CLICKS, "--template", words, "--json").json["systems"] == [again]
    monkeypatch.setattr(click_scorers, "train_din", lambda *_, **__: pytest.fail("DIN was trained"))
    for command in (
        ("--domain", "shop", "--task", "clicks", "--split", "time", "--template", words),
        ("--domain", "shop", "--task", "clicks", "--split", "user", "--threshold", "3", "--template", words),
        ("--domain", "shop", "--task", "clicks", "--split", "user"),
        (*CLICKS, "--min-history", "9", "--template", words),
        ("--domain", "shop"),
    ):
        refused = rated("evaluate", "din", "shop@v1", *command, "--json", code=2).json["error"]
        assert (refused["code"], bool(refused["hint"])) == ("usage", True)
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(manifest | {"base": f"sha256:{'0' * 64}"}))
    assert rated("evaluate", f"{bundle}/", *CLICKS, "--json", code=1).json["error"]["code"] == "base_mismatch"


def gated(model: Any, width: int) -> GatedLora:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = GatedLora.beside(model, GatedLoraConfig(metas=3, rank=2, width=width, temperature=0.1)).eval()
        for b in net.b:
            b.data.normal_(std=0.5)
    return net.requires_grad_(False)


def test_a_sample_of_rows_is_the_head_of_a_larger_one_and_not_compared_with_another(rated: Any) -> None:
    small, large = (
        rated("evaluate", "item-mean", "item-user-mean", *CLICKS, "--limit", limit, "--json").json["systems"]
        for limit in (6, 8)
    )
    assert large[0]["labels"][:6] == small[0]["labels"]
    refused = rated("evaluation", "compare", small[0]["evaluation"], large[1]["evaluation"], "--json", code=2)
    assert "limit 6 / 8" in refused.json["error"]["message"]
    rated("evaluate", "popularity", "--domain", "skin-care", "--limit", "6")
    newest = rated("evaluation", "list", "--system", "popularity", "--json").json[0]["id"]
    refused = rated("evaluation", "compare", small[0]["evaluation"], newest, "--json", code=2)
    assert "task clicks / none" in refused.json["error"]["message"]


def test_rows_with_a_shorter_history_than_wanted_are_left_out(rated: Any) -> None:
    clicks = ("--domain", "shop", "--task", "clicks", "--split", "time", "--json")
    many, few = (rated("evaluate", "item-mean", *clicks, "--min-history", least).json["systems"][0] for least in (1, 6))
    assert many["rows"] > few["rows"] > 0
    assert many["task"]["digest"] != few["task"]["digest"]


def test_damaged_clicks_are_measured_again_and_refused_by_name(rated: Any) -> None:
    (found,) = rated("evaluate", "item-mean", *CLICKS, "--json").json["systems"]
    row = rated("evaluation", "show", found["evaluation"], "--json").json
    file = rated.home / "store" / "trees" / row["ranks"].removeprefix("sha256:") / "clicks.safetensors"
    data = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused = rated("evaluation", "show", found["evaluation"], "--ranks", "--json", code=1)
    assert refused.json["error"]["code"] == "store"
    assert rated("evaluate", "item-mean", *CLICKS, "--json").json["systems"][0]["scores"] == found["scores"]


def test_what_cannot_be_clicks_is_refused_with_what_to_do(rated: Any, tmp_path: Path, words: Path) -> None:
    rated("domain", "add", "liked", "--data", shop(tmp_path / "liked", dataset="min_rating: 4\n"))
    rated("domain", "add", "all-five", "--data", shop(tmp_path / "all-five", rating=5.0))
    words.write_text(words.read_text().replace("positive: Y", "positive: unheard of"))
    clicks = ("--task", "clicks", "--split", "user", "--json")
    for code, exit_code, command in (
        ("no_ratings", 1, ("item-mean", "--domain", "skin-care", *clicks)),
        ("no_negatives", 1, ("item-mean", "--domain", "liked", *clicks)),
        ("one_class", 1, ("item-mean", "--domain", "all-five", *clicks)),
        ("one_class", 1, ("item-mean", "--domain", "shop", *clicks, "--limit", "1")),
        ("answer_token", 1, ("tiny", "--domain", "shop", *clicks, "--template", words)),
        ("usage", 2, ("popularity", "--domain", "shop", *clicks)),
        ("usage", 2, ("din", "--domain", "shop", "--json")),
        ("usage", 2, ("item-mean", "--domain", "shop", "--task", "clicks", "--split", "cold", "--json")),
        ("usage", 2, ("popularity", "--domain", "shop", "--split", "user", "--json")),
        ("usage", 2, ("item-mean", "--domain", "shop", *clicks, "--negatives", "4")),
        ("usage", 2, ("item-mean", "--domain", "shop", *clicks, "--threshold", "nan")),
        ("usage", 2, ("popularity", "--domain", "shop", "--threshold", "4", "--json")),
        ("usage", 2, ("popularity", "--domain", "shop", "--min-history", "4", "--json")),
        ("usage", 2, ("item-mean", "--domain", "shop", *clicks, "--against", "din")),
    ):
        error = rated("evaluate", *command, code=exit_code).json["error"]
        assert error["code"] == code, command
        assert error["hint"], command


@pytest.mark.parametrize(("metric", "low", "high"), [("log_loss", -0.2, -0.1), ("roc_auc", 0.1, 0.2)])
def test_of_log_loss_less_is_better(metric: str, low: float, high: float) -> None:
    assert evaluation_records._verdict(metric, low, high) == "A is better"
    assert evaluation_records._verdict(metric, -high, -low) == "B is better"
