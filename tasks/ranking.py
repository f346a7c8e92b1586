"""Ranking candidates with a language model: how likely is each title as the assistant's answer?"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import TaskError
from .prompts import Question

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Ranking:
    """One question's answer: a log-probability per candidate, and the target's rank among them (0 is best)."""

    scores: tuple[float, ...]
    rank: int


def rank_by_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[Ranking]:
    """Score every candidate title by the sum of log P over its tokens and those that end the assistant's turn.

    The prompt is read once per question and its keys and values are shared by the candidates; no pass is over more than
    `batch_tokens`, unless one prompt with one candidate is. Prompt and answer are tokenised apart, which gives the tokens
    that TRL trains on in prompt-completion form. Equal scores count against the target. `progress` is called with the
    number of questions done. Raises TaskError if the model answers NaN.
    """
    rankings: list[Ranking] = []
    with torch.inference_mode(), _evaluating(model):
        packs = _packs(model)
        end = _end_of_turn(tokenizer, questions[0].messages) if questions else ""
        for question in questions:
            text = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
            prompt = _ids(tokenizer, text)
            answers = [_ids(tokenizer, title + end) for title in question.titles]
            if packs and len(prompt) + sum(map(len, answers)) <= batch_tokens:
                scores = _packed_scores(model, prompt, answers)
            else:
                scores = _cached_scores(model, prompt, answers, batch_tokens)
            rankings.append(Ranking(tuple(scores), _rank(scores, question)))
            if progress:
                progress(len(rankings))
    return rankings


def _packed_scores(model: PreTrainedModel, prompt: torch.Tensor, answers: Sequence[torch.Tensor]) -> list[float]:
    """Prompt and all answers in one row; the mask lets an answer see the prompt and itself, its positions follow the prompt."""
    read = [answer[:-1] for answer in answers]  # the last token of an answer predicts nothing
    lengths = torch.tensor([len(tokens) for tokens in read])
    owner = torch.cat([torch.full_like(prompt, -1), torch.arange(len(answers)).repeat_interleave(lengths)])
    positions = torch.cat([torch.arange(len(prompt)), *(len(prompt) + torch.arange(len(tokens)) for tokens in read)])
    sees = ((owner[:, None] == owner) | (owner == -1)).tril()
    mask = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, torch.finfo(model.dtype).min)
    predicting = 1 + int(lengths.sum())
    logits = model(
        torch.cat([prompt, *read])[None].to(model.device),
        attention_mask=mask[None, None].to(model.device),
        position_ids=positions[None].to(model.device),
        use_cache=False,
        **_keep(model, predicting),
    ).logits[0, -predicting:]
    starts = (1 + lengths.cumsum(0) - lengths).tolist()
    rows = [torch.tensor([0, *range(start, start + len(tokens))]) for start, tokens in zip(starts, read, strict=True)]
    picked = logits.float().log_softmax(-1)[torch.cat(rows), torch.cat(list(answers))]
    return [part.sum().item() for part in picked.cpu().split([len(answer) for answer in answers])]


def _cached_scores(
    model: PreTrainedModel, prompt: torch.Tensor, answers: Sequence[torch.Tensor], batch_tokens: int
) -> list[float]:
    """The prompt's cache repeated for a batch of answers at a time: for models whose attention takes no mask of ours."""
    read = model(prompt[None].to(model.device), use_cache=True, **_keep(model, 1))
    rows = max(1, batch_tokens // (len(prompt) + max(map(len, answers))))
    scores: list[float] = []
    for start in range(0, len(answers), rows):
        batch = pad_sequence(list(answers[start : start + rows]), batch_first=True, padding_value=IGNORED)
        batch = batch.to(model.device)
        cache = copy.deepcopy(read.past_key_values)
        cache.batch_repeat_interleave(len(batch))
        # Padding stands to the right, where causal attention keeps it from everything that is scored: no mask is needed.
        following = model(batch[:, :-1].clamp(min=0), past_key_values=cache, use_cache=True).logits
        logits = torch.cat([read.logits[:, -1:].expand(len(batch), -1, -1), following], dim=1).float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch.flatten(), ignore_index=IGNORED, reduction="none")
        scores += (-losses.view_as(batch).sum(dim=1)).tolist()
    return scores


def _packs(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all that our own mask lets it see."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    full = set(layers) == {"full_attention"} if layers else getattr(config, "sliding_window", None) is None
    return full and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


def _rank(scores: Sequence[float], question: Question) -> int:
    if any(map(math.isnan, scores)):
        raise TaskError(
            f"the model's answer to user {question.example.user_id!r} is not a number",
            hint="its weights may be broken, or the dtype too narrow",
        )
    target = scores[question.target_index]
    return sum(score >= target for score in scores) - 1


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """What the chat template puts after an answer, up to the end-of-sequence token where there is one."""
    answer = "ANSWER-ENDS-HERE"
    text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    end = str(text).rpartition(answer)[2]
    eos = str(tokenizer.eos_token or "")
    if eos and eos in end:
        return end[: end.index(eos) + len(eos)]
    return end or eos


def _ids(tokenizer: PreTrainedTokenizerBase, text: object) -> torch.Tensor:
    """The chat template has already written all special tokens that belong in the text."""
    return torch.tensor(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def _keep(model: PreTrainedModel, logits: int) -> dict[str, int]:
    inner = getattr(model, "get_base_model", lambda: model)()  # the signature of PEFT's wrapper says nothing
    return {"logits_to_keep": logits} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
