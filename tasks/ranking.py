"""Ranking candidates with a language model: how likely is each title as the assistant's answer?"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import TaskError
from .prompts import ANSWER_MARK, Question, fit

PACK_TOKENS = 192  # answers that share a row: fewer rows pad less, longer rows attend to more that the mask hides


@dataclass(frozen=True, slots=True)
class Ranking:
    """One question's answer: a score per candidate, and the target's rank among them (0 is best)."""

    scores: tuple[float, ...]
    rank: int

    @classmethod
    def of(cls, scores: Sequence[float], question: Question) -> Ranking:
        """Equal scores count against the target. Raises TaskError if a score is NaN."""
        if any(map(math.isnan, scores)):
            raise TaskError(
                f"the model's answer to user {question.example.user_id!r} is not a number",
                hint="its weights may be broken, or the dtype too narrow",
            )
        target = scores[question.target_index]
        return cls(tuple(scores), sum(score >= target for score in scores) - 1)


def rank_by_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_tokens: int = 8192,
    beyond_prior: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Ranking]:
    """Score every candidate title by the sum of log P over its tokens and those that close it.

    With `beyond_prior`, what the title scores under the same question with an empty history is taken off: what is left is how much
    the history speaks for it, and short and common titles no longer begin ahead (PMI_DC, arXiv 2104.08315). Without candidates in the
    prompt that is computed once per title.

    The questions are put as `fit` has them. A title is closed by the end of the assistant's turn or, where the answer is a
    list, by the separator. The prompt is read once per question and its keys and values are shared by the candidates; no pass is over more than `batch_tokens`, unless
    one candidate is. Prompt and answer are tokenised apart, which gives the tokens that TRL trains on in prompt-completion
    form. Equal scores count against the target. `progress` is called with the number of questions done. Raises TaskError if
    the model answers NaN.
    """
    rankings: list[Ranking] = []
    priors: dict[tuple[str, str], float] = {}
    with torch.inference_mode(), evaluating(model):
        packs = _packs(model)

        def scored(question: Question, titles: Sequence[str]) -> list[float]:
            closing = _closing(tokenizer, question)
            prompt = torch.tensor(token_ids(tokenizer, prompt_text(tokenizer, question)))
            answers = [torch.tensor(token_ids(tokenizer, title + closing)) for title in titles]
            return _scores(model, prompt, answers, batch_tokens, packs=packs)

        for question in fit(questions, tokenizer):
            scores = scored(question, question.titles)
            if beyond_prior:
                empty = replace(question, history=())
                start = prompt_text(tokenizer, empty)
                new = [title for title in dict.fromkeys(question.titles) if (start, title) not in priors]
                if new:
                    priors |= {(start, t): s for t, s in zip(new, scored(empty, new), strict=True)}
                scores = [s - priors[start, t] for s, t in zip(scores, question.titles, strict=True)]
                if question.template.lists_candidates:
                    priors.clear()  # the next question lists others
            rankings.append(Ranking.of(scores, question))
            if progress:
                progress(len(rankings))
    return rankings


def prompt_text(tokenizer: PreTrainedTokenizerBase, question: Question) -> str:
    """The conversation up to where the assistant begins to answer, with all special tokens that belong there."""
    return str(tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False))


def _scores(
    model: PreTrainedModel, prompt: torch.Tensor, answers: Sequence[torch.Tensor], batch_tokens: int, *, packs: bool
) -> list[float]:
    """Sum of log P per answer: the prompt's cache is repeated for rows of answers, as many at a time as `batch_tokens` lets."""
    read = model(prompt[None].to(model.device), use_cache=True, **_keep(model, 1))
    first = _log_probabilities(read.logits[0, -1:].expand(len(answers), -1), torch.stack([a[0] for a in answers]))
    totals = first.tolist()
    rows = _rows(answers, packs=packs)
    width = max(sum(len(answers[index]) - 1 for index in row) for row in rows)
    if width == 0:
        return totals
    height = max(1, batch_tokens // (len(prompt) + width))
    for start in range(0, len(rows), height):
        some = rows[start : start + height]
        cache = copy.deepcopy(read.past_key_values)
        cache.batch_repeat_interleave(len(some))
        for index, score in _following(model, cache, len(prompt), [[(i, answers[i]) for i in row] for row in some]):
            totals[index] += score
    return totals


def _rows(answers: Sequence[torch.Tensor], *, packs: bool) -> list[list[int]]:
    """Which answers stand in one row: one each, or about PACK_TOKENS of them, the longest dealt out first."""
    if not packs:
        return [[index] for index in range(len(answers))]
    rows: list[list[int]] = [[] for _ in range(math.ceil(sum(map(len, answers)) / PACK_TOKENS))]
    filled = [0] * len(rows)
    for index in sorted(range(len(answers)), key=lambda i: -len(answers[i])):
        least = filled.index(min(filled))
        rows[least].append(index)
        filled[least] += len(answers[index])
    return rows


def _following(
    model: PreTrainedModel, cache: object, prompt: int, rows: Sequence[Sequence[tuple[int, torch.Tensor]]]
) -> list[tuple[int, float]]:
    """Per answer, sum of log P of all its tokens but the first, given the cache of a prompt of that many tokens.

    In a row that several answers share, a mask lets each see the prompt and itself, and its positions follow the prompt.
    Otherwise no mask is needed: padding stands to the right, where causal attention keeps it from all that is scored.
    """
    lengths = [[len(answer) - 1 for _, answer in row] for row in rows]  # the last token of an answer predicts nothing
    ids = pad_sequence([torch.cat([answer[:-1] for _, answer in row]) for row in rows], batch_first=True)
    placed = [torch.cat([torch.arange(length) for length in row]) for row in lengths]
    positions = prompt + pad_sequence(placed, batch_first=True)
    masks = {}
    if any(len(row) > 1 for row in rows):
        owners = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
        owner = pad_sequence(owners, batch_first=True, padding_value=-1)
        own = (owner[:, :, None] == owner[:, None, :]).tril()
        sees = torch.cat([own.new_ones(*own.shape[:2], prompt), own], dim=-1)
        mask = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, torch.finfo(model.dtype).min)
        masks = {"attention_mask": mask[:, None].to(model.device)}
    logits = model(
        ids.to(model.device), position_ids=positions.to(model.device), past_key_values=cache, use_cache=True, **masks
    ).logits
    places = torch.cat([torch.arange(sum(row)) + number * logits.shape[1] for number, row in enumerate(lengths)])
    wanted = torch.cat([answer[1:] for row in rows for _, answer in row])
    picked = _log_probabilities(logits.flatten(0, 1)[places.to(model.device)], wanted)
    counts = [length for row in lengths for length in row]
    indices = [index for row in rows for index, _ in row]
    return [(index, part.sum().item()) for index, part in zip(indices, picked.split(counts), strict=True)]


def _log_probabilities(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """log P of the wanted token per row of [rows, vocabulary], in float32 on the CPU; a few rows at a time, a vocabulary is wide."""
    found = []
    for some, tokens in zip(logits.split(64), wanted.to(logits.device).split(64), strict=True):
        exact = some.float()
        found.append(exact.gather(1, tokens[:, None])[:, 0] - exact.logsumexp(dim=1))
    return torch.cat(found).cpu()


def _packs(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all that our own mask lets it see."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    full = set(layers) == {"full_attention"} if layers else getattr(config, "sliding_window", None) is None
    return full and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


def _closing(tokenizer: PreTrainedTokenizerBase, question: Question) -> str:
    """What stands behind the first title of an answer."""
    if question.template.answers > 1:
        return question.template.separator.rstrip() or question.template.separator
    return end_of_turn(tokenizer, question.messages)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """What the chat template puts after an answer, up to the end-of-sequence token where there is one."""
    text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": ANSWER_MARK}], tokenize=False)
    end = str(text).rpartition(ANSWER_MARK)[2]
    eos = str(tokenizer.eos_token or "")
    if eos and eos in end:
        return end[: end.index(eos) + len(eos)]
    return end or eos


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The chat template has already written all special tokens that belong in the text."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _keep(model: PreTrainedModel, logits: int) -> dict[str, int]:
    inner = getattr(model, "get_base_model", lambda: model)()  # the signature of PEFT's wrapper says nothing
    return {"logits_to_keep": logits} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
