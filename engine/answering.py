"""Who answers for a domain: its build with the adapters beside it, or the personalised LoRA or bi-tuning that is asked whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ..registry import Registry
from ..registry.catalog.references import BI_TUNING
from .index_recommending import IndexRecommendations, recommend_by_index
from .personal_recommending import PersonalRecommendations, bundle_asked, recommend_personally
from .recommending import Bar, RecommendationRequest, Recommendations, recommend

Answer = Recommendations | PersonalRecommendations | IndexRecommendations


def answer(
    registry: Registry,
    wanted: RecommendationRequest,
    *,
    count: int,
    device: str,
    bar: Callable[[str], AbstractContextManager[Bar]] = lambda label: nullcontext(lambda done, total: None),
) -> Answer:
    """What the domain recommends. A bi-tuning finds `count` items; the others rank all candidates.

    Raises what `bundle_asked`, `recommend_by_index`, `recommend_personally` and `recommend` raise.
    """
    bundle = bundle_asked(registry, wanted)
    if bundle is None:
        return recommend(registry, wanted, device=device, bar=bar)
    if bundle.kind == BI_TUNING:
        return recommend_by_index(registry, bundle, wanted, count=count, device=device)
    return recommend_personally(registry, bundle, wanted, device=device, bar=bar)
