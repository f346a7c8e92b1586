"""Retrieval against scikit-learn's cosines and a sort of all items, and by hand."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from reccocktail.tasks import DomainData, History, Item, Retriever, TaskError, generate
from reccocktail.tasks.tfidf import words
from sklearn.feature_extraction.text import TfidfVectorizer


def slow(data: DomainData, history: list[Item], count: int, share: float) -> list[str]:
    """The ids that should be retrieved: every item is scored, and all are sorted twice."""
    items = list(data.items.values())
    taken = Counter(item_id for each in data.sequences for item_id in each.items)
    vectorizer = TfidfVectorizer().fit([" ".join(words(item)) for item in items])
    asked = vectorizer.transform([" ".join(" ".join(words(item)) for item in history[-10:])])
    scores = (vectorizer.transform([" ".join(words(item)) for item in items]) @ asked.T).toarray()[:, 0]
    likeness = {item.item_id: round(score, 9) for item, score in zip(items, scores, strict=True)}
    alike = sorted(items, key=lambda i: (-likeness[i.item_id], -taken[i.item_id], i.item_id))
    popular = sorted(items, key=lambda i: (-taken[i.item_id], i.item_id))
    found, seen = [], {said(item.title) for item in history}
    for order, wanted in ([i for i in alike if likeness[i.item_id] > 0], round(count * share)), (popular, count):
        for item in order:
            if len(found) < wanted and said(item.title) not in seen:
                seen.add(said(item.title))
                found.append(item.item_id)
    return found


def said(title: str) -> str:
    return " ".join(re.findall(r"\w+", title.casefold())) or title


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
def test_what_is_retrieved_is_what_a_sort_of_the_whole_catalogue_finds(share):
    data = generate("kitchen", users=60)
    retriever = Retriever(data)
    for history in data.sequences[:20]:
        items = [data.items[item_id] for item_id in history.items]
        found = [item.item_id for item in retriever.retrieve(items, 30, tfidf_share=share)]
        assert found == slow(data, items, 30, share)
        assert len(found) == len(set(found)) == 30
        assert not set(found) & set(history.items)


ITEMS = [
    Item("a", "Rose Cream"),
    Item("b", "rose, cream!"),
    Item("c", "Rose Water"),
    Item("d", "Green Tea"),
    Item("e", "GREEN TEA"),
    Item("f", "Oak Chair"),
    Item("g", "!!!"),
    Item("h", "???"),
    Item("i", ""),
]
DATA = DomainData.of("shop", ITEMS, [History("ann", ("d", "f", "f", "e")), History("bob", ("d", "a", "i", "i", "i"))])


def ids(items):
    return [item.item_id for item in items]


def test_nothing_that_says_the_same_as_the_history_or_as_another_is_retrieved():
    retriever = Retriever(DATA)
    assert ids(retriever.retrieve([ITEMS[0]], 9)) == ["c", "d", "f", "g", "h"], "d and e say the same; i has no title"
    assert ids(retriever.retrieve([ITEMS[0]], 2)) == ["c", "d"]
    assert ids(retriever.retrieve([], 3, tfidf_share=1)) == ["d", "f", "a"], "nothing is like nothing"
    assert ids(retriever.retrieve([Item("", "tea for roses")], 2, tfidf_share=1)) == ["d", "f"], "a title of no item"
    assert ids(retriever.retrieve([Item("", "a GREEN tea")], 1)) == ["d"]


def test_popularity_counts_what_it_is_given():
    assert ids(Retriever(DATA, taken=[("a", "c"), ("c",)]).retrieve([], 2)) == ["c", "a"]
    assert ids(Retriever(DATA, taken=[]).retrieve([], 2)) == ["a", "c"]


def test_only_the_last_ten_items_are_looked_at():
    others = [Item("", f"x{n}") for n in range(10)]
    retriever = Retriever(DATA)
    assert ids(retriever.retrieve([Item("", "rose"), *others], 1, tfidf_share=1)) == ["d"], "the most popular"
    assert ids(retriever.retrieve([Item("", "rose"), *others[1:]], 1, tfidf_share=1)) == ["a"]


def test_a_share_beyond_all_is_refused():
    with pytest.raises(TaskError):
        Retriever(DATA).retrieve([], 3, tfidf_share=1.5)
