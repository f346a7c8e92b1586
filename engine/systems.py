"""What can recommend and be compared: a base model, an adapter on its base, a build, any checkpoint or adapter folder, or a baseline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..networks.options import Bert4RecOptions, DinOptions
from ..registry import Adapter, Registry
from ..registry.artifacts.allowlist import is_bundle, published_files
from ..registry.artifacts.bi_tunings import read_bi_tuning_manifest
from ..registry.artifacts.bundles import BUNDLE, check_base, read_manifest
from ..registry.artifacts.inspect import inspect_adapter, inspect_base
from ..registry.catalog.evaluations import Weights
from ..registry.catalog.references import BI_TUNING, PERSONALISED_LORA
from ..registry.digests import digest_of_json
from ..registry.errors import InvalidReferenceError, NotFoundError, UsageError
from ..tasks import SasRecOptions, Score
from .building.indexing import index_file, indexes_of
from .errors import EvaluationError
from .frozen import Frozen
from .merging.plan import Part
from .merging.standalone import folder_digest
from .score_choice import score_of_report

BaselineName = Literal["popularity", "tfidf", "sasrec"]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
ClickBaselineName = Literal["item-mean", "item-user-mean", "din"]
CLICK_BASELINES: tuple[ClickBaselineName, ...] = get_args(ClickBaselineName)
FullBaselineName = Literal["popularity", "tfidf", "tfidf-last", "sasrec", "bert4rec"]
FULL_BASELINES: tuple[FullBaselineName, ...] = get_args(FullBaselineName)
AnyBaseline = BaselineName | ClickBaselineName | FullBaselineName
TASKS_OF_BASELINES = {"rank": BASELINES, "full": FULL_BASELINES, "clicks": CLICK_BASELINES}


@dataclass(frozen=True)
class System:
    """Something that can rank, or predict clicks: a checkpoint, and perhaps an adapter on top of it, or a baseline.

    `digest` names its exact weights, or what a baseline is made with. `score` is the one that a build was tuned with, of whose
    result a folder may be a copy. `own` is the digest of an adapter alone, whose base is `on_base`. With a `bundle` each user has a
    LoRA of their own on the checkpoint. A `bi_tuning` embeds users by the checkpoint, and `index` is the newest of its items.
    """

    label: str
    digest: str
    checkpoint: Path | None = None
    adapter: Part | None = None
    baseline: AnyBaseline | None = None
    bundle: Path | None = None
    bi_tuning: Path | None = None
    index: Path | None = None
    score: Score | None = None
    own: str | None = None
    on_base: str = ""

    @property
    def weights(self) -> Weights:
        """What its evaluations are found by: the digests of the checkpoint, or of the adapter and of the base under it."""
        return Weights(self.own or self.digest, self.on_base)


def find_system(registry: Registry, text: str, *, base: str | None = None) -> System:
    """What `text` names: a baseline, a folder, a base model, an adapter reference, or a build's id, looked up in this order.

    Raises NotFoundError when it is none of them.
    """
    if text in BASELINES or text in CLICK_BASELINES or text in FULL_BASELINES:
        return _baseline(text)
    if Path(text).is_dir() and ("/" in text or os.sep in text or text.startswith(".")):
        return _folder(registry, Path(text), base)
    for lookup in (_base, _reference, _build):
        try:
            return lookup(registry, text, base)
        except (NotFoundError, InvalidReferenceError):
            continue
    kinds = "base model, adapter, build or folder" if "/" in text else "base model, adapter or build"
    raise NotFoundError(
        f"{text!r} names no {kinds}",
        hint="write a folder with a slash: ./merged; `reccocktail adapter list` shows the adapters;"
        f" baselines are {', '.join(FULL_BASELINES)}; of clicks {', '.join(CLICK_BASELINES)}",
    )


def place_among(texts: Sequence[str], found: Sequence[System], against: str | None) -> int | None:
    """Which of the systems `against` names, by its text or its label. Raises UsageError if it is none of them."""
    names = [(text, system.label) for text, system in zip(texts, found, strict=True)]
    place = next((place for place, both in enumerate(names) if against in both), None)
    if against is not None and place is None:
        raise UsageError(f"--against {against} is none of the systems", hint=f"name one of {', '.join(texts)}")
    return place


def expect_baselines_of(task: str, found: Sequence[System]) -> None:
    """Raises UsageError for a baseline that another task has and this one has not, and for a bundle of another task."""
    own = TASKS_OF_BASELINES[task]
    for system in found:
        if system.bundle is not None and task != "clicks":
            raise UsageError(f"{system.label} predicts clicks and ranks nothing", hint="--task clicks")
        if system.bi_tuning is not None and task != "full":
            raise UsageError(f"{system.label} ranks whole catalogues", hint="--task full")
        if system.baseline is not None and system.baseline not in own:
            others = [f"--task {name}" for name, names in TASKS_OF_BASELINES.items() if system.baseline in names]
            raise UsageError(
                f"{system.label} is no system of --task {task}",
                hint=f"it is one of {' and of '.join(others)}; baselines of --task {task} are {', '.join(own)}",
            )


def _baseline(name: AnyBaseline) -> System:
    made_with: dict[str, Any] = {}
    if name == "sasrec":
        made_with = asdict(SasRecOptions())
    elif name == "din":
        made_with = DinOptions().model_dump()
    elif name == "bert4rec":
        made_with = Bert4RecOptions().model_dump()
    return System(name, digest_of_json([name, made_with]), baseline=name)


def _base(registry: Registry, text: str, _: str | None) -> System:
    base = registry.bases.get(text)
    return System(text, base.digest, registry.bases.folder(base))


def _reference(registry: Registry, text: str, base: str | None) -> System:
    adapter = registry.adapters.resolve(text, base=base, kind=None)
    row = registry.bases.get(adapter.base)
    own = registry.adapters.folder(adapter)
    digest, folder = digest_of_json([row.digest, adapter.digest]), registry.bases.folder(row)
    if adapter.kind == PERSONALISED_LORA:
        return System(adapter.ref, digest, folder, bundle=own, own=adapter.digest, on_base=row.digest)
    if adapter.kind == BI_TUNING:
        return _bi_tuning(registry, adapter, row.digest)
    part = Part(own, registry.adapters.facts(adapter), 1.0)
    return System(adapter.ref, digest, folder, part, own=adapter.digest, on_base=row.digest)


def _bi_tuning(registry: Registry, adapter: Adapter, base_digest: str) -> System:
    """`base_digest` is that of the base model, which evaluations of an adapter are found by, whatever checkpoint is frozen."""
    own, frozen = registry.adapters.folder(adapter), Frozen.of(registry, adapter)
    check_base(own, read_bi_tuning_manifest(own), frozen.digest)
    return System(
        adapter.ref,
        digest_of_json([frozen.digest, adapter.digest]),
        frozen.folder(registry),
        bi_tuning=own,
        index=index_file(registry, adapter, next(indexes_of(registry, adapter), None)),
        own=adapter.digest,
        on_base=base_digest,
    )


def _build(registry: Registry, text: str, _: str | None) -> System:
    build = registry.builds.get(text)
    if build.digest is None:
        raise EvaluationError(f"build {build.id} is {build.status} and has no checkpoint")
    label, score = f"build {build.id}", score_of_report(build.report)
    folder = registry.store.folder(build.stored_digest())
    if build.recipe["output"].get("format") != "adapter":
        return System(label, build.digest, folder, score=score)
    row = registry.bases.get(build.base)
    part = Part(folder, inspect_adapter(folder, registry.bases.facts(row), allow_base_mismatch=True), 1.0)
    digest = digest_of_json([row.digest, build.digest])
    checkpoint = registry.bases.folder(row)
    return System(label, digest, checkpoint, part, score=score, own=build.digest, on_base=row.digest)


def _folder(registry: Registry, folder: Path, base: str | None) -> System:
    if is_bundle(folder):
        return _bundle_folder(registry, folder, base)
    digest = folder_digest(folder, published_files(folder)[0])
    if not (folder / "adapter_config.json").exists():
        inspect_base(folder)
        return System(str(folder), digest, folder, score=_score_of(registry, digest))
    row = registry.bases.get(base) if base else registry.bases.only()
    facts = inspect_adapter(folder, registry.bases.facts(row), base_names=(row.name, row.source))
    part, stored = Part(folder, facts, 1.0), registry.bases.folder(row)
    score = _score_of(registry, digest)
    both = digest_of_json([row.digest, digest])
    return System(str(folder), both, stored, part, score=score, own=digest, on_base=row.digest)


def _bundle_folder(registry: Registry, folder: Path, base: str | None) -> System:
    row = registry.bases.get(base) if base else registry.bases.only()
    manifest = read_manifest(folder)
    check_base(folder, manifest, row.digest)
    digest = folder_digest(folder, {BUNDLE, *manifest.files})
    both = digest_of_json([row.digest, digest])
    return System(str(folder), both, registry.bases.folder(row), bundle=folder, own=digest, on_base=row.digest)


def _score_of(registry: Registry, digest: str) -> Score | None:
    """The score that this registry's builds with this result were tuned with; None where none was, or they differ."""
    found = {score_of_report(build.report) for build in registry.builds.with_result(digest)} - {None}
    return found.pop() if len(found) == 1 else None
