"""Making the index of a bi-tuning: rows of items that an earlier index has are copied bit by bit, and only the others are embedded.

What was embedded is kept in the build's folder in parts, so that a worker that takes it over, or tries again, goes on after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...registry import Adapter, Build, Registry
from ...registry.artifacts.bi_tunings import INDEX as INDEX_FILE
from ...registry.catalog.references import BI_TUNING
from ...registry.errors import InvalidArtifactError
from ...registry.store.files import sync_all
from ...tasks import HistoryTemplate, Item
from ...tasks.history_texts import items_digest
from ..errors import MergeError
from ..frozen import Frozen, open_beside
from .indexing import index_file, indexes_of, read_catalogue
from .job import BuildJob, RunOptions

if TYPE_CHECKING:  # torch is slow to import
    from torch import Tensor

    from ...networks.bi_tuning import BiTuning
    from ...networks.item_index import ItemIndex

PART = 1024  # items that are embedded between two parts


def make_index(registry: Registry, job: BuildJob, options: RunOptions) -> None:
    """Make, store and report. Raises InvalidArtifactError, BaseMismatchError, StoreError, MergeError where inputs are not those asked for."""
    from ...networks.item_index import ItemIndex

    row, frozen = _inputs(registry, job.build)
    bundle = open_beside(registry, row)
    items = read_catalogue(registry.store.folder(job.build.inputs["catalogue"]["digest"]))
    known, origin = _earlier(registry, row, bundle, job)
    with registry.store.staging("index", work=job.build.key.removeprefix("sha256:")) as folder:
        embedder = _Embedder(bundle, lambda: frozen.folder(registry), folder, job, options.device)
        index = ItemIndex.of(items, bundle.template, bundle.manifest.encoder, embedder.embed, known)
        embedder.clear()
        index.write(folder / INDEX_FILE)
        job.report["index"] = _summary(index, items, embedder.done, job.build) | {"from": origin}
        job.coefficients = {}
        job.succeeded(job.store(folder))


def _inputs(registry: Registry, build: Build) -> tuple[Adapter, Frozen]:
    """Raises MergeError where they are not those that the build was requested with."""
    (entry,) = build.inputs["adapters"]
    row = registry.adapters.resolve(entry["ref"], base=build.base, kind=BI_TUNING)
    frozen, recorded = Frozen.of(registry, row), build.inputs["base"]["digest"]
    if (row.digest, frozen.digest) != (entry["digest"], recorded):
        raise MergeError(f"{row.ref} and {frozen.base} are not those that build {build.id} was requested with")
    return row, frozen


def _earlier(registry: Registry, row: Adapter, bundle: BiTuning, job: BuildJob) -> tuple[ItemIndex, str]:
    """The newest earlier index of the bundle and the build that made it, or the one inside it; a damaged one is passed over with a warning."""
    from ...networks.item_index import ItemIndex

    for build in indexes_of(registry, row):
        if build.key == job.build.key:  # it is made anew because that is not to be relied on
            continue
        try:
            return ItemIndex.read(index_file(registry, row, build), encoder=bundle.manifest.encoder), build.id
        except InvalidArtifactError as error:
            job.report.setdefault("warnings", []).append(f"the index of build {build.id} is not built upon: {error}")
    return bundle.index, "bundle"


def _summary(index: ItemIndex, items: Mapping[str, Item], embedded: int, build: Build) -> dict[str, int]:
    left_out = build.inputs["items"]["untitled"]
    return {"items": len(index.item_ids), "embedded": embedded, "copied": len(items) - embedded, "untitled": left_out}


@dataclass
class _Embedder:
    """Embeds items by the item side, in parts that are found again in `folder`. The model is loaded for the first item."""

    bundle: BiTuning
    checkpoint: Callable[[], Path]
    folder: Path
    job: BuildJob
    device: str
    done: int = 0

    def embed(self, items: Sequence[Item]) -> Tensor:
        """[items, width]. Raises ConflictError if the build was cancelled meanwhile."""
        import torch

        from ...networks.laser import load_frozen

        self._advance(0, len(items))
        encode = None
        parts = [torch.empty(0, self.bundle.manifest.width)]
        for start in range(0, len(items), PART):
            some = items[start : start + PART]
            path = self._part(some)
            rows = self._kept(path, len(some))
            if rows is None:
                if encode is None:
                    model, tokenizer = load_frozen(self.checkpoint(), self.device, self.bundle.manifest.dtype)
                    encode = self.bundle.items(model, tokenizer).encode
                rows = encode(
                    [[item] for item in some],
                    progress=lambda done, before=start: self._advance(before + done, len(items)),
                )
                self._keep(path, rows)
            parts.append(rows)
            self.done += len(some)
            self._advance(self.done, len(items))
        return torch.cat(parts)

    def clear(self) -> None:
        for path in self.folder.glob("part-*"):
            path.unlink()

    def _part(self, items: Sequence[Item]) -> Path:
        name = _digest(self.bundle.template, items).removeprefix("sha256:")[:32]
        return self.folder / f"part-{name}.safetensors"

    def _kept(self, path: Path, count: int) -> Tensor | None:
        """What an earlier attempt has embedded; nothing where its file is not whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            rows = load_file(path)["rows"]
        except (OSError, SafetensorError, KeyError):
            return None
        return rows if rows.shape == (count, self.bundle.manifest.width) else None

    def _keep(self, path: Path, rows: Tensor) -> None:
        from safetensors.torch import save_file

        half = path.with_suffix(".half")
        save_file({"rows": rows.contiguous()}, half)
        sync_all([half])
        half.rename(path)

    def _advance(self, done: int, total: int) -> None:
        self.job.show("encode", done, total)
        self.job.advance("encode", done, total)


def _digest(template: HistoryTemplate, items: Sequence[Item]) -> str:
    return items_digest([item.item_id for item in items], [template.item_digest(item) for item in items])
