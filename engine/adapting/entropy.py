"""The objective of adaptive mixing: how sure a model is of its own greedy answers (RecCocktail Eq. 8).

Greedy tokens are constants, so the gradient of their entropies is that of stepwise decoding however they are computed. Short answers are
decoded with gradient, through the cache of keys and values: the prompt is read once. Long answers are decoded without, and then
read in one teacher-forced pass: the keys and values of every step would be kept otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...tasks import answer_ends

SHORT = 4  # tokens; up to here keeping every step's keys and values costs less than reading the prompt twice


@dataclass(frozen=True)
class TokenSelection:
    """Which tokens of an answer count: the first `tokens` of its first title, or of every title.

    For every title the whole answer is decoded, up to `longest` tokens; a title ends where `mark`, the separator between titles, has
    been written. (Counting on token ids instead would miss the marks that a tokenizer merges with what stands beside them.)
    """

    tokens: int
    mark: str | None = None
    longest: int = 160

    @property
    def length(self) -> int:
        """Tokens that are decoded at most."""
        return self.tokens if self.mark is None else max(self.tokens, self.longest)


@dataclass(frozen=True)
class Answers:
    """Greedy answers to one batch of prompts, which are padded on the left so that answers line up.

    `ids` and `mask` [n, width + length] hold prompts and answers, `counts` [n, length] marks the answer tokens that count,
    `entropies` [n] the mean entropy (nats, full vocabulary) of the distributions that those were drawn from.
    """

    ids: Tensor
    mask: Tensor
    counts: Tensor
    entropies: Tensor


def batches(prompts: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Indices of prompts, those of like length together, so that little is padded; a batch has at most `batch_tokens` with padding."""
    found: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if found and len(prompts[index]) * (len(found[-1]) + 1) <= batch_tokens:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def answer(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], counting: TokenSelection) -> Answers:
    """Decode greedily until every row has ended or has all tokens that count. A row counts up to its end-of-turn token.

    The entropies have the model's gradient, unless gradients are disabled in torch.
    """
    ends = answer_ends(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    stops = torch.tensor(ends, dtype=torch.long, device=device)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    writers = [_Writer(counting, tokenizer) for _ in prompts]
    total = torch.zeros(len(prompts), device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    counted: list[Tensor] = []
    cache, latest = None, ids
    for _ in range(counting.length):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -latest.shape[1] :]
        out = model(
            input_ids=latest,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        counts = alive & torch.tensor([writer.counts for writer in writers], device=device)
        log_p = out.logits[:, -1].float().log_softmax(-1)
        total += torch.where(counts, _entropy(log_p), 0.0)
        counted.append(counts)
        latest = log_p.detach().argmax(-1, keepdim=True)
        ids = torch.cat([ids, latest], dim=1)
        mask = torch.cat([mask, alive[:, None].to(mask.dtype)], dim=1)
        alive = alive & ~torch.isin(latest[:, 0], stops)
        if not bool(alive.any()):
            break
        if counting.mark is not None:
            for writer, token in zip(writers, latest[:, 0].tolist(), strict=True):
                writer.write(token)
    counts = torch.stack(counted, dim=1)
    return Answers(ids, mask, counts, total / counts.sum(1))


class _Writer:
    """Follows one answer: whether its next token is among those that count."""

    def __init__(self, counting: TokenSelection, tokenizer: Any) -> None:
        self._counting, self._tokenizer = counting, tokenizer
        self._title: list[int] = []

    @property
    def counts(self) -> bool:
        return self._counting.mark is None or len(self._title) < self._counting.tokens

    def write(self, token: int) -> None:
        self._title.append(token)
        assert self._counting.mark is not None
        if self._counting.mark in self._tokenizer.decode(self._title):
            self._title = []


def answer_with_gradient(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], counting: TokenSelection
) -> Tensor:
    """The entropies [n] of the answers to the prompts, by whichever way to their gradient is the cheaper."""
    if counting.length <= SHORT:
        return answer(model, tokenizer, prompts, counting).entropies
    with torch.no_grad():
        answers = answer(model, tokenizer, prompts, counting)
    return entropies(model, answers)


def entropies(model: Any, answers: Answers) -> Tensor:
    """The same entropies [n] as `answers` has, from one pass over prompts and answers, with whatever gradient the model has."""
    length = answers.counts.shape[1]
    mask = answers.mask[:, :-1]
    logits = model(
        input_ids=answers.ids[:, :-1],
        attention_mask=None if bool(mask.all()) else mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=length,
    ).logits
    row = torch.arange(len(answers.counts), device=logits.device)[:, None].expand_as(answers.counts)[answers.counts]
    found = _entropy(logits[answers.counts].float().log_softmax(-1))
    total = torch.zeros(len(answers.counts), device=logits.device).index_add(0, row, found)
    return total / answers.counts.sum(1)


def _entropy(log_p: Tensor) -> Tensor:
    """Shannon entropy in nats of distributions given by their logarithms, over the last dimension; 0 log 0 is 0."""
    log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    return -(log_p.exp() * log_p).sum(-1)
