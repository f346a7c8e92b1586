"""The contract of a trainer plugin, and how installed plugins are found.

A plugin is an entry point in the group `reccocktail.trainers` that names a class with the attributes of `Trainer`. It is
listed without being imported and loaded only when named, so a broken one harms nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ValidationError

from ..registry.errors import RecCocktailError
from ..tasks import DomainData

GROUP = "reccocktail.trainers"


class TrainerError(RecCocktailError):
    """A trainer plugin is missing, broken, was given wrong options, or failed."""

    code = "trainer"


@dataclass(frozen=True)
class TrainingJob:
    """What a trainer is asked to do.

    `folder` is the run's own working folder: checkpoints go there, and with `resume` training goes on from what it
    finds there. `progress` takes (steps done, steps in all, newest figures).
    """

    role: Literal["spirit", "ingredient"]
    base_folder: Path
    base_name: str
    domains: tuple[DomainData, ...]
    folder: Path
    options: BaseModel
    resume: bool
    device: str
    progress: Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainingResult:
    """A trained adapter: a PEFT LoRA folder, how well training went, and what would be needed to repeat it."""

    adapter: Path
    metrics: dict[str, float]
    context: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Trainer(Protocol):
    """A way to make adapters. `summary` is one line; `Options` validates and documents `-o key=value`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[BaseModel]]

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train an adapter on the job's domains; raises TrainerError when it cannot."""
        ...


def installed() -> dict[str, EntryPoint]:
    """Trainer plugins by name, none of them imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def load(name: str) -> Trainer:
    """The trainer of that name. Raises TrainerError when there is none, or it cannot be imported."""
    points = installed()
    if name not in points:
        known = ", ".join(points) or "none"
        raise TrainerError(f"there is no trainer {name!r}; installed: {known}", hint="`reccocktail trainers list`")
    try:
        trainer = points[name].load()()
    except Exception as error:
        raise TrainerError(
            f"trainer {name!r} ({points[name].value}) cannot be loaded: {type(error).__name__}: {error}",
            hint="`pip install 'reccocktail[train]'` brings what the shipped trainers need",
        ) from error
    if not isinstance(trainer, Trainer):
        raise TrainerError(f"trainer {name!r} ({points[name].value}) lacks one of: name, summary, Options, train")
    return trainer


def parse_options(trainer: Trainer, pairs: Mapping[str, str]) -> BaseModel:
    """Validate `-o key=value` pairs. Raises TrainerError naming every wrong key or value."""
    try:
        return trainer.Options.model_validate(dict(pairs))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}={e.get('input')!r}: {e['msg']}" for e in error.errors())
        raise TrainerError(
            f"trainer {trainer.name!r}: {problems}",
            hint=f"`reccocktail trainers show {trainer.name}` lists the options",
        ) from error
