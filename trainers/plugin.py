"""The contract of a trainer plugin, and how installed plugins are found.

A plugin is an entry point in the group `reccocktail.trainers` that names a class with the attributes of `Trainer`, and with
those of `DomainSource` if it brings domains. It is listed without being imported and loaded only when named, so a broken one
harms nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ValidationError

from ..registry.artifacts.bi_tunings import BI_TUNING
from ..registry.artifacts.bundles import PERSONALISED
from ..registry.catalog.references import check_name, check_text, did_you_mean
from ..registry.errors import RecCocktailError, UsageError
from ..registry.redaction import check_no_secret
from ..tasks import DomainData
from ..tasks.validation import is_unknown, unknown
from .option_pairs import wrong_option

GROUP = "reccocktail.trainers"
LORA = "lora"
KINDS = (LORA, PERSONALISED, BI_TUNING)


class TrainerError(RecCocktailError):
    """A trainer plugin is missing, broken, was given wrong options, or failed."""

    code = "trainer"


@dataclass(frozen=True)
class TrainingJob:
    """What a trainer is asked to do.

    `folder` is the run's own working folder: checkpoints and the adapter's folder go there, and with `resume` training continues
    on from what it finds there. `progress` takes (steps done, steps in all, newest figures); it is the sign of life as well:
    a trainer that does not call it for `train --stall-timeout` is taken for hung and stopped. `device` is `cpu`, `cuda`, …
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
    """A trained adapter: the folder of a PEFT LoRA or of a bundle, how well training went, and what would be needed to repeat it."""

    adapter: Path
    metrics: dict[str, float]
    context: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Trainer(Protocol):
    """A way to make adapters. `name` is the entry point's, `summary` one line; `Options` validates and documents `-o key=value`.

    One that makes no plain LoRAs has a `kind` as well (`kind_of`).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[BaseModel]]

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train an adapter on the job's domains; raises TrainerError when it cannot.

        Under `accelerate launch` every process calls this with the same job, and the first one (RANK 0) writes the adapter.
        """
        ...


def kind_of(trainer: Trainer) -> str:
    """What the trainer makes: `lora`, unless its `kind` is `personalised-lora` or `bi-tuning`. Raises TrainerError for another."""
    kind = getattr(trainer, "kind", LORA)
    if kind not in KINDS:
        raise TrainerError(f"trainer {trainer.name!r}: kind is {kind!r}, none of {', '.join(KINDS)}")
    return kind


@dataclass(frozen=True)
class PluginDomain:
    """A domain that a plugin brings: a new field to recommend in.

    `data` is a folder in any format of docs/data.md, or a function that writes such a folder into the empty one it is given.
    `recipe` is the name of a shipped recipe or a file; None means `default`.
    """

    name: str
    title: str
    data: Path | Callable[[Path], object]
    recipe: str | Path | None = None


@runtime_checkable
class DomainSource(Protocol):
    """What a trainer that brings domains also has."""

    def domains(self) -> Sequence[PluginDomain]:
        """The domains, each name once. It is asked often, so it only names; data are made when they are wanted."""
        ...


def domains_of(trainer: Trainer) -> tuple[PluginDomain, ...]:
    """The domains that a trainer brings; none if it has no `domains`. Raises TrainerError for what cannot be one."""
    if not isinstance(trainer, DomainSource):
        return ()
    try:
        with stdout_kept():
            found = tuple(trainer.domains())
    except (Exception, SystemExit) as error:
        raise TrainerError(f"trainer {trainer.name!r}: domains() failed: {type(error).__name__}: {error}") from error
    for domain in found:
        _check_domain(trainer, domain)
    names = [domain.name for domain in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TrainerError(f"trainer {trainer.name!r} brings {', '.join(twice)} more than once")
    return found


def _check_domain(trainer: Trainer, domain: object) -> None:
    if not isinstance(domain, PluginDomain):
        raise TrainerError(f"trainer {trainer.name!r}: domains() gave {domain!r}, which is no PluginDomain")
    where = f"trainer {trainer.name!r}, domain {domain.name!r}"
    try:
        check_name("domain", domain.name)
        check_text("title", domain.title)
    except (UsageError, TypeError, AttributeError) as error:
        raise TrainerError(f"{where}: {error}") from error
    if not isinstance(domain.data, Path) and not callable(domain.data):
        raise TrainerError(f"{where}: data is {domain.data!r}, neither a Path nor a function that writes a folder")
    if not isinstance(domain.recipe, str | Path | None):
        raise TrainerError(f"{where}: recipe is {domain.recipe!r}, neither a name nor a file")


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Stdout is for answers: what a plugin prints meanwhile, from C or from a child process too, goes to stderr."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # closed, so nothing can be written to it
        with redirect_stdout(sys.stderr):
            yield
        return
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def installed() -> dict[str, EntryPoint]:
    """Trainer plugins by name, none of them imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def load(name: str) -> Trainer:
    """The trainer of that name. Raises TrainerError when there is none, or it cannot be imported."""
    points = installed()
    if name not in points:
        known = ", ".join(points) or "none"
        raise TrainerError(
            f"there is no trainer {name!r}; installed: {known}{did_you_mean(name, points)}",
            hint="`reccocktail trainers list`",
        )
    try:
        with stdout_kept():
            trainer = points[name].load()()
    except (Exception, SystemExit) as error:
        raise TrainerError(
            f"trainer {name!r} ({points[name].value}) cannot be loaded: {type(error).__name__}: {error}",
            hint="`pip install 'reccocktail[train]'` brings what the shipped trainers need",
        ) from error
    if not isinstance(trainer, Trainer):
        raise TrainerError(f"trainer {name!r} ({points[name].value}) lacks one of: name, summary, Options, train")
    if (
        not (isinstance(trainer.Options, type) and issubclass(trainer.Options, BaseModel))
        or trainer.Options is BaseModel
    ):
        raise TrainerError(f"trainer {name!r} ({points[name].value}): Options is no pydantic model of its own")
    if trainer.name != name:
        raise TrainerError(
            f"trainer {name!r} ({points[name].value}) calls itself {trainer.name!r}",
            hint="the name of the class and of its entry point must be the same",
        )
    return trainer


def package_of(trainer: Trainer) -> tuple[str, str] | None:
    """(distribution, version) that the trainer was installed from; None for one that is not installed."""
    point = installed().get(trainer.name)
    return (point.dist.name, point.dist.version) if point and point.dist else None


def parse_options(trainer: Trainer, pairs: Mapping[str, str]) -> BaseModel:
    """Validate `-o key=value` pairs. Raises TrainerError naming every wrong key or value, UsageError for a secret.

    Options are kept with the run and the adapter; a trainer reads secrets from the environment.
    """
    for key, value in pairs.items():
        check_no_secret("trainer option", f"{key}={value}")
    try:
        return trainer.Options.model_validate(dict(pairs))
    except ValidationError as error:
        problems = "; ".join(
            unknown(e, trainer.Options, "option")
            if is_unknown(e)
            else wrong_option(e)
            if e["loc"]
            else _of_several(e["msg"])
            for e in error.errors()
        )
        raise TrainerError(
            f"trainer {trainer.name!r}: {problems}",
            hint=f"`reccocktail trainers show {trainer.name}` lists the options",
        ) from error


def _of_several(message: str) -> str:
    """What is wrong with options together, which names them itself."""
    return message.removeprefix("Value error, ")
