from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.tasks import DataError, DomainData, Example, History, Item, examples
from reccocktail.tasks.candidates import candidates

ANN = ["i01", "i02", "i03", "i04"]


def test_candidates_are_the_target_and_items_the_user_never_takes_not_even_later(domain):
    data = domain({"ann": ANN})
    offered = candidates(data, Example("ann", ("i01",), "i02"), 26, seed=1)
    assert len(offered) == len(set(offered)) == 27
    assert set(offered) & set(ANN) == {"i02"}


def test_candidates_depend_on_seed_user_and_position_alone(domain):
    data = domain({"ann": ANN, "bob": ANN})
    example = Example("ann", ("i01",), "i02")
    offered = candidates(data, example, 9, seed=1)
    assert offered == candidates(domain({"ann": ANN}), example, 9, seed=1)
    assert offered != candidates(data, example, 9, seed=2)
    assert offered != candidates(data, Example("bob", ("i01",), "i02"), 9, seed=1)
    assert offered != candidates(data, Example("ann", ("i01", "i01"), "i02"), 9, seed=1)


def test_negatives_and_the_targets_place_are_uniform(domain):
    data = domain({f"u{number}": ["i00", "i01"] for number in range(3000)})
    offered = [candidates(data, example, 4, seed=1) for example in examples(data, "test")]
    places = Counter(ids.index("i01") for ids in offered)
    assert all(abs(count - 600) < 100 for count in places.values())
    negatives = Counter(item_id for ids in offered for item_id in ids if item_id != "i01")
    assert set(negatives) == set(data.items) - {"i00", "i01"}
    assert all(abs(count - 3000 * 4 / 28) < 100 for count in negatives.values())


def test_too_few_items_are_an_error_that_counts_them(domain):
    data = domain({"ann": ANN})
    with pytest.raises(DataError, match="only 26 items that user 'ann' never took, and 27 negatives are asked for"):
        candidates(data, examples(data, "test")[0], 27, seed=1)


@given(
    st.lists(st.sampled_from(["Pen", "pen!", "Pad", "Ink", "Cap", "", "Nib"]), min_size=6, max_size=12), st.integers()
)
def test_no_two_candidates_read_alike_and_none_is_untitled(titles: list[str], seed: int):
    items = [Item("target", "A Pen"), Item("before", "CAP"), *(Item(f"n{i}", title) for i, title in enumerate(titles))]
    data = DomainData.of("shop", items, [History("ann", ("before", "target"))])
    try:
        offered = candidates(data, examples(data, "test")[0], 2, seed)
    except DataError:
        assert len({title.lower().strip("!") for title in titles} - {"", "cap"}) < 2
    else:
        shown = [data.items[item_id].title.lower().strip("!") for item_id in offered]
        assert len(set(shown)) == 3
        assert not {"", "cap"} & set(shown)
