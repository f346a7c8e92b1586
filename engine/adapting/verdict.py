"""What a build ships in the end, the mix that the ladder chose or the best parent alone, and all that was looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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
    does. `fit` and `gate` count users. `comparison` is None where no mix was chosen, or no user could judge it; a mix that ships without being
    safe by it ships because the recipe's `guard` lets it. `asked` counts the candidates' questions that the models ranked. `among_parents`
    has the best adapter beside the others, on the same users as `comparison`.
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
    among_parents: Comparison | None = None
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
        return None if needed is None else max(0, round((needed - self.gate) / (1 - FIT_SHARE)))

    def to_json(self) -> dict:
        """Everything, down to the coefficients of every point."""
        content = asdict(self)
        for name, found in (("comparison", self.comparison), ("among_parents", self.among_parents)):
            if found is not None:
                content[name] |= {"safe": found.safe, "win": found.win, "users_needed": found.users_needed}
        return content | {"more_users": self.more_users}

    def summary(self) -> dict:
        """What a database row has room for: of every point the coefficients' means."""
        return summarised(self, self.to_json())


def summarised(found: Verdict | Agreement, content: dict) -> dict:
    """The JSON of a climb, with the coefficients' means in place of the coefficients."""
    for name in ("modules", "coefficients", "chosen", "groups"):
        del content[name]
    content |= {"means": found.means(), "chosen": column_means(found.chosen), "groups": len(found.groups)}
    for point in content["points"]:
        point["means"] = column_means(point.pop("coefficients"))
    for rung in content["rungs"]:
        rung["best"] = column_means(rung["best"])
    return content


@dataclass(frozen=True)
class ParentVote:
    """A parent, the τ that its scores were compared at (None: they say nothing), and the share of the questions where the mix chooses as it does."""

    role: str
    temperature: float | None
    agrees: float


@dataclass(frozen=True)
class Agreement(FoundCoefficients):
    """The coefficients that were found without labels, and why these: nobody measured how good they are, so `win` is always false.

    `parent` is the adapter that has all the weight, where one has. `pseudo_users` were asked, and on `unanimous` of them, a share, all parents
    choose the same. `asked` counts the candidates' questions that the models ranked.
    """

    outcome: Outcome
    score: str | None
    parent: str | None
    chosen: Matrix
    pseudo_users: int
    beta: float
    softening: float
    unanimous: float | None = None
    votes: tuple[ParentVote, ...] = ()
    asked: int = 0
    points: tuple[RankedPoint, ...] = ()
    rungs: tuple[Rung, ...] = ()
    warnings: tuple[str, ...] = ()
    win: bool = False
    measured: bool = False
    objective: str = "agreement"
    search: str = "ladder"

    def to_json(self) -> dict:
        """Everything, down to the coefficients of every point."""
        return asdict(self)

    def summary(self) -> dict:
        """What a database row has room for: of every point the coefficients' means."""
        return summarised(self, self.to_json())
