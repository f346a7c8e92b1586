"""Ranking by what a language model says: a list of titles, read as it is. RecCocktail's paper measures in this way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .prompts import Question, fit
from .ranking import end_of_turn, evaluating, prompt_text, token_ids

SPARE_TOKENS = 8  # beyond the longest right answer: the end of the turn, a separator that is spelled with more tokens


@dataclass(frozen=True, slots=True)
class GeneratedRanking:
    """One question's answer in words. `rank` is the target's place in the list (0 is first), None if it is not named.

    `named` holds the entries that count, at most as many as the template asks for. `unknown` of them are no candidate's exact
    title, `duplicates` repeat an entry before; both keep their place and hit nothing.
    """

    text: str
    named: tuple[str, ...]
    rank: int | None
    unknown: int
    duplicates: int


def rank_by_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> list[GeneratedRanking]:
    """Decode every answer greedily and find the target in it.

    The questions are put as `fit` has them; those of like length share a batch of at most `batch_tokens` with what is generated.
    An answer may have as many tokens as the question's longest titles, as many as the template asks for, have with separators
    between them, and SPARE_TOKENS more. `progress` is called with the number of questions done.
    """
    asked = fit(questions, tokenizer)
    end = end_of_turn(tokenizer, asked[0].messages).strip() if asked else ""
    prompts = [token_ids(tokenizer, prompt_text(tokenizer, question)) for question in asked]
    room = [_room(tokenizer, question) for question in asked]
    found: dict[int, GeneratedRanking] = {}
    with torch.inference_mode(), evaluating(model):
        for batch in _batches(prompts, room, batch_tokens):
            most = max(room[index] for index in batch)
            for index, answer in zip(batch, _answers(model, tokenizer, [prompts[i] for i in batch], most), strict=True):
                # An answer ends where it would have ended alone.
                text = str(tokenizer.decode(answer[: room[index]], skip_special_tokens=True))
                found[index] = read_answer(text.partition(end)[0] if end else text, asked[index])
            if progress:
                progress(len(found))
    return [found[index] for index in range(len(asked))]


def read_answer(text: str, question: Question) -> GeneratedRanking:
    """The entries of an answer: cut at the template's mark, and equal to a candidate's title to the letter but for blanks around.

    Between two marks with nothing between them there is no entry.
    """
    pieces = [piece.strip() for piece in text.split(question.template.mark)]
    named = tuple(piece for piece in pieces if piece)[: question.template.answers]
    rank, unknown, duplicates = None, 0, 0
    for place, title in enumerate(named):
        if title in named[:place]:
            duplicates += 1
        elif title not in question.titles:
            unknown += 1
        elif title == question.titles[question.target_index]:
            rank = place
    return GeneratedRanking(text, named, rank, unknown, duplicates)


def _room(tokenizer: PreTrainedTokenizerBase, question: Question) -> int:
    """How many tokens the longest right answer could take."""
    longest = sorted(question.titles, key=lambda title: len(token_ids(tokenizer, title)))[-question.template.answers :]
    return len(token_ids(tokenizer, question.template.separator.join(longest))) + SPARE_TOKENS


def _batches(prompts: Sequence[Sequence[int]], room: Sequence[int], batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    widest = 0
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        widest = max(widest, room[index]) if batches else room[index]
        if batches and (len(prompts[index]) + widest) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            widest = room[index]
    return batches


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], room: int
) -> list[list[int]]:
    """Greedy answers to a batch of prompts, which stand to the right so that the answers line up; each up to its end."""
    width = max(map(len, prompts))
    ends = answer_ends(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    generated = model.generate(  # pyright: ignore[reportCallIssue]  the stub takes the model for a tensor
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=room,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # a checkpoint's generation_config may ask for others
        no_repeat_ngram_size=0,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    return [list(takewhile(lambda token: token not in ends, row)) for row in generated[:, width:].tolist()]


def answer_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's and those of the checkpoint's generation_config."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({int(token) for token in (tokenizer.eos_token_id, *ends) if isinstance(token, int)})
