"""What `recommend` says of candidates, whatever ranks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .console import say

if TYPE_CHECKING:
    from ..engine.recommending import Candidates


def about_candidates(candidates: Candidates) -> dict[str, Any]:
    """For programs."""
    return {
        "count": len(candidates.items),
        "source": candidates.source,
        "catalogue": candidates.catalogue,
        "known": candidates.known,
        "repeats": candidates.repeats,
        "retitled": candidates.retitled,
    }


def say_of_list(candidates: Candidates) -> None:
    """What of a list was read otherwise than it is written."""
    if candidates.known:
        say(f"left out of the candidates, because the history has them: {candidates.known}")
    if candidates.repeats:
        say(f"candidates that are listed again, and count once: {candidates.repeats}")
    if candidates.retitled:
        say(f"candidates whose title is not the catalogue's, which is used: {candidates.retitled}")


def where_from(candidates: Candidates) -> str:
    """How many, and where from."""
    of = {
        "list": "as listed",
        "catalogue": f"all that the catalogue of {candidates.catalogue} has beside the history",
        "retriever": f"retrieved from a catalogue of {candidates.catalogue}",
        "recommender": f"picked from a catalogue of {candidates.catalogue} by the recommender",
    }[candidates.source]
    return f"candidates: {len(candidates.items)}, {of}"
