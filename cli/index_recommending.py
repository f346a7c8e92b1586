"""`recommend` where a bi-tuning is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .console import answer, counted, say, table, warn

if TYPE_CHECKING:
    from ..engine.index_recommending import Gaps, IndexRecommendations, IndexRecommender


def tell_by_index(found: IndexRecommendations, *, as_json: bool) -> None:
    """As a table or as JSON; on stderr which index, and by how much it is behind."""
    recommender = found.recommender
    row, build = recommender.adapter, recommender.build
    where = f"build {build.id}" if build else "the bundle"
    unknown = sum(not item.item_id for item in found.history)
    if unknown:
        say(f"not in the catalogue, used as text: {counted(unknown, 'title')} of the history")
    say(f"{row.ref}, score: cosine, index of {counted(len(recommender.index.item_ids), 'item')} in {where}")
    if recommender.gaps:
        warn(
            f"the index is stale: {', '.join(_behind(recommender.gaps))};"
            f" `reccocktail build request {row.domain} --adapter {row.ref} --wait`"
        )
    answer(as_json, _document(found), lambda: _show(found))


def _behind(gaps: Gaps) -> Iterator[str]:
    for count, what in ((gaps.new, "lacks"), (gaps.changed, "has with another text"), (gaps.gone, "has that are gone")):
        if count:
            yield f"{counted(count, 'item')} it {what}"


def _document(found: IndexRecommendations) -> dict[str, Any]:
    row = found.recommender.adapter
    return {
        "domain": row.domain,
        "user": found.user,
        "known_user": found.user is not None,
        "history": [{"item_id": item.item_id or None, "title": item.title} for item in found.history],
        "fallback": False,  # without a history it is refused
        "adapter": row.ref,
        "digest": row.digest,
        "base": row.base,
        "index": _index(found.recommender),
        "items": [{"item_id": item.item_id, "title": item.title, "score": item.score} for item in found.items],
    }


def _index(recommender: IndexRecommender) -> dict[str, Any]:
    build, gaps = recommender.build, recommender.gaps
    return {
        "build": build and build.id,
        "digest": recommender.index.digest,
        "items": len(recommender.index.item_ids),
        "stale": bool(gaps),
        "new": gaps.new,
        "changed": gaps.changed,
        "gone": gaps.gone,
    }


def _show(found: IndexRecommendations) -> None:
    rows = [[item.rank, item.title, f"{item.score:.3f}"] for item in found.items]
    table(["#", "title", "score"], rows, empty="", right=("#", "score"), cut=("title",))
