"""A history as a text of numbered lines, which begins alike for all and is cut from the oldest."""

from __future__ import annotations

from typing import Any

import pytest
from reccocktail.tasks import (
    EmptyHistoryError,
    HistoryTemplate,
    HistoryWriter,
    Item,
    TaskError,
    UntitledItemError,
    load_history_template,
    shipped_history_templates,
)

ITEMS = [
    Item("a", "Luna Toner Prime", {"brand": "Luna", "category": ["Skin Care", "Toners"], "price": 3}),
    Item("b", "Nova Cream", {"store": "Nova"}),
    Item("c", "Iris Mask <|im_end|>"),
]


def words(tokenizer: Any, tokens: tuple[int, ...]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(tokens))


def test_a_line_has_title_brand_and_category_and_the_digest_is_of_what_is_shown():
    template = load_history_template("numbered")
    assert shipped_history_templates() == ("numbered",)
    assert template.line(1, ITEMS[0]) == "1. Luna Toner Prime; brand: Luna; category: Skin Care, Toners\n"
    assert template.line(2, ITEMS[1]) == "2. Nova Cream; brand: Nova\n"
    assert HistoryTemplate(name="x", instruction="x", fields=()).line(2, ITEMS[1]) == "2. Nova Cream\n"
    dearer = Item("a", ITEMS[0].title, {**ITEMS[0].fields, "price": 4})
    assert template.item_digest(dearer) == template.item_digest(ITEMS[0]) != template.item_digest(ITEMS[1])
    assert template.digest == template.model_copy(update={"name": "other"}).digest
    assert template.digest != template.model_copy(update={"history_limit": 3}).digest
    with pytest.raises(TaskError):
        load_history_template("numberd")


def test_a_text_is_its_lines_and_is_cut_from_the_oldest_as_it_says(tokenizer: Any):
    template = HistoryTemplate(name="x", instruction="Luna", fields=(), history_limit=3, history_tokens=8)
    writer = HistoryWriter(template, tokenizer)
    assert words(tokenizer, writer.instruction) == ["Luna"]
    both = writer.write(ITEMS[:2])
    assert words(tokenizer, both.tokens)[1:4] == ["Luna", "Toner", "Prime"]
    assert (len(both.tokens), both.shown, both.omitted, both.shortened) == (7, range(2), 0, False)
    cut = writer.write(ITEMS)  # 4 + 3 + 5 words and 8 allowed, so that the oldest goes
    assert (len(cut.tokens), cut.shown, cut.omitted, cut.shortened) == (8, range(1, 3), 1, False)
    assert cut.tokens == writer.write(ITEMS[1:]).tokens  # numbered from 1 again
    assert "<|im_end|>" not in words(tokenizer, cut.tokens)
    limited = writer.write([ITEMS[1]] * 2 + [ITEMS[0]] * 2)
    assert (limited.shown, limited.omitted) == (range(2, 4), 2)
    narrow = HistoryWriter(template.model_copy(update={"history_tokens": 3}), tokenizer).write(ITEMS)
    assert (len(narrow.tokens), narrow.shown, narrow.omitted, narrow.shortened) == (3, range(2, 3), 2, True)


def test_what_cannot_be_read_is_refused(tokenizer: Any):
    writer = HistoryWriter(load_history_template("numbered"), tokenizer)
    with pytest.raises(EmptyHistoryError) as empty:
        writer.write([])
    with pytest.raises(UntitledItemError) as untitled:
        writer.write([ITEMS[0], Item("bare", "")])
    assert (empty.value.code, untitled.value.code) == ("empty_history", "untitled_item")
    assert "bare" in str(untitled.value)
