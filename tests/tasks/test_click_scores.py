from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reccocktail.tasks import ClickOptions, ClickRow, DomainData, History, Item, click_data, click_question
from reccocktail.tasks.click_baselines import PRIOR, score_by_means
from reccocktail.tasks.click_prompts import ClickTemplate
from reccocktail.tasks.click_scores import score_clicks
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

ITEMS = [Item(f"i{number}", f"Title {number}") for number in range(12)]


def rated() -> DomainData:
    histories = []
    for user in range(5):
        ratings = [float(1 + (user * place * 7 + place) % 5) for place in range(12)]
        fields = {"ratings": ratings, "timestamps": list(range(12))}
        histories.append(History(f"u{user}", tuple(item.item_id for item in ITEMS), fields))
    return DomainData.of("shop", ITEMS, histories)


CLICKS = click_data(rated(), ClickOptions(by="user", threshold=3, min_history=1))


def test_means_are_those_of_training_rows_and_of_the_own_history():
    rows = (*CLICKS.validation, *CLICKS.test)
    by_item, by_both = score_by_means(CLICKS, rows, "item-mean"), score_by_means(CLICKS, rows, "item-user-mean")
    whole = np.mean([row.label for row in CLICKS.train])
    for row, one, both in zip(rows, by_item, by_both, strict=True):
        labels = [each.label for each in CLICKS.train if each.item_id == row.item_id]
        item = (sum(map(bool, labels)) + PRIOR * whole) / (len(labels) + PRIOR)
        own = [each.rating >= 3 for each in row.history]
        user = (sum(own) + PRIOR * whole) / (len(own) + PRIOR)
        odds = item / (1 - item) * user / (1 - user) * (1 - whole) / whole
        assert (one, both) == pytest.approx((item, odds / (1 + odds)))
    unknown = ClickRow.candidate(CLICKS.users["u0"], "new")
    assert score_by_means(CLICKS, [unknown], "item-mean")[0] == pytest.approx(whole)


def test_a_models_score_is_the_softmax_over_the_two_answers_whatever_shares_the_batch(
    base: Path, tokenizer: PreTrainedTokenizerFast
):
    words = [word for word, number in sorted(tokenizer.get_vocab().items(), key=lambda each: each[1]) if number > 3]
    template = ClickTemplate(name="t", user="{history} user {target}", positive=words[5], negative=words[9])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    asked = [click_question(row, CLICKS.items, template) for row in (*CLICKS.train[:6], *CLICKS.test)]
    done: list[int] = []
    together = score_clicks(model, tokenizer, asked, progress=done.append)
    assert done[-1] == len(asked)
    assert together == pytest.approx(score_clicks(model, tokenizer, asked, batch_tokens=1), abs=1e-5)
    for question, score in zip(asked, together, strict=True):
        text = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        logits = model(ids).logits[0, -1]
        both = torch.tensor([tokenizer.convert_tokens_to_ids(word) for word in (words[5], words[9])])
        assert score == pytest.approx(logits[both].softmax(dim=0)[0].item(), abs=1e-5)
    assert np.ptp(together) > 0
