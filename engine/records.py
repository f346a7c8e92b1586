"""Evaluations in the registry: a row for each, and the ranks of all users in the store, shared by all machines.

Ranks lie in one safetensors file. The digest in the row is checked against the bytes whenever they are read.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np

from ..registry import Registry
from ..registry.catalog.evaluations import EvaluationFilter, EvaluationRecord, Measurement
from ..registry.digests import canonical_json
from ..registry.errors import NotFoundError, RecCocktailError, StoreError, UsageError
from ..tasks import Interval, Question, paired_difference
from ..tasks.full import KIND as FULL
from .click_records import click_differences, is_of_clicks
from .measured import Evaluation, ListFacts, LogLosses, Measured
from .question_sets import RANKING_VERSION, QuestionSet
from .record_files import REPAIR, add_record, store_tensors, stored_tensors
from .systems import BASELINES, System, find_system

FILE = "ranks.safetensors"
UNRANKED = -1
NEWEST = 200  # evaluations of a system that are looked through
ASKED = {  # of a task, in words
    "kind": "task",
    "data_digest": "data",
    "n_negatives": "negatives",
    "n_candidates": "candidates",
    "threshold": "threshold",
    "min_history": "least history",
    "seed": "seed",
    "limit": "limit",
}


def is_of_full(row: EvaluationRecord) -> bool:
    """Whether it is of the task `full`; its ranks are kept as those of `rank`."""
    return row.task.get("kind") == FULL


@dataclass(frozen=True)
class Records:
    """The evaluations of one domain in a registry, as `evaluate` looks them up and adds to them."""

    registry: Registry
    domain: str

    def find(self, key: str, questions: int) -> Measured | None:
        """What was recorded under the key; None without a row, and where its ranks are not those of so many questions any more."""
        try:
            row = self.registry.evaluations.by_key(key)
            measured = None if row is None else read(self.registry, row)
        except RecCocktailError:  # damaged, or not to be had: it is measured again
            return None
        return measured if measured is not None and len(measured.ranks) == questions else None

    def add(self, key: str, system: System, asked: QuestionSet, found: Evaluation) -> tuple[int | None, str | None]:
        """Stores the ranks, then the row: its id; else why it could not be recorded, which is nothing to the figures."""
        return add_record(self.registry, key, lambda: self._measurement(key, system, asked, found))

    def _measurement(self, key: str, system: System, asked: QuestionSet, found: Evaluation) -> Measurement:
        detail = {
            "lists": asdict(found.lists) if found.lists else None,
            "log-loss": asdict(found.log_losses.mean) | {"temperature": found.log_losses.temperature}
            if found.log_losses
            else None,
            "template": asked.questions[0].template.name,
        }
        return Measurement(
            key=key,
            system=system.digest,
            weights=system.weights,
            label=system.label,
            domain=self.domain,
            mode=found.mode,
            dtype=found.dtype,
            task_digest=asked.task.digest,
            task=asdict(asked.task),
            questions=questions_digest(asked.questions),
            users=len(found.ranks),
            metrics={name: asdict(interval) for name, interval in found.metrics.items()},
            detail=detail,
            ranks=store_ranks(self.registry, found.ranks, found.log_losses),
            version=f"{version('reccocktail')}/{RANKING_VERSION}",
        )


def questions_digest(questions: Sequence[Question]) -> str:
    """`sha256:<hex>` of who was asked to choose among what, in order: equal ones can be compared user by user, whatever the prompt."""
    digest = hashlib.sha256()
    for question in questions:
        example = question.example
        digest.update(canonical_json([example.user_id, example.position, question.candidates]) + b"\n")
    return f"sha256:{digest.hexdigest()}"


def store_ranks(registry: Registry, ranks: Sequence[int | None], log_losses: LogLosses | None = None) -> str:
    """The digest of the tree that holds them."""
    tensors: dict[str, np.ndarray] = {
        "ranks": np.asarray([UNRANKED if rank is None else rank for rank in ranks], dtype=np.int32)
    }
    if log_losses is not None:
        tensors["losses"] = np.asarray(log_losses.losses, dtype=np.float64)
    return store_tensors(registry, FILE, tensors)


def ranks_of(registry: Registry, row: EvaluationRecord) -> tuple[int | None, ...]:
    """The rank of the true item for each question, in order (0 is best); None where a list did not name it. Raises StoreError."""
    return tuple(None if rank == UNRANKED else int(rank) for rank in _tensors(registry, row)["ranks"])


def read(registry: Registry, row: EvaluationRecord) -> Measured:
    """What was found, with every rank and loss. Raises StoreError."""
    tensors = _tensors(registry, row)
    ranks = tuple(None if rank == UNRANKED else int(rank) for rank in tensors["ranks"])
    lists, fitted = row.detail.get("lists"), row.detail.get("log-loss")
    losses = None
    if fitted and "losses" in tensors:
        losses = LogLosses(fitted["temperature"], tuple(tensors["losses"].tolist()))
    return Measured(ranks, ListFacts(**lists) if lists else None, losses)


def _tensors(registry: Registry, row: EvaluationRecord) -> Mapping[str, np.ndarray]:
    """Of the stored file. Raises StoreError."""
    tensors = stored_tensors(registry, row, FILE)
    if tensors.get("ranks", np.zeros(0)).shape != (row.users,):
        raise StoreError(
            f"evaluation {row.id}: its ranks ({row.ranks}) are not one for each of {row.users} users", hint=REPAIR
        )
    return tensors


@dataclass(frozen=True)
class RecordedComparison:
    """Two evaluations of the same users, and for each metric `one` minus `other` with its paired interval."""

    one: EvaluationRecord
    other: EvaluationRecord
    differences: Mapping[str, Interval]


def compare(registry: Registry, one: EvaluationRecord, other: EvaluationRecord) -> RecordedComparison:
    """Paired by user, from what is stored: no model runs. Raises UsageError where they were not asked the same of the same users."""
    if one.questions != other.questions:
        raise UsageError(
            f"evaluations {one.id} and {other.id} were not measured on the same users and candidates:"
            f" {'; '.join(apart(one, other)) or 'the data were split or sampled otherwise'}",
            hint=f"evaluate both in one command: `reccocktail evaluate A B --domain {one.domain}`",
        )
    if is_of_clicks(one):
        return RecordedComparison(one, other, click_differences(registry, one, other))
    names = [name for name in one.metrics if name in other.metrics]
    candidates = None if is_of_full(one) else one.task["n_negatives"] + 1
    ranks = ranks_of(registry, one), ranks_of(registry, other)
    found = {name: paired_difference(*ranks, name, candidates=candidates) for name in names}
    return RecordedComparison(one, other, found)


def apart(one: EvaluationRecord, other: EvaluationRecord) -> list[str]:
    """What was asked differently, each as `name a / b`."""
    both = [(name, getattr(one, name), getattr(other, name)) for name in ("domain", "split", "users")]
    found = [f"{name} {mine} / {theirs}" for name, mine, theirs in both if mine != theirs]
    for name, word in ASKED.items():
        mine, theirs = one.task.get(name), other.task.get(name)
        if mine != theirs:
            found.append(f"{word} {_brief(mine)} / {_brief(theirs)}")
    return found


def _brief(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:19] if text.startswith("sha256:") else text


def find_pair(
    registry: Registry, one: str, other: str, *, domain: str | None = None, base: str | None = None
) -> tuple[EvaluationRecord, EvaluationRecord]:
    """What two texts name, each an evaluation's id or a system as `find_system` reads it.

    Of systems, the newest evaluations that were asked the same and ranked by the same score. Raises NotFoundError, UsageError.
    """
    ours, theirs = (_named(registry, text, domain, base) for text in (one, other))
    pairs = ((mine, each) for mine in ours for each in theirs)
    return next((pair for pair in pairs if are_comparable(*pair)), (ours[0], theirs[0]))


def are_comparable(one: EvaluationRecord, other: EvaluationRecord) -> bool:
    """Whether they were asked the same and scored alike; a baseline has a score of its own, and outside the task `rank` a system has only one."""
    of_rank = not (is_of_clicks(one) or is_of_full(one))
    alike = not of_rank or one.mode == other.mode or one.mode in BASELINES or other.mode in BASELINES
    return one.questions == other.questions and alike


def _named(registry: Registry, text: str, domain: str | None, base: str | None) -> list[EvaluationRecord]:
    if text.isascii() and text.isdigit():
        return [registry.evaluations.get(int(text))]
    system = find_system(registry, text, base=base)
    found = registry.evaluations.list(EvaluationFilter(domain=domain, weights=system.weights), limit=NEWEST)
    if not found:
        raise NotFoundError(
            f"{system.label} was never evaluated{f' on {domain}' if domain else ''}",
            hint=f"reccocktail evaluate {shlex.quote(text)} --domain {domain or 'DOMAIN'}",
        )
    return found
