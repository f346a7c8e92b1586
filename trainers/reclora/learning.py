"""The language model's part of RecLoRA: meta-LoRAs and gates learn the answers of the drawn rows, everything else stays as it is.

Each row of a batch is read with its own user's LoRA. What a step does depends on its number and the seed alone, so that a training
that resumes from a checkpoint ends in the same bits as one that was not disturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...networks.din import FrozenDin
from ...networks.gated_lora import GatedLora
from ...networks.personalised_scores import score_gated
from ...tasks import ClickQuestion, ClickRow, ClickScores, log_loss, roc_auc
from ...tasks.click_scores import last_logits
from ..batches import BatchOrder
from ..plugin import TrainerError
from ..seeding import seeded
from .checkpoints import Checkpoints, Course
from .options import RecloraOptions
from .rows import Examples, Wording, scored

IGNORED = -100  # of the places in front of a shorter answer
LOG_LOSS, ROC_AUC = "validation_log_loss", "validation_roc_auc"
Told = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Plan:
    """How many steps there are, in all and in an epoch, and how many between checkpoints."""

    options: RecloraOptions
    steps: int
    of_epoch: int
    every: int

    @classmethod
    def of(cls, options: RecloraOptions, rows: int) -> Plan:
        of_epoch = rows // options.batch_size
        steps = of_epoch * options.epochs
        return cls(options, steps, of_epoch, min(options.validate_every or math.ceil(steps / 10), steps))

    @property
    def rows(self) -> int:
        """That are learned from, each as often as there are epochs."""
        return self.steps * self.options.batch_size

    def learning_rate(self, step: int) -> float:
        """Of a step, from 0: up to the peak, then linear to zero behind the last."""
        warm = math.ceil(self.options.warmup * self.steps)
        share = (step + 1) / (warm + 1) if step < warm else (self.steps - step) / (self.steps - warm)
        return self.options.learning_rate * share


@dataclass(frozen=True)
class Exam:
    """Validation questions, c [questions, width] of their users, and the labels that scores are judged by."""

    questions: Sequence[ClickQuestion]
    c: torch.Tensor
    labels: ClickScores

    @classmethod
    def of(cls, rows: Sequence[ClickRow], wording: Wording, recommender: FrozenDin) -> Exam:
        """Raises OneClassError where all rows have the same label."""
        labels = scored(rows, np.full(len(rows), 0.5))
        return cls(wording.questions(rows), recommender.user_vectors(rows), labels)


@dataclass(frozen=True)
class Learner:
    """The frozen model, the net that learns, what from, and what it is judged by.

    `told` receives how many rows were learned from since the start, and the newest figures, at every forward pass.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    net: GatedLora
    examples: Examples
    exam: Exam | None
    plan: Plan
    told: Told = lambda rows, figures: None

    def run(self, checkpoints: Checkpoints) -> Course:
        """Train from the newest checkpoint, or the start, to the end; the net then is that of the best checkpoint.

        Raises TrainerError for a loss that is no number.
        """
        plan, options = self.plan, self.plan.options
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=options.learning_rate, weight_decay=0.0)
        batches = lru_cache(maxsize=1)(BatchOrder(self.examples.lengths, options.batch_size, options.seed).batches)
        course = checkpoints.resume(self.net, optimiser)
        while course.step < plan.steps and not course.stopped:
            epoch, place = divmod(course.step, plan.of_epoch)
            course = self._step(course, batches(epoch)[place], optimiser)
            if course.step % plan.every == 0 or course.step == plan.steps:
                course = self._validated(course)
                checkpoints.write(course, self.net, optimiser)
        checkpoints.load_best(course, self.net)
        self.net.eval()
        return course

    def _step(self, course: Course, batch: Sequence[int], optimiser: torch.optim.AdamW) -> Course:
        rate = self.plan.learning_rate(course.step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss = self._gradients(course, batch)
        _expect_finite("loss", loss, course.step + 1)
        optimiser.step()
        figures = {"loss": loss, "learning_rate": rate}
        self.told((course.step + 1) * len(batch), figures)
        return course.after(course.step + 1, figures)

    def _gradients(self, course: Course, batch: Sequence[int]) -> float:
        """Of the mean loss of an answer's token over the batch, in nats; that loss."""
        micro, options = self.plan.options.micro_batch, self.plan.options
        tokens = sum(len(self.examples.answers[number]) for number in batch)
        total = 0.0
        with seeded(options.seed * 1_000_003 + course.step, self.model.device):  # the gates' dropout
            self.net.train()
            for start in range(0, len(batch), micro):
                total += backward(self.model, self.net, self.examples, batch[start : start + micro], tokens)
                self.told(course.step * len(batch) + start, course.figures)
        return total

    def _validated(self, course: Course) -> Course:
        if self.exam is None:
            return course.kept()
        rows = course.step * self.plan.options.batch_size
        self.net.eval()
        scores = score_gated(
            self.model,
            self.tokenizer,
            self.exam.questions,
            self.net,
            self.exam.c,
            progress=lambda done: self.told(rows, course.figures),
        )
        if not all(map(math.isfinite, scores)):
            _expect_finite("validation score", math.nan, course.step)
        found = ClickScores(self.exam.labels.labels, scores, self.exam.labels.users)
        figures = {LOG_LOSS: log_loss(found), ROC_AUC: roc_auc(found)}
        return course.judged(figures, LOG_LOSS, self.plan.options.patience)


def backward(model: PreTrainedModel, net: GatedLora, examples: Examples, places: Sequence[int], tokens: int) -> float:
    """Adds to the net's gradients those of the loss of the rows at these places, in nats, divided by `tokens`; that loss."""
    with net.applied(model, net.coefficients(examples.c[list(places)].to(model.device))):
        loss = answer_nats(model, examples, places) / tokens
        loss.backward()
    return loss.item()


def answer_nats(model: Any, examples: Examples, places: Sequence[int]) -> torch.Tensor:
    """−ln P of all tokens of the right answers, summed over the rows at these places."""
    answers = [examples.answers[place] for place in places]
    longest = max(map(len, answers))
    texts = [examples.prompts[place] + answer[:-1] for place, answer in zip(places, answers, strict=True)]
    wanted = torch.tensor([[IGNORED] * (longest - len(answer)) + answer for answer in answers], device=model.device)
    logits = last_logits(model, texts, longest).float()
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")


def _expect_finite(name: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainerError(
            f"training diverged: the {name} is {value} at step {step}", hint="-o learning_rate=… smaller"
        )
