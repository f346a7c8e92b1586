from __future__ import annotations

import hashlib
import json
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.tasks import DomainData, Example, History, Item, TaskError, examples, sample

ITEM_IDS = [f"i{number}" for number in range(12)]


@st.composite
def domains(draw: st.DrawFn) -> DomainData:
    items = [Item(item_id, draw(st.sampled_from(["", "A Title"]))) for item_id in ITEM_IDS]
    taken = st.lists(st.sampled_from(ITEM_IDS), max_size=8).map(tuple)
    users = draw(st.lists(taken, max_size=6))
    return DomainData.of("shop", items, [History(f"u{number}", items) for number, items in enumerate(users)])


def test_the_last_item_is_the_test_target_and_the_one_before_the_validation_target(domain):
    data = domain({"ann": ["i01", "i02", "i03", "i04", "i05"]})
    assert examples(data, "test") == [Example("ann", ("i01", "i02", "i03", "i04"), "i05")]
    assert examples(data, "validation") == [Example("ann", ("i01", "i02", "i03"), "i04")]
    assert examples(data, "train") == [Example("ann", ("i01",), "i02"), Example("ann", ("i01", "i02"), "i03")]


def test_a_target_needs_a_history(domain):
    data = domain({"ann": ["i01"], "bob": ["i01", "i02"], "cyd": []})
    assert examples(data, "test") == [Example("bob", ("i01",), "i02")]
    assert examples(data, "validation") == examples(data, "train") == []


def test_a_cold_target_occurs_in_nobodys_training_or_validation_positions(domain):
    data = domain({"ann": ["i01", "i02", "i03"], "bob": ["i03", "i04", "i05"], "cyd": ["i01", "i02", "i05"]})
    assert [example.user_id for example in examples(data, "cold")] == ["bob", "cyd"]


def test_an_unknown_split_is_refused(domain):
    with pytest.raises(TaskError, match="no split is called 'dev'"):
        examples(domain({"ann": ["i01", "i02"]}), "dev")


@given(domains())
def test_every_later_position_is_a_target_of_exactly_one_split(data: DomainData):
    splits = [examples(data, split) for split in ("train", "validation", "test")]
    positions = [(example.user_id, example.position) for split in splits for example in split]
    assert sorted(positions) == [(u, p) for u, taken in sorted(data.by_user.items()) for p in range(1, len(taken))]
    for split, later in zip(splits, (2, 1, 0), strict=True):
        for example in split:
            taken = data.by_user[example.user_id]
            assert example.position <= len(taken) - 1 - later
            assert (*example.history, example.target) == taken[: example.position + 1]


@given(domains())
def test_what_has_no_title_is_neither_shown_nor_asked_for(data: DomainData):
    for example in examples(data, "train") + examples(data, "validation") + examples(data, "test"):
        assert all(data.items[item_id].title for item_id in (*example.history, example.target))


@given(domains(), st.integers(0, 9), st.integers(), st.randoms(use_true_random=False))
def test_a_sample_depends_on_the_seed_alone(data: DomainData, limit: int, seed: int, rng: random.Random):
    every = examples(data, "train")
    shuffled = rng.sample(every, len(every))
    drawn = sample(every, limit, seed)
    assert drawn == sample(shuffled, limit, seed) == sample(every, limit + 1, seed)[:limit]
    assert len(set(drawn)) == min(limit, len(every))


@given(st.text(), st.integers(0, 300), st.integers())
def test_a_sample_is_in_the_order_of_a_hash_of_seed_user_and_position(user_id: str, number: int, seed: int):
    """Written down, because the digests of tasks say nothing of it: another order would silently be another sample."""
    every = [Example.at(user_id, ("i01",) * (number + 5), position) for position in range(number, number + 5)]

    def rank(example: Example) -> str:
        return hashlib.sha256(json.dumps([seed, user_id, example.position]).encode()).hexdigest()

    assert sample(every, 3, seed) == sorted(every, key=rank)[:3]


def test_another_seed_samples_otherwise(domain):
    data = domain({f"u{number}": ["i01", "i02"] for number in range(50)})
    assert sample(examples(data, "test"), 10, 1) != sample(examples(data, "test"), 10, 2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(ITEM_IDS)), max_size=40))
def test_nothing_that_is_asked_for_later_is_shown_earlier(rows: list[tuple[str, str]]):
    """Every interaction is told from the others by its time, and no example shows one as late as its target."""
    items = [Item(f"{number}", f"Title {number}") for number in range(len(rows))]
    users = {user: tuple(str(number) for number, row in enumerate(rows) if row[0] == user) for user in "abc"}
    data = DomainData.of("shop", items, [History(user, taken) for user, taken in users.items()])
    targets = {
        split: {(e.user_id, e.target) for e in examples(data, split)} for split in ("train", "validation", "test")
    }
    for split, later in ("train", ("validation", "test")), ("validation", ("test",)), ("test", ()):
        for example in examples(data, split):
            assert all(int(shown) < int(example.target) for shown in example.history)
            assert not {(example.user_id, shown) for shown in (*example.history, example.target)} & set().union(
                *(targets[name] for name in later)
            )


def test_examples_are_equal_by_what_they_say_however_they_are_made():
    whole = ("i01", "i02", "i03", "i04")
    at = Example.at("ann", whole, 2)
    assert at == Example("ann", ("i01", "i02"), "i03") == Example.at("ann", (*whole[:3], "i09"), 2)
    assert hash(at) == hash(Example("ann", ("i01", "i02"), "i03"))
    assert (at.history, at.target, at.position) == (("i01", "i02"), "i03", 2)
    others = [Example.at("bob", whole, 2), Example.at("ann", whole, 1), Example("ann", ("i09", "i02"), "i03")]
    assert all(at != other for other in [*others, "ann"])
    assert repr(at) == "Example(user_id='ann', history=('i01', 'i02'), target='i03')"


def test_a_very_long_history_makes_examples_at_once(domain):
    """Twenty thousand of them would copy 200 million ids if each kept its own history."""
    data = domain({"ann": [f"i{number % 30:02d}" for number in range(20_000)]})
    assert len(pickle.dumps(examples(data, "train"))) < 2_000_000
