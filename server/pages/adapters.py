"""One version of an adapter: facts, origin, where it went, what was measured of it; and what people write of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response

from ...engine.documents import describe_adapter
from ...registry import Adapter, Registry
from ...registry.catalog.event_text import happened
from ...registry.errors import RecCocktailError
from ..identity import Reading, Registering
from .acting import OWN_FORM, Base, Done, attempt, back, show
from .forms import Sent, form_of
from .words import Words

router = APIRouter()
EVENTS = 20


@router.get("/adapters/{ref}")
def adapter(request: Request, registry: Reading, ref: str, base: Base = None, done: Done = None) -> HTMLResponse:
    return _page(request, registry, registry.adapters.resolve(ref, base=base, kind=None), done=done)


def _page(
    request: Request,
    registry: Registry,
    row: Adapter,
    *,
    done: str | None = None,
    refused: RecCocktailError | None = None,
    typed: Mapping[str, str] | None = None,
) -> HTMLResponse:
    events = registry.adapters.log(row.ref, base=row.base, limit=EVENTS)
    return show(
        request, "adapter.html", done=done, refused=refused, typed=typed, row=row, training=row.training,
        document=describe_adapter(registry, row), home=row.domain or row.role,
        events=[(event, happened(event)) for event in events],
    )  # fmt: skip


@router.post("/adapters/{ref}/edit", dependencies=OWN_FORM)
def edit(
    request: Request, registry: Registering, ref: str, sent: Annotated[Sent[Words], Depends(form_of(Words))]
) -> Response:
    """What holds now is replaced by what the form says."""
    row = registry.adapters.resolve(ref, base=sent.known.base, kind=None)
    refused = attempt(lambda: registry.edits.adapter(row.ref, sent.read().edit(row), base=row.base))
    if refused:
        return _page(request, registry, row, refused=refused, typed=sent.typed)
    return back(f"/adapters/{row.ref}", "edited", base=row.base)
