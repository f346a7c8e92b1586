"""One user's coefficients become one plain LoRA, or a checkpoint with it: by the engine that merges any other LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from ..networks.gated_lora import GatedLora, LoraFactors
from ..registry.artifacts.allowlist import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..registry.artifacts.lora import PREFIX
from .errors import MergeError
from .merging.peft_names import target_modules
from .merging.reports import AdapterReport, MergeReport
from .merging.standalone import DEFAULTS, MergeOptions, WeightedFolder, merge_folders


@dataclass(frozen=True)
class SpiritShare:
    """A base spirit that is mixed in: `weight` of it, from 0 to 1, and the rest of the personal LoRA."""

    folder: Path
    weight: float


def personalise(
    base_folder: Path,
    net: GatedLora,
    alpha: torch.Tensor,
    out: Path,
    options: MergeOptions = DEFAULTS,
    *,
    spirit: SpiritShare | None = None,
    workplace: Path | None = None,
) -> MergeReport | AdapterReport:
    """Write the LoRA of one user, alpha [modules, metas], into the new folder `out`: as `options.output` says, an adapter or a checkpoint.

    `workplace` is where what is merged lies meanwhile, by default the system's folder for that.
    The adapter's rank is metas · rank in the form `sum` and rank in `factor`, and the spirit's is added to it.
    Raises what `merge_folders` raises, and MergeError for a spirit's weight outside 0 to 1.
    """
    if spirit is not None and not 0 <= spirit.weight <= 1:
        raise MergeError(f"the spirit's weight is {spirit.weight:g}", hint="give a number from 0 to 1")
    with TemporaryDirectory(prefix="reccocktail-", dir=workplace) as staging:
        person = Path(staging) / "person"
        write_lora(person, net.factors(alpha), base_folder)
        parts = [WeightedFolder(person, 1 - spirit.weight if spirit else 1.0)]
        parts = [WeightedFolder(spirit.folder, spirit.weight, "spirit"), *parts] if spirit else parts
        return merge_folders(
            base_folder, parts, out, replace(options, base_names=(*options.base_names, str(base_folder)))
        )


def write_lora(folder: Path, factors: Mapping[str, LoraFactors], base_folder: Path) -> None:
    """A PEFT LoRA folder in float32 of factors that all have one rank and one scale."""
    folder.mkdir()
    first = next(iter(factors.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_folder),
        "r": len(first.a),
        "lora_alpha": first.scale * len(first.a),
        "target_modules": target_modules(factors, [f"{name}.weight" for name in factors]),
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    tensors = {
        f"{PREFIX}{name}.lora_{side}.weight": value.float().contiguous().cpu()
        for name, each in factors.items()
        for side, value in (("A", each.a), ("B", each.b))
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
