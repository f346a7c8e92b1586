"""What a personalised LoRA would recommend to a user: its recommender picks from the catalogue, and the language model ranks what is picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from ..networks.bundle import PersonalisedBundle, open_bundle
from ..networks.personalised_scores import score_clicks_personalised
from ..registry import Adapter, Registry
from ..registry.catalog.references import BI_TUNING, LORA, PERSONALISED_LORA
from ..registry.errors import NotFoundError, UsageError
from ..tasks import Catalogue, ClickRow, ClickUser, DomainData, Item
from .models import load_model
from .personal import Person, data_of, rated_by
from .recommending import (
    Bar,
    Candidates,
    Recommendation,
    RecommendationRequest,
    expect_some,
    listed_candidates,
    ranked,
    without,
)

ASKED = (PERSONALISED_LORA, BI_TUNING)
PICKED = 30  # by the recommender, for the language model to rank


@dataclass(frozen=True)
class PersonalRecommendations:
    """The answer: all candidates, best first, each with the probability that the user likes it."""

    adapter: Adapter
    person: Person
    candidates: Candidates
    items: tuple[Recommendation, ...]


def bundle_asked(registry: Registry, wanted: RecommendationRequest) -> Adapter | None:
    """The personalised LoRA or bi-tuning that is named; else the newest of a domain that serves no build and has no plain LoRA; else None.

    Raises NotFoundError, WrongKindError where another kind is named, and UsageError where it is of another domain or for several bases.
    """
    registry.domains.get(wanted.domain)
    if wanted.adapter is not None:
        row = _named(registry, wanted.adapter, wanted.base)
        if row.domain != wanted.domain:
            raise UsageError(
                f"{row.ref} is of {row.domain!r}, not of {wanted.domain!r}",
                hint=f"reccocktail adapter list --domain {wanted.domain}",
            )
        return row
    if wanted.build is not None or registry.serving.served(wanted.domain):
        return None
    active = [row for row in registry.adapters.versions([wanted.domain]) if row.archived_at is None]
    kinds = {row.kind for row in active if wanted.base in (None, row.base)}
    if LORA in kinds or not kinds & {*ASKED}:
        return None
    return _named(registry, wanted.domain, wanted.base)


def _named(registry: Registry, ref: str, base: str | None) -> Adapter:
    """Of the kinds that are asked whole the version that is meant; of a bare name the newest. Raises NotFoundError, WrongKindError, UsageError."""
    found, refused = list[Adapter](), list[NotFoundError]()
    for kind in ASKED:
        try:
            found.append(registry.adapters.resolve(ref, base=base, kind=kind))
        except NotFoundError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return max(found, key=lambda row: row.version)


def recommend_personally(
    registry: Registry,
    row: Adapter,
    wanted: RecommendationRequest,
    *,
    device: str,
    bar: Callable[[str], AbstractContextManager[Bar]] = lambda label: nullcontext(lambda done, total: None),
) -> PersonalRecommendations:
    """Rank for a user by the personalised LoRA `row` what its recommender picks, or what is listed.

    A user without a rated history gets what the recommender does for their id, or for an unknown one. Raises UsageError for what only
    builds are asked, DataError, TaskError, EvaluationError, and what `open_bundle` raises.
    """
    user_id = _expect_a_user(row, wanted)
    data = data_of(registry, row)
    base = registry.bases.get(row.base)
    bundle = open_bundle(registry.adapters.folder(row), base_digest=base.digest)
    user = rated_by(data, user_id)
    candidates = _candidates(bundle, data, user, wanted)
    rows = [ClickRow.candidate(user, item.item_id) for item in candidates.items]
    with bar(row.ref) as progress:
        progress(0, len(rows))
        model, tokenizer = load_model(registry.bases.folder(base), device)
        scores = score_clicks_personalised(
            model, tokenizer, bundle, rows, data.items, progress=lambda done: progress(done, len(rows))
        )
    person = Person.of(user, bundle)
    return PersonalRecommendations(row, person, candidates, ranked(candidates.items, scores.tolist()))


def _expect_a_user(row: Adapter, wanted: RecommendationRequest) -> str:
    """Raises UsageError where there is no user, and for options that mean nothing to a personalised LoRA."""
    if wanted.user is None:
        raise UsageError(
            f"{row.ref} is a LoRA for each user, and reads what that user rated; titles have no ratings",
            hint="--user U, of the domain's data",
        )
    options = {"--compare": wanted.compare, "--score": wanted.score, "--template": wanted.template}
    if given := [name for name, value in options.items() if value]:
        raise UsageError(
            f"{', '.join(given)}: {row.ref} is asked as it was trained to be, and answers with the probability of a like",
            hint=f"leave out {' and '.join(given)}; or name a build with --build",
        )
    return wanted.user


def _candidates(
    bundle: PersonalisedBundle, data: DomainData, user: ClickUser, wanted: RecommendationRequest
) -> Candidates:
    """Those that are listed, else the ones that the recommender gives the user most probably; nothing that the user took."""
    catalogue = Catalogue(data)
    taken = [data.items[item_id] for item_id in data.by_user.get(user.user_id, ())]
    if wanted.candidates is not None:
        return expect_some(listed_candidates(wanted.candidates, catalogue, taken))
    left = without(taken, catalogue.items)
    picked = _picked(bundle, user, left, wanted.retrieve or PICKED)
    return expect_some(Candidates(picked, "recommender", len(catalogue.items)))


def _picked(bundle: PersonalisedBundle, user: ClickUser, items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """The `count` items that the user likes most probably, best first; of equal ones those that come first."""
    scores = bundle.recommender.scores([ClickRow.candidate(user, item.item_id) for item in items])
    return tuple(items[place] for place in np.argsort(-scores, kind="stable")[:count].tolist())
