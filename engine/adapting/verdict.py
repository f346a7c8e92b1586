"""What a build ships in the end: the mix that the ladder chose, if the guard lets it pass, else the best parent; and all that was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .calibration import Floats, mean_loss
from .found import FoundCoefficients, Matrix, column_means
from .guard import Comparison, Outcome
from .ladder import Rung
from .users import FIT_SHARE


@dataclass(frozen=True)
class RankedPoint:
    """A mix that was looked at: the rung that looked at it, its coefficients, mean loss (nats), τ (None: infinite), and shrinkage."""

    rung: str
    coefficients: Matrix
    loss: float
    temperature: float | None
    shrinkage: float


@dataclass(frozen=True)
class ScoreLoss:
    """A way to score candidates, and the mean loss of the parents and their average by it."""

    score: str
    loss: float


@dataclass(frozen=True)
class Verdict(FoundCoefficients):
    """The coefficients that ship, and why these.

    `chosen` are those of the ladder, which differ where the guard did not let them pass; `parent` is the adapter that ships alone, if one
    does. `fit` and `gate` count users. `comparison` is None where no mix was chosen, or no user could judge it. `asked` counts the
    candidates' questions that the models ranked.
    """

    outcome: Outcome
    win: bool
    score: str | None
    parent: str | None
    chosen: Matrix
    fit: int
    gate: int
    seen: int
    asked: int = 0
    comparison: Comparison | None = None
    points: tuple[RankedPoint, ...] = ()
    rungs: tuple[Rung, ...] = ()
    scores: tuple[ScoreLoss, ...] = ()
    warnings: tuple[str, ...] = ()
    objective: str = "ranking"
    search: str = "ladder"

    @property
    def more_users(self) -> int | None:
        """How many more labelled users would decide what the guard could not; None where there is nothing to decide."""
        if self.comparison is None or self.comparison.safe:
            return None
        needed = self.comparison.users_needed
        return None if needed is None else max(0, round(needed / (1 - FIT_SHARE)) - self.fit - self.gate)

    def to_json(self) -> dict:
        """Everything, down to the coefficients of every point."""
        content = asdict(self)
        if self.comparison is not None:
            content["comparison"] |= {
                "safe": self.comparison.safe,
                "win": self.comparison.win,
                "users_needed": self.comparison.users_needed,
            }
        return content | {"more_users": self.more_users}

    def summary(self) -> dict:
        """What a database row has room for: of every point the coefficients' means."""
        content = self.to_json()
        for name in ("modules", "coefficients", "chosen", "groups"):
            del content[name]
        content |= {"means": self.means(), "chosen": column_means(self.chosen), "groups": len(self.groups)}
        for point in content["points"]:
            point["means"] = column_means(point.pop("coefficients"))
        for rung in content["rungs"]:
            rung["best"] = column_means(rung["best"])
        return content


def best_parent(*labelled: Sequence[Floats]) -> int:
    """The place of the parent with the smallest loss on all labels together; each argument is the parents' margins on some of them."""
    together = [np.concatenate(margin) for margin in zip(*labelled, strict=True)]
    return min(range(len(together)), key=lambda place: mean_loss(together[place]))
