"""The overview: every domain with its state, what it serves and since when, and why it is not fresh; builds for those that are selected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, Response

from ...engine.building.requesting import request_lacking
from ...publishing.status import STATES, is_in
from ...registry import Registry
from ...registry.errors import ConflictError, RecCocktailError, UsageError
from ..answers import failure
from ..identity import Building, Reading
from .acting import OWN_FORM, Done, attempt, back, show

router = APIRouter()
State = Literal["fresh", "ready", "stale", "unbuilt", "cold", "blocked", "failed"]
Text = Annotated[str, Query(max_length=2000)]
Count = Annotated[int, Query(ge=0, lt=10**6)]
Names = Annotated[list[Annotated[str, Form(max_length=200)]] | None, Form(max_length=1000)]


@dataclass(frozen=True)
class Reason:
    """Why domains are in a state, and which."""

    state: str
    text: str
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Filter:
    """Which domains are shown: in one of the states, for one reason, with a name that has the text in it."""

    states: tuple[str, ...] = ()
    reason: str = ""
    name: str = ""

    def of(self, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [
            entry
            for entry in entries
            if (not self.states or is_in(entry, self.states))
            and self.reason in ("", reason_of(entry))
            and self.name.casefold() in entry["domain"].casefold()
        ]


@dataclass
class Outcome:
    """What became of builds that were asked for: how many, and by domain why not."""

    done: int = 0
    refused: dict[str, RecCocktailError] = field(default_factory=dict)

    def add(self, domain: str, change: Callable[[], object]) -> None:
        """The others have their turn where one is refused."""
        if (error := attempt(change)) is None:
            self.done += 1
        else:
            self.refused[domain] = error


@router.get("/")
def overview(
    request: Request, registry: Reading, state: Annotated[list[State] | None, Query()] = None, reason: Text = "",
    name: Annotated[str, Query(max_length=200)] = "", done: Done = None, count: Count = 0,
) -> HTMLResponse:  # fmt: skip
    """All domains, or those of the filter. Those with one reason are selected from the beginning."""
    return _page(request, Filter(tuple(state or ()), reason, name.strip()), done=done, count=count)


def _page(
    request: Request,
    wanted: Filter,
    *,
    done: str | None = None,
    count: int = 0,
    outcome: Outcome | None = None,
    refused: RecCocktailError | None = None,
) -> HTMLResponse:
    entries = request.app.state.status.get().entries
    shown = wanted.of(entries)
    counts = Counter(each for entry in entries for each in STATES if is_in(entry, (each,)))
    errors = (
        [(name, failure(e.code, str(e), e.hint)["error"]) for name, e in outcome.refused.items()] if outcome else []
    )
    return show(
        request, "overview.html", done=done, refused=refused, entries=shown, count=outcome.done if outcome else count,
        errors=errors, ticked=set(outcome.refused if outcome else ()), states=[(each, counts[each]) for each in STATES if counts[each]], chosen=wanted,
        offered={entry["domain"] for entry in shown if _can_be_ticked(entry)}, total=len(entries), reasons=grouped(shown), failed=[entry["domain"] for entry in shown if entry["failed"]],
    )  # fmt: skip


def grouped(entries: Sequence[Mapping[str, Any]]) -> list[Reason]:
    """Why domains are not fresh, those with the same reasons together, the largest group first."""
    alike: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry["reasons"]:
            alike.setdefault((entry["state"], reason_of(entry)), []).append(entry["domain"])
    found = [Reason(state, text, tuple(names)) for (state, text), names in alike.items()]
    return sorted(found, key=lambda reason: -len(reason.domains))


def reason_of(entry: Mapping[str, Any]) -> str:
    return "; ".join(entry["reasons"])


@router.post("/rebuild", dependencies=OWN_FORM)
def rebuild(
    request: Request, registry: Building, do: Annotated[Literal["request", "retry"], Form()], domain: Names = None
) -> Response:
    """Requests what the selected domains lack, or queues their builds that failed again."""
    if not domain:
        return _page(request, Filter(), refused=UsageError("no domain is selected", hint="tick those that are meant"))
    outcome, names = Outcome(), dict.fromkeys(domain)
    failed = _failed(request)
    for name in names:
        outcome.add(
            name, lambda name=name: _ask(registry, name, failed) if do == "retry" else request_lacking(registry, name)
        )
    if outcome.refused:
        return _page(request, Filter(), outcome=outcome)
    return back("/", "rebuilding", count=str(outcome.done))


def _can_be_ticked(entry: Mapping[str, Any]) -> bool:
    return entry["state"] in ("stale", "unbuilt") or bool(entry["failed"])


def _failed(request: Request) -> dict[str, str]:
    """By domain, its newest build that failed."""
    entries = request.app.state.status.get().entries
    return {entry["domain"]: entry["failed"]["id"] for entry in entries if entry["failed"]}


def _ask(registry: Registry, name: str, failed: Mapping[str, str]) -> None:
    registry.domains.get(name)
    if name not in failed:
        raise ConflictError(f"the newest build of {name} has not failed")
    registry.builds.retry(failed[name])
