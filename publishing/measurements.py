"""What `evaluate` measured on this machine, for a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..engine.merging.card import CardEvaluation, CardMetric, CardTask
from ..registry import Adapter, Base, Registry
from ..registry.digests import canonical_json, digest_of_json
from ..registry.errors import InvalidArtifactError
from ..registry.strict_json import OWN_LIMIT, read_object

METRICS = ("HR@1", "HR@3", "NDCG@3", "MRR")  # of an evaluation's, in a card


def system_of(base: Base, adapter: Adapter) -> str:
    """How an evaluation names an adapter on its base."""
    return digest_of_json([base.digest, adapter.digest])


def evaluations_of(registry: Registry, labels: Mapping[str, str], own: str) -> tuple[CardEvaluation, ...]:
    """What was measured on this machine of the systems with these digests, where the one that is published was measured, too."""
    found: dict[str, dict[str, CardEvaluation]] = {}
    for path in sorted((registry.settings.home / "evaluations").glob("*.json")):
        try:
            content = read_object(path, limit=OWN_LIMIT)
            if (system := content["system"]) in labels:
                key = canonical_json([content["task"]["digest"], content["mode"], content["dtype"]]).decode()
                found.setdefault(key, {})[system] = _evaluation(content, labels[system])
        except (InvalidArtifactError, ValueError, KeyError, TypeError, AttributeError):
            continue  # one that was cut off or damaged is measured again when it is asked for
    tables = [
        replace(
            systems[own],
            own=labels[own],
            rows={label: systems[digest].rows[label] for digest, label in labels.items() if digest in systems},
        )
        for systems in found.values()
        if own in systems
    ]
    return tuple(sorted(tables, key=lambda table: table.task))


def _evaluation(content: Mapping[str, Any], label: str) -> CardEvaluation:
    """Of one system, as it was kept. Raises KeyError, TypeError, ValueError or AttributeError where that is damaged."""
    metrics = {
        name: CardMetric(float(m["mean"]), float(m["low"]), float(m["high"]))
        for name, m in content["metrics"].items()
        if name in METRICS
    }
    task = content["task"]
    how = "lists of titles" if content["mode"] == "generate" else f"ranking by {content['mode']}"
    sentence = (
        f"Next purchase among {task['n_negatives'] + 1} candidates, {task['split']} split,"
        f" {how}, data {task['data_digest']}, seed {task['seed']}"
    )
    name = f"next purchase among {task['n_negatives'] + 1} candidates"
    asked = CardTask(name, how, str(task["split"]), str(task["data_digest"]))
    return CardEvaluation(sentence, len(content["ranks"]), {label: metrics}, asked=asked)
