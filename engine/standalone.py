"""Merging folders without a registry: the same engine, the same checks, the same papers."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..registry.card import CardFacts, CardInput
from ..registry.digests import digest_of_json, file_digest
from ..registry.errors import ConflictError, UsageError
from ..registry.inspect import inspect_adapter, inspect_base
from .merge import MergeReport, Part, merge
from .provenance import write_papers
from .recipes import DType, Recipe


@dataclass(frozen=True)
class WeightedFolder:
    """A LoRA folder and its weight in the mix."""

    folder: Path
    weight: float


def weigh(adapters: Sequence[tuple[Path, float | None]], recipe: Recipe | None) -> list[WeightedFolder]:
    """Give every folder its weight: its own, or the recipe's, spirit first, when none has one.

    Raises UsageError when neither or both say, or when the recipe wants another number of adapters.
    """
    if recipe is None:
        for folder, weight in adapters:
            if weight is None:
                raise UsageError(f"{folder} has no weight", hint=f"-a {folder}=0.5, or a recipe with coefficients")
        return [WeightedFolder(folder, weight or 0.0) for folder, weight in adapters]
    if recipe.coefficients is None:
        raise UsageError(
            "an adaptive recipe needs a domain's prompts, which a merge of folders does not have",
            hint="`reccocktail build request DOMAIN`, or weights: -a FOLDER=0.5",
        )
    if any(weight is not None for _, weight in adapters):
        raise UsageError("weights come from the recipe or from -a, not from both")
    if len(adapters) != len(recipe.roles):
        raise UsageError(f"the recipe mixes {', '.join(recipe.roles)}, but {len(adapters)} adapters are given")
    return [
        WeightedFolder(folder, recipe.coefficients[role])
        for (folder, _), role in zip(adapters, recipe.roles, strict=True)
    ]


def merge_folders(
    base_folder: Path,
    adapters: Sequence[WeightedFolder],
    out: Path,
    *,
    method: str,
    dtype: DType | None,
    device: str,
    allow_base_mismatch: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergeReport:
    """Merge into the new folder `out`, which appears complete or not at all. `progress` counts bytes of the base.

    Raises ConflictError if `out` is there already, InvalidArtifactError and its kin for what cannot be merged, MergeError.
    """
    if out.exists() or out.is_symlink():
        raise ConflictError(f"{out} is there already", hint="name a new folder")
    base = inspect_base(base_folder, allow_links=True)
    names = (base_folder.name, str(base_folder), str(base_folder.resolve()))
    parts = [
        Part(
            adapter.folder,
            inspect_adapter(adapter.folder, base, base_names=names, allow_base_mismatch=allow_base_mismatch),
            adapter.weight,
        )
        for adapter in adapters
    ]
    total = sum(tensor.info.nbytes for tensor in base.tensors.values())
    lock = threading.Lock()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, total)

    staged = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    staged.mkdir()
    try:
        report = merge(base_folder, base, parts, staged, method=method, dtype=dtype, device=device, progress=advance)
        labels = [f"{number}-{part.folder.name}" for number, part in enumerate(parts, 1)]
        coefficients = {label: part.weight for label, part in zip(labels, parts, strict=True)}
        digests = {label: folder_digest(part.folder) for label, part in zip(labels, parts, strict=True)}
        recipe = {"method": method, "coefficients": coefficients, "output": {"format": "checkpoint"}}
        if dtype:
            recipe["output"]["dtype"] = dtype
        card = CardFacts(
            title=f"{base_folder.name} with a RecCocktail",
            domain=out.name,
            domain_title=out.name,
            base_name=base_folder.name,
            base_source=None,
            license=None,
            method=method,
            coefficients=coefficients,
            inputs=tuple(CardInput(label, label, digests[label]) for label in labels),
            adaptive=None,
            metrics=None,
            dtype=dtype or base.dtype,
            recipe=None,
            reccocktail_version=version("reccocktail"),
        )
        write_papers(staged, recipe, card, {"base": folder_digest(base_folder)} | digests, None)
        _sync(staged)
        staged.rename(out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return report


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's own files, as the store digests a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return digest_of_json(
        {p.name: {"bytes": p.stat().st_size, "sha256": file_digest(p).removeprefix("sha256:")} for p in files}
    )


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
