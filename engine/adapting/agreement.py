"""`objective: agreement`: the mix that agrees best with all of its parents on pseudo-users made of the catalogue. No labels, so no guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...tasks import OpenQuestion, Score
from ..adaptive import OWN_ROLES, Adaptive
from ..coefficients import EVERYWHERE
from .adapt import Bar, MixInput, expect_weights_to_fit
from .calibration import Floats
from .consensus import Consensus, choices, scores_table
from .found import Matrix
from .ladder import Ladder
from .mixture import Mixture
from .ranking import INTERRUPTED, MixtureScores, climbed, looks_at_most, points_of
from .verdict import Agreement, ParentVote

UNMEASURED = (
    "chosen without labels: nobody has measured whether this mix recommends better than an adapter alone;"
    " `reccocktail evaluate` does once there are purchases"
)


@dataclass(frozen=True)
class AgreementInput(MixInput):
    """What is mixed, and who asks; `catalogue` has the titles that the score `constrained` needs."""

    questions: Sequence[OpenQuestion]
    catalogue: Sequence[str] = ()


def find_agreement(
    given: AgreementInput,
    adaptive: Adaptive,
    *,
    keep_best: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notify: Callable[[str], None] = lambda text: None,
) -> Agreement:
    """Climb the ladder from the average on, by how far each mix is from what its parents say.

    `progress` receives (questions ranked, questions to rank at most). With `keep_best`, Ctrl-C ends the climb with the rungs taken so far.
    Raises AdaptationError where memory cannot do, or for a score that is no number.
    """
    roles, score = tuple(given.parts), adaptive.fixed_score or Score()
    if len(roles) == 1:
        return _alone(roles[0], adaptive)
    expect_weights_to_fit(given.base, given.parts, given.device)
    model, tokenizer = given.load()
    why = "" if adaptive.fixed_score else ", for no label can choose one"
    notify(f"{len(given.questions)} pseudo-users made of the catalogue, score {score}{why}")
    with Mixture(model, list(given.parts.values()), given.method) as mixture:
        bar = Bar(progress, len(given.questions) * looks_at_most(len(roles), scale=adaptive.scale))
        scorer = MixtureScores(model, tokenizer, mixture, given.catalogue, bar.step)
        tables = _Tables(scorer, given.questions, score)
        alone = [(tuple(1.0 if other == role else 0.0 for other in roles),) for role in roles]
        consensus = Consensus.of(
            [tables.of(weights) for weights in alone], beta=adaptive.beta, softening=adaptive.temperature
        )
        pair = (0, 1) if roles[:2] == OWN_ROLES else None
        ladder = Ladder(tables.of, len(roles), pair=pair, measure=consensus)
        ladder.begin(with_average=True)
        interrupted = climbed(ladder, scale=adaptive.scale, keep_best=keep_best)
    bar.finish()
    found = _agreement(roles, ladder, consensus, tables, adaptive)
    warnings = (*((INTERRUPTED,) if interrupted else ()), *found.warnings)
    return replace(found, score=str(score), asked=scorer.asked, warnings=warnings)


class _Tables:
    """Scores of the pseudo-users' candidates by each mix that was asked for, once."""

    def __init__(self, scorer: MixtureScores, questions: Sequence[OpenQuestion], score: Score) -> None:
        self._scorer, self._questions, self._score = scorer, questions, score
        self._known: dict[Matrix, Floats] = {}

    def of(self, weights: Matrix) -> Floats:
        if weights not in self._known:
            parts = self._scorer.parts(weights, self._questions, [self._score])
            self._known[weights] = scores_table([part.scores(self._score) for part in parts])
        return self._known[weights]


def _agreement(
    roles: tuple[str, ...], ladder: Ladder, consensus: Consensus, tables: _Tables, adaptive: Adaptive
) -> Agreement:
    chosen = ladder.best.weights
    alone = next((role for look, role in zip(ladder.parents, roles, strict=True) if look.weights == chosen), None)
    of_mix = choices(tables.of(chosen))
    of_parents = [choices(tables.of(look.weights)) for look in ladder.parents]
    votes = tuple(
        ParentVote(role, temperature, _alike(of_mix, own))
        for role, temperature, own in zip(roles, consensus.temperatures, of_parents, strict=True)
    )
    warnings = [UNMEASURED]
    if alone:
        warnings.append(f"no mix agrees better with the adapters than the {alone} alone does, so nothing is mixed")
    warnings += [
        f"the {vote.role} alone gives all candidates the same score; it may be broken"
        for vote in votes
        if vote.temperature is None
    ]
    points, rungs = points_of(ladder, roles)
    return replace(
        _plain(roles, chosen, adaptive),
        outcome="parent" if alone else "average" if chosen == ladder.average.weights else "mixed",
        parent=alone,
        pseudo_users=len(of_mix),
        unanimous=_alike(*of_parents),
        votes=votes,
        points=points,
        rungs=rungs,
        warnings=tuple(warnings),
        search="ladder",
    )


def _alone(role: str, adaptive: Adaptive) -> Agreement:
    """One adapter, for which no model is loaded."""
    warnings = (f"there is no adapter but the {role}, so nothing is mixed",)
    return replace(_plain((role,), ((1.0,),), adaptive), warnings=warnings)


def _plain(roles: tuple[str, ...], chosen: Matrix, adaptive: Adaptive) -> Agreement:
    """These coefficients, without a search."""
    return Agreement(
        roles=roles,
        groups=(EVERYWHERE,),
        modules={},
        coefficients=chosen,
        granularity="model",
        outcome="parent",
        score=None,
        parent=roles[0],
        chosen=chosen,
        pseudo_users=0,
        beta=adaptive.beta,
        softening=adaptive.temperature,
        search="none",
    )


def _alike(*tables: Floats) -> float:
    """The share of the questions where all choices are the same."""
    return float(np.minimum.reduce(tables).sum(axis=1).mean())
