"""What a training of the LoRAs keeps of its way, so that it resumes where it was: weights, optimiser and course, in a folder per checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...networks.gated_lora import GatedLora
from ...registry.errors import InvalidArtifactError
from ...registry.store.atomic import write_whole
from ...registry.store.files import sync_all
from ...registry.strict_json import OWN_LIMIT, read_object
from ..optimiser_state import fill_state, flat_state

NET, OPTIMISER, STATE = "net.safetensors", "optimiser.safetensors", "state.json"


@dataclass(frozen=True)
class Course:
    """How a training went: steps done, the figures of each, which checkpoint is the best and how many validations since were worse."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    stopped: bool = False
    log: tuple[dict[str, float], ...] = ()

    @property
    def figures(self) -> dict[str, float]:
        """The newest."""
        return {name: value for name, value in (self.log[-1] if self.log else {}).items() if name != "step"}

    def after(self, step: int, figures: Mapping[str, float]) -> Course:
        return replace(self, step=step, log=(*self.log, {"step": step, **figures}))

    def kept(self) -> Course:
        """The newest checkpoint is the best, for nothing is validated."""
        return replace(self, best_step=self.step)

    def judged(self, figures: Mapping[str, float], by: str, patience: int) -> Course:
        """After a validation, whose figure `by` is better the smaller it is; stopped after `patience` that were no better."""
        value, log = figures[by], (*self.log, {"step": self.step, **figures})
        if self.best is None or value < self.best:
            return replace(self, best=value, best_step=self.step, worse=0, log=log)
        worse = self.worse + 1
        return replace(self, worse=worse, stopped=bool(patience) and worse >= patience, log=log)


class Checkpoints:
    """The newest checkpoint and the best, in folders `step-N`; the state is written last, so a killed save lacks it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def resume(self, net: GatedLora, optimiser: torch.optim.Optimizer) -> Course:
        """The newest complete checkpoint's course, whose weights net and optimiser take over; a course that begins without any."""
        found = [(course, folder) for folder in self._folder.glob("step-*") if (course := _course(folder))]
        if not found:
            return Course()
        course, folder = max(found, key=lambda each: each[0].step)
        net.fill(load_file(folder / NET))
        fill_state(optimiser, load_file(folder / OPTIMISER))
        return course

    def write(self, course: Course, net: GatedLora, optimiser: torch.optim.Optimizer) -> None:
        """Raises OSError."""
        folder = self._at(course.step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_file({name: value.clone() for name, value in net.tensors().items()}, folder / NET)
        save_file(flat_state(optimiser), folder / OPTIMISER)
        sync_all([folder / NET, folder / OPTIMISER])
        write_whole(folder / STATE, json.dumps(asdict(course)), durable=True)
        for other in self._folder.glob("step-*"):
            if other not in (folder, self._at(course.best_step)):
                shutil.rmtree(other, ignore_errors=True)

    def load_best(self, course: Course, net: GatedLora) -> None:
        net.fill(load_file(self._at(course.best_step) / NET))

    def _at(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"


def _course(folder: Path) -> Course | None:
    try:
        content: dict[str, Any] = read_object(folder / STATE, limit=OWN_LIMIT)
    except InvalidArtifactError:
        return None
    content["log"] = tuple(content["log"])
    return Course(**content)
