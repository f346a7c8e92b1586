"""What was measured, on any machine that shares the registry, for a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..engine.click_records import is_of_clicks
from ..engine.merging.card import CardEvaluation, CardMetric, CardTask
from ..engine.records import is_of_full
from ..registry import Registry
from ..registry.catalog.evaluations import EvaluationRecord, Weights
from ..tasks import CLICK_METRICS

METRICS = ("HR@1", "HR@3", "NDCG@3", "MRR", "Recall@10", "NDCG@10", *CLICK_METRICS)  # of an evaluation's, in a card


def evaluations_of(registry: Registry, labels: Mapping[Weights, str], own: Weights) -> tuple[CardEvaluation, ...]:
    """What was measured of these systems, on whatever the one that is published was measured; of equal tasks the newest."""
    found: dict[tuple[str, str, str], dict[Weights, CardEvaluation]] = {}
    for row in registry.evaluations.of_systems(labels):
        system = Weights(row.weights, row.on_base)
        found.setdefault((row.task_digest, row.mode, row.dtype), {})[system] = _evaluation(row, labels[system])
    tables = [
        replace(
            systems[own],
            own=labels[own],
            rows={label: systems[system].rows[label] for system, label in labels.items() if system in systems},
        )
        for systems in found.values()
        if own in systems
    ]
    return tuple(sorted(tables, key=lambda table: table.task))


def _evaluation(row: EvaluationRecord, label: str) -> CardEvaluation:
    metrics = {name: CardMetric(m["mean"], m["low"], m["high"]) for name, m in row.metrics.items() if name in METRICS}
    task = row.task
    if is_of_clicks(row):
        asked = CardTask("which items are liked", row.mode, row.split, str(task["data_digest"]), row.domain)
        sentence = (
            f"Which items are liked, rated {task['threshold']:g} or more: {row.detail['rows']} rows, {row.split} split,"
            f" data {task['data_digest']}"
        )
        return CardEvaluation(sentence, row.users, {label: metrics}, asked=asked)
    if is_of_full(row):
        name = f"next purchase among all {task['n_candidates']} items"
        asked = CardTask(name, row.mode, row.split, str(task["data_digest"]), row.domain)
        sentence = f"{name.capitalize()}, {row.split} split, data {task['data_digest']}, seed {task['seed']}"
        return CardEvaluation(sentence, row.users, {label: metrics}, asked=asked)
    how = "lists of titles" if row.mode == "generate" else f"ranking by {row.mode}"
    sentence = (
        f"Next purchase among {task['n_negatives'] + 1} candidates, {row.split} split,"
        f" {how}, data {task['data_digest']}, seed {task['seed']}"
    )
    name = f"next purchase among {task['n_negatives'] + 1} candidates"
    asked = CardTask(name, how, row.split, str(task["data_digest"]), row.domain)
    return CardEvaluation(sentence, row.users, {label: metrics}, asked=asked)
