"""The keys of `adapter_config.json`: what is read, what changes nothing, and what is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UnsupportedAdapterError
from ..strict_json import shown

# adapters that start from the base's own singular vectors or quantisation, and whose training began on a changed base
_ALTERED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")

_READ_HERE = {
    "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "base_model_name_or_path",
    "peft_type", "bias", "init_lora_weights", "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices",
    "target_parameters", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "task_type",
    "ensure_weight_tying",
}  # fmt: skip
# how the adapter was trained; the tensors themselves say what remains of it
_WITHOUT_EFFECT = {
    "auto_mapping", "revision", "inference_mode", "peft_version", "lora_dropout", "megatron_core", "qalora_group_size",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
}  # fmt: skip
# Keys that PEFT does not have, and whose names say that they are about the training or the file. What a key of a later
# PEFT does cannot be known, so that all others are refused.
_INFORMATIONAL = re.compile(
    r"_.*|.*(?:^|_)(?:lr|lrs|learning_rate|lr_ratio|dropout|dtype|seed|epochs?|steps?|batch_size|optimi[sz]er|scheduler|warmup"
    r"|weight_decay|version|name|author|date|time|timestamp|description|comments?|notes?|title|path|url|license|licence|tags?"
    r"|language|languages|dataset|datasets|framework|library|trainer|trained|training|created|created_at|created_by|hub"
    r"|metrics?|metadata|fixed)(?:$|_(?:at|by|on|with|args?|config|info|emb|head|id)$)",
    re.IGNORECASE,
)

# refused, with what can be done about it
_HINTS = {
    "alora_invocation_tokens": "an activated LoRA applies only after a certain token, which merged weights cannot do",
    "layer_replication": "replicate the layers of the base model first, and train an adapter on the result",
    "use_qalora": "train without it: the adapter pools its inputs by the groups of a quantised base",
}
_HINT = "if it is a note that changes nothing in what the adapter computes, remove it from adapter_config.json"


def check_keys(raw: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The keys that are not known and change nothing. Raises UnsupportedAdapterError for what merging cannot honour."""
    if raw.get("peft_type") != "LORA":
        raise UnsupportedAdapterError(f"{path}: peft_type is {shown(raw.get('peft_type'))}; only LORA can be merged")
    start = raw.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        altered = isinstance(start, str) and start.lower().startswith(_ALTERED_BASE)
        raise UnsupportedAdapterError(
            f"{path}: init_lora_weights is {shown(start)}" + (", which trained on an altered base" if altered else ""),
            hint="convert it: save_pretrained(…, path_initial_model_for_weight_conversion=…)" if altered else None,
        )
    noted = []
    for key in sorted(raw.keys() - _READ_HERE - _WITHOUT_EFFECT):
        if _is_empty(raw[key]):
            continue
        if not (len(key) < 100 and key.isprintable() and (_INFORMATIONAL.fullmatch(key) or _is_idle(key, raw))):
            field = key if key.isidentifier() and len(key) < 100 else shown(key)
            raise UnsupportedAdapterError(
                f"{path}: {field} is {shown(raw[key])}, which merging cannot honour", hint=_HINTS.get(key, _HINT)
            )
        noted.append(key)
    return tuple(noted)


def _is_empty(value: object) -> bool:
    """Null, false, zero or empty, all the way down: what is switched off."""
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return not value


def _is_idle(key: str, raw: Mapping[str, Any]) -> bool:
    """Whether the key belongs to a feature that is switched off, as `qalora_group_size` to `use_qalora`."""
    stem = key.partition("_")[0]
    return any(name in raw and _is_empty(raw[name]) for name in (f"use_{stem}", f"{stem}_config") if name != key)
