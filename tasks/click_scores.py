"""Clicks by a language model: softmax over the logits of the two tokens that begin a yes and a no."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
) -> NDArray[np.float64]:
    """[questions], the probability of a like. All questions have one template. `progress` receives how many are done.

    Raises AnswerTokenError where an answer is not one token of the tokenizer.
    """
    found = np.zeros(len(questions))
    if not questions:
        return found
    answers = answer_tokens(tokenizer, questions[0].template)
    prompts = [
        token_ids(tokenizer, str(tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, tokenize=False)))
        for q in fit_clicks(questions, tokenizer)
    ]
    done = 0
    with evaluating(model):
        for places in _batches([len(prompt) for prompt in prompts], batch_tokens):
            found[places] = _probabilities(model, [prompts[place] for place in places], answers)
            done += len(places)
            progress(done)
    return found


def _batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of prompts of like length, as many together as have at most that many tokens with padding; or one."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or lengths[place] * (len(batches[-1]) + 1) > most:
            batches.append([])
        batches[-1].append(place)
    return batches


def _probabilities(model: PreTrainedModel, prompts: Sequence[list[int]], answers: AnswerTokens) -> NDArray[np.float64]:
    """[prompts]; padding stands to the left, where the mask hides it and no position counts it."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    logits = model(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0).to(model.device),
        use_cache=False,
        **logits_to_keep(model, 1),
    ).logits[:, -1]
    return (logits[:, answers.positive] - logits[:, answers.negative]).double().sigmoid().cpu().numpy()
