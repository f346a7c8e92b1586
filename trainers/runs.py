"""Training runs: a working folder named after everything that decides the outcome, and the adapter registered at the end."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from ..registry import Adapter, Base, Build, Domain, Registry, inspect_adapter, inspect_base
from ..registry.artifacts.allowlist import base_files
from ..registry.artifacts.bi_tunings import BI_TUNING, check_bi_tuning_files, read_bi_tuning_manifest
from ..registry.artifacts.bundles import check_base, check_files, read_manifest
from ..registry.catalog.registration import Checks, Labels
from ..registry.digests import canonical_json, digest_of_json
from ..registry.errors import ConflictError, InvalidArtifactError, RecCocktailError, UsageError, WrongKindError
from ..registry.store.atomic import write_whole
from ..registry.store.files import folder_digest
from ..registry.store.room import NO_ROOM, lacks_room, room_in
from ..registry.strict_json import OWN_LIMIT, read_object
from ..tasks import DomainData, read_domain
from .context import discreet, known_context, template_of
from .launch import Launch
from .plugin import LORA, Trainer, TrainerError, TrainingJob, TrainingResult, kind_of, package_of, stdout_kept

JOB, RESULT = "job.json", "result.json"
LOCK_SECONDS = 10.0  # how long a run that another process has is waited for
CONTRACT = "for the trainer's author: run `check_trainer` of reccocktail.trainers.testing to check the contract"
WHERE = "`reccocktail --traceback train …` shows where"

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainingRequest:
    """What is to be trained: by which trainer with which options, on which domains' data, over which base, on which device.

    With `resume`, a run of the same base, data and options resumes from its last checkpoint, or its result is taken if it had
    finished; without, it starts over, but one that was interrupted only with `restart`. `labels` are the version's tags, note and
    aliases, and the source and run in their context; its metrics and all else in the context are the trainer's. `typed` has options as
    they were typed, where the trainer gets something else: what they meant at that moment. `on` is a merged checkpoint over the base that a
    bi-tuning is trained on in its place.
    """

    trainer: Trainer
    domains: Sequence[Domain]
    role: Literal["spirit", "ingredient"]
    base: Base
    options: BaseModel
    resume: bool = False
    restart: bool = False
    device: str = "cpu"
    labels: Labels = field(default_factory=Labels)
    typed: Mapping[str, str] = field(default_factory=dict)
    on: Build | None = None


@dataclass(frozen=True)
class Run:
    """One training to be carried out: the job, the folders of its domains' data, and what is known about it beforehand.

    `lock` is the handle that keeps others out of the run's folder for as long as anyone has it open.
    """

    trainer: Trainer
    job: TrainingJob
    data_folders: tuple[Path, ...]
    context: Mapping[str, Any]
    lock: int | None = None


def train_and_register(
    registry: Registry,
    request: TrainingRequest,
    *,
    progress: Progress,
    carry_out: Callable[[Run], TrainingResult] | None = None,
    launch: Launch | None = None,
) -> Adapter:
    """Train on the domains' data and register what comes out.

    `carry_out` is `in_this_process` unless another way is given, such as that of
    `child.in_a_child`. As the first of a `launch`, the process informs the others when the folder is ready.
    Raises TrainerError, ConflictError where an interrupted run's checkpoints would be lost, and whatever registering can raise.
    """
    with _reporting(launch) as notify:
        run = _run(registry, request, progress)
        with _alone(run.job.folder) as lock:
            if not request.resume:
                if not request.restart:
                    _expect_nothing_unfinished(run.job.folder)
                shutil.rmtree(run.job.folder, ignore_errors=True)
            result = finished(run.job.folder)
            if result is None:
                with room_in(run.job.folder):
                    run.job.folder.mkdir(parents=True, exist_ok=True)
            notify("train" if result is None else "finished")
            result = result or (carry_out or in_this_process)(replace(run, lock=lock))
    return registry.adapters.add(
        result.adapter,
        base=request.base,
        role=request.role,
        domain=None if request.role == "spirit" else request.domains[0].name,
        labels=replace(request.labels, metrics=result.metrics, context=_context(result, request)),
        checks=Checks(beside=result.context["on"]["digest"]) if request.on else None,
    )


def _context(result: TrainingResult, request: TrainingRequest) -> dict[str, Any]:
    """What the trainer reported, with the options as they were typed, and what was said of the source and the run."""
    context = {**result.context, **request.labels.context}
    return context | ({"options": {**context.get("options", {}), **request.typed}} if request.typed else {})


def take_part(registry: Registry, request: TrainingRequest, *, launch: Launch, wait_seconds: float | None) -> None:
    """Train together with the first process of a launch, which keeps and registers what comes out.

    Raises TrainerError: the training failed here, or the first process was not heard of.
    """
    run = _run(registry, request, lambda *_: None)
    if launch.hear(wait_seconds) != "train":
        return
    if not run.job.folder.is_dir():
        raise TrainerError(
            f"process {launch.rank} does not see the run folder {run.job.folder} that the first process created",
            hint="all machines of a training need the same home on a shared file system",
        )
    _trained(run)


def in_this_process(run: Run) -> TrainingResult:
    """Train here and now, and leave the checked result in the run's folder. Raises TrainerError, and what a trainer may raise."""
    started = time.monotonic()
    result = checked(_trained(run), run.trainer, run.job)
    context = dict(result.context) | dict(run.context) | {"seconds": round(time.monotonic() - started, 1)}
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        context["processes"] = processes
    result = replace(result, context=discreet(context))
    with room_in(run.job.folder):
        _note_finished(run.job.folder, result)
    return result


def checked(result: object, trainer: Trainer, job: TrainingJob) -> TrainingResult:
    """The result in plain types, if it keeps the contract. Raises TrainerError that says what is wrong with it."""
    who = f"trainer {trainer.name!r}"
    if not isinstance(result, TrainingResult):
        raise _broken(f"{who} returned {type(result).__name__}, not a TrainingResult")
    if not isinstance(result.adapter, Path):
        raise _broken(f"{who} returned {result.adapter!r} for its adapter, which is not a Path")
    adapter, folder = result.adapter.resolve(), job.folder.resolve()
    if not adapter.is_relative_to(folder):
        raise _broken(f"{who} left its adapter in {result.adapter}, outside its run folder {job.folder}")
    if adapter == folder:
        raise _broken(f"{who} left its adapter in the run folder itself", "give it a folder of its own there")
    try:
        inspect_result(adapter, trainer, job.base_folder)
    except (InvalidArtifactError, WrongKindError) as error:
        raise _broken(f"{who} made an adapter that cannot be registered: {error}", error.hint) from error
    metrics = {}
    for name, value in _mapping(result.metrics, f"{who} returned metrics").items():
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
        if number is None or not math.isfinite(number):
            raise _broken(f"{who} returned the metric {name}={value!r}, which is not a finite number")
        metrics[str(name)] = number
    context = dict(_mapping(result.context, f"{who} returned a context"))
    try:
        canonical_json(context)
    except (TypeError, ValueError) as error:
        raise _broken(f"{who} returned a context that is not plain JSON: {error}") from error
    return TrainingResult(adapter, metrics, context)


def inspect_result(adapter: Path, trainer: Trainer, base_folder: Path, *, base_names: Sequence[str] = ()) -> None:
    """Raises InvalidArtifactError, WrongKindError for an adapter that is not of the trainer's kind, is broken, or is of another base."""
    if kind_of(trainer) == LORA:
        inspect_adapter(adapter, inspect_base(base_folder), base_names=base_names)
        return
    if kind_of(trainer) == BI_TUNING:
        manifest = read_bi_tuning_manifest(adapter)
        check_bi_tuning_files(adapter, manifest)
    else:
        manifest = read_manifest(adapter)
        check_files(adapter, manifest)
    check_base(adapter, manifest, base_digest(base_folder))


def base_digest(folder: Path) -> str:
    """The digest that the registry knows the base model in a folder by. Raises InvalidArtifactError."""
    return folder_digest(folder, base_files(folder, inspect_base(folder).files)[0])


def _mapping(value: object, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _broken(f"{what} of type {type(value).__name__}, not a mapping")
    return value


def _broken(message: str, hint: str | None = None) -> TrainerError:
    return TrainerError(message, hint=hint or CONTRACT)


def _trained(run: Run) -> TrainingResult:
    """What the trainer returns, whatever that is. What it raises is reported as its failure."""
    who = f"trainer {run.trainer.name!r}"
    try:
        with stdout_kept():
            return run.trainer.train(run.job)
    except RecCocktailError:
        raise
    except SystemExit as error:
        raise TrainerError(f"{who} called sys.exit({error.code!r}) instead of returning", hint=WHERE) from error
    except Exception as error:  # a plugin, and the libraries below it, may raise anything
        full = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
        hint = "train with smaller batches, or on a larger device" if full else WHERE
        if lacks_room(error):
            hint = f"{NO_ROOM}; the run is in {run.job.folder}"
        raise TrainerError(f"{who} failed: {type(error).__name__}: {error}", hint=hint) from error


def expect_trainable_on(request: TrainingRequest, build: Build) -> None:
    """Raises UsageError where the trainer, or what is trained, does not fit the build; WrongKindError, ConflictError for one without a checkpoint."""
    build.stored_digest()
    if kind_of(request.trainer) != BI_TUNING:
        raise UsageError(
            f"trainer {request.trainer.name!r} trains an adapter of the base model, and not of a build",
            hint="--on is for --trainer laser, whose language model stays as it is",
        )
    if build.recipe.get("output", {}).get("format") == "adapter":
        raise UsageError(f"build {build.id} is an adapter and no checkpoint", hint="name a build with a checkpoint")
    names = [domain.name for domain in request.domains]
    if (build.base, [build.domain]) != (request.base.name, names):
        raise UsageError(
            f"build {build.id} is of {build.domain!r} over {build.base!r}, and trained is {', '.join(names)} over {request.base.name!r}",
            hint=f"`reccocktail build list --domain {names[0]}` shows its builds",
        )


def _checkpoint(registry: Registry, request: TrainingRequest) -> tuple[Path, dict[str, Any]]:
    """The folder of what is trained on, and what the context says of it where it is a build."""
    if (build := request.on) is None:
        return registry.bases.folder(request.base), {}
    expect_trainable_on(request, build)
    folder = registry.store.folder(build.stored_digest())
    return folder, {"on": {"build": build.id, "tree": build.digest, "digest": base_digest(folder)}}


def _run(registry: Registry, request: TrainingRequest, progress: Progress) -> Run:
    folders = tuple(_data_folder(registry, domain) for domain in request.domains)
    data = tuple(read_domain(folder, domain.name) for folder, domain in zip(folders, request.domains, strict=True))
    checkpoint, on = _checkpoint(registry, request)
    job = TrainingJob(
        role=request.role,
        base_folder=checkpoint,
        base_name=request.base.name,
        domains=data,
        folder=run_folder(registry, request, data),
        options=request.options,
        resume=request.resume,
        device=request.device,
        progress=progress,
    )
    context = known_context(request.trainer, request.role, request.options, data, request.base, request.device)
    return Run(request.trainer, job, folders, context | on)


@contextmanager
def _reporting(launch: Launch | None) -> Iterator[Callable[[str], None]]:
    """Sends the other processes of the launch what to do; if this fails before, that there is no work."""
    reported = False

    def notify(state: str) -> None:
        nonlocal reported
        reported = True
        if launch is not None:
            launch.notify(state)

    try:
        yield notify
    except BaseException:
        if not reported:
            notify("failed")
        raise


def _expect_nothing_unfinished(folder: Path) -> None:
    """Raises ConflictError where an interrupted run has left more than its job."""
    if finished(folder) is not None or not folder.is_dir():
        return
    if any(path.is_file() and path.name != JOB for path in folder.rglob("*")):
        raise ConflictError(
            f"an unfinished run of the same training is in {folder}",
            hint="run the same command with --resume to continue from its last checkpoint, or with --restart to start over",
        )


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """No two processes in one run's folder: the lock's handle. Raises TrainerError while another one trains there.

    The trainer of a command that was killed ends soon after it, so the lock is waited for a while.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + LOCK_SECONDS
    with folder.with_suffix(".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    text = "the same training is running in another process"
                    raise TrainerError(text, hint="wait for it to end") from None
                time.sleep(0.1)
        yield lock.fileno()


def run_folder(registry: Registry, request: TrainingRequest, data: Sequence[DomainData]) -> Path:
    """Where a run keeps its checkpoints: under the home, named by the digest of all that decides its outcome."""
    template = template_of(request.options)
    package = package_of(request.trainer)
    key = digest_of_json(
        {
            "trainer": [request.trainer.name, package[1] if package else version("reccocktail")],
            "template": template["digest"] if template else None,
            "role": request.role,
            "base": request.base.digest,
            "data": [[d.name, d.digest] for d in data],
            "options": request.options.model_dump(mode="json"),
            **({"on": request.on.digest} if request.on else {}),
        }
    )
    return registry.settings.own_folder("runs") / key.removeprefix("sha256:")[:16]


def _data_folder(registry: Registry, domain: Domain) -> Path:
    if domain.data is None:
        raise UsageError(
            f"domain {domain.name!r} has no data to train on", hint=f"`reccocktail domain add {domain.name} --data DIR`"
        )
    return registry.data_folder(domain.data)


def finished(folder: Path) -> TrainingResult | None:
    """The result of a run that had finished; its note is written last, so an interrupted run has none."""
    try:
        content = read_object(folder / RESULT, limit=OWN_LIMIT)
        return TrainingResult(folder / content["adapter"], content["metrics"], content["context"])
    except (InvalidArtifactError, KeyError, TypeError):
        return None


def _note_finished(folder: Path, result: TrainingResult) -> None:
    content = asdict(result) | {"adapter": str(result.adapter.relative_to(folder.resolve()))}
    for path in result.adapter.rglob("*"):  # the note vouches for these bytes
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    write_whole(folder / RESULT, json.dumps(content, indent=2), durable=True)
