"""Merging folders without a registry: the same engine, the same checks, the same metadata files."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...registry.artifacts.allowlist import adapter_files, base_files
from ...registry.artifacts.facts import AdapterFacts, BaseFacts
from ...registry.artifacts.inspect import inspect_adapter, inspect_base
from ...registry.artifacts.tokenizers import brings_own
from ...registry.digests import DigestMemory, digest_of_json, file_digest
from ...registry.errors import ConflictError, UsageError
from ...registry.store.locks import abandoned
from ...registry.store.room import room_in
from ..coefficients import Weight, expand_coefficients, expect_finite, mean
from ..recipes import Output, Recipe, parse_options
from .card import CardFacts, CardInput
from .journal import FORMAT_VERSION, NOTES, Journal
from .provenance import write_metadata
from .reports import AdapterReport, MergeReport

if TYPE_CHECKING:  # torch is imported while the base is digested
    from .plan import Mix


@dataclass(frozen=True)
class WeightedFolder:
    """A LoRA folder and its weight in the mix: a number, one per layer, or one per module.

    `name` is what it is called in recipe and card; None: as the folder.
    """

    folder: Path
    weight: Weight | Sequence[float]
    name: str | None = None


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


@dataclass(frozen=True)
class MergeOptions:
    """How folders are merged: a recipe's method and output, where the work is done, and what is accepted of adapters.

    `threads` None is one for each core, at most eight. `base_names` are further names of the base, the first of them for the card.
    """

    method: str = "linear"
    options: Mapping[str, object] = field(default_factory=dict)
    output: Output = field(default_factory=Output)
    device: str = "cpu"
    threads: int | None = None
    allow_base_mismatch: bool = False
    allow_partial: bool = False
    base_names: tuple[str, ...] = ()

    def base_name(self, folder: Path) -> str:
        return self.base_names[0] if self.base_names else folder.name


DEFAULTS = MergeOptions()


def merge_folders(
    base_folder: Path,
    adapters: Sequence[WeightedFolder],
    out: Path,
    options: MergeOptions = DEFAULTS,
    *,
    memory: DigestMemory | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergeReport | AdapterReport:
    """Merge into the new folder `out`, which appears complete or not at all. `progress` counts bytes of the base.

    A merge that is killed or interrupted leaves its finished shards in a hidden folder beside `out`, and the next one of the
    same inputs resumes from there; one that fails leaves nothing. `memory` spares digesting the same base again.
    Raises ConflictError if `out` is there already or being made, InvalidArtifactError and its kin for what cannot be merged,
    MergeError.
    """
    if out.exists() or out.is_symlink():
        raise ConflictError(f"{out} is there already", hint="name a new folder")
    merge = _inspected(base_folder, adapters, options)
    with ThreadPoolExecutor(1) as hashing, _workplace(out) as staged:
        # The base is digested while torch is being imported and while the first shards are made.
        digests = hashing.submit(merge.digests, memory)
        try:
            if options.output.format == "adapter":
                report, known = _mixed_adapter(merge, staged), {}
            else:
                report = _merged_checkpoint(merge, staged, lambda: merge.key(digests.result()), progress)
                known = report.digests
        except BaseException:
            hashing.shutdown(wait=False, cancel_futures=True)
            raise
        card = merge.card(digests.result(), getattr(report, "tokenizer", None))
        write_metadata(staged, merge.recipe, card, digests.result(), None, known=known)
        _sync(staged)
        staged.rename(out)
    return report


@dataclass(frozen=True)
class _Input:
    """An adapter as inspected, its weight, and its label in recipe, card and provenance."""

    label: str
    folder: Path
    facts: AdapterFacts
    weight: Weight


@dataclass(frozen=True)
class _Merge:
    """A merge of folders that were inspected: what is merged, and how."""

    base_folder: Path
    base: BaseFacts
    inputs: Sequence[_Input]
    options: MergeOptions

    @property
    def recipe(self) -> dict[str, Any]:
        options = self.options
        recipe: dict[str, Any] = {"method": options.method}
        recipe |= {"options": options.options} if options.options else {}
        recipe |= {"coefficients": {each.label: each.weight for each in self.inputs}}
        return recipe | {"output": options.output.model_dump(exclude_none=True)}

    def digests(self, memory: DigestMemory | None) -> dict[str, str]:
        """Of the base and of each adapter, by its label."""
        found = {"base": folder_digest(self.base_folder, base_files(self.base_folder, self.base.files)[0], memory)}
        for each in self.inputs:
            with_tokenizer = each.facts.vocabulary is not None or brings_own(each.folder, self.base_folder)
            files, _ = adapter_files(each.folder, with_tokenizer=with_tokenizer)
            found[each.label] = folder_digest(each.folder, files)
        return found

    def key(self, digests: Mapping[str, str]) -> str:
        """Equal for merges that write the same bytes."""
        return digest_of_json([digests, self.recipe, FORMAT_VERSION, self.options.device.partition(":")[0]])

    def mix(self, out: Path, journal: Journal | None = None) -> Mix:
        from .plan import Mix, Part

        parts = [Part(each.folder, each.facts, each.weight) for each in self.inputs]
        return Mix(parts, out, self.options.method, self.options.options, self.options.output.dtype, journal)

    def card(self, digests: Mapping[str, str], tokenizer: str | None) -> CardFacts:
        return CardFacts(
            kind=self.options.output.format,
            title=f"{self.options.base_name(self.base_folder)} with a RecCocktail",
            domain=None,
            domain_title=None,
            base_name=self.options.base_name(self.base_folder),
            base_source=None,
            license=None,
            method=self.options.method,
            coefficients={each.label: mean(each.weight) for each in self.inputs},
            inputs=tuple(
                CardInput(each.label, each.label, digests[each.label], lacks=each.facts.missing) for each in self.inputs
            ),
            adaptive=None,
            metrics=None,
            dtype=self.options.output.dtype or self.base.dtype,
            recipe=None,
            reccocktail_version=version("reccocktail"),
            tokenizer=tokenizer,
        )


def _inspected(base_folder: Path, adapters: Sequence[WeightedFolder], options: MergeOptions) -> _Merge:
    options = replace(options, options=parse_options(options.method, options.options))
    for adapter in adapters:
        if isinstance(adapter.weight, (int, float)):
            expect_finite(adapter.weight, str(adapter.folder))
    base = inspect_base(base_folder)
    names = (*options.base_names, base_folder.name, str(base_folder), str(base_folder.resolve()))
    allowed = {"allow_base_mismatch": options.allow_base_mismatch, "allow_partial": options.allow_partial}
    facts = [inspect_adapter(adapter.folder, base, base_names=names, **allowed) for adapter in adapters]
    inputs = [
        _Input(
            f"{number}-{adapter.name or adapter.folder.name}",
            adapter.folder,
            fact,
            expand_coefficients(adapter.weight, fact, base, str(adapter.folder)),
        )
        for number, (adapter, fact) in enumerate(zip(adapters, facts, strict=True), 1)
    ]
    return _Merge(base_folder, base, inputs, options)


def _merged_checkpoint(
    merge: _Merge, staged: Path, key: Callable[[], str], progress: Callable[[int, int], None]
) -> MergeReport:
    from ..models import pick_device
    from .stream import merge_all

    total = sum(tensor.info.nbytes for tensor in merge.base.tensors.values())
    lock = threading.Lock()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, total)

    (report,) = merge_all(
        merge.base_folder,
        merge.base,
        [merge.mix(staged, Journal(staged, key))],
        device=pick_device(merge.options.device),
        threads=merge.options.threads,
        progress=advance,
    )
    return report


def _mixed_adapter(merge: _Merge, staged: Path) -> AdapterReport:
    from .adapter_output import write_adapter

    for left in staged.iterdir():  # of a merge to a checkpoint that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return write_adapter(merge.base, merge.mix(staged), rank=merge.options.output.rank, base_folder=merge.base_folder)


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
