"""What a recipe says under `adaptive`: how its coefficients are found.

There are three objectives. `ranking` needs labelled questions and takes the coefficients that rank right items best. `entropy` needs none and takes
those that make the model surest of its own answers. `agreement` needs a catalogue alone and takes those by which the mix agrees best with all
adapters. Each has switches of its own, and one that has no effect is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..registry.catalog.references import SPIRIT, Reference
from ..registry.errors import InvalidReferenceError, RecCocktailError
from ..tasks import DEFAULT_TEMPLATE
from .coefficients import Granularity
from .errors import RecipeError

if TYPE_CHECKING:
    from ..tasks import Score, Template

OWN_ROLES = ("spirit", "ingredient")
MOST_ADAPTERS = 8
SOUGHT = ("auto", "hybrid")  # scores that are chosen, or whose weight is
FEWEST_FIT = 20  # users to choose by; fewer choose nothing
LABELS = 300  # of the ranking objective, unless a recipe says how many
RATES = {
    "softmax": (0.5, 1.0, 2.0),
    "sigmoid": (0.5, 1.0, 2.0),
    "simplex": (0.02, 0.05, 0.1),
    "free": (0.02, 0.05, 0.1),
}
_RATES_SAID = "; ".join(f"{' '.join(map(str, rates))} for {name}" for name, rates in RATES.items())
# What recipes could not say at first is left out of them where it is not said, so that they keep their digests.
_ADDED = (
    "search",
    "titles",
    "longest",
    "learning_rates",
    "epochs",
    "batch",
    "held_out",
    "patience",
    "select",
    "labels",
    "neighbours",
)

_OF_GRADIENT = ("learning_rates", "epochs", "batch", "held_out", "patience")
_OF_ENTROPY = (
    "constraint",
    "search",
    "adaptation_set",
    "tokens",
    "titles",
    "longest",
    "prompts",
    "points",
    *_OF_GRADIENT,
    "select",
)
_OF_RANKING = ("labels", "fit_users", "score", "scale", "guard", "margin", "metric", "too_few_labels", "granularity")
_OF_AGREEMENT = ("prompts", "history", "score", "scale", "beta", "temperature")
_SWITCHES = {
    "ranking": frozenset(_OF_RANKING),
    "entropy": frozenset((*_OF_ENTROPY, "labels", "granularity")),
    "agreement": frozenset(_OF_AGREEMENT),
}
"""By objective what not all of them have."""
Guard = Literal["ship-best", "ship-parent", "fail", "off"]
METRICS = re.compile(r"(HR|NDCG)@[1-9]\d*|MRR|AUC")


def expect_reference(name: str) -> None:
    """Raises ValueError for what is no ingredient of another domain."""
    try:
        found = Reference.parse(name)
    except InvalidReferenceError as error:
        raise ValueError(
            f"{error}; adapters are {', '.join(OWN_ROLES)}, or references of other domains' ingredients"
        ) from error
    if found.name == SPIRIT or name in OWN_ROLES:
        raise ValueError(
            f"{name}: neighbours are ingredients of other domains; the own adapters are `spirit` and `ingredient`"
        )


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Adaptive(Strict):
    """How the coefficients are found.

    `objective: ranking` scores the candidates of labelled validation questions that no adapter was trained on or chosen by; the loss is
    −log q of the right item, q = softmax(scores / τ), τ fitted anew for every mix. Finer mixes are taken one after the other as long as each has
    a cross-validated gain; the last is compared with every adapter alone on users kept apart (`guard`).

    `objective: entropy` minimises the entropy of the mixture's own answers to the domain's prompts (RecCocktail Eq. 8).
    With one λ for the whole model, two adapters and λ₁ + λ₂ = 1 that is a curve: `search: line` evaluates it at `points` evenly
    spaced values of the second adapter's λ and takes the smallest. `search: gradient` follows the gradient by Adam instead, from 1/K
    for each of K adapters: several `learning_rates` in turn, `epochs` passes over the prompts in steps of `batch`. A share `held_out`
    of the prompts takes no part in steps; its entropy chooses between steps and rates, and ends a descent that has not fallen
    for `patience` steps. Without held-out prompts every descent takes all its steps, and the rates are compared by the others.

    `objective: agreement` is for a domain with a catalogue and no histories: `prompts` pseudo-users are made of the catalogue's items, every
    adapter and every mix scores their candidates, and the loss is how far a mix is from what the adapters say: the cross-entropy to
    their choices, and `beta` · T² · KL(adapters' average ‖ mix) at T = `temperature` (MergeRec). Nothing is measured, so there is no guard.
    """

    objective: Annotated[
        Literal["entropy", "ranking", "agreement"],
        Field(
            description="ranking: by labelled validation questions; entropy: by prompts without their answers; agreement: by how far"
            " a mix is from what the adapters say of the catalogue"
        ),
    ] = "entropy"
    granularity: Annotated[
        Granularity, Field(description="one λ per adapter for the model, each layer or each module")
    ] = "model"
    constraint: Annotated[
        Literal["simplex", "softmax", "sigmoid", "free"],
        Field(
            description="simplex and softmax: an adapter's λ are not negative and sum to 1; sigmoid: between 0 and 1; free: any"
        ),
    ] = "simplex"
    search: Annotated[Literal["line", "gradient"] | None, Field(description="default: line where possible")] = None
    adaptation_set: Annotated[
        Literal["validation", "test_prompts"], Field(description="the split of the prompts; answers are not used")
    ] = "validation"
    tokens: Annotated[int, Field(ge=1, le=64, description="first tokens of a title that count")] = 3
    titles: Annotated[
        Literal["first", "every"], Field(description="of the first title of an answer, or of every one")
    ] = "first"
    longest: Annotated[int, Field(ge=1, le=1024, description="tokens of an answer, where every title counts")] = 160
    prompts: Annotated[int, Field(ge=1, description="unlabelled prompts of the domain, or pseudo-users")] = 50
    points: Annotated[int, Field(ge=3, le=101, description="λ values of the line, end points included")] = 11
    learning_rates: Annotated[
        tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...],
        Field(max_length=32, description=f"of Adam, one descent each; default: {_RATES_SAID}"),
    ] = ()
    epochs: Annotated[int, Field(ge=1, le=1000, description="passes over the prompts")] = 3
    batch: Annotated[int, Field(ge=1, description="prompts per step of the optimiser")] = 8
    held_out: Annotated[
        float, Field(ge=0, le=0.5, description="share of the prompts that steps and rates are chosen by")
    ] = 0.2
    patience: Annotated[int, Field(ge=0, description="steps without lower entropy that end a descent; 0: never")] = 3
    select: Annotated[
        Literal["entropy", "validation"],
        Field(description="choose by entropy, or by NDCG@3 on `labels` validation questions"),
    ] = "entropy"
    labels: Annotated[
        int,
        Field(
            ge=0,
            description="labelled validation questions: under entropy those that every mix is reported on; under ranking those"
            f" that choose and judge, {LABELS} unless said (a fast device can rank many more)",
        ),
    ] = 0
    fit_users: Annotated[
        int | None,
        Field(
            ge=FEWEST_FIT,
            description="of the labelled users that choose, at most so many: every mix ranks their questions, and choosing takes fewer"
            " users than judging; all of them unless said",
        ),
    ] = None
    score: Annotated[
        str,
        Field(
            description="how candidates are scored: likelihood, pmi, pmi:WEIGHT, constrained; auto: the best of them, and pmi"
            " where no label can tell; hybrid: pmi and what the words of titles say, with a weight that is found too; hybrid:WEIGHT"
        ),
    ] = "auto"
    scale: Annotated[bool, Field(description="whether the sum of the coefficients may differ from 1")] = True
    guard: Annotated[
        Guard,
        Field(
            description="where a mix may be worse than an adapter alone: ship-best: ship the adapter, or where labels do not"
            " tell which one, what has the smallest loss on all of them, be it an adapter or the mix; ship-parent: ship the"
            " adapter in any case; fail; off: ship the mix"
        ),
    ] = "ship-best"
    margin: Annotated[
        float, Field(ge=0, lt=1, allow_inf_nan=False, description="of `metric`: by how much a mix may be worse")
    ] = 0.02
    metric: Annotated[str, Field(description="that the guard compares: NDCG@k, HR@k, MRR or AUC")] = "NDCG@3"
    too_few_labels: Annotated[
        Literal["average", "fail"],
        Field(description="without labelled users enough to choose and judge by: take the average, or fail"),
    ] = "average"
    history: Annotated[
        int, Field(ge=1, le=10, description="items that a pseudo-user has taken: one, and those like it")
    ] = 1
    beta: Annotated[
        float,
        Field(ge=0, le=100, allow_inf_nan=False, description="weight of the adapters' average beside their choices"),
    ] = 1.0
    temperature: Annotated[
        float,
        Field(
            gt=0, le=100, allow_inf_nan=False, description="that average is compared at so many times the adapters' own"
        ),
    ] = 1.0
    neighbours: Annotated[
        tuple[str, ...], Field(max_length=MOST_ADAPTERS - 2, description="other domains' ingredients, by reference")
    ] = ()
    template: Annotated[str, Field(description="prompt template")] = DEFAULT_TEMPLATE
    negatives: Annotated[int, Field(ge=1, description="candidates beside the target in a prompt")] = 9
    seed: int = 42

    @field_validator("neighbours")
    @classmethod
    def _are_references(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            expect_reference(name)
        if len(set(names)) < len(names):
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is named twice")
        return tuple(sorted(names))  # the order in which deltas are added decides the last bit

    @model_validator(mode="before")
    @classmethod
    def _with_labels(cls, given: Any) -> Any:
        """Ranking has labels where a recipe does not say how many."""
        if isinstance(given, Mapping) and given.get("objective") == "ranking" and "labels" not in given:
            return {**given, "labels": LABELS}
        return given

    @field_validator("score")
    @classmethod
    def _known_score(cls, text: str) -> str:
        return text if text in SOUGHT else str(_score(text))

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        if not METRICS.fullmatch(name):
            raise ValueError(f"no metric is called {name!r}; metrics are NDCG@k, HR@k, MRR and AUC")
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Adaptive:
        if strange := [name for name in self._foreign if getattr(self, name) != type(self).model_fields[name].default]:
            where = " or ".join(f"`objective: {each}`" for each, own in _SWITCHES.items() if strange[0] in own)
            raise ValueError(f"`{strange[0]}` is for {where}; this is `objective: {self.objective}`")
        if self.objective == "agreement":
            if self.prompts < FEWEST_FIT:
                raise ValueError(
                    f"`objective: agreement` needs at least {FEWEST_FIT} `prompts`, one for each pseudo-user"
                )
            if self.score == "hybrid":
                raise ValueError(
                    "without labels no weight of `score: hybrid` can be found; give one, such as hybrid:12"
                )
            return self
        if self.objective == "ranking":
            if not self.labels:
                raise ValueError("`objective: ranking` needs `labels`; `objective: entropy` and `agreement` need none")
            return self
        if unused := [name for name in self._unused if getattr(self, name) != type(self).model_fields[name].default]:
            way = "a gradient search" if self.searching == "line" else "a line search"
            if unused[0] == "longest":
                raise ValueError("`longest` is for `titles: every`, where whole answers are decoded")
            raise ValueError(
                f"`{unused[0]}` is for {way}; use `search: {'gradient' if self.searching == 'line' else 'line'}`"
            )
        if self.search == "line":
            if self.granularity != "model" or self.constraint not in ("simplex", "softmax"):
                raise ValueError("`search: line` is for one λ for the whole model that sums to 1; use `gradient`")
            if self.neighbours:
                raise ValueError("`search: line` is for two adapters; with neighbours use `gradient`")
        if self.select == "validation" and not self.labels:
            raise ValueError("`select: validation` needs `labels`, the number of labelled questions to choose by")
        return self

    @property
    def searching(self) -> Literal["line", "gradient", "ladder"]:
        if self.objective != "entropy":
            return "ladder"
        if self.search is not None:
            return self.search
        simple = self.granularity == "model" and self.constraint in ("simplex", "softmax") and not self.neighbours
        return "line" if simple else "gradient"

    def expect_lists(self, template: Template) -> None:
        """Raises RecipeError where every title of an answer is to count, and the template asks for one alone."""
        if self.titles == "every" and template.answers == 1:
            raise RecipeError(
                f"`titles: every` counts the titles of a list, and template {template.name!r} asks for one title",
                hint="`titles: first`, or a template with `answers` above 1, such as top-five",
            )

    @property
    def _foreign(self) -> list[str]:
        """Switches that the objective does not have, in the order of the fields."""
        own = _SWITCHES[self.objective]
        others = frozenset().union(*_SWITCHES.values()) - own
        return [name for name in type(self).model_fields if name in others]

    @property
    def _unused(self) -> tuple[str, ...]:
        """Switches that say nothing, given the others."""
        of_the_other = _OF_GRADIENT if self.searching == "line" else ("points",)
        return of_the_other if self.titles == "every" else (*of_the_other, "longest")

    @property
    def fixed_score(self) -> Score | None:
        """How candidates are scored, unless that is chosen too."""
        return None if self.score in SOUGHT else _score(self.score)

    @property
    def by_likeness(self) -> bool:
        """Whether the score needs to know how alike the words of titles are."""
        return self.score.partition(":")[0] == "hybrid"

    def to_json(self) -> dict[str, Any]:
        """What a recipe's digest is over. What a switch of the other objective says is left out."""
        content = self.complete()
        for name in _ADDED if self.objective == "entropy" else ():
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content

    def complete(self) -> dict[str, Any]:
        """With every switch that the objective has, and its default."""
        content = self.model_dump(mode="json", exclude_none=True)
        for name in self._foreign:
            content.pop(name, None)
        return content

    @property
    def rates(self) -> tuple[float, ...]:
        return self.learning_rates or RATES[self.constraint]


def _score(text: str) -> Score:
    """Raises ValueError."""
    from ..tasks import Score

    try:
        return Score.parse(text)
    except RecCocktailError as error:
        raise ValueError(f"{error}; {error.hint}" if error.hint else str(error)) from error
