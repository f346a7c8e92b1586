"""`recommend` of a personalised LoRA: who gets what out of what, against each question asked alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from reccocktail import api
from reccocktail.networks.bundle import open_bundle
from reccocktail.tasks import (
    ClickRow,
    ClickUser,
    DomainData,
    History,
    Item,
    RatedItem,
    click_question,
    read_domain,
    write_domain,
)
from reccocktail.tasks.click_scores import score_clicks
from transformers import AutoModelForCausalLM, AutoTokenizer

ITEMS = tuple(f"item-{number}" for number in range(9))  # of which the bundle knows six
ASK = ("recommend", "films", "--user")


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, whatever the processor multiplies."""
    monkeypatch.setattr("reccocktail.engine.models.compute_dtype", lambda device: torch.float32)


@pytest.fixture
def films(prepared: Any, make_bundle: Callable[..., Path], tmp_path: Path) -> Any:
    """`prepared` with films@v1, a personalised LoRA. `quiet` took an item and rated none; user-b is only known by id."""
    histories = [
        History("user-a", ITEMS[:2], {"ratings": [5.0, 1.0], "timestamps": [1, 2]}),
        History("new", ITEMS[:2], {"ratings": [1.0, 5.0], "timestamps": [1, 2]}),
        History("quiet", ITEMS[:1]),
    ]
    write_domain(DomainData.of("films", [Item(item, f"Thing {item}") for item in ITEMS], histories), tmp_path / "films")
    prepared("domain", "add", "films", "--data", tmp_path / "films")
    words = tmp_path / "words.yaml"  # whose answers are one token each of the tiny tokenizer
    words.write_text(
        yaml.safe_dump({"name": "words", "user": "{history} then {target}", "positive": "Y", "negative": "N"})
    )
    with prepared.registry() as registry:
        make_bundle(registry, tmp_path / "bundle", template=words)
        make_bundle(registry, tmp_path / "of-target", seed=4, target=True, template=words)
    prepared("adapter", "add", tmp_path / "bundle", "--base", "tiny", "--domain", "films")
    return prepared


def expected(films: Any, folder: Path, user: ClickUser, items: tuple[str, ...]) -> dict[str, float]:
    """Each item's score, asked alone with the user's LoRA."""
    with films.registry() as registry:
        checkpoint = registry.bases.folder(registry.bases.get("tiny"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    bundle, data = open_bundle(folder), read_domain(folder.parent / "films", "films")
    found = {}
    for item in items:
        row = ClickRow.candidate(user, item)
        with torch.no_grad(), bundle.net.applied(model, bundle.coefficients([row])):
            found[item] = float(
                score_clicks(model, tokenizer, [click_question(row, data.items, bundle.template, bundle.shown)])[0]
            )
    return found


@pytest.mark.parametrize("name", ["bundle", "of-target"])
def test_the_recommender_picks_and_the_language_model_ranks_with_the_users_lora(
    films: Any, tmp_path: Path, name: str
) -> None:
    if name != "bundle":
        films("adapter", "add", tmp_path / name, "--base", "tiny", "--domain", "films")
    user = ClickUser("user-a", {}, (RatedItem(ITEMS[0], 5.0, 1), RatedItem(ITEMS[1], 1.0, 2)))
    picked = open_bundle(tmp_path / name).recommender.scores([ClickRow.candidate(user, item) for item in ITEMS[2:]])
    best = [item for _, item in sorted(zip(-picked, ITEMS[2:], strict=True), key=lambda both: both[0])][:4]
    told = films(*ASK, "user-a", "--retrieve", "4", "-k", "3", "--json")
    document = told.json
    scores = expected(films, tmp_path / name, user, tuple(best))
    order = sorted(best, key=lambda item: -scores[item])
    assert [item["item_id"] for item in document["items"]] == order[:3]
    assert [item["score"] for item in document["items"]] == pytest.approx([scores[i] for i in order[:3]], abs=1e-5)
    assert document["items"][0]["title"] == f"Thing {order[0]}"
    assert len({*scores.values()}) == 4
    said = {key: document[key] for key in ("user", "known_user", "fallback", "history", "index", "adapter", "base")}
    ref = "films@v1" if name == "bundle" else "films@v2"  # the newest
    assert said == {
        "user": "user-a", "known_user": True, "fallback": False, "history": 2, "index": None, "adapter": ref, "base": "tiny"
    }  # fmt: skip
    assert document["candidates"] == {
        "count": 4, "source": "recommender", "catalogue": 9, "known": 0, "repeats": 0, "retitled": 0
    }  # fmt: skip
    assert "fall" not in told.err
    with api.open_registry(films.home, device="cpu") as registry:
        items = registry.recommend("films", user="user-a", adapter=ref, k=100)
    assert {item.item_id for item in items} == {*ITEMS[2:]}  # all that were not taken
    assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)


def test_users_without_a_rated_history_get_the_fallback_which_is_said(films: Any) -> None:
    found = {user: films(*ASK, user, "--json") for user in ("user-b", "new", "quiet", "nobody")}
    assert {user: tuple(told.json[key] for key in ("known_user", "history", "fallback")) for user, told in found.items()} == {
        "user-b": (True, 0, True), "new": (False, 2, False), "quiet": (False, 0, True), "nobody": (False, 0, True)
    }  # fmt: skip
    assert [user in told.err and "falls back" in told.err for user, told in found.items()] == [True, False, True, True]
    scores = {user: {item["item_id"]: item["score"] for item in told.json["items"]} for user, told in found.items()}
    assert [len(each) for each in scores.values()] == [9, 7, 8, 9]
    assert {item: scores["nobody"][item] for item in scores["quiet"]} == pytest.approx(scores["quiet"], abs=1e-6)
    assert scores["user-b"] != pytest.approx(scores["nobody"], abs=1e-6)
    best = found["nobody"].json["items"][0]
    shown = films(*ASK, "nobody", "-k", "2").out
    assert [word in shown for word in (best["title"], f"{best['score']:.3f}")] == [True, True]


def test_listed_candidates_are_ranked_without_those_that_the_user_took(films: Any) -> None:
    (films.folder / "in-stock.txt").write_text(f"{ITEMS[0]}\n{ITEMS[7]}\nthing {ITEMS[3]}\n{ITEMS[7]}\n")
    told = films(*ASK, "new", "--candidates", "in-stock.txt", "--json")
    assert {item["item_id"] for item in told.json["items"]} == {ITEMS[3], ITEMS[7]}
    assert told.json["candidates"] == {
        "count": 2, "source": "list", "catalogue": 9, "known": 1, "repeats": 1, "retitled": 0
    }  # fmt: skip
    assert "left out of the candidates" in told.err


def test_what_wants_a_plain_lora_names_a_command_that_asks_the_bundle(films: Any, loras: dict[str, Path]) -> None:
    films("adapter", "add", loras["ingredient"], "--base", "tiny", "--domain", "films")
    assert films(*ASK, "user-a", "--json", code=1).json["error"]["code"] == "not_found"  # its build is not made yet
    refused = films("merge", "tiny", "-a", "films@v1=1", "-o", "merged", "--json", code=1).json["error"]
    (command,) = re.findall(r"`reccocktail (recommend [^`]*)`", refused["hint"])
    assert films(*shlex.split(command.replace("USER", "user-a")), "--json").json["adapter"] == "films@v1"
    films("adapter", "archive", "films@v2")
    assert films(*ASK, "user-a", "--json").json["adapter"] == "films@v1"


def test_what_a_personalised_lora_cannot_be_asked_is_refused_with_what_to_do(films: Any, tmp_path: Path) -> None:
    films("domain", "add", "without-data")
    films("adapter", "add", tmp_path / "bundle", "--base", "tiny", "--domain", "without-data")
    (films.folder / "taken.txt").write_text(f"{ITEMS[0]}\n")
    for code, exit_code, words in (
        ("usage", 2, ("films", "--history", "Thing item-1")),
        ("usage", 2, ("films", "--user", "new", "--compare")),
        ("usage", 2, ("films", "--user", "new", "--score", "pmi")),
        ("usage", 2, ("films", "--user", "new", "--template", "next-title")),
        ("usage", 2, ("films", "--user", "new", "--adapter", "films", "--build", "b1")),
        ("usage", 2, ("films", "--user", "new", "--adapter", "without-data@v1")),
        ("usage", 2, ("without-data", "--user", "new")),
        ("data", 1, ("films", "--user", "new", "--candidates", "taken.txt")),
        ("wrong_kind", 1, ("skin-care", "--user", "new", "--adapter", "skin-care@v1")),
        ("not_found", 1, ("absent", "--user", "new")),
        ("not_found", 1, ("films", "--user", "new", "--base", "absent")),
    ):
        error = films("recommend", *words, "--json", code=exit_code).json["error"]
        assert error["code"] == code, words
        assert error["hint"] or code == "not_found", words
