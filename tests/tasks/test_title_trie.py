"""The trie of a catalogue's titles, against a search through all of them."""

from __future__ import annotations

import random
import time
import tracemalloc

import numpy as np
import pytest
from reccocktail.tasks import TaskError, TitleTrie


def continuing(titles, prefix):
    """By brute force: what stands behind this beginning in any title."""
    length = len(prefix)
    return sorted({title[length] for title in titles if len(title) > length and title[:length] == prefix})


def random_titles(rng, count, tokens=6, longest=7):
    return [(*(rng.randrange(tokens) for _ in range(rng.randint(1, longest))), 99) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_what_may_follow_is_what_follows_in_some_title(seed):
    rng = random.Random(seed)
    titles = random_titles(rng, rng.choice([1, 2, 5, 60]))
    trie = TitleTrie(titles)
    prefixes = {title[:end] for title in titles for end in range(len(title) + 1)}
    for prefix in prefixes:
        assert trie.allowed(prefix).tolist() == continuing(titles, prefix)
        for token in (0, 3, 7, 99, 1000):
            assert trie.allowed((*prefix, token)).tolist() == continuing(titles, (*prefix, token))
    assert trie.nodes == len(prefixes)
    assert len(trie) == len(set(titles))


@pytest.mark.parametrize("seed", range(5))
def test_continuations_of_a_title_are_what_may_follow_each_of_its_beginnings(seed):
    titles = random_titles(random.Random(seed), 40)
    trie = TitleTrie(titles)
    for title in titles:
        expected = [continuing(titles, title[:place]) for place in range(len(title))]
        assert [found.tolist() for found in trie.continuations(title)] == expected


def test_titles_of_which_one_begins_another_are_both_kept():
    trie = TitleTrie([(1, 2), (1,), (1, 2, 3), ()])
    assert trie.allowed(()).tolist() == [1]
    assert trie.allowed((1,)).tolist() == [2]
    assert trie.allowed((1, 2)).tolist() == [3]
    assert trie.allowed((1, 2, 3)).tolist() == []


def test_a_title_that_the_catalogue_lacks_has_no_continuations():
    trie = TitleTrie([(1, 2, 9), (1, 3, 9)])
    with pytest.raises(TaskError, match="the token 4 at place 1"):
        trie.continuations((1, 4, 9))
    with pytest.raises(TaskError, match="place 3"):
        trie.continuations((1, 2, 9, 9))


@pytest.mark.parametrize("titles", [[], [()]])
def test_without_titles_nothing_may_follow(titles):
    trie = TitleTrie(titles)
    assert trie.allowed(()).tolist() == []
    assert trie.nodes == 1


def test_a_token_below_zero_is_refused():
    with pytest.raises(TaskError, match="below 0"):
        TitleTrie([(1, -1)])


def test_thirty_thousand_titles_take_less_than_two_seconds_and_little_memory():
    rng = np.random.default_rng(1)
    # Brands and products repeat, so that titles share beginnings, as in a shop.
    heads = rng.integers(0, 50_000, (800, 6))
    titles = [
        (*heads[rng.integers(800)][: rng.integers(1, 7)].tolist(), *rng.integers(0, 50_000, 16).tolist(), 2)
        for _ in range(30_000)
    ]
    started = time.process_time()
    trie = TitleTrie(titles)
    assert time.process_time() - started < 2
    assert trie._tokens.nbytes + trie._first.nbytes < 10_000_000
    assert trie.allowed(titles[7][:-1]).tolist() == [2]


def test_one_very_long_title_costs_its_own_tokens_only():
    titles = [(number % 100, number, 2) for number in range(3, 20_003)] + [(*range(3, 5_003), 2)]
    tracemalloc.start()
    trie = TitleTrie(titles)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000, "a table of all titles by the longest has 400 MB"
    assert trie.allowed(range(3, 5_003)).tolist() == [2]
