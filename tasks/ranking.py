"""Ranking candidates with a language model: how likely is each title as the assistant's answer?"""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .answer_tree import AnswerTree, common_beginning, packed
from .errors import TaskError
from .prompts import ANSWER_MARK, OpenQuestion, Question, shown_titles
from .title_trie import TitleTrie, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TITLES_AT_ONCE = 1024  # that are tokenised together: a tokenizer's answer takes far more memory than the ids
PACK_TOKENS = 192  # of answers that share a row: fewer rows pad less, longer rows attend to more that the mask hides
CPU_TOKENS = 1024  # of a batch: more make a processor no faster
FEWEST_SHARED = 8  # tokens that prompts begin with alike; fewer are not worth a pass of their own
MOST_AT_ONCE = 8  # batches in memory together, whose logits are the larger part
CHANGING_ROPES = re.compile("dynamic|longrope")
NONE_KNOWN: Tokens = np.empty(0, np.int32)


Given = TypeVar("Given")
Made = TypeVar("Made")


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


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that `fit` has made ready, and the titles whose figures are wanted; `constrained` is found with a trie."""

    question: OpenQuestion
    titles: Sequence[str]
    trie: TitleTrie | None = None


@torch.inference_mode()
def read_titles(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    batch_tokens: int,
    finished: Callable[[int], None] = lambda place: None,
) -> list[TitleFigures]:
    """How likely the titles are as answers, question by question. `finished` is called with the place of each that is read.

    Prompt and answer are tokenised apart, which gives the tokens that TRL trains on in prompt-completion form. Where the model's
    attention allows it, a prompt and its answers are one row of a batch, in which answers see the prompt and themselves. Otherwise,
    and where the answers are too many for a row, the prompt is read once and its keys and values are shared by rows of answers.

    Raises TaskError if the model answers NaN.
    """
    packs = packs_answers(model)
    groups: list[list[_Row]] = []
    together: list[_Row] = []
    totals: list[list[tuple[float, float]]] = []
    for place, each in enumerate(asked):
        rows = _rows(tokenizer, place, each, packs=packs)
        totals.append([(0.0, 0.0)] * len(each.titles))
        if packs and len(rows) == 1:
            together += rows
        else:
            groups.append(rows)
    for group in ([together] if together else []) + groups:
        for row, scored in _read_group(model, group, batch_tokens, packs=packs):
            for answer, total in zip(row.answers, scored, strict=True):
                totals[row.asked][answer] = total
            if any(math.isnan(figure) for total in scored for figure in total):
                raise TaskError(
                    f"the model's answer to {asked[row.asked].question.asker} is not a number",
                    hint="its weights may be broken, or the dtype too narrow",
                )
            if group is together:
                finished(row.asked)
        if group is not together:
            finished(group[0].asked)
    return [
        TitleFigures(tuple(full for full, _ in total), tuple(some for _, some in total) if each.trie else None)
        for each, total in zip(asked, totals, strict=True)
    ]


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
class _Row:
    """A prompt and some answers to it: the question's place among those asked, and the answers' places among its titles.

    `allowed`: per node of the tree the tokens that may stand in its place, where that is known.
    """

    asked: int
    answers: Sequence[int]
    prompt: list[int]
    tree: AnswerTree
    allowed: Sequence[Tokens] | None

    def __len__(self) -> int:
        """How many tokens a model reads."""
        return len(self.prompt) + len(self.tree)


def _rows(tokenizer: PreTrainedTokenizerBase, place: int, asked: Asked, *, packs: bool) -> list[_Row]:
    """A question's rows: of about PACK_TOKENS of its answers, or of one answer each."""
    end = closing(tokenizer, asked.question)
    prompt = token_ids(tokenizer, prompt_text(tokenizer, asked.question))
    answers = [token_ids(tokenizer, title + end) for title in asked.titles]
    allowed = None if asked.trie is None else _continuations(asked.trie, answers)
    rows = []
    for some in packed(answers, PACK_TOKENS) if packs else [[answer] for answer in range(len(answers))]:
        tree, known = AnswerTree([answers[answer] for answer in some]), None
        if allowed is not None:
            of_node = {
                node: tokens
                for answer, path in zip(some, tree.paths, strict=True)
                for node, tokens in zip(path, allowed[answer], strict=True)
            }
            known = [of_node[node] for node in range(len(tree.tokens))]
        rows.append(_Row(place, some, prompt, tree, known))
    return rows


def prompt_text(tokenizer: PreTrainedTokenizerBase, question: OpenQuestion) -> str:
    """The conversation up to where the assistant begins to answer, with all special tokens that belong there."""
    return str(tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False))


def _read_group(
    model: PreTrainedModel, rows: Sequence[_Row], batch_tokens: int, *, packs: bool
) -> Iterator[tuple[_Row, list[tuple[float, float]]]]:
    """Rows whose prompts may begin alike, and per answer of each what `_sums` gives; the beginning is read once.

    Without `packs` a row has one answer, and all rows have the same prompt.
    """
    shared = common_beginning([row.prompt for row in rows])
    if packs and shared < FEWEST_SHARED:
        shared = 0
    cache = None
    if shared:
        beginning = torch.tensor([rows[0].prompt[:shared]]).to(model.device)
        cache = model(beginning, use_cache=True, **logits_to_keep(model, 1)).past_key_values
    most = batch_tokens if model.device.type != "cpu" else min(batch_tokens, CPU_TOKENS + shared)

    def read(some: list[_Row]) -> list[list[tuple[float, float]]]:
        past = None
        if cache is not None:
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(some))
        return _read_batch(model, past, shared, some, packs=packs)

    batches = list(_batches(rows, most))
    for some, found in zip(batches, _in_threads(model, read, batches), strict=True):
        yield from zip(some, found, strict=True)


def _in_threads(model: PreTrainedModel, work: Callable[[Given], Made], each: Sequence[Given]) -> Iterator[Made]:
    """The work on each in order: on a processor with several threads in as many at once, for batches this small gain little from
    sharing one, and lose much where something else runs beside. A model whose rotary embedding follows the longest prompt has one.
    """
    config = model.config.get_text_config()
    ropes = json.dumps(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None), default=str)
    threads = torch.get_num_threads()
    workers = min(threads, len(each), MOST_AT_ONCE)
    if workers < 2 or model.device.type != "cpu" or CHANGING_ROPES.search(ropes):
        yield from map(work, each)
        return
    torch.set_num_threads(threads // workers)  # of every thread that begins after this
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(work, each)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _batches(rows: Sequence[_Row], most: int) -> Iterator[list[_Row]]:
    """Rows of like length, as many as have at most that many tokens with padding and with what they share; or one."""
    batch: list[_Row] = []
    for row in sorted(rows, key=len):
        if batch and len(row) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _read_batch(
    model: PreTrainedModel, past: Any, shared: int, rows: Sequence[_Row], *, packs: bool
) -> list[list[tuple[float, float]]]:
    """Per row and answer what `_sums` gives, after the cache of the `shared` tokens that every prompt begins with.

    Padding stands to the left, and a mask lets an answer see its prompt and itself; its positions follow the prompt. Without `packs`
    all prompts are the same and no mask is needed: padding stands to the right, where causal attention keeps it from all that is scored.
    """
    width, answers = max(map(len, rows)) - shared, max(len(row.tree) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        start = width + shared - len(row) if packs else 0
        own = slice(start, start + len(row.prompt) - shared)
        after = slice(own.stop, own.stop + len(row.tree))
        tree, depth = row.tree.layout()
        ids[number, own] = torch.tensor(row.prompt[shared:])
        ids[number, after] = torch.tensor([row.tree.tokens[node] for node in row.tree.inner], dtype=torch.long)
        positions[number, own] = torch.arange(shared, len(row.prompt))
        positions[number, after] = len(row.prompt) + torch.from_numpy(depth)
        sees[number, own, own] = torch.ones(own.stop - own.start, own.stop - own.start, dtype=torch.bool).tril()
        sees[number, after, own] = True
        sees[number, after, after] = torch.from_numpy(tree)
    more: dict[str, Any] = {} if past is None else {"past_key_values": past}
    if packs:
        seen = torch.cat([sees.new_ones(*sees.shape[:2], shared), sees], dim=-1)
        mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
        more["attention_mask"] = mask[:, None].to(model.device)
    logits = model(
        ids.to(model.device),
        position_ids=positions.to(model.device),
        use_cache=past is not None,
        **logits_to_keep(model, answers + 1),
        **more,
    ).logits[:, -answers - 1 :]
    return _sums(logits, rows, [answers - len(row.tree) if packs else 0 for row in rows])


def _sums(logits: torch.Tensor, rows: Sequence[_Row], starts: Sequence[int]) -> list[list[tuple[float, float]]]:
    """Per row and answer, sum of log P of its tokens, by the whole vocabulary and by what is allowed (0 where that is not known).

    `logits` [rows, 1 + inner nodes at most, vocabulary]; a row's first ones are at its start.
    """
    counts = [len(row.tree.tokens) for row in rows]
    columns = torch.tensor(
        [start + column for row, start in zip(rows, starts, strict=True) for column in row.tree.predicted_at]
    )
    tokens = torch.tensor([token for row in rows for token in row.tree.tokens])
    places = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)) * logits.shape[1] + columns
    flat = logits.flatten(0, 1)
    full = _log_probabilities(flat, places, tokens)
    allowed = [some for row in rows for some in row.allowed or [NONE_KNOWN] * len(row.tree.tokens)]
    restricted = _restricted_log_probabilities(flat, places, tokens, allowed)
    found = []
    for row, part, some in zip(rows, full.split(counts), restricted.split(counts), strict=True):
        found.append([(part[path].sum().item(), some[path].sum().item()) for path in row.tree.paths])
    return found


def _log_probabilities(logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log P of each token by the logits [rows, vocabulary] at its place, in float32 on the CPU; a few rows at a time, a vocabulary is wide."""
    all_together = torch.cat([some.float().logsumexp(dim=1) for some in logits.split(64)])
    places, tokens = places.to(logits.device), tokens.to(logits.device)
    return (logits[places, tokens].float() - all_together[places]).cpu()


def _restricted_log_probabilities(
    logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor, allowed: Sequence[Tokens]
) -> torch.Tensor:
    """log P of each token by the logits at its place, where only the tokens allowed there, itself among them, can come.

    In float64 on the CPU, where only the logits of allowed tokens are brought. A token without an alternative costs 0.
    """
    found = torch.zeros(len(allowed), dtype=torch.float64)
    choices = [number for number, some in enumerate(allowed) if len(some) > 1]
    rows = places[choices].tolist()
    for number, some in zip(choices, _picked(logits, rows, [allowed[number] for number in choices]), strict=True):
        place = int(np.searchsorted(allowed[number], int(tokens[number])))
        found[number] = some[place] - some.logsumexp(dim=0)
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


def logits_to_keep(model: PreTrainedModel, logits: int) -> dict[str, int]:
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
