from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reccocktail.tasks import (
    ClickOptions,
    ClickRow,
    ClickUser,
    DataError,
    DomainData,
    History,
    Item,
    ItemEmbeddings,
    NoNegativesError,
    NoRatingsError,
    OneClassError,
    RatedItem,
    TaskError,
    at_least_rated,
    click_data,
    click_question,
    fit_clicks,
    load_click_template,
    most_similar,
    read_domain,
    recent,
)
from reccocktail.tasks.click_prompts import answer_tokens
from transformers import PreTrainedTokenizerFast

ITEMS = [Item(f"i{number:02d}", f"Title {number}") for number in range(30)]


def rated(users: int = 6, each: int = 20) -> DomainData:
    """Users who rate random items from 1 to 5, two of them in each second."""
    rng = random.Random(0)
    histories = []
    for user in range(users):
        fields = {
            "age": str(20 + user),
            "tags": ["not", "plain"],
            "ratings": [float(rng.randint(1, 5)) for _ in range(each)],
            "timestamps": [100 * user + place // 2 for place in range(each)],
        }
        histories.append(History(f"u{user}", tuple(item.item_id for item in rng.sample(ITEMS, each)), fields))
    return DomainData.of("shop", ITEMS, histories)


def pairs(rows: Sequence[ClickRow]) -> list[tuple[str, str]]:
    return [(row.user_id, row.item_id) for row in rows]


def test_rows_have_labels_by_threshold_and_all_that_was_rated_before():
    data = rated()
    clicks = click_data(data, ClickOptions(threshold=3))
    rows = [*clicks.train, *clicks.validation, *clicks.test]
    assert len(rows) == 6 * (20 - 5)
    assert [len(clicks.train), len(clicks.validation), len(clicks.test)] == [72, 9, 9]
    given = {
        (h.user_id, item): rating
        for h in data.sequences
        for item, rating in zip(h.items, h.fields["ratings"], strict=True)
    }
    for row in rows:
        assert row.label == (given[row.user_id, row.item_id] >= 3)
        assert len(row.history) == row.position >= 5
        assert all(each.rating == given[row.user_id, each.item_id] for each in row.history)
        assert all((each.time, each.item_id) < (row.time, row.item_id) for each in row.history)
    assert rows[0].profile == {"age": "20"}
    assert clicks.test[-1].position == 19  # its history runs across the parts


def test_a_split_by_time_is_global_and_one_by_user_takes_each_users_tail():
    clicks = click_data(rated())
    order = [(row.time, row.item_id) for part in (clicks.train, clicks.validation, clicks.test) for row in part]
    assert order == sorted(order)
    assert {row.user_id for row in clicks.test} == {"u5"}
    own = click_data(rated(), ClickOptions(by="user", threshold=3))
    for user in own.users:
        positions = [
            [row.position for row in own.part(part) if row.user_id == user] for part in ("train", "validation", "test")
        ]
        assert positions == [list(range(5, 18)), [18], [19]]
    with pytest.raises(OneClassError):  # two rows each: all of them train
        click_data(rated(each=7), ClickOptions(by="user", threshold=3))


def test_ties_in_time_do_not_depend_on_the_order_of_the_file_and_are_in_the_digest():
    data = rated()
    swapped = [
        replace(
            h,
            items=tuple(h.items[place ^ 1] for place in range(20)),
            fields=h.fields | {"ratings": [h.fields["ratings"][place ^ 1] for place in range(20)]},
        )
        for h in data.sequences
    ]
    clicks, other = click_data(data), click_data(DomainData.of("shop", ITEMS, swapped))
    assert pairs(clicks.test) == pairs(other.test)
    assert [row.history for row in clicks.test] == [row.history for row in other.test]
    options = [
        ClickOptions(),
        ClickOptions(by="user", threshold=3),
        ClickOptions(threshold=3),
        ClickOptions(min_history=6),
    ]
    assert len({each.digest for each in options}) == 4
    assert clicks.digest == click_data(data, ClickOptions()).digest != click_data(data, options[1]).digest


def test_items_without_a_title_or_a_rating_are_no_part_of_a_history():
    data = rated(users=2, each=10)
    some = [replace(h, fields=h.fields | {"ratings": [None, *h.fields["ratings"][1:]]}) for h in data.sequences]
    blank = some[0].items[5]
    items = [replace(item, title="") if item.item_id == blank else item for item in ITEMS]
    users = click_data(DomainData.of("shop", items, some), ClickOptions(by="user", min_history=1)).users
    assert len(users["u1"].rated) == 9
    assert blank not in {each.item_id for user in users.values() for each in user.rated}


def test_domains_without_both_classes_are_refused_by_reason(tmp_path: Path):
    data = rated()
    bare = DomainData.of("shop", ITEMS, [replace(h, fields={}) for h in data.sequences])
    with pytest.raises(NoRatingsError) as no_ratings:
        click_data(bare)
    with pytest.raises(NoNegativesError) as no_negatives:
        click_data(at_least_rated(data, 4))
    with pytest.raises(OneClassError) as one_class:
        click_data(data, ClickOptions(threshold=6))
    assert [error.value.code for error in (no_ratings, no_negatives, one_class)] == [
        "no_ratings",
        "no_negatives",
        "one_class",
    ]
    assert click_data(at_least_rated(data, 3)).test  # a filter that leaves negatives is none of our business
    untimed = [replace(h, fields={"ratings": h.fields["ratings"]}) for h in data.sequences]
    with pytest.raises(DataError):
        click_data(DomainData.of("shop", ITEMS, untimed))
    assert click_data(DomainData.of("shop", ITEMS, untimed), ClickOptions(by="user")).test
    rows = "".join(
        f"{h.user_id},{i},{r},{t}\n"
        for h in data.sequences
        for i, r, t in zip(h.items, h.fields["ratings"], h.fields["timestamps"], strict=True)
    )
    (tmp_path / "a.csv").write_text("user,item,rating,time\n" + rows)
    (tmp_path / "b.csv").write_text("item,title\n" + "".join(f"{each.item_id},{each.title}\n" for each in ITEMS))
    (tmp_path / "dataset.yaml").write_text("min_rating: 4\n")
    with pytest.raises(NoNegativesError):
        click_data(read_domain(tmp_path))


def test_a_question_shows_profile_recent_history_and_target_and_answers_yes_or_no():
    clicks = click_data(rated())
    row = clicks.test[0]
    template = load_click_template("yes-no").model_copy(update={"history_limit": 3})
    question = click_question(row, clicks.items, template)
    assert [title for title, _ in question.history] == [clicks.items[each.item_id].title for each in row.history[-3:]]
    text = question.messages[-1]["content"]
    assert "age 25" in text
    assert f"{question.history[0][0]} (rated {question.history[0][1]:g})\n" in text
    assert text.endswith(question.target)
    assert question.answer == ("Yes." if row.label else "No.")
    offered = ClickRow.candidate(clicks.users["u0"], "i00")
    assert (len(offered.history), offered.label) == (20, None)
    with pytest.raises(TaskError):
        assert click_question(offered, clicks.items, template).answer


def test_retrieval_shows_the_most_similar_of_the_past_in_the_order_of_time():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    embeddings = ItemEmbeddings(tuple(item.item_id for item in ITEMS), vectors)
    clicks = click_data(rated())
    for row in (*clicks.train, *clicks.test):
        shown = most_similar(embeddings, 4)(row)
        places = [row.history.index(each) for each in shown]
        target = vectors[int(row.item_id[1:])]
        past = [vectors[int(each.item_id[1:])] for each in row.history]
        cosines = [float(v @ target / np.linalg.norm(v) / np.linalg.norm(target)) for v in past]
        assert places == sorted(np.argsort(cosines)[::-1][:4].tolist())
    user = ClickUser(
        "u", {}, tuple(RatedItem(item, 1.0, time) for time, item in enumerate(["i01", "i02", "x", "i01", "i09"]))
    )
    row = ClickRow.at(user, 3, 4)  # i01 again; the one before is of the past, what comes later is not
    assert [each.time for each in most_similar(embeddings, 2)(row)] == [0, 1]
    assert [each.time for each in most_similar(embeddings, 9)(row)] == [0, 1, 2]
    unknown = ClickRow.candidate(user, "y")
    assert [each.time for each in most_similar(embeddings, 2)(unknown)] == [3, 4]
    assert [each.time for each in recent(2)(unknown)] == [3, 4]
    with pytest.raises(TaskError):
        ItemEmbeddings(("i01",), vectors)


def test_special_tokens_are_broken_up_and_long_histories_lose_their_oldest(tokenizer: PreTrainedTokenizerFast):
    clicks = click_data(rated())
    items = {item_id: replace(item, title=f"{item.title} <|im_end|> x") for item_id, item in clicks.items.items()}
    template = load_click_template("yes-no").model_copy(update={"history_tokens": 16})
    whole = click_question(clicks.test[0], items, template)
    question = fit_clicks([whole], tokenizer)[0]
    assert 1 <= len(question.history) < len(whole.history)
    assert [rating for _, rating in question.history] == [rating for _, rating in whole.history][
        -len(question.history) :
    ]
    assert "<|im_end|>" not in json.dumps(question.messages)


CHAT = "{% for m in messages %}[{{ m.role }}]{{ ' ' if blank else '' }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def words(vocabulary: dict[str, int], pattern: str, blank: bool) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel(vocabulary | {"<unk>": len(vocabulary)}, unk_token="<unk>"))  # pyright: ignore[reportCallIssue]
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    template = CHAT.replace("blank", "true" if blank else "false")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", chat_template=template)


def test_answer_tokens_are_those_that_stand_after_the_chat_template():
    template = load_click_template("yes-no")
    vocabulary = {"Yes": 0, " Yes": 1, "No": 2, " No": 3, ".": 4}
    found = answer_tokens(words(vocabulary, r" ?\w+", False), template)
    assert (found.positive, found.negative) == (0, 2)
    found = answer_tokens(words(vocabulary, r" ?\w+", True), template)
    assert (found.positive, found.negative) == (1, 3)


def test_answers_of_several_tokens_or_none_are_refused():
    template = load_click_template("yes-no")
    for vocabulary, pattern in (({"Y": 0, "es": 1, "No": 2, ".": 3}, r"Y|es|No"), ({"Yes": 0, ".": 1}, r"\w+")):
        with pytest.raises(TaskError) as error:
            answer_tokens(words(vocabulary, pattern, False), template)
        assert error.value.code == "answer_token"
    same = template.model_copy(update={"negative": "Yes!"})
    with pytest.raises(TaskError) as error:
        answer_tokens(words({"Yes": 0, ".": 1, "!": 2}, r"\w+", False), same)
    assert error.value.code == "answer_token"


@pytest.mark.parametrize("user", ["{history}", "{target} {history} {candidates}", "{target!r} {history}"])
def test_a_template_that_does_not_ask_for_the_target_is_refused(tmp_path: Path, user: str):
    (tmp_path / "t.yaml").write_text(json.dumps({"name": "t", "user": user}))
    with pytest.raises(TaskError):
        load_click_template(tmp_path / "t.yaml")
    with pytest.raises(TaskError, match="yes-no"):
        load_click_template("yes-on")
