"""Ranking candidates with a language model: how likely is each title as the assistant's answer?"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import TaskError
from .prompts import ANSWER_MARK, OpenQuestion, Question, shown_titles
from .title_trie import TitleTrie, Tokens

TITLES_AT_ONCE = 1024  # that are tokenised together: a tokenizer's answer takes far more memory than the ids
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
                f"the model's answer to {question.asker} is not a number",
                hint="its weights may be broken, or the dtype too narrow",
            )
        target = scores[question.target_index]
        return cls(tuple(scores), sum(score >= target for score in scores) - 1)


@dataclass(frozen=True, slots=True)
class TitleFigures:
    """Per title, sum of log P over its tokens and those that close it: of all tokens, and of those that continue some title."""

    likelihood: tuple[float, ...]
    constrained: tuple[float, ...] | None = None


@torch.inference_mode()
def read_titles(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: OpenQuestion,
    titles: Sequence[str],
    batch_tokens: int,
    trie: TitleTrie | None = None,
) -> TitleFigures:
    """How likely the titles are as answers to a question that `fit` has made ready; `constrained` is found with a trie.

    The prompt is read once and its keys and values are shared by the titles. Prompt and answer are tokenised apart, which gives
    the tokens that TRL trains on in prompt-completion form. Raises TaskError if the model answers NaN.
    """
    end = closing(tokenizer, question)
    prompt = torch.tensor(token_ids(tokenizer, prompt_text(tokenizer, question)))
    ids = [token_ids(tokenizer, title + end) for title in titles]
    allowed = [None] * len(ids) if trie is None else _continuations(trie, ids)
    answers = [_Answer(torch.tensor(each), tokens) for each, tokens in zip(ids, allowed, strict=True)]
    totals = _scores(model, prompt, answers, batch_tokens, packs=packs_answers(model))
    if any(math.isnan(figure) for total in totals for figure in total):
        raise TaskError(
            f"the model's answer to {question.asker} is not a number",
            hint="its weights may be broken, or the dtype too narrow",
        )
    likelihood, constrained = zip(*totals, strict=True)
    return TitleFigures(likelihood, constrained if trie is not None else None)


_TRIES: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, TitleTrie]] = WeakKeyDictionary()


def catalogue_trie(tokenizer: PreTrainedTokenizerBase, question: OpenQuestion, catalogue: Sequence[str]) -> TitleTrie:
    """The trie of a catalogue's titles as the question's template shows and closes them.

    The newest of each tokenizer is kept: a search scores the same catalogue with one mixture after another.
    """
    end = closing(tokenizer, question)
    made_of = (question.template, end, len(tokenizer), tuple(catalogue))
    kept, trie = _TRIES.get(tokenizer, (None, None))
    if trie is None or kept != made_of:
        trie = title_trie(tokenizer, shown_titles(catalogue, question.template, tokenizer), end)
        _TRIES[tokenizer] = made_of, trie
    return trie


def title_trie(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], end: str) -> TitleTrie:
    """The trie of these titles' tokens, each with those that close it. Titles are taken as they are shown (`shown_titles`)."""
    texts = [title + end for title in dict.fromkeys(titles)]
    some = (texts[start : start + TITLES_AT_ONCE] for start in range(0, len(texts), TITLES_AT_ONCE))
    return TitleTrie(ids for each in some for ids in tokenizer(each, add_special_tokens=False)["input_ids"])


def _continuations(trie: TitleTrie, answers: Sequence[Sequence[int]]) -> Sequence[list[Tokens]]:
    """What may stand in the place of each token of the answers, which count as titles even where the trie lacks them."""
    try:
        return [trie.continuations(answer) for answer in answers]
    except TaskError:
        own = TitleTrie(answers)
    return [
        [np.union1d(trie.allowed(answer[:end]), own.allowed(answer[:end])) for end in range(len(answer))]
        for answer in answers
    ]


@dataclass(frozen=True, slots=True)
class _Answer:
    """The tokens of a title and of what closes it; for each, where it is known, the tokens that may stand in its place."""

    ids: torch.Tensor
    allowed: Sequence[Tokens] | None

    def __len__(self) -> int:
        return len(self.ids)


def prompt_text(tokenizer: PreTrainedTokenizerBase, question: OpenQuestion) -> str:
    """The conversation up to where the assistant begins to answer, with all special tokens that belong there."""
    return str(tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False))


def _scores(
    model: PreTrainedModel, prompt: torch.Tensor, answers: Sequence[_Answer], batch_tokens: int, *, packs: bool
) -> list[tuple[float, float]]:
    """Per answer, sum of log P of its tokens, by the whole vocabulary and by what is allowed (0 where that is not known).

    The prompt's cache is repeated for rows of answers, as many at a time as `batch_tokens` lets.
    """
    read = model(prompt[None].to(model.device), use_cache=True, **_keep(model, 1))
    starts = [_Answer(a.ids[:1], a.allowed and a.allowed[:1]) for a in answers]
    totals = _sums(read.logits[0, -1:].expand(len(answers), -1), starts)
    rows = _rows(answers, packs=packs)
    width = max(sum(len(answers[index]) - 1 for index in row) for row in rows)
    if width == 0:
        return totals
    height = max(1, batch_tokens // (len(prompt) + width))
    for start in range(0, len(rows), height):
        some = rows[start : start + height]
        cache = copy.deepcopy(read.past_key_values)
        cache.batch_repeat_interleave(len(some))
        scored = _following(model, cache, len(prompt), [[answers[i] for i in row] for row in some])
        for index, (full, allowed) in zip([i for row in some for i in row], scored, strict=True):
            totals[index] = totals[index][0] + full, totals[index][1] + allowed
    return totals


def _rows(answers: Sequence[_Answer], *, packs: bool) -> list[list[int]]:
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
    model: PreTrainedModel, cache: object, prompt: int, rows: Sequence[Sequence[_Answer]]
) -> list[tuple[float, float]]:
    """Per answer, row by row, what `_sums` gives of all its tokens but the first, given the cache of a prompt of that many tokens.

    In a row that several answers share, a mask lets each see the prompt and itself, and its positions follow the prompt.
    Otherwise no mask is needed: padding stands to the right, where causal attention keeps it from all that is scored.
    """
    lengths = [[len(answer) - 1 for answer in row] for row in rows]  # the last token of an answer predicts nothing
    ids = pad_sequence([torch.cat([answer.ids[:-1] for answer in row]) for row in rows], batch_first=True)
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
    rest = [_Answer(answer.ids[1:], answer.allowed and answer.allowed[1:]) for row in rows for answer in row]
    return _sums(logits.flatten(0, 1)[places.to(model.device)], rest)


def _sums(logits: torch.Tensor, answers: Sequence[_Answer]) -> list[tuple[float, float]]:
    """Per answer, sum of log P of its tokens, by the whole vocabulary and by what is allowed; [tokens of all, vocabulary]."""
    counts = [len(answer) for answer in answers]
    wanted = torch.cat([answer.ids for answer in answers])
    full = _log_probabilities(logits, wanted)
    allowed = [tokens for answer in answers if answer.allowed is not None for tokens in answer.allowed]
    restricted = _restricted_log_probabilities(logits, wanted, allowed) if allowed else torch.zeros_like(full)
    parts = zip(full.split(counts), restricted.split(counts), strict=True)
    return [(part.sum().item(), some.sum().item()) for part, some in parts]


def _log_probabilities(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """log P of the wanted token per row of [rows, vocabulary], in float32 on the CPU; a few rows at a time, a vocabulary is wide."""
    found = []
    for some, tokens in zip(logits.split(64), wanted.to(logits.device).split(64), strict=True):
        exact = some.float()
        found.append(exact.gather(1, tokens[:, None])[:, 0] - exact.logsumexp(dim=1))
    return torch.cat(found).cpu()


def _restricted_log_probabilities(
    logits: torch.Tensor, wanted: torch.Tensor, allowed: Sequence[Tokens]
) -> torch.Tensor:
    """log P of the wanted token per row of [rows, vocabulary] where only the row's allowed tokens, itself among them, can come.

    In float64 on the CPU, where only the logits of allowed tokens are brought. A token without an alternative costs 0.
    """
    found = torch.zeros(len(allowed), dtype=torch.float64)
    open_rows = [row for row, tokens in enumerate(allowed) if len(tokens) > 1]
    for row, some in zip(open_rows, _picked(logits, open_rows, [allowed[row] for row in open_rows]), strict=True):
        place = int(np.searchsorted(allowed[row], int(wanted[row])))
        found[row] = some[place] - some.logsumexp(dim=0)
    return found


def _picked(logits: torch.Tensor, rows: Sequence[int], tokens: Sequence[Tokens]) -> Sequence[torch.Tensor]:
    """Of each of these rows the logits of its tokens, fetched at once."""
    counts = [len(some) for some in tokens]
    if not counts:
        return []
    owners = torch.tensor(rows).repeat_interleave(torch.tensor(counts)).to(logits.device)
    columns = torch.from_numpy(np.concatenate(tokens).astype(np.int64)).to(logits.device)
    return logits[owners, columns].float().cpu().double().split(counts)


def packs_answers(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all that our own mask lets it see."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    full = set(layers) == {"full_attention"} if layers else getattr(config, "sliding_window", None) is None
    return full and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


def closing(tokenizer: PreTrainedTokenizerBase, question: OpenQuestion) -> str:
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
