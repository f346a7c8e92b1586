"""What a training of Laser keeps in its run's folder: its course with weights and optimiser, and of each epoch what may be the best."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...registry.errors import InvalidArtifactError
from ...registry.store.atomic import write_whole
from ...registry.store.files import sync_all
from ...registry.strict_json import OWN_LIMIT, read_object
from ..optimiser_state import fill_state, flat_state

NET, OPTIMISER, STATE = "net.safetensors", "optimiser.safetensors", "state.json"
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Course:
    """How far a training is: `epoch` from 0 over both stages, `place` steps into it; the log has the figures of each step and epoch.

    The best so far: `items_of` is the epoch at whose start the item matrix was made, by the weights of then, `users_of` the one whose last
    weights embed users; `ndcg` is how well both rank together.
    """

    epoch: int = 0
    place: int = 0
    items_of: int | None = None
    users_of: int | None = None
    ndcg: float = -1.0
    log: tuple[dict[str, float], ...] = ()

    def noted(self, figures: Mapping[str, float]) -> Course:
        return replace(self, log=(*self.log, dict(figures)))


class Checkpoints:
    """Files of epochs are `start-N` (weights), `matrix-N` (items) and `end-N` (weights); each is there as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def resume(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> Course:
        """The newest complete checkpoint's course, whose weights net and optimiser take over; a course that begins without any."""
        found = [(course, folder) for folder in self._folder.glob("step-*") if (course := _course(folder))]
        if not found:
            return Course()
        course, folder = max(found, key=lambda each: (each[0].epoch, each[0].place))
        net.load_state_dict(load_file(folder / NET))
        fill_state(optimiser, load_file(folder / OPTIMISER))
        return course

    def write(self, course: Course, net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """The state is written last, so a killed save lacks it. Then all that the course does not need any more is removed. Raises OSError."""
        folder = self._folder / f"step-{course.epoch:03d}-{course.place:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_file(weights_of(net), folder / NET)
        save_file(flat_state(optimiser), folder / OPTIMISER)
        sync_all([folder / NET, folder / OPTIMISER])
        write_whole(folder / STATE, json.dumps(asdict(course)), durable=True)
        for other in self._folder.glob("step-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        needed = {"start": {course.epoch, course.items_of}, "end": {course.users_of}}
        needed["matrix"] = needed["start"]
        for path in self._folder.glob("*-*.safetensors"):
            kind, _, epoch = path.stem.partition("-")
            if int(epoch) not in needed[kind]:
                path.unlink()

    def keep(self, kind: str, epoch: int, tensors: Weights) -> None:
        """Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        half = self._folder / "half"
        save_file(dict(tensors), half)
        sync_all([half])
        half.rename(self._at(kind, epoch))

    def has(self, kind: str, epoch: int) -> bool:
        return self._at(kind, epoch).is_file()

    def kept(self, kind: str, epoch: int) -> dict[str, Tensor]:
        return load_file(self._at(kind, epoch))

    def _at(self, kind: str, epoch: int) -> Path:
        return self._folder / f"{kind}-{epoch:03d}.safetensors"


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in net.state_dict().items()}


def _course(folder: Path) -> Course | None:
    try:
        content: dict[str, Any] = read_object(folder / STATE, limit=OWN_LIMIT)
    except InvalidArtifactError:
        return None
    content["log"] = tuple(content["log"])
    return Course(**content)
