"""What workers report: one event for each change of a build's, a worker process's or the database's state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from .execution import worker_name
from .job import BuildOutcome

Notify = Callable[["WorkerEvent"], None]


@dataclass(frozen=True)
class WorkerEvent:
    """A change of state: `what` is one of requested, begins, says, succeeded, failed, cancelled, postponed, lost, blocked;
    of worker processes started, died, ended, error (that ends one), log (of a library); of the database waiting, back.
    `seconds` is what a build took."""

    what: str
    build: str | None = None
    domain: str | None = None
    detail: str | None = None
    worker: str = field(default_factory=worker_name)
    seconds: float | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> dict:
        return {k: v for k, v in asdict(self).items() if v is not None} | {"at": self.at.isoformat()}

    @staticmethod
    def from_json(content: dict) -> WorkerEvent:
        """Raises KeyError, TypeError, ValueError."""
        return WorkerEvent(**{**content, "at": datetime.fromisoformat(content["at"])})

    @staticmethod
    def of(ended: BuildOutcome, worker: str) -> WorkerEvent:
        build, error = ended.build, ended.error
        if error is None:
            return WorkerEvent(
                "succeeded", build.id, build.domain, build.digest, worker, (build.report or {}).get("seconds")
            )
        if build.worker not in (worker, None):
            return WorkerEvent("lost", build.id, build.domain, f"{build.worker} has it now", worker)
        what = "postponed" if build.status == "queued" else build.status
        return WorkerEvent(what, build.id, build.domain, str(error) or type(error).__name__, worker)

    def __str__(self) -> str:
        whole = "the worker says" if self.what == "says" else self.what
        text = f"build {self.build} of {self.domain} {self.what}" if self.build else whole
        return text + (f": {self.detail}" if self.detail else "")
