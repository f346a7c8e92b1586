"""What systems are asked, and the name under which the answer is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from ..registry.digests import digest_of_json
from ..tasks import ClickTask, DomainData, FullSpec, Question, TaskSpec
from .systems import System

RANKING_VERSION = (
    4  # part of every kept result's name: raised when equal questions would be ranked, or their losses kept, otherwise
)


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a task; baselines, and the score `constrained`, also need the data that they are about."""

    task: TaskSpec
    questions: Sequence[Question]
    data: DomainData | None = None

    @property
    def catalogue(self) -> list[str]:
        return [self.data.items[item_id].title for item_id in self.data.titled] if self.data else []


def result_key(system: System, task: TaskSpec | ClickTask | FullSpec, dtype: str, how: str) -> str:
    """The name of a kept result, from everything that decides it."""
    content = {
        "system": system.digest,
        "task": task.digest,
        "dtype": dtype,
        "mode": how,
        "version": [version("reccocktail"), RANKING_VERSION],
    }
    return digest_of_json(content).removeprefix("sha256:")[:32]
