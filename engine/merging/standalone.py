"""Merging folders without a registry: the same engine, the same checks, the same papers."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...registry.artifacts.allowlist import adapter_files, base_files
from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.inspect import inspect_adapter, inspect_base
from ...registry.artifacts.tokenizers import brings_own
from ...registry.digests import DigestMemory, digest_of_json, file_digest
from ...registry.errors import ConflictError, UsageError
from ...registry.store.locks import abandoned
from ...registry.store.room import room_in
from ..coefficients import Weight, expand_coefficients, expect_finite, mean
from ..recipes import DType, Recipe, parse_options
from .card import CardFacts, CardInput
from .journal import FORMAT_VERSION, NOTES, Journal
from .provenance import write_metadata

if TYPE_CHECKING:  # torch is imported while the base is digested
    from .adapter_output import AdapterReport
    from .plan import MergeReport, Part

OutputFormat = Literal["checkpoint", "adapter"]


@dataclass(frozen=True)
class WeightedFolder:
    """A LoRA folder and its weight in the mix: a number, one per layer, or one per module."""

    folder: Path
    weight: Weight | Sequence[float]


def weigh(adapters: Sequence[tuple[Path, float | None]], recipe: Recipe | None) -> list[WeightedFolder]:
    """Give every folder its weight: its own, or the recipe's, spirit first, when none has one, or 1 for one alone.

    Raises UsageError when neither or both say, or when the recipe wants another number of adapters.
    """
    if recipe is None:
        if len(adapters) == 1 and adapters[0][1] is None:
            return [WeightedFolder(adapters[0][0], 1.0)]
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
    method: str = "linear",
    options: Mapping[str, object] | None = None,
    format: OutputFormat = "checkpoint",  # noqa: A002  the recipe's word
    rank: int | None = None,
    dtype: DType | None = None,
    device: str = "cpu",
    threads: int | None = None,
    allow_base_mismatch: bool = False,
    allow_partial: bool = False,
    memory: DigestMemory | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergeReport | AdapterReport:
    """Merge into the new folder `out`, which appears complete or not at all. `progress` counts bytes of the base.

    A merge that is killed or interrupted leaves its finished shards in a hidden folder beside `out`, and the next one of the
    same inputs goes on from there; one that fails leaves nothing. `memory` spares digesting the same base again.
    Raises ConflictError if `out` is there already or being made, InvalidArtifactError and its kin for what cannot be merged,
    MergeError.
    """
    if out.exists() or out.is_symlink():
        raise ConflictError(f"{out} is there already", hint="name a new folder")
    options = parse_options(method, options or {})
    for adapter in adapters:
        if isinstance(adapter.weight, (int, float)):
            expect_finite(adapter.weight, str(adapter.folder))
    base = inspect_base(base_folder)
    names = (base_folder.name, str(base_folder), str(base_folder.resolve()))
    facts = [
        inspect_adapter(
            adapter.folder,
            base,
            base_names=names,
            allow_base_mismatch=allow_base_mismatch,
            allow_partial=allow_partial,
        )
        for adapter in adapters
    ]
    weights = [
        expand_coefficients(a.weight, fact, base, str(a.folder)) for a, fact in zip(adapters, facts, strict=True)
    ]
    labels = [f"{number}-{adapter.folder.name}" for number, adapter in enumerate(adapters, 1)]
    coefficients = dict(zip(labels, weights, strict=True))
    recipe: dict[str, Any] = {"method": method}
    recipe |= {"options": options} if options else {}
    recipe |= {"coefficients": coefficients, "output": {"format": format}}
    recipe["output"] |= {key: value for key, value in (("dtype", dtype), ("rank", rank)) if value is not None}

    with ThreadPoolExecutor(1) as hashing, _workplace(out) as staged:
        # The base is digested while torch is being imported and while the first shards are made.
        digests = hashing.submit(
            lambda: (
                {"base": folder_digest(base_folder, base_files(base_folder, base.files)[0], memory)}
                | {
                    label: folder_digest(
                        a.folder,
                        adapter_files(
                            a.folder, with_tokenizer=fact.vocabulary is not None or brings_own(a.folder, base_folder)
                        )[0],
                    )
                    for label, a, fact in zip(labels, adapters, facts, strict=True)
                }
            )
        )
        try:
            from .plan import Part

            parts = [Part(a.folder, fact, weight) for a, fact, weight in zip(adapters, facts, weights, strict=True)]
            if format == "adapter":
                report = _mixed_adapter(base_folder, base, parts, staged, method, options, rank, dtype)
                known: Mapping[str, str] = {}
            else:
                report = _merged_checkpoint(
                    base_folder, base, parts, staged, method, options, dtype, device, threads,
                    lambda: digest_of_json([digests.result(), recipe, FORMAT_VERSION, device.partition(":")[0]]), progress,
                )  # fmt: skip
                known = report.digests
        except BaseException:
            hashing.shutdown(wait=False, cancel_futures=True)
            raise
        card = CardFacts(
            kind=format,
            title=f"{base_folder.name} with a RecCocktail",
            domain=None,
            domain_title=None,
            base_name=base_folder.name,
            base_source=None,
            license=None,
            method=method,
            coefficients={label: mean(weight) for label, weight in coefficients.items()},
            inputs=tuple(
                CardInput(label, label, digests.result()[label], lacks=fact.missing)
                for label, fact in zip(labels, facts, strict=True)
            ),
            adaptive=None,
            metrics=None,
            dtype=dtype or base.dtype,
            recipe=None,
            reccocktail_version=version("reccocktail"),
            tokenizer=getattr(report, "tokenizer", None),
        )
        write_metadata(staged, recipe, card, digests.result(), None, known=known)
        _sync(staged)
        staged.rename(out)
    return report


def _merged_checkpoint(
    base_folder: Path,
    base: BaseFacts,
    parts: Sequence[Part],
    staged: Path,
    method: str,
    options: Mapping[str, object],
    dtype: DType | None,
    device: str,
    threads: int | None,
    key: Callable[[], str],
    progress: Callable[[int, int], None],
) -> MergeReport:
    from ..models import pick_device
    from .stream import merge

    total = sum(tensor.info.nbytes for tensor in base.tensors.values())
    lock = threading.Lock()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, total)

    return merge(
        base_folder,
        base,
        parts,
        staged,
        method=method,
        options=options,
        dtype=dtype,
        device=pick_device(device),
        threads=threads,
        journal=Journal(staged, key),
        progress=advance,
    )


def _mixed_adapter(
    base_folder: Path,
    base: BaseFacts,
    parts: Sequence[Part],
    staged: Path,
    method: str,
    options: Mapping[str, object],
    rank: int | None,
    dtype: DType | None,
) -> AdapterReport:
    from .adapter_output import write_adapter

    for left in staged.iterdir():  # of a merge to a checkpoint that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return write_adapter(
        base, parts, staged, method=method, options=options, rank=rank, base_folder=base_folder, dtype=dtype
    )


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, for one process at a time. It stays for the next one after a kill or Ctrl-C only."""
    folder = out.with_name(f".{out.name}.partial")
    with room_in(out.parent):
        folder.mkdir(exist_ok=True)
    with room_in(out.parent), abandoned(folder) as free:
        if not free or not folder.exists():
            raise ConflictError(f"{out} is being made by another process", hint="wait for it, or name another folder")
        try:
            yield folder
        except KeyboardInterrupt:
            if not (folder / NOTES).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def folder_digest(folder: Path, names: Collection[str], memory: DigestMemory | None = None) -> str:
    """SHA-256 over these names and their contents, as the store digests a folder."""
    digest = memory.file_digest if memory else file_digest
    files = {name: folder / name for name in sorted(names)}
    return digest_of_json(
        {n: {"bytes": p.stat().st_size, "sha256": digest(p).removeprefix("sha256:")} for n, p in files.items()}
    )


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
