"""Training runs: a working folder named after everything that decides the outcome, and the adapter registered at the end."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ..registry import Adapter, Base, Domain, Registry
from ..registry.digests import digest_of_json
from ..registry.errors import RecCocktailError, UsageError
from ..tasks import DomainData, TaskError, load_template, read_domain
from .plugin import Trainer, TrainerError, TrainingJob, TrainingResult

RESULT = "result.json"


def train_and_register(
    registry: Registry,
    trainer: Trainer,
    domains: Sequence[Domain],
    *,
    role: Literal["spirit", "ingredient"],
    base: Base,
    options: BaseModel,
    resume: bool,
    device: str,
    progress: Callable[[int, int, Mapping[str, float]], None],
) -> Adapter:
    """Train on the domains' data and register what comes out.

    With `resume`, a run of the same base, data and options goes on from its last checkpoint, or is taken as it is when
    it had finished; without, it starts over. Raises TrainerError, and whatever registering can raise.
    """
    data = tuple(_read(domain) for domain in domains)
    folder = run_folder(registry, trainer, data, role=role, base=base, options=options)
    with _alone(folder):
        result = _trained(registry, trainer, data, folder, role, base, options, resume, device, progress)
    return registry.adapters.add(
        result.adapter,
        base=base,
        role=role,
        domain=None if role == "spirit" else domains[0].name,
        metrics=result.metrics,
        context=result.context | {"base_digest": base.digest},
    )


def _trained(
    registry: Registry,
    trainer: Trainer,
    data: tuple[DomainData, ...],
    folder: Path,
    role: Literal["spirit", "ingredient"],
    base: Base,
    options: BaseModel,
    resume: bool,
    device: str,
    progress: Callable[[int, int, Mapping[str, float]], None],
) -> TrainingResult:
    """The run's result: the one it ended with before, or that of training now."""
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    if (result := _finished(folder)) is not None:
        return result
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    job = TrainingJob(
        role=role,
        base_folder=registry.bases.folder(base),
        base_name=base.name,
        domains=data,
        folder=folder,
        options=options,
        resume=resume,
        device=device,
        progress=progress,
    )
    try:
        # Stdout is for answers, and what a trainer prints, as transformers' does, is about the work.
        with redirect_stdout(sys.stderr):
            result = trainer.train(job)
    except (RecCocktailError, TaskError):
        raise
    except Exception as error:  # a plugin, and the libraries below it, may raise anything
        raise TrainerError(f"trainer {trainer.name!r} failed: {type(error).__name__}: {error}") from error
    result.context.setdefault("seconds", round(time.monotonic() - started, 1))
    result.context.setdefault("device", device)
    _note_finished(folder, result)
    return result


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No two processes in one run's folder. Raises TrainerError while another one trains there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainerError("the same training is going on in another process", hint="wait for it to end") from None
        yield


def run_folder(
    registry: Registry, trainer: Trainer, data: Sequence[DomainData], *, role: str, base: Base, options: BaseModel
) -> Path:
    """Where a run keeps its checkpoints: under the home, named by the digest of all that decides its outcome."""
    template = getattr(options, "template", None)
    key = digest_of_json(
        {
            "trainer": [trainer.name, version("reccocktail")],
            "template": load_template(template).digest if template else None,
            "role": role,
            "base": base.digest,
            "data": [[d.name, d.digest] for d in data],
            "options": options.model_dump(mode="json"),
        }
    )
    return registry.settings.home / "runs" / key.removeprefix("sha256:")[:16]


def _read(domain: Domain) -> DomainData:
    if domain.data is None:
        raise UsageError(
            f"domain {domain.name!r} has no data to train on", hint=f"`reccocktail domain add {domain.name} --data DIR`"
        )
    return read_domain(Path(domain.data), domain.name)


def _finished(folder: Path) -> TrainingResult | None:
    """The result of a run that had finished; its note is written last, so an interrupted run has none."""
    try:
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return TrainingResult(folder / content["adapter"], content["metrics"], content["context"])


def _note_finished(folder: Path, result: TrainingResult) -> None:
    if not result.adapter.resolve().is_relative_to(folder.resolve()):
        raise TrainerError(f"the trainer left its adapter in {result.adapter}, outside its run folder {folder}")
    content = asdict(result) | {"adapter": str(result.adapter.resolve().relative_to(folder.resolve()))}
    for path in result.adapter.iterdir():  # the note vouches for these bytes
        with path.open("rb") as file:
            os.fsync(file.fileno())
    staged = folder / f"{RESULT}.tmp"
    with staged.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(folder / RESULT)
