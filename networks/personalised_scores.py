"""Clicks by a language model that reads each row with its own user's LoRA, different users in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tasks import ClickQuestion, ClickRow, Item, click_question
from ..tasks.click_scores import BATCH_TOKENS, score_clicks
from .bundle import PersonalisedBundle
from .gated_lora import GatedLora


def score_clicks_personalised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bundle: PersonalisedBundle,
    rows: Sequence[ClickRow],
    items: Mapping[str, Item],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """[rows], the probability of a like, by the base model `model` and the bundle, asked as the bundle was trained.

    `items` has the titles. The bundle's LoRAs move to the model's device. Raises what `score_clicks` raises.
    """
    questions = [click_question(row, items, bundle.template, bundle.shown) for row in rows]
    net, c = bundle.net.to(model.device), bundle.recommender.user_vectors(rows)
    return score_gated(model, tokenizer, questions, net, c, batch_tokens=batch_tokens, progress=progress)


@torch.inference_mode()
def score_gated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ClickQuestion],
    net: GatedLora,
    c: torch.Tensor,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """[questions], the probability of a like, each read with the LoRA that the net makes of c [questions, width].

    The net is taken as it is, so in evaluation mode. Raises what `score_clicks` raises.
    """
    alpha = net.coefficients(c.to(device=model.device, dtype=net.norm_weight.dtype))
    return score_clicks(
        model,
        tokenizer,
        questions,
        batch_tokens=batch_tokens,
        progress=progress,
        reading=lambda places: net.applied(model, alpha[places]),
    )
