"""Finding the coefficients from unlabelled prompts: the entropy of the mixture's own answers, as small as it gets.

RecCocktail Eq. 8. With one λ for the whole model and two adapters the objective is a curve, so it is evaluated on a grid and the
minimum taken: no gradient, no learning rate, and the whole curve is there to be looked at. For more adapters, or a λ per layer or
per module, Adam follows the gradient. What is found is numbers; the merge that follows is a function of them alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...registry.artifacts.facts import BaseFacts
from ...registry.signals import Stopped
from ...tasks import Interval, Question, Score, fit, paired_difference, rank_candidates, summarise
from ..errors import AdaptationError
from ..merging.plan import Part
from ..models import compute_dtype, load_model
from ..recipes import Adaptive
from .entropy import TokenSelection
from .found import FoundCoefficients, column_means
from .memory import available
from .mixture import Mixture
from .objective import BatchTokens, Objective
from .search import IN_A_CORNER, Point, Run, SearchTrace, gradient_descent, grid_search

METRIC = "NDCG@3"
BATCH_TOKENS = 2048  # of prompts that are answered together
GRADIENT_TOKENS = {
    "cpu": 512,
    "cuda": 8192,
}  # of prompts whose gradient is taken together; a processor gains nothing by more
ALONE = 0.999  # a weight from which on nothing is mixed


@dataclass(frozen=True)
class SingleAdapterBaseline:
    """An adapter alone, judged as the mix is."""

    role: str
    entropy: float | None  # None where it is no number
    ndcg: float | None
    difference: Interval | None  # of the mix to it, paired


@dataclass(frozen=True)
class Adaptation(FoundCoefficients):
    """The coefficients that were found by entropy, and the way there.

    `entropy` is theirs and
    `start` that of the even mix (of the first point of a line), in nats per counted token, on the `judged` prompts. `runs` hold
    every point; `labels` is how many validation questions NDCG is of. `memory` is what was expected, in bytes.
    """

    constraint: str
    search: str
    tokens: int
    titles: str
    prompts: int
    judged: int
    entropy: float
    start: float
    chosen: int
    runs: tuple[Run, ...]
    ndcg: float | None = None
    labels: int = 0
    ends: tuple[SingleAdapterBaseline, ...] = ()
    memory: int | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """Everything, down to each step's coefficients."""
        return asdict(self)

    def summary(self) -> dict:
        """What a database row has room for: of every point the coefficients' means."""
        content = self.to_json()
        for name in ("modules", "coefficients", "groups"):
            del content[name]
        content["means"] = self.means()
        content["groups"] = len(self.groups)
        for run in content["runs"]:
            for point in run["points"]:
                rows = point.pop("coefficients")
                point["means"] = column_means(rows)
        return content


@dataclass(frozen=True)
class MixInput:
    """What coefficients are searched for; `parts` are spirit, ingredient and neighbours by role, in the recipe's order.

    `load` gives model and tokenizer; with `base`, the memory that they need is checked before it is called. `method` is a merging
    method's name.
    """

    base: BaseFacts | None
    load: Callable[[], tuple[Any, Any]]
    parts: Mapping[str, Part]
    method: str
    device: str


@dataclass(frozen=True)
class AdaptationInput(MixInput):
    """`prompts` are asked without their answers; those of the `labelled` questions are used: for NDCG during the search, for
    the warning that an adapter alone does better, and for the choice where the recipe says `select: validation`.
    """

    prompts: Sequence[Question]
    labelled: Sequence[Question] = ()


def adapt(
    given: AdaptationInput,
    adaptive: Adaptive,
    *,
    keep_best: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notify: Callable[[str], None] = lambda text: None,
) -> Adaptation:
    """Search for the adapters' coefficients.

    `progress` receives (prompts answered, prompts to answer at most), `notify` receives what a user should know before the search begins. With
    `keep_best`, Ctrl-C ends the search with the best so far.
    Raises AdaptationError without prompts, where memory cannot do, or when an entropy is no number.
    """
    parts, device, labelled = given.parts, given.device, given.labelled
    if len(parts) == 1 and adaptive.constraint in ("simplex", "softmax"):
        return _alone(next(iter(parts)), adaptive)
    if not given.prompts:
        raise AdaptationError("the domain has no prompts to adapt on", hint="give users at least 3 interactions")
    expect_weights_to_fit(given.base, parts, device)
    model, tokenizer = given.load()
    texts = fit(given.prompts, tokenizer)
    ids = [tokenizer.apply_chat_template(q.messages, add_generation_prompt=True)["input_ids"] for q in texts]
    template = texts[0].template
    adaptive.expect_lists(template)
    mark = template.mark if adaptive.titles == "every" else None
    counting = TokenSelection(adaptive.tokens, mark, adaptive.longest)
    search = adaptive.searching
    if search == "line" and len(parts) != 2:
        raise AdaptationError(
            f"a line search is for two adapters, there are {len(parts)}", hint="say `search: gradient`"
        )
    kept = round(len(ids) * adaptive.held_out) if search == "gradient" and len(ids) > 1 else 0
    training, held_out = list(range(len(ids) - kept)), list(range(len(ids) - kept, len(ids)))
    bar = Bar(progress, _prompts_to_answer(search, adaptive, len(training), len(held_out), len(parts)))
    sought = SearchTrace()
    with Mixture(model, list(parts.values()), given.method, granularity=adaptive.granularity) as mixture:
        objective = Objective(
            model,
            tokenizer,
            mixture,
            ids,
            counting,
            BatchTokens(batch_tokens, GRADIENT_TOKENS["cuda" if device.startswith("cuda") else "cpu"]),
            progress=bar.step,
        )
        memory = (
            _expect_gradients_to_fit(objective, mixture, len(parts), device, notify) if search == "gradient" else None
        )
        judge = Validator(model, tokenizer, labelled)
        asked = judge.ndcg if labelled else None
        interrupted = False
        try:
            if search == "line":
                grid_search(objective, adaptive.points, training, sought, asked)
            else:
                gradient_descent(objective, len(parts), adaptive, training, held_out, sought, asked)
        except KeyboardInterrupt as error:
            # Without held-out prompts nothing but the start is judged until a descent has ended.
            judged_any = any(True for _ in sought.points()) if search == "line" or held_out else sought.has_ended()
            if not keep_best or not judged_any or isinstance(error, Stopped):
                raise
            interrupted = True
        number, best = _best(sought, adaptive)
        judged = training if search == "line" or not held_out else held_out
        ends, ndcg = _ends(objective, judge, parts, best, judged)
        modules = {group: tuple(mixture.spread(place)) for place, group in enumerate(mixture.groups)}
        groups = mixture.groups
    bar.finish()
    found = Adaptation(
        roles=tuple(parts),
        groups=groups,
        modules=modules,
        coefficients=best.coefficients,
        granularity=adaptive.granularity,
        constraint=adaptive.constraint,
        search=search,
        tokens=adaptive.tokens,
        titles=adaptive.titles,
        prompts=len(ids),
        judged=len(judged),
        entropy=_number(best.entropy),
        start=_number(sought.runs[0].points[0].entropy),
        chosen=number,
        runs=tuple(sought.runs),
        ndcg=ndcg,
        labels=len(labelled),
        ends=ends,
        memory=memory,
    )
    return _with_warnings(found, interrupted)


def load_on(folder: Path, device: str) -> Callable[[], tuple[Any, Any]]:
    """Model and tokenizer of a checkpoint, when they are wanted."""
    return lambda: load_model(folder, device)


def _alone(role: str, adaptive: Adaptive) -> Adaptation:
    """One adapter whose coefficients sum to 1: nothing to find, and no model is loaded for it."""
    nothing = Point(((1.0,),), 0.0)
    return Adaptation(
        roles=(role,),
        groups=("model",),
        modules={},
        coefficients=((1.0,),),
        granularity="model",
        constraint=adaptive.constraint,
        search="none",
        tokens=adaptive.tokens,
        titles=adaptive.titles,
        prompts=0,
        judged=0,
        entropy=0.0,
        start=0.0,
        chosen=0,
        runs=(Run(None, (nothing,)),),
        warnings=(f"there is no adapter but the {role}, so nothing is mixed",),
    )


class Validator:
    """How well the mixture, as it is set, ranks labelled questions."""

    def __init__(self, model: Any, tokenizer: Any, labelled: Sequence[Question]) -> None:
        self._model, self._tokenizer, self._labelled = model, tokenizer, labelled

    def ranks(self) -> tuple[int, ...]:
        score = Score("likelihood")
        return tuple(r.rank for r in rank_candidates(self._model, self._tokenizer, self._labelled, score))

    def ndcg(self) -> float:
        return summarise(self.ranks())[METRIC].mean


class Bar:
    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def step(self, prompts: int) -> None:
        self._done = min(self._done + prompts, self._total)
        self._progress(self._done, self._total)

    def finish(self) -> None:
        """A search that ends early has nothing left to do."""
        self._progress(self._total, self._total)


def _prompts_to_answer(search: str, adaptive: Adaptive, training: int, held_out: int, adapters: int) -> int:
    if search == "line":
        return training * (adaptive.points + adapters)
    watched, steps = held_out or training, adaptive.epochs * -(-training // adaptive.batch)
    each = adaptive.epochs * training + (steps * held_out if held_out else training)
    return watched * (1 + adapters) + len(adaptive.rates) * each


def expect_weights_to_fit(base: BaseFacts | None, parts: Mapping[str, Part], device: str) -> None:
    free = available(device)
    if base is None or free is None:
        return
    adapters = sum(2 * 4 * m.rank * (m.a.shape[1] + m.b.shape[0]) for p in parts.values() for m in p.facts.modules)
    needed = base.parameters * compute_dtype(device).itemsize + adapters
    if needed > free:
        raise AdaptationError(
            f"the base and its adapters take {needed / 1e9:.1f} GB of memory on {device}, and {free / 1e9:.1f} GB are free",
            hint="free some, adapt on a device that has more, or give coefficients in the recipe",
        )


def _expect_gradients_to_fit(
    objective: Objective, mixture: Mixture, adapters: int, device: str, notify: Callable[[str], None]
) -> int:
    """Bytes that the largest gradient will take, said and held against what is free."""
    even = torch.full((len(mixture.groups), adapters), 1 / adapters, device=mixture.device)
    growth = objective.growth(even)
    free = available(device)
    needed, length, prompts = objective.fitted(growth, free)
    notify(
        f"a gradient over {prompts} x {length} tokens takes about {needed / 1e9:.1f} GB of memory beside the model"
        + (f"; {free / 1e9:.1f} GB are free" if free is not None else "")
    )
    if free is not None and needed > free:
        raise AdaptationError(
            f"a gradient over {prompts} x {length} tokens needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free",
            hint="a template with a shorter history, fewer `tokens`, `search: line` with one λ, or a device that has more",
        )
    return needed


def _best(sought: SearchTrace, adaptive: Adaptive) -> tuple[int, Point]:
    """(number of its run, the point). Equal points: the earliest, which is nearest to where the search began."""
    found = list(sought.points())
    if adaptive.select == "validation" and any(point.ndcg is not None for _, point in found):
        return max(found, key=lambda pair: (_number(pair[1].ndcg, -1.0), -_number(pair[1].entropy)))
    return min(found, key=lambda pair: _number(pair[1].entropy))


def _number(value: float | None, otherwise: float = float("nan")) -> float:
    return otherwise if value is None else value


def _ends(
    objective: Objective, judge: Validator, parts: Mapping[str, Part], best: Point, judged: Sequence[int]
) -> tuple[tuple[SingleAdapterBaseline, ...], float | None]:
    """Every adapter alone, and NDCG of the chosen mix, on the same prompts and questions."""
    device = objective.mixture.device
    labelled = bool(judge._labelled)
    own = None
    if labelled:
        objective.mixture.set(torch.tensor(best.coefficients, device=device))
        own = judge.ranks()
    found = []
    for place, role in enumerate(parts):
        alone = torch.zeros(len(objective.mixture.groups), len(parts), device=device)
        alone[:, place] = 1.0
        entropy = objective.value(alone, judged)
        sound = math.isfinite(entropy)
        ranks = judge.ranks() if labelled and sound else None
        found.append(
            SingleAdapterBaseline(
                role,
                entropy if sound else None,
                summarise(ranks)[METRIC].mean if ranks else None,
                paired_difference(own, ranks, METRIC) if own and ranks else None,
            )
        )
    return tuple(found), summarise(own)[METRIC].mean if own else None


def _with_warnings(found: Adaptation, interrupted: bool) -> Adaptation:
    """What a person should know before trusting what was found."""
    said = []
    alone = next(
        (
            role
            for k, role in enumerate(found.roles)
            if all(
                row[k] >= ALONE and all(abs(other) <= 1 - ALONE for n, other in enumerate(row) if n != k)
                for row in found.coefficients
            )
        ),
        None,
    )
    if interrupted:
        said.append("the search was interrupted; this is the best mix so far. Use --force to build again")
    elif alone and len(found.roles) > 1:
        said.append(
            f"entropy is smallest for the {alone} alone, so nothing is mixed; low entropy means confident, not correct"
        )
    elif found.runs[found.chosen].stopped == IN_A_CORNER:
        said.append("the search ended where one adapter has all the weight; low entropy means confident, not correct")
    said += [
        f"the {end.role} alone gives no finite entropy; it may be broken" for end in found.ends if end.entropy is None
    ]
    for end in found.ends:
        if end.difference is not None and end.difference.mean < 0:
            said.append(
                f"on {found.labels} labelled validation questions the {end.role} alone is better:"
                f" {METRIC} {end.ndcg:.3f}, the mix {found.ndcg:.3f}"
                f" (difference {end.difference.mean:+.3f} [{end.difference.low:+.3f}, {end.difference.high:+.3f}])"
            )
    return replace(found, warnings=tuple(said))
