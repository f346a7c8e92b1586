"""How well a system recommends: a base model, an adapter on its base, a build, or any checkpoint or adapter folder.

Results are kept beside the registry under a digest of everything they depend on, so that nothing is measured twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ..registry import Registry
from ..registry.digests import digest_of_json
from ..registry.errors import InvalidReferenceError, NotFoundError
from ..registry.inspect import inspect_adapter, inspect_base
from ..tasks import Interval, Question, TaskSpec, rank_by_likelihood, summarise
from .errors import EvaluationError
from .merge import Part
from .mixture import Mixture
from .models import compute_dtype, load_model
from .standalone import folder_digest


@dataclass(frozen=True)
class System:
    """Something that can rank: a checkpoint, and perhaps an adapter on top of it. `digest` names its exact weights."""

    label: str
    digest: str
    checkpoint: Path
    adapter: Part | None = None


@dataclass(frozen=True)
class Evaluation:
    """A system's ranks of the true next item (0 is best), one per question, and what they come to."""

    label: str
    system: str
    task: TaskSpec
    dtype: str
    ranks: tuple[int, ...]

    @property
    def metrics(self) -> dict[str, Interval]:
        return summarise(self.ranks)

    def to_json(self) -> dict:
        return {
            "label": self.label,
            "system": self.system,
            "task": asdict(self.task) | {"digest": self.task.digest},
            "dtype": self.dtype,
            "metrics": {name: asdict(interval) for name, interval in self.metrics.items()},
            "ranks": list(self.ranks),
        }


def find_system(registry: Registry, text: str, *, base: str | None = None) -> System:
    """What `text` names: a folder, a base model, an adapter reference, or a build's id, looked up in this order.

    Raises NotFoundError when it is none of them.
    """
    if Path(text).is_dir() and ("/" in text or os.sep in text or text.startswith(".")):
        return _folder(registry, Path(text), base)
    for lookup in (_base, _reference, _build):
        try:
            return lookup(registry, text, base)
        except (NotFoundError, InvalidReferenceError):
            continue
    raise NotFoundError(
        f"{text!r} names no base model, adapter, build or folder",
        hint="write a folder with a slash: ./merged; `reccocktail adapter list` shows the adapters",
    )


def _base(registry: Registry, text: str, _: str | None) -> System:
    base = registry.bases.get(text)
    return System(text, base.digest, registry.bases.folder(base))


def _reference(registry: Registry, text: str, base: str | None) -> System:
    adapter = registry.adapters.resolve(text, base=base)
    row = registry.bases.get(adapter.base)
    part = Part(registry.adapters.folder(adapter), registry.adapters.facts(adapter), 1.0)
    return System(adapter.ref, digest_of_json([row.digest, adapter.digest]), registry.bases.folder(row), part)


def _build(registry: Registry, text: str, _: str | None) -> System:
    build = registry.builds.get(text)
    if build.digest is None:
        raise EvaluationError(f"build {build.id} is {build.status} and has no checkpoint")
    return System(f"build {build.id}", build.digest, registry.store.folder(build.digest))


def _folder(registry: Registry, folder: Path, base: str | None) -> System:
    digest = folder_digest(folder)
    if not (folder / "adapter_config.json").exists():
        inspect_base(folder, allow_links=True)
        return System(str(folder), digest, folder)
    row = registry.bases.get(base) if base else registry.bases.only()
    facts = inspect_adapter(folder, registry.bases.facts(row), base_names=(row.name, row.source))
    return System(
        str(folder), digest_of_json([row.digest, digest]), registry.bases.folder(row), Part(folder, facts, 1.0)
    )


def evaluate(
    system: System,
    task: TaskSpec,
    questions: Sequence[Question],
    *,
    device: str,
    kept_in: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Rank every question's candidates by likelihood. With `kept_in`, an equal evaluation found there is returned.

    Raises EvaluationError without questions or when the checkpoint does not load.
    """
    if not questions:
        raise EvaluationError(f"the {task.split} split has no questions", hint="another --split, or more data")
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    key = digest_of_json({"system": system.digest, "task": task.digest, "dtype": dtype, "mode": "likelihood"})
    kept = kept_in / f"{key.removeprefix('sha256:')[:32]}.json" if kept_in else None
    if kept is not None and (ranks := _kept_ranks(kept)) is not None:
        return Evaluation(system.label, system.digest, task, dtype, ranks)
    model, tokenizer = load_model(system.checkpoint, device)
    with ExitStack() as stack:
        if system.adapter is not None:
            stack.enter_context(Mixture(model, [system.adapter], "linear"))
        rankings = rank_by_likelihood(model, tokenizer, questions, progress=lambda done: progress(done, len(questions)))
    found = Evaluation(system.label, system.digest, task, dtype, tuple(r.rank for r in rankings))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        staged = kept.with_suffix(f".{os.getpid()}.tmp")
        staged.write_text(json.dumps(found.to_json()) + "\n", encoding="utf-8")
        staged.replace(kept)
    return found


def _kept_ranks(path: Path) -> tuple[int, ...] | None:
    """What an earlier evaluation found; None without one, and for a file that a power cut left unreadable."""
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["ranks"])
    except (OSError, ValueError, KeyError):
        return None
