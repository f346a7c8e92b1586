"""What an evaluation finds: ranks, and the metrics that follow from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from ..tasks import Interval, TaskSpec, mean_interval, paired_difference, summarise

COMPARED = ("HR@1", "NDCG@3")  # the metrics of paired differences


@dataclass(frozen=True)
class ListFacts:
    """What the generated lists were like: how many `entries` in all, of which titles that were no candidate's, and repeats."""

    entries: int
    unknown: int
    duplicates: int


@dataclass(frozen=True)
class LogLosses:
    """Per question −log q of the right candidate in nats, q = softmax(scores / `temperature`), which is fitted to these questions."""

    temperature: float
    losses: tuple[float, ...]

    @property
    def mean(self) -> Interval:
        return mean_interval(self.losses)


@dataclass(frozen=True)
class Measured:
    """What an evaluation finds; the fields are those of Evaluation."""

    ranks: tuple[int | None, ...]
    lists: ListFacts | None = None
    log_losses: LogLosses | None = None


@dataclass(frozen=True)
class Evaluation:
    """A system's ranks of the true next item (0 is best), one per question, and what they come to.

    `mode` is the score in its text form, `generate`, or a baseline's name. A rank is None where a generated list does not name
    the item; `lists` is what these lists were like. `log_losses` is None for them, and where a score is not finite. `unkept` says
    why the result could not be kept for later, which is nothing to the figures; `record` is the id of its row in the registry.
    """

    label: str
    system: str
    task: TaskSpec
    mode: str
    dtype: str
    ranks: tuple[int | None, ...]
    lists: ListFacts | None = None
    log_losses: LogLosses | None = None
    unkept: str | None = field(default=None, compare=False)
    record: int | None = field(default=None, compare=False)

    @property
    def metrics(self) -> dict[str, Interval]:
        """AUC needs the place of every candidate, which a list of a few titles does not have."""
        return summarise(self.ranks, candidates=None if self.mode == "generate" else self.task.n_negatives + 1)

    def minus(self, other: Evaluation) -> dict[str, Interval]:
        """How much better this system is on the same questions, with paired intervals."""
        return {metric: paired_difference(self.ranks, other.ranks, metric) for metric in COMPARED}

    def to_json(self) -> dict:
        return {
            "label": self.label,
            "system": self.system,
            "task": asdict(self.task) | {"digest": self.task.digest},
            "mode": self.mode,
            "dtype": self.dtype,
            "metrics": {name: asdict(interval) for name, interval in self.metrics.items()},
            "lists": asdict(self.lists) if self.lists else None,
            "log-loss": asdict(self.log_losses.mean) | asdict(self.log_losses) if self.log_losses else None,
            "ranks": list(self.ranks),
        }
