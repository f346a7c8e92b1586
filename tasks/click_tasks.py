"""Which clicks are asked about: the rows of a part or a sample of them, in the words of a template, and the digest that names all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .click_metrics import ClickScores
from .click_prompts import ClickQuestion, ClickTemplate, Shown, click_question
from .clicks import ClickData, ClickOptions, ClickPart, ClickRow, digest_of
from .splits import sample

KIND = "clicks"


@dataclass(frozen=True)
class ClickTask:
    """What click metrics were measured on. Equal ones have equal rows in equal words.

    `limit` is None for all rows of the part; `seed` is of the sample, and None without one.
    """

    data_digest: str
    options: ClickOptions
    part: ClickPart
    template_digest: str
    limit: int | None
    seed: int | None

    @property
    def split(self) -> str:
        """`clicks-time` or `clicks-user`; with the part behind it where that is not the test part."""
        return f"{KIND}-{self.options.by}" + ("" if self.part == "test" else f"-{self.part}")

    @property
    def digest(self) -> str:
        return digest_of([KIND, self.to_json(), self.options.digest])

    def to_json(self) -> dict[str, Any]:
        """As it is recorded."""
        own = {"data_digest": self.data_digest, "part": self.part, "template_digest": self.template_digest}
        sampled = {"limit": self.limit, "seed": self.seed}
        return {"kind": KIND, "split": self.split, **own, **self.options.model_dump(), **sampled}


@dataclass(frozen=True)
class ClickQuestions:
    """The rows of a task, the data that they are of, and the words that a language model reads them in."""

    task: ClickTask
    clicks: ClickData
    rows: tuple[ClickRow, ...] = field(repr=False)
    template: ClickTemplate

    @cached_property
    def digest(self) -> str:
        """Of who is asked about what, and what is right, in order: equal ones can be compared row by row, whatever the words."""
        digest = hashlib.sha256(KIND.encode())
        for row in self.rows:
            digest.update(json.dumps([row.user_id, row.position, row.item_id, row.label]).encode() + b"\n")
        return f"sha256:{digest.hexdigest()}"

    def in_words(self, shown: Shown | None = None) -> list[ClickQuestion]:
        """As a language model is asked; `shown` chooses from the histories, else the template's newest items are."""
        return [click_question(row, self.clicks.items, self.template, shown) for row in self.rows]

    def expect_both_classes(self) -> None:
        """Raises OneClassError where the rows are all alike, which no metric of clicks is for."""
        self.scored(np.full(len(self.rows), 0.5))

    def scored(self, scores: ArrayLike) -> ClickScores:
        """[rows], the probabilities beside what is right. Raises TaskError, OneClassError."""
        return ClickScores.of([row.label is True for row in self.rows], scores, [row.user_id for row in self.rows])


def click_questions(
    clicks: ClickData,
    part: ClickPart,
    template: ClickTemplate,
    *,
    limit: int | None = None,
    seed: int = 42,
) -> ClickQuestions:
    """The part's rows, or a seeded sample of `limit` of them."""
    rows: Sequence[ClickRow] = clicks.part(part)
    if limit is not None:
        rows = sample(rows, limit, seed)
    task = ClickTask(clicks.data_digest, clicks.options, part, template.digest, limit, None if limit is None else seed)
    return ClickQuestions(task, clicks, tuple(rows), template)
