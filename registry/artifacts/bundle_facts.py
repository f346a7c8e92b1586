"""What inspection reports of a personalised LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..digests import digest_of_json
from .allowlist import RECOMMENDER

if TYPE_CHECKING:
    from .bundles import BundleManifest


@dataclass(frozen=True)
class BundleFacts:
    """What a row of the registry has of a bundle. `tensors` and `bytes` are those of all its files together; `rank` is of one meta-LoRA."""

    manifest: BundleManifest
    tensors: int
    bytes: int
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        return self.manifest.gates.rank

    @property
    def alpha(self) -> float:
        return self.manifest.gates.alpha

    @property
    def target_modules(self) -> tuple[str, ...]:
        return tuple(sorted(self.manifest.gates.targets))

    @property
    def content(self) -> str:
        """The digest of what the bundle says; a card or a license beside it does not matter."""
        return digest_of_json(self.manifest.model_dump(mode="json"))

    @property
    def lineage(self) -> dict[str, Any]:
        """What the row's context keeps under `bundle`."""
        told, gates = self.manifest, self.manifest.gates
        return {
            "metas": gates.metas,
            "form": gates.form,
            "temperature": gates.temperature,
            "square_root": gates.square_root,
            "modules": len(gates.modules),
            "target_dependent": told.target_dependent,
            "users": told.users,
            "base": told.base,
            "data": list(told.data),
            "recommender": told.files[RECOMMENDER[1]],
            "trained_on": told.trained_on,
            "template": digest_of_json(told.template),
            "clicks": told.clicks,
            "retrieval": told.retrieval.model_dump(mode="json"),
            "seed": told.seed,
        }
