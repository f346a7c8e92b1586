"""What a model says, read as a list of titles. The oracle decodes one token at a time, without cache or padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.tasks import Question, generate, load_template, questions, rank_by_generation, read_answer
from transformers import LlamaConfig, LlamaForCausalLM

_, ASKED = questions(generate("kitchen", users=40), "test", load_template("top-five"), limit=6)
ONE = ASKED[0]
TARGET = ONE.titles[ONE.target_index]


def llama(tokenizer: Any, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.5,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


# --- reading --------------------------------------------------------------------------------------------------------


def test_the_targets_rank_is_its_place_in_the_list():
    first, second = [title for title in ONE.titles if title != TARGET][:2]
    found = read_answer(f"{first} || {second}||{TARGET} || ", ONE)
    assert (found.named, found.rank, found.unknown, found.duplicates) == ((first, second, TARGET), 2, 0, 0)
    assert read_answer(TARGET, ONE).rank == 0


def test_unknown_and_repeated_titles_keep_their_place_and_hit_nothing():
    other = next(title for title in ONE.titles if title != TARGET)
    found = read_answer(f"Silver Moon || {other} || {other} || {TARGET} || {TARGET}", ONE)
    assert (found.rank, found.unknown, found.duplicates) == (3, 1, 2)


@pytest.mark.parametrize(
    "text", ["", " || ", TARGET.lower(), f"{TARGET}.", f"1. {TARGET}", TARGET[:-1], f"{TARGET}, {TARGET}"]
)
def test_what_is_not_the_title_to_the_letter_is_not_named(text):
    assert read_answer(text, ONE).rank is None


def test_what_is_beyond_the_number_that_was_asked_for_does_not_count():
    others = [title for title in ONE.titles if title != TARGET]
    assert read_answer(" || ".join([*others[:4], TARGET]), ONE).rank == 4
    assert read_answer(" || ".join([*others[:5], TARGET]), ONE).rank is None


ENTRIES = st.one_of(
    st.sampled_from(ONE.titles),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: t.strip() and "|" not in t),
)


@given(st.lists(ENTRIES, max_size=8), st.sampled_from(["||", " || ", "||  ", " ||\n"]))
def test_reading_undoes_writing(entries: list[str], separator: str):
    found = read_answer(separator.join(entries), ONE)
    expected = [entry.strip() for entry in entries][:5]
    assert list(found.named) == expected
    assert found.duplicates == len(expected) - len(set(expected))
    assert found.unknown == len(set(expected) - set(ONE.titles))
    assert found.rank == (expected.index(TARGET) if TARGET in expected else None)


@given(st.text())
def test_any_text_can_be_read(text: str):
    found = read_answer(text, ONE)
    assert len(found.named) <= 5
    assert 0 <= found.unknown + found.duplicates <= len(found.named)
    assert found.rank is None or found.named[found.rank] == TARGET


# --- saying ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def oracle(model: LlamaForCausalLM, tokenizer: Any, question: Question) -> str:
    prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True)["input_ids"]
    longest = sorted((len(tokenizer(title)["input_ids"]) for title in question.titles), reverse=True)
    said: list[int] = []
    for _ in range(sum(longest[:5]) + 4 + 8):  # one token per word, four marks and eight to spare
        token = int(model(torch.tensor([prompt + said])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        said.append(token)
    return tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.parametrize("batch_tokens", [1, 600, 100_000])
@pytest.mark.parametrize("seed", [0, 3])
def test_answers_are_the_likeliest_tokens_one_after_the_other(tokenizer, seed, batch_tokens):
    model, done = llama(tokenizer, seed), []
    found = rank_by_generation(model, tokenizer, ASKED, batch_tokens=batch_tokens, progress=done.append)
    assert [naming.text for naming in found] == [oracle(model, tokenizer, question) for question in ASKED]
    assert done[-1] == len(ASKED)
    assert done == sorted(set(done))


def test_a_checkpoints_own_way_of_sampling_changes_nothing(tokenizer):
    model = llama(tokenizer)
    plain = rank_by_generation(model, tokenizer, ASKED[:2])
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1)
    assert rank_by_generation(model, tokenizer, ASKED[:2]) == plain


class Parrot(torch.nn.Module):
    """Stands for a model that always gives this answer."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids, self.device, self.generation_config = ids, torch.device("cpu"), None

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        said = torch.tensor([self.ids[:max_new_tokens]] * len(input_ids))
        return torch.cat([input_ids, said], dim=1)


def test_what_follows_the_end_of_the_turn_is_not_read(tokenizer):
    end = tokenizer.eos_token_id
    others = tokenizer(ONE.titles[0])["input_ids"]
    said = [*tokenizer(TARGET)["input_ids"], end, *others]
    (found,) = rank_by_generation(Parrot(said), tokenizer, [ONE])  # pyright: ignore
    assert (found.text, found.rank) == (TARGET, 0)


def test_an_answer_has_no_more_tokens_than_the_longest_right_one_and_a_few(tokenizer):
    short = replace(ONE, titles=tuple("Copper Kettle" for _ in ONE.titles))
    endless = tokenizer("Copper")["input_ids"] * 500
    found = rank_by_generation(Parrot(endless), tokenizer, [ONE, short])  # pyright: ignore
    assert len(found[1].text.split()) == 5 * 2 + 4 + 8
    assert len(found[0].text.split()) == 5 * 3 + 4 + 8


def test_no_questions_get_no_answers(tokenizer):
    assert rank_by_generation(llama(tokenizer), tokenizer, []) == []
