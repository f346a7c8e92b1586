from __future__ import annotations

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


def test_another_seed_samples_otherwise(domain):
    data = domain({f"u{number}": ["i01", "i02"] for number in range(50)})
    assert sample(examples(data, "test"), 10, 1) != sample(examples(data, "test"), 10, 2)
