"""`recommend` where a personalised LoRA is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .candidates import about_candidates, say_of_list, where_from
from .console import answer, say, table
from .personalising import say_fallback

if TYPE_CHECKING:
    from ..engine.personal_recommending import PersonalRecommendations


def tell_personally(found: PersonalRecommendations, count: int, *, as_json: bool) -> None:
    """The first `count` items, as a table or as JSON."""
    say_fallback(found.person)
    say_of_list(found.candidates)
    say(f"{found.adapter.ref}, score: the probability of a like, {where_from(found.candidates)}")
    answer(as_json, _document(found, count), lambda: _show(found, count))


def _document(found: PersonalRecommendations, count: int) -> dict[str, Any]:
    person = found.person
    return {
        "domain": found.adapter.domain,
        "user": person.user,
        "known_user": person.known,
        "history": person.history,
        "fallback": person.fallback,
        "adapter": found.adapter.ref,
        "digest": found.adapter.digest,
        "base": found.adapter.base,
        "index": None,  # which only embeddings of items have
        "candidates": about_candidates(found.candidates),
        "items": [{"item_id": item.item_id, "title": item.title, "score": item.score} for item in found.items[:count]],
    }


def _show(found: PersonalRecommendations, count: int) -> None:
    rows = [[item.rank, item.title, f"{item.score:.3f}"] for item in found.items[:count]]
    table(["#", "title", "score"], rows, empty="", right=("#", "score"), cut=("title",))
