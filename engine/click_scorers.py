"""How each kind of system predicts clicks. A further kind is one class with the members of ClickScorer, and one line in `click_scorer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..networks.bundle import click_options_of, click_template_of, open_bundle
from ..networks.din import train_din
from ..networks.personalised_scores import score_clicks_personalised
from ..registry.artifacts.bundles import read_manifest
from ..registry.errors import UsageError
from ..tasks import ClickQuestions, shipped_click_templates
from ..tasks.click_baselines import MeanBaseline, score_by_means
from ..tasks.click_scores import score_clicks
from .figures import loaded
from .models import compute_dtype
from .systems import CLICK_BASELINES, System

Progress = Callable[[int, int], None]


class ClickScorer(Protocol):
    """Something that predicts clicks: `mode` is how, `dtype` what it computes in, `unit` what its progress counts."""

    @property
    def mode(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def scores(self, asked: ClickQuestions, progress: Progress) -> NDArray[np.float64]:
        """[rows], the probability that the row's user likes its item. What is learned from the data is learned from training rows."""
        ...


def click_scorer(system: System, device: str) -> ClickScorer:
    """How this system predicts clicks. Raises UsageError for one that does not."""
    match system.baseline:
        case "item-mean" | "item-user-mean" as mean:
            return MeanScorer(mean)
        case "din":
            return DinScorer()
        case None:
            return BundleScorer(system, device) if system.bundle else AnswerScorer(system, device)
        case name:
            raise UsageError(f"{name} ranks items and predicts no clicks", hint=f"name {' or '.join(CLICK_BASELINES)}")


def expect_questions_of(scorer: ClickScorer, asked: ClickQuestions) -> None:
    """Raises UsageError where a bundle may have learned from the rows, or was trained to be asked in other words."""
    if isinstance(scorer, BundleScorer):
        scorer.expect(asked)


@dataclass(frozen=True)
class MeanScorer:
    """The share of likes of an item, perhaps with that of the user's history."""

    mode: MeanBaseline
    dtype: str = "float64"
    unit: str = "rows"

    def scores(self, asked: ClickQuestions, progress: Progress) -> NDArray[np.float64]:
        found = score_by_means(asked.clicks, asked.rows, self.mode)
        progress(len(asked.rows), len(asked.rows))
        return found


@dataclass(frozen=True)
class DinScorer:
    """DIN, trained on all training rows of the domain; the validation rows choose its epoch."""

    mode: str = "din"
    dtype: str = "float32"
    unit: str = "batches"

    def scores(self, asked: ClickQuestions, progress: Progress) -> NDArray[np.float64]:
        return train_din(asked.clicks, progress=progress).scores(asked.rows)


@dataclass(frozen=True)
class AnswerScorer:
    """A language model, perhaps with an adapter: softmax over the logits of the tokens that begin the two answers."""

    system: System
    device: str
    mode: str = "answers"
    unit: str = "rows"

    @property
    def dtype(self) -> str:
        return str(compute_dtype(self.device)).removeprefix("torch.")

    def scores(self, asked: ClickQuestions, progress: Progress) -> NDArray[np.float64]:
        with loaded(self.system, self.device) as (model, tokenizer):
            return score_clicks(
                model, tokenizer, asked.in_words(), progress=lambda done: progress(done, len(asked.rows))
            )


@dataclass(frozen=True)
class BundleScorer:
    """A language model with a personalised LoRA: each row is read with its own user's, and asked as the bundle was trained to be."""

    system: System
    device: str
    mode: str = "personalised"
    unit: str = "rows"

    @property
    def dtype(self) -> str:
        return str(compute_dtype(self.device)).removeprefix("torch.")

    def expect(self, asked: ClickQuestions) -> None:
        """Raises UsageError; reads the manifest alone."""
        assert self.system.bundle is not None
        manifest = read_manifest(self.system.bundle)
        learned, trained = click_options_of(manifest), click_template_of(manifest)
        if learned != asked.clicks.options:
            raise UsageError(
                f"{self.system.label} learned from rows that are made by {learned}, and may have seen those asked about,"
                f" which are made by {asked.clicks.options}",
                hint=f"--split {learned.by} --threshold {learned.threshold:g} --min-history {learned.min_history}",
            )
        if trained.digest != asked.template.digest:
            raise UsageError(
                f"{self.system.label} was trained with the click template {trained.name!r}, whose words are others than those of"
                f" {asked.template.name!r}",
                hint=f"--template {trained.name}"
                if trained.name in shipped_click_templates()
                else f"--template FILE, with the template {trained.name!r} that it was trained with",
            )

    def scores(self, asked: ClickQuestions, progress: Progress) -> NDArray[np.float64]:
        assert self.system.bundle is not None
        bundle = open_bundle(self.system.bundle)
        with loaded(self.system, self.device) as (model, tokenizer):
            return score_clicks_personalised(
                model,
                tokenizer,
                bundle,
                asked.rows,
                asked.clicks.items,
                progress=lambda done: progress(done, len(asked.rows)),
            )
