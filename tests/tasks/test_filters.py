from __future__ import annotations

from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.tasks import DataError, DomainData, History, Item
from reccocktail.tasks.filters import at_least_rated, k_core

ITEM_IDS = [f"i{number}" for number in range(6)]


@st.composite
def domains(draw: st.DrawFn) -> DomainData:
    """Few items and users, so that cores are neither empty nor everything; every interaction has a time of its own."""
    users = draw(st.lists(st.lists(st.sampled_from(ITEM_IDS), max_size=7), max_size=7))
    histories, time = [], 0
    for number, taken in enumerate(users):
        times = range(time, time := time + len(taken))
        fields = {"timestamps": array("q", times), "ratings": [float(t % 5) for t in times], "age": number}
        histories.append(History(f"u{number}", tuple(taken), fields))
    return DomainData.of("shop", [Item(item_id, item_id) for item_id in ITEM_IDS], histories)


def interactions(data: DomainData) -> list[tuple[str, str, int, float]]:
    return [
        (history.user_id, *row)
        for history in data.sequences
        for row in zip(history.items, history.fields["timestamps"], history.fields["ratings"], strict=True)
    ]


@given(domains(), st.integers(1, 4))
def test_a_core_is_what_is_left_when_one_poor_user_or_item_after_the_other_is_taken_away(data: DomainData, k: int):
    left = interactions(data)
    while True:
        users, items = Counter(row[0] for row in left), Counter(row[1] for row in left)
        poor = [name for name, count in (users | items).items() if count < k]
        if not poor:
            break
        left = [row for row in left if poor[0] not in row[:2]]
    found = k_core(data, k)
    assert interactions(found) == left
    assert list(found.items) == sorted({row[1] for row in left})
    assert [history.user_id for history in found.sequences] == sorted({row[0] for row in left})


@given(domains(), st.integers(1, 4))
def test_everybody_in_a_core_has_enough_and_the_core_of_a_core_is_itself(data: DomainData, k: int):
    found = k_core(data, k)
    for place in 0, 1:
        assert all(count >= k for count in Counter(row[place] for row in interactions(found)).values())
    assert k_core(found, k) == found
    assert found.origin.dropped == len(interactions(data)) - len(interactions(found))


@given(domains(), st.lists(st.booleans(), min_size=49, max_size=49), st.integers(1, 3))
def test_no_larger_part_of_the_data_has_enough_everywhere(data: DomainData, chosen: list[bool], k: int):
    """Any part in which all have at least k is inside the core."""
    part = {row for row, is_in in zip(interactions(data), chosen, strict=False) if is_in}
    users, items = Counter(row[0] for row in part), Counter(row[1] for row in part)
    if all(count >= k for count in (users | items).values()):
        assert part <= set(interactions(k_core(data, k)))


@given(domains(), st.integers(0, 5))
def test_a_minimum_rating_leaves_the_rest_in_order_and_the_items_all(data: DomainData, least: int):
    found = at_least_rated(data, least)
    assert interactions(found) == [row for row in interactions(data) if row[3] >= least]
    assert found.items == data.items
    assert all(history.items for history in found.sequences)


def test_what_is_said_of_a_user_stays_and_numbers_keep_their_kind():
    history = History("ann", ("i0", "i1"), {"age": 7, "timestamps": array("q", [1, 2]), "ratings": [5, 2]})
    data = DomainData.of("shop", [Item(item_id, "") for item_id in ITEM_IDS], [history])
    assert at_least_rated(data, 3).sequences == (
        History("ann", ("i0",), {"age": 7, "timestamps": array("q", [1]), "ratings": [5]}),
    )


def test_a_minimum_rating_needs_ratings(domain):
    with pytest.raises(DataError, match="user 'ann' has no ratings"):
        at_least_rated(domain({"ann": ["i01"]}), 3)


def test_an_empty_domain_has_an_empty_core(domain):
    assert k_core(domain({}), 2).items == {}
