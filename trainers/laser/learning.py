"""The two stages of Laser.

Stage 1 embeds all items at each epoch's start, by the weights of then, learns users' embeddings against them, and validates. The best
epoch's item matrix and last weights begin stage 2, which learns on with that matrix. So there are two sets of weights in the end: those that
made the matrix, and those that embed users. What a step does depends on its number and the seed alone, so that a training that resumes
from a checkpoint ends in the same bits as one that was not disturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...networks.laser import Laser, info_nce
from ...tasks import Item, ndcg
from ..batches import BatchOrder
from ..plugin import TrainerError
from ..seeding import seeded
from .checkpoints import Checkpoints, Course, Weights, weights_of
from .options import LaserOptions

MATRIX, NDCG = "matrix", "validation_ndcg_10"
Told = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Lesson:
    """A history, oldest first, and the place in the catalogue of the item that followed."""

    history: tuple[Item, ...]
    target: int


@dataclass(frozen=True)
class Plan:
    """How many steps an epoch has, and how many epochs come in all."""

    options: LaserOptions
    of_epoch: int

    @property
    def epochs(self) -> int:
        return self.options.stage1_epochs + self.options.stage2_epochs

    @property
    def steps(self) -> int:
        return self.epochs * self.of_epoch

    def is_first_stage(self, epoch: int) -> bool:
        return epoch < self.options.stage1_epochs

    def embeds_items(self, epoch: int) -> bool:
        """Without a first stage the second has the items as the first weights embed them."""
        return self.is_first_stage(epoch) or epoch == 0


@dataclass(frozen=True)
class Trained:
    """The item matrix, the weights that made it, and those that embed users."""

    matrix: Tensor
    item_side: Weights
    user_side: Weights
    course: Course


@dataclass(frozen=True)
class Learner:
    """The model, its catalogue, what it learns from and is validated on. `told` receives how many steps are done and the newest figures."""

    laser: Laser
    catalogue: Sequence[Item]
    lessons: Sequence[Lesson]
    exam: Sequence[Lesson]
    options: LaserOptions
    told: Told = lambda steps, figures: None

    @property
    def plan(self) -> Plan:
        return Plan(self.options, len(self.lessons) // self.options.batch_size)

    def run(self, checkpoints: Checkpoints) -> Trained:
        """Train from the newest checkpoint, or the start, to the end. Raises TrainerError for a loss that is no number."""
        net, plan = self.laser.net, self.plan
        optimiser = torch.optim.Adam(net.parameters(), lr=self.options.rate)
        course = checkpoints.resume(net, optimiser)
        while course.epoch < plan.epochs:
            if course.place == 0:
                optimiser = self._begin(course, checkpoints, optimiser)
            course = self._epoch(course, checkpoints, optimiser)
        assert course.items_of is not None
        assert course.users_of is not None
        return Trained(
            checkpoints.kept(MATRIX, course.items_of)[MATRIX],
            checkpoints.kept("start", course.items_of),
            checkpoints.kept("end", course.users_of),
            course,
        )

    def _begin(self, course: Course, checkpoints: Checkpoints, optimiser: torch.optim.Adam) -> torch.optim.Adam:
        """Of an epoch: items are embedded where that is due, and the second stage begins with the best weights and a new optimiser."""
        net, plan = self.laser.net, self.plan
        if (
            not plan.is_first_stage(course.epoch)
            and course.users_of is not None
            and course.epoch == self.options.stage1_epochs
        ):
            net.load_state_dict(checkpoints.kept("end", course.users_of))
            optimiser = torch.optim.Adam(net.parameters(), lr=self.options.rate)
        if plan.embeds_items(course.epoch) and not checkpoints.has(MATRIX, course.epoch):
            checkpoints.keep("start", course.epoch, weights_of(net))
            checkpoints.keep(MATRIX, course.epoch, {MATRIX: self._items_embedded(course)})
        return optimiser

    def _items_embedded(self, course: Course) -> Tensor:
        return self.laser.encode(
            [[item] for item in self.catalogue],
            batch_tokens=self.options.batch_tokens,
            progress=lambda done: self.told(course.epoch * self.plan.of_epoch, {"items_embedded": done}),
        )

    def _epoch(self, course: Course, checkpoints: Checkpoints, optimiser: torch.optim.Adam) -> Course:
        """From where the course is to the epoch's end, validated and kept."""
        plan, batches = self.plan, self._batches(course.epoch)
        items_of = course.epoch if plan.embeds_items(course.epoch) else course.items_of
        assert items_of is not None
        matrix = checkpoints.kept(MATRIX, items_of)[MATRIX].to(self.laser.model.device)
        while course.place < plan.of_epoch:
            course = self._step(course, batches[course.place], matrix, optimiser)
            if course.place % self.options.checkpoint_every == 0 and course.place < plan.of_epoch:
                checkpoints.write(course, self.laser.net, optimiser)
        course = self._judged(course, items_of, matrix, checkpoints)
        course = replace(course, epoch=course.epoch + 1, place=0)
        checkpoints.write(course, self.laser.net, optimiser)
        return course

    def _step(self, course: Course, batch: Sequence[int], matrix: Tensor, optimiser: torch.optim.Adam) -> Course:
        options, number = self.options, course.epoch * self.plan.of_epoch + course.place
        some = [self.lessons[place] for place in batch]
        optimiser.zero_grad()
        with seeded(options.seed * 1_000_003 + number, matrix.device):  # dropout, and ids that are left out
            self.laser.net.train()
            found = self.laser([lesson.history for lesson in some], id_dropout=options.id_dropout)
        targets = torch.tensor([lesson.target for lesson in some], device=matrix.device)
        loss = info_nce(found.vectors, matrix, targets, options.temperature)
        figures = {"step": number + 1, "loss": loss.item()}
        if found.routing is not None:
            balance = found.routing.balance()
            figures["balance"] = balance.item()
            loss = loss + options.balance * balance
        _expect_finite(loss.item(), number + 1)
        loss.backward()
        optimiser.step()
        self.told(number + 1, figures)
        return replace(course.noted(figures), place=course.place + 1)

    def _judged(self, course: Course, items_of: int, matrix: Tensor, checkpoints: Checkpoints) -> Course:
        """After an epoch's last step; without an exam the newest epoch is the best."""
        found = self._ndcg(course, matrix) if self.exam else None
        if found is not None:
            course = course.noted({"epoch": course.epoch + 1, NDCG: found})
        if found is not None and found <= course.ndcg:
            return course
        checkpoints.keep("end", course.epoch, weights_of(self.laser.net))
        best = course.ndcg if found is None else found
        return replace(course, items_of=items_of, users_of=course.epoch, ndcg=best)

    def _ndcg(self, course: Course, matrix: Tensor) -> float:
        steps = course.epoch * self.plan.of_epoch + course.place
        users = self.laser.encode(
            [lesson.history for lesson in self.exam],
            batch_tokens=self.options.batch_tokens,
            progress=lambda done: self.told(steps, {"users_validated": done}),
        )
        return ndcg(ranks(users, matrix.cpu(), [lesson.target for lesson in self.exam]), 10)

    def _batches(self, epoch: int) -> list[list[int]]:
        lengths = [len(self.laser.writer.write(lesson.history).tokens) for lesson in self.lessons]
        return BatchOrder(lengths, self.options.batch_size, self.options.seed).batches(epoch)


def ranks(users: Tensor, matrix: Tensor, targets: Sequence[int]) -> list[int]:
    """Of each user's target among all items, from 0; equal scores count against it."""
    scores = users @ matrix.T
    own = scores.gather(1, torch.tensor(targets)[:, None])
    return ((scores >= own).sum(dim=1) - 1).tolist()


def _expect_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainerError(f"training diverged: the loss is {loss} at step {step}", hint="-o learning_rate=… smaller")
