"""Clicks by a language model: softmax over the logits of the two tokens that begin a yes and a no."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .click_prompts import AnswerTokens, ClickQuestion, answer_tokens, fit_clicks
from .ranking import evaluating, logits_to_keep, token_ids

BATCH_TOKENS = 4096  # with padding


@torch.inference_mode()
def score_clicks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ClickQuestion],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] = lambda done: None,
    reading: Callable[[list[int]], AbstractContextManager[object]] = lambda places: nullcontext(),
) -> NDArray[np.float64]:
    """[questions], the probability of a like. All questions have one template. `progress` receives how many are done.

    `reading` is entered while the model reads the questions at these places, in this order.
    Raises AnswerTokenError where an answer is not one token of the tokenizer.
    """
    found = np.zeros(len(questions))
    if not questions:
        return found
    answers = answer_tokens(tokenizer, questions[0].template)
    prompts = click_prompt_ids(tokenizer, questions)
    done = 0
    with evaluating(model):
        for places in batches_of_like_length([len(prompt) for prompt in prompts], batch_tokens):
            with reading(places):
                found[places] = _probabilities(model, [prompts[place] for place in places], answers)
            done += len(places)
            progress(done)
    return found


def click_prompt_ids(tokenizer: PreTrainedTokenizerBase, questions: Sequence[ClickQuestion]) -> list[list[int]]:
    """The tokens of each question up to its answer, after `fit_clicks`."""
    return [
        token_ids(tokenizer, str(tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, tokenize=False)))
        for q in fit_clicks(questions, tokenizer)
    ]


def batches_of_like_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of prompts of like length, as many together as have at most that many tokens with padding; or one."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or lengths[place] * (len(batches[-1]) + 1) > most:
            batches.append([])
        batches[-1].append(place)
    return batches


def _probabilities(model: PreTrainedModel, prompts: Sequence[list[int]], answers: AnswerTokens) -> NDArray[np.float64]:
    """[prompts]"""
    logits = last_logits(model, prompts, 1)[:, -1]
    return (logits[:, answers.positive] - logits[:, answers.negative]).double().sigmoid().cpu().numpy()


def last_logits(model: PreTrainedModel, texts: Sequence[list[int]], count: int) -> torch.Tensor:
    """[texts, count, vocabulary], after the last `count` tokens of each, with gradient where it is asked for.

    Padding stands to the left, where the mask hides it and no position counts it.
    """
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    return model(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0).to(model.device),
        use_cache=False,
        **logits_to_keep(model, count),
    ).logits[:, -count:]
