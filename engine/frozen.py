"""The checkpoint that a bi-tuning reads histories by, and which no training of it changes: its base model, or a build of its domain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry import Adapter, Registry
from ..registry.errors import StoreError

if TYPE_CHECKING:  # torch is slow to import
    from ..networks.bi_tuning import BiTuning


@dataclass(frozen=True)
class Frozen:
    """`digest` is the one that the bundle's manifest has; `tree` is in the store, of the build `build` or of the base model."""

    base: str
    digest: str
    tree: str
    build: str | None = None

    @classmethod
    def of(cls, registry: Registry, row: Adapter) -> Frozen:
        """Of a bi-tuning; nothing is fetched."""
        base = registry.bases.get(row.base)
        if (on := row.training.on) is None:
            return cls(base.name, base.digest, base.digest)
        return cls(base.name, on.digest, on.tree, on.build)

    def folder(self, registry: Registry) -> Path:
        """Fetched to this machine where it is not here yet. Raises StoreError."""
        if self.build is not None and not registry.store.has(self.tree):
            raise StoreError(
                f"the bi-tuning was trained on build {self.build}, whose files ({self.tree}) are not in the store any more",
                hint="restore the store, or train again on a build that is there; `reccocktail build pin` keeps a build",
            )
        return registry.store.folder(self.tree)


def open_beside(registry: Registry, row: Adapter) -> BiTuning:
    """The bi-tuning, every file checked, and that it is of its frozen checkpoint.

    Raises InvalidArtifactError, BaseMismatchError, StoreError.
    """
    from ..networks.bi_tuning import open_bi_tuning

    return open_bi_tuning(registry.adapters.folder(row), base_digest=Frozen.of(registry, row).digest)
