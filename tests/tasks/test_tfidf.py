"""TF-IDF against scikit-learn's vectorizer and cosines, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reccocktail.tasks import (
    DomainData,
    Example,
    History,
    Item,
    Likeness,
    Retriever,
    generate,
    load_template,
    questions,
    rank_by_tfidf,
    read_questions,
    write_questions,
)
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


def test_likeness_of_what_the_catalogue_lacks_is_scikit_learns_too():
    data = generate("kitchen", users=20)
    own = list(data.items.values())
    texts = [" ".join(words(item)) for item in own]
    vectorizer = TfidfVectorizer().fit(texts)
    strange = [Item("", f"{own[0].title} Zeppelin"), Item("", own[1].title), Item("", "Zeppelin")]
    history = [*own[:4], strange[0]]
    expected = (
        vectorizer.transform([" ".join(words(item)) for item in (*strange, *own[:9])])
        @ vectorizer.transform([" ".join(" ".join(words(item)) for item in history)]).T
    )
    for likeness in (Likeness(data), Retriever(data).likeness):
        np.testing.assert_allclose(likeness.of(history, [*strange, *own[:9]]), expected.toarray()[:, 0], atol=1e-12)


def test_questions_keep_their_likeness_in_a_file(tmp_path):
    data = generate("kitchen", users=20)
    _, asked = questions(data, "test", TEMPLATE, limit=5)
    with_it = Likeness(data).added(asked)
    assert [question.likeness for question in with_it] == [r.scores for r in rank_by_tfidf(data, asked)]
    for written in (asked, with_it):
        write_questions(tmp_path / "questions.json", written)
        assert [q.likeness for q in read_questions(tmp_path / "questions.json")] == [q.likeness for q in written]
