"""`objective: ranking`: the mixture scores labelled questions as it will be served, the ladder chooses, and the guard decides what ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...registry.signals import Stopped
from ...tasks import SCORES, OpenQuestion, Question, Score, ScoreMode, ScoreParts, score_parts
from ..adaptive import OWN_ROLES, Adaptive, Guard
from ..coefficients import EVERYWHERE, Granularity, layer_of
from ..errors import AdaptationError, GuardError
from ..score_choice import fitted_hybrid
from .adapt import Bar, MixInput, expect_weights_to_fit
from .calibration import Floats, margins, mean_loss
from .found import FoundCoefficients, Matrix
from .guard import Comparison, Outcome
from .judging import Judged, judge
from .ladder import Ladder, Rung, adapter_rung
from .mixture import Mixture
from .users import FEWEST_FIT, Labels
from .verdict import RankedPoint, ScoreLoss, Verdict

INTERRUPTED = "the search was interrupted; this is the best of what it had seen. Use --force to build again"
HYBRID = Score("hybrid")  # of any weight: what it needs of a question
_UNSURE = "it is not sure which adapter is the best one"
DEPTHS = 4  # blocks of layers, where coefficients differ by layer or module
PAIR_LOOKS, NEIGHBOUR_LOOKS, SCALE_LOOKS = 8, 4, 3  # at most, beside the average


@dataclass(frozen=True)
class RankingInput(MixInput):
    """What is mixed, and by which labels."""

    labels: Labels


def choose_mix(
    given: RankingInput,
    adaptive: Adaptive,
    *,
    keep_best: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notify: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Climb the ladder on the questions to choose by, and compare what it chose with every parent on those to judge by.

    `progress` receives (questions ranked, questions to rank at most). With `keep_best`, Ctrl-C ends the climb with the rungs taken so far;
    the comparison still follows. Raises GuardError where the recipe says so, AdaptationError for too few labels where it says so,
    where memory cannot do, or for a score that is no number.
    """
    roles, labels = tuple(given.parts), given.labels
    if len(roles) == 1:
        return _unlooked(roles, "parent", (f"there is no adapter but the {roles[0]}, so nothing is mixed",), labels)
    if not labels.decide:
        reason = _too_few(labels)
        if adaptive.too_few_labels == "fail":
            raise AdaptationError(
                f"coefficients cannot be chosen: {reason}", hint="`too_few_labels: average`, or more users"
            )
        untested = f"{reason}; the average is taken, and nothing is known of how good it is"
        return _unlooked(roles, "average", (untested, *labels.warnings), labels)
    expect_weights_to_fit(given.base, given.parts, given.device)
    model, tokenizer = given.load()
    notify(
        f"{len(labels.fit)} labelled users to choose by, {len(labels.gate)} to judge by"
        + (f"; {labels.seen} left out, whose labels an adapter has seen" if labels.seen else "")
    )
    with Mixture(model, list(given.parts.values()), given.method, granularity=adaptive.granularity) as mixture:
        blocks = blocks_of(mixture.groups, adaptive.granularity)
        bar = Bar(progress, _questions_at_most(labels, len(roles), adaptive, len(blocks)))
        scorer = MixtureScores(model, tokenizer, mixture, labels.catalogue, bar.step)
        fitted = FittedScores(scorer, labels.fit, adaptive.fixed_score, by_likeness=adaptive.by_likeness)
        fitted.choose_score(len(roles), len(mixture.groups))
        pair = (0, 1) if roles[:2] == OWN_ROLES else None
        ladder = Ladder(fitted.margins, len(roles), groups=len(mixture.groups), pair=pair, blocks=blocks)
        ladder.begin()
        interrupted = climbed(ladder, scale=adaptive.scale, keep_best=keep_best)
        judged = _judged(ladder, fitted, scorer, given, adaptive)
        modules = {group: tuple(mixture.spread(place)) for place, group in enumerate(mixture.groups)}
        found = FoundCoefficients(roles, mixture.groups, modules, ladder.best.weights, adaptive.granularity)
    bar.finish()
    verdict = replace(_verdict(found, ladder, fitted, labels, judged, adaptive.guard), asked=scorer.asked)
    warnings = _warnings_of(verdict, adaptive.guard)
    if verdict.outcome == "parent" and judged.mix is not None and adaptive.guard == "fail":
        raise GuardError(warnings[0], hint="more labelled users, another mix, or `guard: ship-parent`")
    if interrupted:
        warnings = (INTERRUPTED, *warnings)
    return replace(verdict, warnings=(*warnings, *labels.warnings))


def climbed(ladder: Ladder, *, scale: bool, keep_best: bool) -> bool:
    """Climb it; whether Ctrl-C ended that, which with `keep_best` leaves what was found so far."""
    try:
        ladder.climb(scale=scale)
    except KeyboardInterrupt as error:
        if not keep_best or isinstance(error, Stopped):
            raise
        return True
    return False


def _judged(
    ladder: Ladder, fitted: FittedScores, scorer: MixtureScores, given: RankingInput, adaptive: Adaptive
) -> Judged:
    """Ask the users kept apart about every parent and, where it is none of them, about what the ladder chose."""
    labels = given.labels
    looked = list(dict.fromkeys((*(look.weights for look in ladder.parents), ladder.best.weights)))
    on_fit = [fitted.margins(weights) for weights in looked]
    on_gate = [scorer.margins(weights, labels.gate, fitted.score) for weights in looked]
    return judge(
        tuple(given.parts), on_fit, on_gate, metric=adaptive.metric, margin=adaptive.margin, looks=labels.looks
    )


def _verdict(
    found: FoundCoefficients,
    ladder: Ladder,
    fitted: FittedScores,
    labels: Labels,
    judged: Judged,
    guard: Guard,
) -> Verdict:
    chosen = found.coefficients
    points, rungs = points_of(ladder, found.roles)
    outcome: Outcome = "average" if chosen == ladder.average.weights else "mixed"
    if not judged.ships(guard):
        outcome = "parent"
    return Verdict(
        roles=found.roles,
        groups=found.groups,
        modules=found.modules,
        coefficients=ladder.parents[judged.best].weights if outcome == "parent" else chosen,
        granularity=found.granularity,
        outcome=outcome,
        win=outcome != "parent" and judged.mix is not None and judged.mix.win,
        score=str(fitted.score),
        parent=found.roles[judged.best] if outcome == "parent" else None,
        chosen=chosen,
        fit=len(labels.fit),
        gate=len(labels.gate),
        seen=labels.seen,
        comparison=judged.mix,
        among_parents=judged.parent,
        points=points,
        rungs=rungs,
        scores=fitted.choices,
    )


class MixtureScores:
    """Scores of questions by a mixture, as it will be served; `asked` counts the questions that were ranked."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        mixture: Mixture,
        catalogue: Sequence[str] = (),
        progress: Callable[[int], None] = lambda questions: None,
    ) -> None:
        self._model, self._tokenizer, self._mixture, self._catalogue = model, tokenizer, mixture, catalogue
        self._progress, self.asked = progress, 0

    def parts(self, weights: Matrix, questions: Sequence[OpenQuestion], scores: Sequence[Score]) -> list[ScoreParts]:
        """What the scores need of each question."""
        self._mixture.set(torch.tensor(weights, device=self._mixture.device))
        wanted: set[ScoreMode] = {score.mode for score in scores}
        found = score_parts(
            self._model,
            self._tokenizer,
            questions,
            wanted,
            catalogue=self._catalogue if "constrained" in wanted else (),
            progress=lambda _: self._progress(1),
        )
        self.asked += len(questions)
        return found

    def margins(self, weights: Matrix, questions: Sequence[Question], score: Score) -> Floats:
        return margins_of(self.parts(weights, questions, [score]), questions, score)


class FittedScores:
    """The questions to choose by: margins of a mix by the score that suits its parents and their average best, or by the given one."""

    def __init__(
        self, scorer: MixtureScores, questions: Sequence[Question], fixed: Score | None, *, by_likeness: bool = False
    ) -> None:
        """Without a `fixed` score one of SCORES is chosen, or `by_likeness` the weight of hybrid."""
        self._scorer, self._questions, self._fixed, self._by_likeness = scorer, questions, fixed, by_likeness
        self._known: dict[Matrix, Floats] = {}
        self.score = fixed or SCORES[0]
        self.choices: tuple[ScoreLoss, ...] = ()

    def choose_score(self, adapters: int, groups: int) -> None:
        """Score every parent and the average by all that there is, once, and take the score with the smallest mean loss."""
        if self._fixed is not None:
            return
        rows = [[1.0 if k == place else 0.0 for k in range(adapters)] for place in range(adapters)]
        rows.append([round(1 / adapters, 6)] * adapters)
        first = [(tuple(row),) * groups for row in rows]
        if self._by_likeness:
            found = {weights: self._scorer.parts(weights, self._questions, [HYBRID]) for weights in first}
            self.score, losses = fitted_hybrid([*found.values()], [q.target_index for q in self._questions])
            self.choices = tuple(ScoreLoss(name, loss) for name, loss in losses.items())
            self._known = {weights: margins_of(each, self._questions, self.score) for weights, each in found.items()}
            return
        parts = {weights: self._scorer.parts(weights, self._questions, SCORES) for weights in first}
        tables = {
            score: {weights: margins_of(found, self._questions, score) for weights, found in parts.items()}
            for score in SCORES
        }
        losses = {score: sum(map(mean_loss, table.values())) / len(table) for score, table in tables.items()}
        self.choices = tuple(ScoreLoss(str(score), loss) for score, loss in losses.items())
        self.score = min(losses, key=lambda score: losses[score])
        self._known = tables[self.score]

    def margins(self, weights: Matrix) -> Floats:
        if weights not in self._known:
            self._known[weights] = self._scorer.margins(weights, self._questions, self.score)
        return self._known[weights]


def margins_of(parts: Sequence[ScoreParts], questions: Sequence[Question], score: Score) -> Floats:
    """[questions, candidates]: scores less that of the right item."""
    return margins([part.scores(score) for part in parts], [question.target_index for question in questions])


def blocks_of(groups: Sequence[str], granularity: Granularity) -> list[list[int]]:
    """The groups that a coordinate search moves together: quarters of the depth, per module also attention and the rest apart."""
    if granularity == "model":
        return []
    layers = list(dict.fromkeys(layer_of(group) for group in groups if layer_of(group)))
    blocks: dict[tuple[int, str], list[int]] = {}
    for place, group in enumerate(groups):
        layer = layer_of(group)
        depth = DEPTHS * layers.index(layer) // len(layers) if layer else DEPTHS - 1
        kind = group.removeprefix(layer or "").lstrip(".").partition(".")[0] if granularity == "module" else ""
        blocks.setdefault((depth, kind), []).append(place)
    return list(blocks.values())


def _questions_at_most(labels: Labels, adapters: int, adaptive: Adaptive, blocks: int) -> int:
    looks = looks_at_most(adapters, scale=adaptive.scale) + blocks * 2 * (1 if adapters == 2 else adapters)
    return len(labels.fit) * looks + len(labels.gate) * (adapters + 1)


def looks_at_most(adapters: int, *, scale: bool) -> int:
    """How many mixes a climb without blocks looks at."""
    return adapters + 1 + PAIR_LOOKS - 3 + NEIGHBOUR_LOOKS * max(0, adapters - 2) + SCALE_LOOKS * scale


def points_of(ladder: Ladder, roles: Sequence[str]) -> tuple[tuple[RankedPoint, ...], tuple[Rung, ...]]:
    """All that was looked at, and the rungs, which name adapters by role."""
    named = {adapter_rung(place): f"with {role}" for place, role in enumerate(roles)}
    points = [
        RankedPoint(named.get(look.name, look.name), look.weights, look.loss, look.temperature, look.shrinkage)
        for look in ladder.looked
    ]
    return tuple(points), tuple(replace(rung, name=named.get(rung.name, rung.name)) for rung in ladder.rungs)


def _unlooked(roles: tuple[str, ...], outcome: Outcome, warnings: tuple[str, ...], labels: Labels) -> Verdict:
    """Equal shares, for which no model is loaded."""
    row = ((round(1 / len(roles), 6),) * len(roles),)
    return Verdict(
        roles=roles,
        groups=(EVERYWHERE,),
        modules={},
        coefficients=row,
        granularity="model",
        outcome=outcome,
        win=False,
        score=None,
        parent=roles[0] if outcome == "parent" else None,
        chosen=row,
        fit=len(labels.fit),
        gate=len(labels.gate),
        seen=labels.seen,
        warnings=warnings,
        search="none",
    )


def _too_few(labels: Labels) -> str:
    there = len(labels.fit) + len(labels.gate)
    seen = f" ({labels.seen} more had labels that an adapter has seen)" if labels.seen else ""
    return (
        f"{there} labelled users are left{seen}, {len(labels.fit)} to choose by and {len(labels.gate)} to judge by;"
        f" {FEWEST_FIT} and 1 are the least"
        if there or labels.seen
        else "the domain has no labelled users"
    )


def _warnings_of(verdict: Verdict, guard: Guard) -> tuple[str, ...]:
    """What a person should know before trusting it."""
    compared, among = verdict.comparison, verdict.among_parents
    unsure = None if among is None or among.safe else among
    if compared is None and unsure is not None:
        shown = _worst_of(unsure, f"the {verdict.parent} alone ")
        return (
            f"no mix was clearly better for those who choose, so the {verdict.parent} alone ships; {_UNSURE}: {shown}",
        )
    if compared is None or compared.safe:
        return ()
    if verdict.outcome == "parent":
        ships = f"so the {verdict.parent} alone ships"
    elif guard == "off":
        ships = "and ships, as `guard: off` says"
    else:
        ships = f"and ships, for no adapter alone is sure either and its loss is the smallest on all {verdict.fit + verdict.gate} labelled users"
    more = f"; about {verdict.more_users:,} more labelled users would decide" if verdict.more_users else ""
    shown = _worst_of(compared, "")
    found = f"the mix may be worse than an adapter alone by more than {compared.margin:g}, {ships}: {shown}{more}"
    if guard == "off" or unsure is None:
        return (found,)
    best = next(role for role in verdict.roles if role not in {bound.parent for bound in unsure.bounds})
    return (found, f"{_UNSURE}: {_worst_of(unsure, f'the {best} alone ')}")


def _worst_of(compared: Comparison, whose: str) -> str:
    """The parent that is passed by least, in words."""
    worst = min(compared.bounds, key=lambda bound: bound.low)
    return (
        f"{compared.metric} {whose}{worst.mix_mean:.3f}, the {worst.parent} alone {worst.parent_mean:.3f}"
        f" (difference {worst.difference:+.3f}, at least {worst.low:+.3f} with {1 - compared.alpha:.3g} confidence, {compared.users} users)"
    )
