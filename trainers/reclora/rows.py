"""The rows that the LoRAs learn from and are validated on: drawn, put into words and tokens, each with what is known of its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ...networks.din import FrozenDin
from ...tasks import ClickData, ClickQuestion, ClickRow, ClickScores, ClickTemplate, Item, click_question, sample
from ...tasks.click_prompts import Shown, answer_ids
from ...tasks.click_scores import click_prompt_ids
from ..plugin import TrainerError
from .options import RecloraOptions


@dataclass(frozen=True)
class Drawn:
    """What is drawn of the training and of the validation rows."""

    train: tuple[ClickRow, ...]
    validation: tuple[ClickRow, ...]


def draw(clicks: ClickData, options: RecloraOptions) -> Drawn:
    """Uniformly, without replacement, by the seed: the rows that `sft` draws of as many. Raises TrainerError where they fill no batch."""
    train = tuple(sample(clicks.train, options.count(len(clicks.train)), options.seed))
    if len(train) < options.batch_size:
        raise TrainerError(
            f"{len(train)} training rows do not fill a batch of {options.batch_size}",
            hint=f"-o batch_size={len(train)}, or more -o samples=… of the {len(clicks.train)} rows that there are",
        )
    return Drawn(train, tuple(sample(clicks.validation, options.validation_rows, options.seed)))


def scored(rows: Sequence[ClickRow], scores: NDArray[np.float64]) -> ClickScores:
    """Raises OneClassError where all rows have the same label."""
    return ClickScores.of([row.label is True for row in rows], scores, [row.user_id for row in rows])


@dataclass(frozen=True)
class Wording:
    """How rows are put into words."""

    items: Mapping[str, Item]
    template: ClickTemplate
    shown: Shown

    def questions(self, rows: Sequence[ClickRow]) -> list[ClickQuestion]:
        return [click_question(row, self.items, self.template, self.shown) for row in rows]


@dataclass(frozen=True)
class Examples:
    """Rows ready for the model: the tokens of each prompt and of its right answer, and c [rows, width] of the recommender."""

    prompts: Sequence[list[int]]
    answers: Sequence[list[int]]
    c: torch.Tensor

    @classmethod
    def of(
        cls, rows: Sequence[ClickRow], wording: Wording, tokenizer: PreTrainedTokenizerBase, recommender: FrozenDin
    ) -> Examples:
        """Raises AnswerTokenError where the word of an answer is more than one token."""
        positive, negative = answer_ids(tokenizer, wording.template)
        prompts = click_prompt_ids(tokenizer, wording.questions(rows))
        return cls(prompts, [positive if row.label else negative for row in rows], recommender.user_vectors(rows))

    @property
    def lengths(self) -> list[int]:
        return [len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    def expect_at_most(self, tokens: int) -> None:
        """Raises TrainerError for rows with more tokens."""
        long = [length for length in self.lengths if length > tokens]
        if long:
            raise TrainerError(
                f"{len(long)} of {len(self.prompts)} rows are longer than {tokens} tokens, the longest has {max(long)}",
                hint=f"-o max_tokens={max(long)}, or shorter prompts by -o history=…",
            )
