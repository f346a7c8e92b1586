"""Adapter versions: lists, one of them, its log and its files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import Response

from ...engine.documents import describe_adapter, describe_adapters, describe_difference, describe_verification
from ...engine.queries import AdapterQuery
from ...registry import Adapter
from ...registry.moments import moment
from ..downloads import archived, listed, sent
from ..identity import Reading
from ..libraries import load_models
from ..listing import Page
from ..models import AdapterModel, DifferenceModel, EventModel, VerificationModel, page_of
from .declaring import At, BaseName, Name, router

routes = router("adapters")
Kind = Literal["lora", "personalised-lora", "bi-tuning"]
Texts = Annotated[list[Annotated[str, Query(max_length=200)]] | None, Query(max_length=20)]
Text = Annotated[str | None, Query(max_length=200)]


@routes.get("/adapters", response_model=page_of(AdapterModel))
def list_adapters(
    registry: Reading,
    page: Page,
    domain: Text = None,
    base: BaseName = None,
    spirit: bool = False,
    kind: Kind | None = None,
    tag: Texts = None,
    metric: Texts = None,
    sort: Text = None,
    search: Text = None,
) -> Any:
    """Versions, newest first, each with what was measured of it last; `metric` is a bound such as `NDCG@3>=0.4`."""
    query = AdapterQuery(domain, base, spirit, kind, tag or (), metric or (), sort, search)
    rows = query.rows(registry, limit=page.limit + 1, after=page.after)
    return page.page(rows, _cursor, lambda shown: describe_adapters(registry, shown))


def _cursor(row: Adapter) -> str:
    return f"{row.base}:{row.ref}"


@routes.get("/adapters/{ref}", response_model=AdapterModel)
def show_adapter(registry: Reading, ref: Name, base: BaseName = None, at: At = None) -> Any:
    """What NAME, NAME@vN or NAME@ALIAS means now, with evaluations, builds and publications, or what it meant at a moment."""
    when = None if at is None else moment(at, option="at")
    row = registry.adapters.resolve(ref, base=base, at=when, kind=None)
    return describe_adapter(registry, row) if when is None else row.to_json() | {"at": when.isoformat()}


@routes.get("/adapters/{ref}/log", response_model=page_of(EventModel))
def show_log(registry: Reading, page: Page, ref: Name, base: BaseName = None) -> Any:
    """Who changed what, newest first: of a version, of an alias wherever it was, or of all versions of a name."""
    found = registry.adapters.log(ref, base=base, limit=page.limit + 1, after=page.after_number)
    return page.page(found, lambda event: event.id, lambda shown: [event.to_json() for event in shown])


@routes.get("/adapters/{ref}/diff", response_model=DifferenceModel)
def show_difference(
    registry: Reading, ref: Name, other: Annotated[str, Query(max_length=200)], base: BaseName = None
) -> Any:
    """In what metadata two versions differ, and how far their weights are apart."""
    load_models()
    return describe_difference(registry, ref, other, base=base)


@routes.get("/adapters/{ref}/verification", response_model=VerificationModel)
def verify_adapter(registry: Reading, ref: Name, base: BaseName = None) -> Any:
    """Reads all files of a version again, against their digests and as it was inspected; an error says what is not sound."""
    return describe_verification(registry, ref, base=base)


@routes.get("/adapters/{ref}/files")
def list_files(registry: Reading, ref: Name, base: BaseName = None) -> dict[str, Any]:
    return listed(registry, registry.adapters.resolve(ref, base=base, kind=None).digest)


@routes.get("/adapters/{ref}/files/{path:path}", response_class=Response)
def send_file(request: Request, registry: Reading, ref: Name, path: str, base: BaseName = None) -> Response:
    """One file, or a range of it."""
    return sent(request, registry, registry.adapters.resolve(ref, base=base, kind=None).digest, path)


@routes.get("/adapters/{ref}/archive", response_class=Response)
def send_adapter(registry: Reading, ref: Name, base: BaseName = None) -> Response:
    """All files as a tar."""
    row = registry.adapters.resolve(ref, base=base, kind=None)
    return archived(registry, row.digest, row.ref)
