"""Trying a domain out: what the served build, and each of its adapters alone, would recommend after a history, side by side.

A model is loaded for it, so that it is asked in a thread (`server.asks`), and the page waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, Field

from ...registry import Registry
from ...registry.catalog.filters import AdapterFilter
from ...registry.catalog.references import BI_TUNING, PERSONALISED_LORA
from ...registry.errors import RecCocktailError, UsageError
from ..asks import Ask, Asks
from ..identity import Reading
from ..libraries import load_models
from .acting import OWN_FORM, ShortText, attempt, show
from .forms import Problems, Sent, form_of

if TYPE_CHECKING:  # loads torch
    from ...engine.answering import Answer
    from ...engine.recommending import Recommendation, RecommendationRequest

router = APIRouter()
FOUND, VERSIONS = 20, 50


class Question(BaseModel):
    """What the form says. `do` is `search`, `add:ITEM` or `ask`; the history has a title a line, the newest last."""

    domain: ShortText = ""
    search: ShortText = ""
    history: Annotated[str, Field(max_length=20_000)] = ""
    user: ShortText = ""
    system: ShortText = ""
    count: Annotated[int, Field(ge=1, le=50)] = 10
    do: Annotated[str, Field(max_length=300)] = "search"

    def titles(self) -> list[str]:
        return [title.strip() for title in re.split(r"\n|\|\|", self.history) if title.strip()]


@dataclass(frozen=True)
class Column:
    """What one system recommends, best first; `beside` has for each item its places in the other columns."""

    name: str
    role: str
    items: tuple[Recommendation, ...]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """An answer as the page shows it; `facts` are by name, `history` has the titles that were read and whether the catalogue has them."""

    columns: tuple[Column, ...]
    facts: dict[str, str]
    history: tuple[tuple[str, bool], ...]
    build: str | None = None


@router.get("/try")
def try_out(request: Request, registry: Reading, domain: Annotated[str, Query(max_length=200)] = "") -> HTMLResponse:
    return _page(request, registry, Question(domain=domain))


@router.get("/try/{id_}")
def show_answer(request: Request, registry: Reading, id_: str) -> HTMLResponse:
    """How far it is, then the answer, with the form filled in to ask again."""
    ask = _asks(request).get(id_, registry.actor)
    return _page(request, registry, ask.about, ask=ask)


@router.post("/try", dependencies=OWN_FORM)
def go_on(request: Request, registry: Reading, sent: Annotated[Sent[Question], Depends(form_of(Question))]) -> Response:
    """Searches the catalogue, takes a title into the history, or asks."""
    if refused := attempt(sent.read):
        return _page(request, registry, sent.known, refused=refused, typed=sent.typed)
    question = sent.known
    if question.do != "ask":
        taken = question.do.removeprefix("add:") if question.do.startswith("add:") else None
        return _picking(request, registry, question, taken)
    asked: list[Ask[Shown]] = []
    if refused := attempt(lambda: asked.append(_ask(request, registry, question))):
        return _page(request, registry, question, refused=refused)
    return RedirectResponse(f"/try/{asked[0].id}", 303)


def _picking(request: Request, registry: Registry, question: Question, taken: str | None) -> HTMLResponse:
    found: list[Any] = []

    def look() -> None:
        nonlocal question
        catalogue = request.app.state.catalogues.get(registry, question.domain)
        if taken is not None:
            if (item := catalogue.by_id(taken)) is None:
                raise UsageError(f"{question.domain} has no item {taken!r} with a title")
            question = question.model_copy(update={"history": "\n".join([*question.titles(), item.title])})
        found.extend(catalogue.search(question.search, FOUND))

    refused = attempt(look)
    return _page(request, registry, question, refused=refused, found=found)


def _ask(request: Request, registry: Registry, question: Question) -> Ask[Shown]:
    """Raises NotFoundError, FormError, TooManyRequestsError. What else is wrong is found while it is answered."""
    registry.domains.get(question.domain)
    problems = Problems()
    with problems.of("history"):
        if bool(question.user) == bool(question.titles()):
            raise UsageError(
                "a history or a user, one of the two", hint="search for titles or type them, or name a user"
            )
    problems.expect_none()

    def work(ask: Ask[Shown], bar: Callable[[str], Any]) -> Shown:
        ask.stage = "loading the libraries, the first time only"
        load_models()
        from ...engine.answering import answer
        from ...engine.models import pick_device

        ask.stage = "loading the model"
        device = pick_device(registry.settings.device)
        found = answer(registry, _wanted(registry, question), count=question.count, device=device, bar=bar)
        return shown(found, question.count)

    return _asks(request).add(registry.actor, question, work)


def _wanted(registry: Registry, question: Question) -> RecommendationRequest:
    """Compared with each adapter alone, where that means something."""
    from ...engine.personal_recommending import bundle_asked
    from ...engine.recommending import RecommendationRequest

    wanted = RecommendationRequest(
        question.domain,
        user=question.user or None,
        history=question.titles() or None,
        adapter=question.system or None,
        exclude_seen=True,
    )
    return replace(wanted, compare=bundle_asked(registry, wanted) is None)


def shown(found: Answer, count: int) -> Shown:
    """Of each list the first, with the scores that it has, and which build or version, score and candidates they depend on."""
    from ...engine.index_recommending import IndexRecommendations
    from ...engine.recommending import Recommendations

    if isinstance(found, Recommendations):
        facts = {
            "score": f"{found.score}, in nats",
            "candidates": _candidates(found.candidates),
            "template": found.template.name,
        }
        if found.outcome is not None:
            facts["outcome"] = found.outcome
        return Shown(_columns(found.lists, count), facts, _read(found.history), found.build.id)
    if isinstance(found, IndexRecommendations):
        recommender = found.recommender
        facts = {"score": "cosine", "index": f"{len(recommender.index.item_ids)} items"}
        if recommender.gaps:
            facts["index"] += ", which are not those of the data now"
        build = recommender.build and recommender.build.id
        return Shown((Column(recommender.adapter.ref, BI_TUNING, found.items),), facts, _read(found.history), build)
    facts = {"score": "probability of a like", "candidates": _candidates(found.candidates)}
    facts["user"] = f"{found.person.user}, {found.person.history} rated items"
    return Shown((Column(found.adapter.ref, PERSONALISED_LORA, found.items[:count]),), facts, ())


def _candidates(found: Any) -> str:
    return f"{len(found.items)} of {found.catalogue} ({found.source})"


def _read(history: Sequence[Any]) -> tuple[tuple[str, bool], ...]:
    return tuple((item.title, bool(item.item_id)) for item in history)


def _columns(lists: Sequence[Any], count: int) -> tuple[Column, ...]:
    ranks = {each.role: {item.item_id: item.rank for item in each.items} for each in lists}
    return tuple(
        Column(each.label, each.role, each.items[:count], tuple(
            ", ".join(f"{role} {places[item.item_id]}" for role, places in ranks.items() if role != each.role)
            for item in each.items[:count]
        ))
        for each in lists
    )  # fmt: skip


def _asks(request: Request) -> Asks[Shown]:
    return request.app.state.asks


def _page(
    request: Request, registry: Registry, question: Question, *, ask: Ask[Shown] | None = None,
    refused: RecCocktailError | None = None, found: Sequence[Any] = (), typed: Mapping[str, str] | None = None,
) -> HTMLResponse:  # fmt: skip
    domains = [row for row in registry.domains.list() if row.data is not None]
    versions = [
        row
        for kind in (BI_TUNING, PERSONALISED_LORA)
        if question.domain in {row.name for row in domains}
        for row in registry.adapters.list(AdapterFilter(domain=question.domain, kind=kind), limit=VERSIONS)
    ]
    before = _asks(request).before(ask) if ask is not None and ask.state == "waiting" else 0
    return show(
        request, "try.html", refused=refused, typed=typed, form=question, domains=domains, versions=versions, found=found, ask=ask,
        before=before,
    )  # fmt: skip
