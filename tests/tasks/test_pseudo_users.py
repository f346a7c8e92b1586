"""Questions made of a catalogue alone: who is drawn, what is offered, and that nobody's history is looked at."""

from __future__ import annotations

import re

import pytest
from reccocktail.tasks import (
    DataError,
    DomainData,
    History,
    Item,
    Retriever,
    generate,
    load_template,
    open_question,
    pseudo_questions,
    read_domain,
    read_open_questions,
    write_questions,
)
from reccocktail.tasks.tfidf import words

TEMPLATE = load_template("next-title")


@pytest.fixture(scope="module")
def shop() -> DomainData:
    return generate("kitchen", users=20)


def likeness(one: Item, others: list[Item]) -> set[str]:
    return set(words(one)) & {word for other in others for word in words(other)}


def test_pseudo_users_follow_from_the_seed_and_the_catalogue_whoever_took_what(shop):
    catalogue = DomainData.of("nobody", shop.items.values(), [])
    asked = pseudo_questions(shop, TEMPLATE, users=12)
    assert asked == pseudo_questions(catalogue, TEMPLATE, users=12)
    assert asked[:5] == pseudo_questions(catalogue, TEMPLATE, users=5)
    assert asked != pseudo_questions(catalogue, TEMPLATE, users=12, seed=43)
    assert len({question.history for question in asked}) == 12


def test_half_of_the_candidates_are_alike_and_none_reads_like_the_history_or_another(shop):
    for question in pseudo_questions(shop, TEMPLATE, users=20, n_negatives=9):
        (taken,) = (item for item in shop.items.values() if item.title == question.history[-1])
        offered = [shop.items[item_id] for item_id in question.candidates]
        assert [item.title for item in offered] == list(question.titles)
        read = [" ".join(re.findall(r"\w+", title.casefold())) for title in (*question.titles, *question.history)]
        assert len(set(read)) == 11
        there = sum(bool(likeness(item, [taken])) for item in shop.items.values()) - 1
        assert sum(bool(likeness(item, [taken])) for item in offered) >= min(5, there)


def test_candidates_are_in_random_order(shop):
    """An adapter that only learned to take the first candidate would be told by it otherwise."""
    retriever, titles = Retriever(shop, taken=()), {item.title: item for item in shop.items.values()}
    asked = pseudo_questions(shop, TEMPLATE, users=20)
    places = [q.candidates.index(retriever.alike([titles[q.history[-1]]], 1)[0].item_id) for q in asked]
    assert len(set(places)) > 5
    assert sum(place >= 5 for place in places) >= 5


def test_a_longer_history_has_what_is_most_like_the_item_which_is_the_newest(shop):
    short = pseudo_questions(shop, TEMPLATE, users=10)
    long = pseudo_questions(shop, TEMPLATE, users=10, history=3)
    assert [question.history[-1] for question in long] == [question.history[0] for question in short]
    titles = {item.title: item for item in shop.items.values()}
    assert max(len(question.history) for question in long) == 3
    for question in long:
        assert all(likeness(titles[title], [titles[question.history[-1]]]) for title in question.history)


def test_an_item_that_is_like_no_other_is_a_history_alone():
    items = [Item("odd", "Zither"), *(Item(f"n{n}", f"Pen {n:02}") for n in range(8))]
    data = DomainData.of("shop", items, [History("ann", ("odd", "n1", "n2"))])
    found = {q.history[-1]: q for q in pseudo_questions(data, TEMPLATE, users=9, history=3, n_negatives=3)}
    assert found["Zither"].history == ("Zither",)
    assert len(found["Zither"].candidates) == 4
    assert len(found["Pen 01"].history) == 3


def test_few_titles_make_few_pseudo_users_and_too_few_an_error():
    items = [Item("a", "Pen"), Item("b", "PEN!"), Item("c", "Pad"), Item("d", "Ink"), Item("e", "")]
    data = DomainData.of("shop", items, [])
    assert len(pseudo_questions(data, TEMPLATE, users=50, n_negatives=1)) == 3
    with pytest.raises(DataError, match="only 2 titles"):
        pseudo_questions(data, TEMPLATE, users=50, n_negatives=2)
    assert pseudo_questions(DomainData.of("empty", [], []), TEMPLATE, users=3) == []


def test_open_questions_are_read_as_they_were_written(shop, tmp_path):
    asked = pseudo_questions(shop, TEMPLATE, users=4, history=2)
    write_questions(tmp_path / "asked.json", asked)
    assert read_open_questions(tmp_path / "asked.json") == asked
    one = open_question(TEMPLATE, [Item("a", "Pen")], [Item("b", "Pad")])
    assert "target_index" not in (tmp_path / "asked.json").read_text()
    write_questions(tmp_path / "one.json", [one])
    assert read_open_questions(tmp_path / "one.json") == [one]


def test_an_empty_file_of_sequences_says_that_there_are_no_users(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "Pen"}\n{"item_id": "b", "title": "Pad"}\n')
    with pytest.raises(DataError) as refused:
        read_domain(tmp_path)
    assert "empty sequences.jsonl" in (refused.value.hint or "")
    (tmp_path / "sequences.jsonl").touch()
    data = read_domain(tmp_path)
    assert (data.sequences, data.titled) == ((), ("a", "b"))
