"""What happened and what was found: status, events, evaluations, publications, and what names mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Header, Path, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse

from ...engine.building.asking import Due, builds_due
from ...engine.building.freshness import chosen
from ...engine.documents import describe_choice, describe_comparison, describe_ranks
from ...engine.queries import EvaluationQuery, EventQuery
from ...engine.recipe_book import find_recipe
from ...engine.records import compare, find_pair
from ...publishing.status import is_in, status_of
from ...registry.catalog.following import EventFollower
from ...registry.declared.exporting import export
from ...registry.errors import UsageError
from ...registry.moments import moment
from ...serving.resolve import Origin, find, meant, resizing
from ..identity import ADMIN, Reading, identify
from ..listing import Page
from ..models import (
    ComparisonModel,
    EvaluationModel,
    EventModel,
    MoveModel,
    PublicationModel,
    RanksModel,
    ResolvedModel,
    StatusModel,
    model_of,
    page_of,
)
from ..naming import expect_registered
from ..streams import Ending, Told, last_id, stream
from .adapters import Text, Texts
from .declaring import At, BaseName, Name, named_recipe, router

routes = router("records")
State = Literal["fresh", "ready", "stale", "unbuilt", "cold", "blocked", "failed"]


@routes.get("/status", response_model=list[StatusModel] | list[MoveModel])
def show_status(
    request: Request,
    registry: Reading,
    domain: Text = None,
    state: Annotated[list[State] | None, Query()] = None,
    at: At = None,
) -> Any:
    """Where every domain stands, or one, or those in a state; with `at`, which builds were served then.

    What is no event, such as the progress of a build, may be three seconds old, unless one domain is asked for.
    """
    if at is not None:
        if state:
            raise UsageError("at is about the past, and state about now: one of them")
        return [move.to_json() for move in registry.serving.served_at(moment(at, option="at"), domain)]
    found = request.app.state.status.get() if domain is None else status_of(registry, domain)
    shown = [entry for entry in found.entries if not state or is_in(entry, state)]
    return JSONResponse(shown)  # as they are: to check 200 of them against a model takes longer than to find them


@routes.get("/status/due", response_model=model_of(Due))
def show_due(registry: Reading, every: bool = False, recipe: Text = None, base: BaseName = None) -> Any:
    """Of which domains a build is due, with `every` of which one can be built, and why not of others; by a recipe, as if it were their own."""
    chosen_recipe = None if recipe is None else find_recipe(registry, named_recipe(recipe))
    return builds_due(registry, every=every, recipe=chosen_recipe, base=base).to_json()


@routes.get("/events", response_model=page_of(EventModel))
def list_events(
    registry: Reading, page: Page, domain: Text = None, actor: Text = None, kind: Text = None, since: Text = None
) -> Any:
    """Who did what, newest first."""
    wanted = EventQuery(domain, actor, kind, since).filter(registry)
    found = registry.events.list(limit=page.limit + 1, after=page.after_number, **wanted)
    return page.page(found, lambda event: event.id, lambda shown: [event.to_json() for event in shown])


@routes.get("/events/follow", response_class=StreamingResponse)
def follow_events(
    registry: Reading,
    ending: Ending,
    domain: Text = None,
    actor: Text = None,
    kind: Text = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Each event from now on, or after `Last-Event-ID`, once, as server-sent events of its kind."""
    wanted = EventQuery(domain, actor, kind).filter(registry)
    following = EventFollower(registry.events, known=last_id(last_event_id), **wanted)

    def look() -> tuple[list[Told], bool]:
        return [Told(event.id, event.kind, event.to_json()) for event in following.new()], False

    return stream(look, ending)


@routes.get("/evaluations", response_model=page_of(EvaluationModel))
def list_evaluations(
    registry: Reading,
    page: Page,
    domain: Text = None,
    system: Text = None,
    split: Text = None,
    score: Text = None,
    metric: Texts = None,
    sort: Text = None,
    base: BaseName = None,
) -> Any:
    """What was measured, newest first, or the largest of a metric first."""
    expect_registered(system or "")
    query = EvaluationQuery(domain, system, split, score, metric or (), sort, base)
    rows = query.rows(registry, limit=page.limit + 1, after=page.after_number)
    return page.page(rows, lambda row: row.id, lambda shown: [row.to_json() for row in shown])


@routes.get("/evaluations/{id}", response_model=EvaluationModel)
def show_evaluation(registry: Reading, id: Annotated[int, Path(ge=1, lt=2**62)]) -> Any:  # noqa: A002
    return registry.evaluations.get(id).to_json()


@routes.get("/evaluations/{id}/ranks", response_model=RanksModel, response_model_exclude_unset=True)
def show_ranks(registry: Reading, id: Annotated[int, Path(ge=1, lt=2**62)]) -> Any:  # noqa: A002
    """What the evaluation's figures are made of: each user's rank, of clicks each row's probability."""
    return describe_ranks(registry, registry.evaluations.get(id))


@routes.get("/compare", response_model=ComparisonModel)
def compare_evaluations(
    registry: Reading,
    a: Annotated[str, Query(max_length=200)],
    b: Annotated[str, Query(max_length=200)],
    domain: Text = None,
    metric: Texts = None,
    base: BaseName = None,
) -> Any:
    """A minus B with paired 95 % intervals: two evaluations by id, or the newest comparable ones of two systems."""
    expect_registered(a, b)
    found = compare(registry, *find_pair(registry, a, b, domain=domain, base=base))
    return describe_comparison(found, metric or ())


@routes.get("/publications", response_model=page_of(PublicationModel))
def list_publications(registry: Reading, page: Page, domain: Text = None, repo: Text = None) -> Any:
    """What went to the Hub, newest first, withdrawn ones included."""
    rows = registry.publications.list(domain, repo=repo, limit=page.limit + 1, after=page.after_number)
    return page.page(rows, lambda row: row.id, lambda shown: [row.to_json() for row in shown])


@routes.get("/publications/{what:path}", response_model=PublicationModel)
def show_publication(registry: Reading, what: Annotated[str, Path(max_length=200)]) -> Any:
    """A publication by its id, or the newest of a repository, with its files."""
    return registry.publications.get(what).describe()


@routes.get("/resolve/{ref}", response_model=ResolvedModel, response_model_exclude_unset=True)
def resolve(registry: Reading, ref: Name, base: BaseName = None, at: At = None, merged: bool = False) -> Any:
    """What a name means, now or at a moment: an adapter version, or, `merged`, the build that the domain serves."""
    when, choice = None if at is None else moment(at, option="at"), None
    if not merged:
        found = (
            meant(registry, ref, base=base)
            if when is None
            else Origin.of_adapter(registry.adapters.resolve(ref, base=base, at=when))
        )
        about = {"adapter": None if found.build else found.ref, "build": found.build}
        about |= {"kind": "adapter", "base": found.base, "digest": found.digest}
        return {"ref": ref} | about | ({"at": when.isoformat()} if when else {})
    if when is not None:
        found = [move for move in registry.serving.served_at(when, ref) if base in (None, move.base)]
        if len(found) != 1 or found[0].build is None:
            raise UsageError(
                f"{ref!r} served {len(found)} builds at {when.isoformat()}", hint="name the base, or see /status?at="
            )
        build = registry.builds.get(found[0].build)
    else:
        name = registry.serving.resolve(ref, base=base).build if "@" in ref else None
        choice = None if name else chosen(registry, ref, base=base)
        build = choice.build if choice else registry.builds.get(name or "")
        assert build is not None
    about = {"kind": "checkpoint", "adapter": None, "build": build.id, "base": build.base, "digest": build.digest}
    why = {} if choice is None else describe_choice(choice)
    return {"ref": ref} | about | why | ({"at": when.isoformat()} if when else {})


@routes.get("/resolve/{ref}/needs")
def show_needs(registry: Reading, ref: Name, base: BaseName = None) -> dict[str, Any] | None:
    """What has to be done to the base model of an adapter before it fits, which its files say; null where nothing is."""
    needed = resizing(registry, find(registry, ref, base=base))
    return needed and {"resize_token_embeddings": needed.after, "base_vocabulary": needed.before}


@routes.get("/export")
def export_registry(request: Request, registry: Reading) -> dict[str, Any]:
    """The registry as the document that `apply` reads; for `admin`, who alone sees webhooks, with these."""
    return export(registry, with_webhooks=identify(request).may(ADMIN))
