"""What inspection reports of a bundle: a personalised LoRA or a bi-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..digests import digest_of_json
from .allowlist import RECOMMENDER

if TYPE_CHECKING:
    from .bi_tunings import BiTuningManifest
    from .bundles import BundleManifest


@dataclass(frozen=True)
class BundleFacts:
    """What a row of the registry has of a bundle. `tensors` and `bytes` are those of all its files together; `rank` is of one meta-LoRA.

    A bi-tuning has no LoRA, so its rank and alpha are 0 and it targets no module.
    """

    manifest: BundleManifest | BiTuningManifest
    tensors: int
    bytes: int
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def rank(self) -> int:
        return self.manifest.gates.rank if self.manifest.kind == "personalised-lora" else 0

    @property
    def alpha(self) -> float:
        return self.manifest.gates.alpha if self.manifest.kind == "personalised-lora" else 0.0

    @property
    def target_modules(self) -> tuple[str, ...]:
        return tuple(sorted(self.manifest.gates.targets)) if self.manifest.kind == "personalised-lora" else ()

    @property
    def content(self) -> str:
        """The digest of what the bundle says; a card or a license beside it does not matter."""
        return digest_of_json(self.manifest.model_dump(mode="json"))

    @property
    def lineage(self) -> dict[str, Any]:
        """What the row's context keeps under `bundle`."""
        told = self.manifest
        own = _of_personalised(told) if told.kind == "personalised-lora" else _of_bi_tuning(told)
        return own | {
            "base": told.base,
            "data": list(told.data),
            "trained_on": told.trained_on,
            "template": digest_of_json(told.template),
            "seed": told.seed,
        }


def _of_personalised(told: BundleManifest) -> dict[str, Any]:
    gates = told.gates
    return {
        "metas": gates.metas,
        "form": gates.form,
        "temperature": gates.temperature,
        "square_root": gates.square_root,
        "modules": len(gates.modules),
        "target_dependent": told.target_dependent,
        "users": told.users,
        "recommender": told.files[RECOMMENDER[1]],
        "clicks": told.clicks,
        "retrieval": told.retrieval.model_dump(mode="json"),
    }


def _of_bi_tuning(told: BiTuningManifest) -> dict[str, Any]:
    return {
        "prefix": told.prefix,
        "readout": told.readout,
        "rows": told.rows,
        "dtype": told.dtype,
        "recommender": told.recommender,
        "items": told.items,
        "encoder": told.encoder,
    }
