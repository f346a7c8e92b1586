"""Builds: lists, one of them, its log, and the files that it made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from ...engine.documents import describe_build
from ...engine.queries import BuildQuery
from ...registry import Build
from ..downloads import archived, listed, sent
from ..identity import Reading
from ..listing import Page
from ..models import BuildAliasModel, BuildModel, LogLineModel, MoveModel, page_of
from ..streams import Ending, Told, last_id, stream
from .declaring import BaseName, Name, router

routes = router("builds")
Text = Annotated[str | None, Query(max_length=200)]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Kind = Literal["merge", "index"]
Sort = Literal["created", "started", "finished", "domain", "status", "recipe", "requester"]
OPEN = ("queued", "running")


@routes.get("/builds", response_model=page_of(BuildModel))
def list_builds(
    registry: Reading,
    page: Page,
    domain: Text = None,
    status: Status | None = None,
    kind: Kind | None = None,
    recipe: Text = None,
    requester: Text = None,
    since: Text = None,
    adapter: Text = None,
    base: BaseName = None,
    sort: Sort = "created",
) -> Any:
    """Builds, newest first or in another order."""
    query = BuildQuery(domain, status, kind, recipe, requester, since, adapter, base, sort)
    rows = query.rows(registry, limit=page.limit + 1, after=page.after)
    return page.page(rows, lambda row: row.id, lambda shown: [row.to_json() for row in shown])


@routes.get("/builds/{id}", response_model=BuildModel)
def show_build(registry: Reading, id: Name) -> Any:  # noqa: A002  as it is called in the address
    """A build by its id, its beginning or end, or DOMAIN@ALIAS: with its lineage and evaluations."""
    return describe_build(registry, registry.builds.get(id))


@routes.get("/builds/{id}/logs", response_model=list[LogLineModel])
def show_logs(registry: Reading, id: Name, after: Annotated[int, Query(ge=0, lt=2**62)] = 0) -> Any:  # noqa: A002
    """What its workers said, at most 1,000 lines after one."""
    return [line.to_json() for line in registry.builds.logs(id, after=after)]


@routes.get("/builds/{id}/follow", response_class=StreamingResponse)
def follow(
    registry: Reading,
    ending: Ending,
    id: Name,  # noqa: A002
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Lines (`line`) and progress (`progress`) as they come, to the build's end (`end`), as server-sent events."""
    watched = _Watched(registry, registry.builds.get(id).id, last_id(last_event_id) or 0)
    return stream(watched.look, ending)


class _Watched:
    """One build, as it is told to somebody who follows it."""

    def __init__(self, registry: Reading, build: str, after: int) -> None:
        self._registry, self._build, self._after = registry, build, after
        self._told: dict[str, Any] = {}

    def look(self) -> tuple[list[Told], bool]:
        row = self._registry.builds.get(self._build)  # before its lines: the last line comes before the end
        lines = self._registry.builds.logs(self._build, after=self._after)
        self._after = lines[-1].id if lines else self._after
        found = [Told(line.id, "line", line.to_json()) for line in lines]
        now = _progress(row)
        if now != self._told:
            self._told = now
            found.append(Told(None, "progress", now))
        if row.status in OPEN:
            return found, False
        return [*found, Told(None, "end", now)], True


def _progress(row: Build) -> dict[str, Any]:
    names = ("id", "status", "stage", "done", "total", "attempts", "worker", "error")
    return {name: value for name, value in row.to_json().items() if name in names}


@routes.get("/builds/{id}/files")
def list_build_files(registry: Reading, id: Name) -> dict[str, Any]:  # noqa: A002
    return listed(registry, registry.builds.get(id).stored_digest(None))


@routes.get("/builds/{id}/files/{path:path}", response_class=Response)
def send_build_file(request: Request, registry: Reading, id: Name, path: str) -> Response:  # noqa: A002
    """One file of the result, or a range of it."""
    return sent(request, registry, registry.builds.get(id).stored_digest(None), path)


@routes.get("/builds/{id}/archive", response_class=Response)
def send_build(registry: Reading, id: Name) -> Response:  # noqa: A002
    """All files of the result as a tar."""
    row = registry.builds.get(id)
    return archived(registry, row.stored_digest(None), f"{row.domain}-{row.id}")


@routes.get("/domains/{name}/served", response_model=list[BuildAliasModel])
def list_served(registry: Reading, name: Name) -> Any:
    """What the domain serves, at most one build for each base model."""
    return [each.to_json() for each in registry.serving.served(name)]


@routes.get("/domains/{name}/history", response_model=page_of(MoveModel))
def show_history(registry: Reading, page: Page, name: Name, alias: Text = None, base: BaseName = None) -> Any:
    """Which builds had which alias, newest first."""
    found = registry.serving.history(name, alias=alias, base=base, limit=page.limit + 1, after=page.after_number)
    return page.page(found, lambda move: move.event, lambda shown: [move.to_json() for move in shown])
