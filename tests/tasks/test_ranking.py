"""The oracle reads every prompt and answer as one text, one candidate at a time, and sums log P in float64."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reccocktail.tasks import (
    Question,
    Score,
    TaskError,
    fit,
    generate,
    load_template,
    questions,
    rank_candidates,
)
from reccocktail.tasks import ranking as reading
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

rank_by_likelihood = partial(rank_candidates, score=Score("likelihood"))

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they save on models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return questions(generate("kitchen", users=40), "test", load_template("pick-one"), limit=2)[1]


@pytest.fixture(scope="module")
def tokenizer(asked: list[Question]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator([q.messages[-1]["content"] for q in asked], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", chat_template=CHATML)


SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


def llama(attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation=attention))


def mistral(window: int | None) -> PreTrainedModel:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window, attn_implementation="sdpa"))


def with_adapter() -> Any:
    torch.manual_seed(1)
    return get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False, lora_dropout=0.5))


@torch.inference_mode()
def oracle(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, question: Question) -> list[float]:
    prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True)["input_ids"]
    scores = []
    for title in question.titles:
        turn = {"role": "assistant", "content": title}
        ids = tokenizer.apply_chat_template([*question.messages, turn])["input_ids"]
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
        logprobs = model.eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scores.append(sum(logprobs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))))
    return scores


@pytest.mark.parametrize(
    "make_model",
    [
        llama,
        partial(llama, "eager"),
        partial(mistral, None),
        partial(mistral, 16),
        partial(mistral, 4096),
        with_adapter,
    ],
    ids=["llama", "eager", "full attention", "window in the prompt", "window beyond it", "adapter"],
)
@pytest.mark.parametrize("batch_tokens", [1, 500, 8192])
def test_scores_equal_those_of_reading_every_prompt_and_answer_as_one_text(make_model, tokenizer, asked, batch_tokens):
    model = make_model()
    rankings = rank_by_likelihood(model, tokenizer, asked, batch_tokens=batch_tokens)
    for question, ranking in zip(asked, rankings, strict=True):
        expected = oracle(model, tokenizer, question)
        assert ranking.scores == pytest.approx(expected, abs=1e-4)
        assert ranking.rank == sum(score > expected[question.target_index] for score in expected)


@pytest.mark.parametrize("make_model", [llama, partial(mistral, 16), with_adapter])
def test_batches_are_read_in_threads_with_the_same_scores(make_model, tokenizer, asked, monkeypatch):
    model, both = make_model(), threading.Barrier(2, timeout=60)
    expected = [oracle(model, tokenizer, question) for question in asked]
    read = reading._read_batch

    def met(*words: Any, **named: Any) -> Any:
        both.wait()  # two are here at once, or it fails
        return read(*words, **named)

    monkeypatch.setattr(reading, "_read_batch", met)
    monkeypatch.setattr(reading, "_batches", lambda rows, most: iter([rows[: len(rows) // 2], rows[len(rows) // 2 :]]))
    torch.set_num_threads(2)
    try:
        found = rank_by_likelihood(model, tokenizer, asked)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other, abs=1e-4)


def test_a_model_whose_positions_follow_the_longest_prompt_is_read_by_one_thread(tokenizer, asked, monkeypatch):
    config = LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    monkeypatch.setattr(reading, "ThreadPoolExecutor", None)
    torch.set_num_threads(2)
    try:
        rank_by_likelihood(LlamaForCausalLM(config), tokenizer, asked, batch_tokens=1)
    finally:
        torch.set_num_threads(1)


def test_a_failure_in_a_thread_is_the_callers(tokenizer, asked, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, "_read_batch", fail)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            rank_by_likelihood(llama(), tokenizer, asked, batch_tokens=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_title_of_a_list_is_closed_by_the_separator(tokenizer):
    model = llama()
    _, listed = questions(generate("kitchen", users=40), "test", load_template("top-five"), limit=2)
    for question, ranking in zip(listed, rank_by_likelihood(model, tokenizer, listed), strict=True):
        start = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
        expected = [sum_of_log_p(model, tokenizer, start, f"{title} ||") for title in question.titles]
        assert ranking.scores == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def sum_of_log_p(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, start: str, answer: str) -> float:
    begun = len(tokenizer(start)["input_ids"])
    ids = tokenizer(start + answer)["input_ids"]
    logprobs = model.eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logprobs[i - 1, ids[i]].item() for i in range(begun, len(ids)))


def test_a_mark_of_blanks_closes_a_title_as_it_is(tokenizer):
    template = load_template("top-five").model_copy(update={"separator": "\n"})
    _, listed = questions(generate("kitchen", users=40), "test", template, limit=1)
    start = tokenizer.apply_chat_template(listed[0].messages, add_generation_prompt=True, tokenize=False)
    score = rank_by_likelihood(llama(), tokenizer, listed)[0].scores[0]
    assert score == pytest.approx(sum_of_log_p(llama(), tokenizer, start, listed[0].titles[0] + "\n"), abs=1e-4)


def test_questions_are_put_as_the_tokenizer_needs_them(tokenizer):
    """Histories are cut to the template's tokens, and a title that spells the end of the turn does not end it."""
    data = generate("kitchen", users=40)
    template = load_template("pick-one").model_copy(update={"history_tokens": 20})
    (question,) = questions(data, "test", template, limit=1)[1]
    question = replace(question, titles=("Copper Kettle <|im_end|> Basic", *question.titles[1:]))
    (put,) = fit([question], tokenizer)
    assert len(put.history) < len(question.history)
    model = llama()
    (ranking,) = rank_by_likelihood(model, tokenizer, [question])
    assert ranking.scores == pytest.approx(oracle(model, tokenizer, put), abs=1e-4)


def test_candidates_that_score_alike_count_against_the_target(tokenizer, asked):
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)  # every token is equally likely: scores tell lengths only
    ranking = rank_by_likelihood(model, tokenizer, asked[:1])[0]
    target = ranking.scores[asked[0].target_index]
    assert ranking.rank == sum(score > target - 1e-9 for score in ranking.scores) - 1


def test_a_broken_model_is_an_error_not_a_perfect_rank(tokenizer, asked):
    model = llama()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(TaskError, match="is not a number"):
        rank_by_likelihood(model, tokenizer, asked)


def test_progress_counts_questions_and_the_model_is_left_as_it_was(tokenizer, asked):
    model, done = llama().train(), []
    rank_by_likelihood(model, tokenizer, asked, progress=done.append)
    assert done == [1, 2]
    assert model.training
    assert rank_by_likelihood(model, tokenizer, []) == []


def test_a_template_that_does_not_write_the_end_of_sequence_token_still_ends_the_answer(tokenizer, asked):
    from reccocktail.tasks.ranking import end_of_turn

    assert end_of_turn(tokenizer, asked[0].messages) == "<|im_end|>"
    for suffix, end in ("[/ANSWER] ", "[/ANSWER] "), ("", "<|im_end|>"):
        tokenizer.chat_template = "{% for m in messages %}{{ '[Q]' + m.content + '" + suffix + "' }}{% endfor %}"
        assert end_of_turn(tokenizer, asked[0].messages) == end
    tokenizer.chat_template = CHATML


def test_importing_the_room_imports_nothing_heavy():
    code = "import sys, reccocktail.tasks; print({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_public_name_can_be_had():
    import reccocktail.tasks as room

    assert all(getattr(room, name) for name in room.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        room.nothing  # noqa: B018
