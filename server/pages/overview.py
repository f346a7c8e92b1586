"""The overview: every domain with its state, what it serves and since when, and why it is not fresh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from ...publishing.status import STATES, is_in
from ..identity import Reading
from .rendering import render

router = APIRouter()
State = Literal["fresh", "ready", "stale", "unbuilt", "cold", "blocked", "failed"]


@dataclass(frozen=True)
class Reason:
    """Why domains are in a state, and which."""

    state: str
    text: str
    domains: tuple[str, ...]


@router.get("/")
def overview(request: Request, registry: Reading, state: Annotated[list[State] | None, Query()] = None) -> HTMLResponse:
    """All domains, or those in one of the states."""
    entries = request.app.state.status.get().entries
    shown = [entry for entry in entries if not state or is_in(entry, state)]
    counts = Counter(each for entry in entries for each in STATES if is_in(entry, (each,)))
    return render(
        request, "overview.html", entries=shown, states=[(each, counts[each]) for each in STATES if counts[each]],
        chosen=tuple(state or ()), total=len(entries), reasons=grouped(shown),
    )  # fmt: skip


def grouped(entries: Sequence[Mapping[str, Any]]) -> list[Reason]:
    """Why domains are not fresh, those with the same reasons together, the largest group first."""
    alike: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry["reasons"]:
            alike.setdefault((entry["state"], "; ".join(entry["reasons"])), []).append(entry["domain"])
    found = [Reason(state, text, tuple(names)) for (state, text), names in alike.items()]
    return sorted(found, key=lambda reason: -len(reason.domains))
