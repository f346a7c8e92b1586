"""`recommend`: what the served build says, to whom, out of what; against transformers and PEFT, candidate by candidate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from reccocktail.engine import recommending
from reccocktail.engine.systems import find_system
from reccocktail.tasks import DomainData, History, Item, Retriever, Score, load_template, read_domain, write_domain
from transformers import AutoModelForCausalLM, AutoTokenizer

ROLES = ("build", "spirit", "ingredient")


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, whatever the processor multiplies."""
    monkeypatch.setattr("reccocktail.engine.models.compute_dtype", lambda device: torch.float32)


@pytest.fixture
def ask(built: Any) -> Callable[..., Any]:
    """(words): the document of `recommend skin-care`."""
    return lambda *words, **how: built("recommend", "skin-care", *words, "--json", **how).json


@pytest.fixture(scope="module")
def shop(data: Path) -> DomainData:
    return read_domain(data / "skin-care")


@torch.no_grad()
def _pmi(model: Any, tokenizer: Any, history: list[str], titles: list[str], gamma: float = 1.0) -> list[float]:
    """log P of each title and the end of the turn, less the same without a history; one pass each, over all of the text."""

    def log_probability(history: list[str], title: str) -> float:
        user = f"History: {' || '.join(history)}\nWhat comes next?"
        turns = [{"role": "system", "content": "You recommend products."}, {"role": "user", "content": user}]
        start = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        begun = len(tokenizer(start)["input_ids"])
        ids = tokenizer(f"{start}{title}<|im_end|>")["input_ids"]
        found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(found[place - 1, ids[place]]) for place in range(begun, len(ids)))

    return [log_probability(history, title) - gamma * log_probability([], title) for title in titles]


def test_build_and_adapters_alone_rank_as_transformers_and_peft_score(
    built: Any, ask: Callable[..., Any], shop: DomainData, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    user = max(shop.sequences, key=lambda history: len(history.items))
    document = ask("--user", user.user_id, "-k", 1000, "--compare")
    history = [shop.items[item_id].title for item_id in user.items]
    assert [entry["title"] for entry in document["history"]] == history
    assert [each["role"] for each in document["lists"]] == list(ROLES)
    newest = built("build", "list", "--json").json[0]
    assert document["build"]["id"] == newest["id"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    merged = AutoModelForCausalLM.from_pretrained(newest["path"], dtype=torch.float32)
    fresh = [AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32) for _ in range(2)]
    alone = [PeftModel.from_pretrained(model, loras[role]) for model, role in zip(fresh, ROLES[1:], strict=True)]
    for model, found in zip([merged, *alone], document["lists"], strict=True):
        items = found["items"]
        assert {item["item_id"] for item in items} == set(shop.titled) - set(user.items)
        assert [item["rank"] for item in items] == list(range(1, len(items) + 1))
        scores = [item["score"] for item in items]
        assert scores == sorted(scores, reverse=True)
        some = items[:: len(items) // 12]
        expected = _pmi(model, tokenizer, history[-10:], [item["title"] for item in some])
        assert [item["score"] for item in some] == pytest.approx(expected, abs=2e-3)
    ranks = [{item["item_id"]: item["rank"] for item in each["items"]} for each in document["lists"]]
    for item in document["lists"][0]["items"]:
        assert item["ranks"] == {"spirit": ranks[1][item["item_id"]], "ingredient": ranks[2][item["item_id"]]}
    assert len({tuple(each) for each in ranks}) == 3, "the three systems differ"
    assert document["candidates"] | {"count": 0} == {
        "count": 0, "source": "catalogue", "catalogue": len(shop.titled), "known": 0, "repeats": 0, "retitled": 0
    }  # fmt: skip


def test_a_history_is_recognised_but_for_case_and_punctuation_and_the_rest_is_text(
    built: Any, ask: Callable[..., Any], shop: DomainData
) -> None:
    first, second = list(shop.items.values())[:2]
    words = ("--history", f"Pink Elephant || {first.title.upper()}! || {second.title}")
    document = ask(*words, "-k", 1000)
    assert document["user"] is None
    assert [entry["item_id"] for entry in document["history"]] == [None, first.item_id, second.item_id]
    assert document["history"][0]["title"] == "Pink Elephant"
    assert document["history"][1]["title"] == first.title, "as the model was trained to read it"
    (found,) = document["lists"]
    assert not {first.item_id, second.item_id} & {item["item_id"] for item in found["items"]}
    said = built("recommend", "skin-care", *words).err
    assert "'Pink Elephant'" in said
    assert first.title not in said


def test_a_user_is_asked_for_as_the_same_history_is(ask: Callable[..., Any], shop: DomainData) -> None:
    user = shop.sequences[0]
    titles = " || ".join(shop.items[item_id].title for item_id in user.items)
    assert ask("--user", user.user_id)["lists"] == ask("--history", titles)["lists"]


def test_listed_candidates_are_ranked_without_those_of_the_history(
    built: Any, ask: Callable[..., Any], shop: DomainData
) -> None:
    one, two, three, four = list(shop.items.values())[:4]
    path = built.folder / "in-stock.txt"
    path.write_text(f"{one.item_id}\n{two.title.lower()}\n\n{three.item_id}\n{two.item_id}\n")
    words = ("--history", f"{four.title} || {three.title}", "--candidates", path)
    document = ask(*words)
    assert {item["item_id"] for item in document["lists"][0]["items"]} == {one.item_id, two.item_id}
    assert document["candidates"] == {
        "count": 2, "source": "list", "catalogue": len(shop.titled), "known": 1, "repeats": 1, "retitled": 0
    }  # fmt: skip
    answer = built("recommend", "skin-care", *words)
    assert "left out of the candidates" in answer.err
    assert "as listed" in answer.err


def test_as_many_as_are_asked_for_are_retrieved(ask: Callable[..., Any], shop: DomainData) -> None:
    document = ask("--user", shop.sequences[0].user_id, "--retrieve", 7, "-k", 3)
    assert (document["candidates"]["count"], document["candidates"]["source"]) == (7, "retriever")
    assert len(document["lists"][0]["items"]) == 3
    assert ask("--user", shop.sequences[0].user_id, "--retrieve", 7, "-k", 3) == document


def test_several_histories_at_once_get_what_each_gets_alone(
    built: Any, ask: Callable[..., Any], shop: DomainData
) -> None:
    users = shop.sequences[:3]
    histories = [[shop.items[item_id] for item_id in user.items] for user in users]
    with built.registry() as registry:
        system = find_system(registry, built("build", "list", "--json").json[0]["id"])
        found = recommending.recommend_to(
            system, Retriever(shop), histories, load_template("next-title"), count=7, device="cpu"
        )
    for user, items in zip(users, found, strict=True):
        alone = ask("--user", user.user_id, "--retrieve", 7)["lists"][0]["items"]
        assert [(item.rank, item.item_id) for item in items] == [(each["rank"], each["item_id"]) for each in alone]
        assert [item.score for item in items] == pytest.approx([each["score"] for each in alone], abs=1e-3)


def test_the_catalogue_is_retrieved_from_where_it_is_large(
    ask: Callable[..., Any], shop: DomainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommending, "SMALL_CATALOGUE", len(shop.titled) - 1)
    monkeypatch.setattr(recommending, "RETRIEVED", 9)
    document = ask("--user", shop.sequences[0].user_id)
    assert (document["candidates"]["count"], document["candidates"]["source"]) == (9, "retriever")


def test_the_score_is_the_one_asked_for_or_that_of_the_builds_report(
    ask: Callable[..., Any], shop: DomainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--user", shop.sequences[0].user_id, "--retrieve", 5)
    assert (ask(*words)["score"], ask(*words)["score_from"]) == ("pmi", "default")
    lists = [ask(*words, "--score", score)["lists"] for score in ("pmi", "pmi:1", "likelihood", "constrained")]
    assert lists[0] == lists[1]
    assert lists[0] != lists[2] != lists[3]
    assert ask(*words, "--score", "pmi:0.5")["score_from"] == "request"
    monkeypatch.setattr("reccocktail.engine.systems.score_of_report", lambda report: Score("likelihood"))
    tuned = ask(*words)
    assert (tuned["score"], tuned["score_from"], tuned["lists"]) == ("likelihood", "build", lists[2])


def test_a_build_that_is_one_adapter_alone_is_said_to_be_one(
    built: Any, ask: Callable[..., Any], shop: DomainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--user", shop.sequences[0].user_id, "--retrieve", 3)
    assert ask(*words)["build"]["outcome"] is None
    monkeypatch.setattr(recommending.Recommendations, "outcome", "parent")
    assert ask(*words)["build"]["outcome"] == "parent"
    assert "one adapter alone" in built("recommend", "skin-care", *words).err


def test_another_build_is_asked_by_its_id(built: Any, ask: Callable[..., Any], shop: DomainData) -> None:
    newest, average = built("build", "list", "--json").json
    words = ("--user", shop.sequences[0].user_id, "--retrieve", 5)
    document = ask(*words, "--build", average["id"][:-1])
    assert document["build"]["id"] == average["id"]
    assert document["lists"][0]["system"] == f"build {average['id']}"
    assert document["lists"] != ask(*words)["lists"]
    built("domain", "add", "toys")
    assert newest["id"] in built("recommend", "toys", *words, "--build", newest["id"], "--json", code=2).out


def test_a_build_that_made_an_adapter_is_asked_on_its_base(
    built: Any, ask: Callable[..., Any], shop: DomainData
) -> None:
    recipe = built.folder / "as-adapter.yaml"
    parts = "method: linear\ncoefficients: {spirit: 0.5, ingredient: 0.5}\noutput: {format: %s, dtype: float32}\n"
    found = []
    for form in ("adapter", "checkpoint"):
        recipe.write_text(parts % form)
        (build,) = built("build", "request", "skin-care", "--recipe", recipe, "--wait", "--json").json
        document = ask("--user", shop.sequences[0].user_id, "--retrieve", 9, "--build", build["id"])
        found.append({item["item_id"]: item["score"] for item in document["lists"][0]["items"]})
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_a_template_that_lists_the_candidates_is_refused_where_they_do_not_fit(
    built: Any, ask: Callable[..., Any], shop: DomainData
) -> None:
    words = ("--user", shop.sequences[0].user_id)
    assert len(ask(*words, "--template", "pick-one", "--retrieve", 4)["lists"][0]["items"]) == 4
    template = built.folder / "long.yaml"
    template.write_text("name: long\nuser: '" + "much " * 3000 + "{history} {candidates}'\n")
    answer = built("recommend", "skin-care", *words, "--template", template, "--json", code=1)
    assert answer.json["error"]["code"] == "evaluation"
    assert "--retrieve" in answer.json["error"]["hint"]
    answer = built("recommend", "skin-care", *words, "--template", "top-five", "--retrieve", 3, "--json", code=1)
    assert answer.json["error"]["code"] == "task"


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("--retrieve", "5"), "usage", 2),
        (("--user", "u", "--history", "Toner"), "usage", 2),
        (("--history", " || "), "usage", 2),
        (("--user", "nobody"), "not_found", 1),
        (("--history", "Toner", "--score", "best"), "usage", 2),
        (("--history", "Toner", "--score", "auto"), "usage", 2),
        (("--history", "Toner", "--build", "ffff"), "not_found", 1),
        (("--history", "Toner", "--candidates", "absent.txt"), "data", 1),
        (("--history", "Toner", "--candidates", "wrong.txt"), "data", 1),
        (("--history", "Toner", "--candidates", "wrong.txt", "--retrieve", "4"), "usage", 2),
        (("--history", "Toner", "--template", "absent"), "task", 1),
        (("--history", "Toner", "--base", "absent"), "not_found", 1),
    ],
)
def test_what_cannot_be_asked_is_refused(built: Any, words: tuple[str, ...], code: str, exit_code: int) -> None:
    (built.folder / "wrong.txt").write_text("no-such-item\n")
    error = built("recommend", "skin-care", *words, "--json", code=exit_code).json["error"]
    assert error["code"] == code
    if code != "not_found":
        assert error["hint"]


def test_an_unknown_user_or_candidate_is_named_with_what_is_near(built: Any, shop: DomainData) -> None:
    user, item = shop.sequences[3].user_id, next(iter(shop.items))
    answer = built("recommend", "skin-care", "--user", f"{user}x", code=1)
    assert f"{user}x" in answer.err
    assert "did you mean" in answer.err
    assert "--history" in answer.err
    (built.folder / "some.txt").write_text(f"{item}x\n")
    answer = built("recommend", "skin-care", "--history", "Toner", "--candidates", "some.txt", code=1)
    assert f"'{item}x'" in answer.err
    assert f"'{item}'" in answer.err


def test_a_domain_without_data_builds_or_candidates_is_refused_with_what_to_do(built: Any, shop: DomainData) -> None:
    built("domain", "add", "toys")
    assert "no succeeded build" in built("recommend", "toys", "--history", "A", code=1).err
    built("domain", "add", "none", "--recipe", "spirit-only")
    built("build", "request", "none", "--wait")
    assert "has no data" in built("recommend", "none", "--history", "A", code=2).err
    (built.folder / "one.txt").write_text(f"{shop.titled[0]}\n")
    words = ("--history", shop.items[shop.titled[0]].title, "--candidates", "one.txt")
    assert "nothing to recommend" in built("recommend", "skin-care", *words, code=1).err


ODD = "\x1b[31mRed\x07 " + " ".join(["very long title of a toner"] * 9)


def test_eighty_columns_hold_the_tables_and_no_title_moves_the_cursor(built: Any) -> None:
    items = [
        Item("a", ODD),
        *(Item(f"b{n}", f"Cream {n} " + "for every day and night, " * 4 + "all year") for n in range(9)),
    ]
    folder = built.folder / "odd"
    write_domain(DomainData.of("odd", items, [History("ann", ("b1", "b2", "b3"))]), folder)
    built("domain", "add", "skin-care", "--data", folder)
    words = ("recommend", "skin-care", "--user", "ann", "--compare")
    answer = built(*words, columns=80)
    assert "\x1b" not in answer.out + answer.err
    assert "\x07" not in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80
    assert "…" in answer.out
    heads = [line.split() for line in answer.out.splitlines() if line.lstrip().startswith("#")]
    assert heads[0] == ["#", "title", "score", "spirit", "ingredient"]
    assert len(heads) == 2
    titles = {item["title"] for item in built(*words, "--json").json["lists"][0]["items"]}
    assert titles == {item.title for item in items} - {items[n].title for n in (2, 3, 4)}
    said = built("recommend", "skin-care", "--history", "\x1b[2J || Cream").err
    assert "\\x1b[2J" in said
    assert "\x1b" not in said


def test_the_document_says_what_the_python_api_says(built: Any, ask: Callable[..., Any], shop: DomainData) -> None:
    from reccocktail import api

    user = shop.sequences[0].user_id
    with api.open_registry(built.home, device="cpu") as registry:
        found = registry.recommend("skin-care", user=user, k=4)
        listed = registry.recommend("skin-care", history=["Toner"], candidates=list(shop.titled[:3]))
        with pytest.raises(api.NotFoundError):
            registry.recommend("skin-care", user="nobody")
    items = ask("--user", user, "-k", 4)["lists"][0]["items"]
    assert [(r.rank, r.item_id, r.title) for r in found] == [(i["rank"], i["item_id"], i["title"]) for i in items]
    assert {r.item_id for r in listed} == set(shop.titled[:3])
    assert json.dumps(items[0]["score"]) == json.dumps(found[0].score)
