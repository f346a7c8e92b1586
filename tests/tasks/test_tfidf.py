"""TF-IDF against scikit-learn's vectorizer and cosines, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reccocktail.tasks import DomainData, Example, History, Item, generate, load_template, questions, rank_by_tfidf
from reccocktail.tasks.tfidf import LAST_ITEMS, words
from sklearn.feature_extraction.text import TfidfVectorizer

TEMPLATE = load_template("next-title")


@pytest.mark.parametrize("split", ["test", "validation"])
def test_scores_are_scikit_learns_cosines(split):
    data = generate("kitchen", users=60)
    branded = [
        replace(item, fields={"brand": f"Maker {number % 3}"}) for number, item in enumerate(data.items.values())
    ]
    data = DomainData.of("kitchen", branded, data.sequences)
    _, asked = questions(data, split, TEMPLATE, limit=40)
    found = rank_by_tfidf(data, asked)
    texts = {item_id: " ".join(words(item)) for item_id, item in data.items.items()}
    vectorizer = TfidfVectorizer().fit(texts.values())
    for question, ranking in zip(asked, found, strict=True):
        history = " ".join(texts[item_id] for item_id in question.example.history[-LAST_ITEMS:])
        offered = vectorizer.transform([texts[item_id] for item_id in question.candidates])
        expected = (offered @ vectorizer.transform([history]).T).toarray()[:, 0]
        np.testing.assert_allclose(ranking.scores, expected, atol=1e-12)
        target = expected[question.target_index]
        assert ranking.rank == int((expected >= target - 1e-9).sum()) - 1


def test_the_brand_counts_and_what_has_no_common_word_scores_nothing():
    items = [
        Item("a", "Rose Cream", {"brand": "Iris"}),
        Item("b", "Blue Soap", {"brand": "Iris"}),
        Item("c", "Rose Water", {"store": "Nova"}),
        Item("d", "Green Tea", {}),
        Item("e", "Iris Rose Cream"),
    ]
    data = DomainData.of("shop", items, [History("ann", ("a", "b", "e")), History("bob", ("c", "d", "e"))])
    _, (asked, *_) = questions(data, "test", TEMPLATE, n_negatives=2)
    asked = replace(asked, candidates=("c", "d", "e"), example=Example("ann", ("b",), "e"), target_index=2)
    (ranking,) = rank_by_tfidf(data, [asked])
    assert ranking.scores[0] == ranking.scores[1] == 0
    assert ranking.scores[2] > 0
    assert ranking.rank == 0
