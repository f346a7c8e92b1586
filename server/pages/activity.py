"""Everything that happened: by actor, domain and kind, newest first, and as it happens."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from ...registry.catalog.event_text import brief_pairs
from ...registry.catalog.events import KINDS, expect_kind
from ...registry.catalog.references import SPIRIT
from ..identity import Reading
from .rendering import render

router = APIRouter()
SHOWN = 50
Text = Annotated[str, Query(max_length=200)]
ALL_KINDS = tuple(f"{noun}.{verb}" for noun, verbs in KINDS.items() for verb in verbs)


@router.get("/activity")
def activity(
    request: Request, registry: Reading, domain: Text = "", actor: Text = "", kind: Text = "",
    after: Annotated[int | None, Query(ge=1, lt=2**62)] = None,
) -> HTMLResponse:  # fmt: skip
    """A page of events; an empty field of the form asks for all."""
    expect_kind(kind or None)
    if domain not in ("", SPIRIT):
        registry.domains.get(domain)
    wanted = {name: value for name, value in (("domain", domain), ("actor", actor), ("kind", kind)) if value}
    found = registry.events.list(
        limit=SHOWN + 1, after=after, domain=domain or None, actor=actor or None, kind=kind or None
    )
    older = urlencode({**wanted, "after": found[SHOWN - 1].id}) if len(found) > SHOWN else None
    return render(
        request, "activity.html", events=[(event, brief_pairs(event)) for event in found[:SHOWN]], older=older,
        is_first=after is None, chosen={"domain": domain, "actor": actor, "kind": kind}, query=urlencode(wanted),
        domains=[SPIRIT, *(row.name for row in registry.domains.list())], nouns=[*KINDS], kinds=ALL_KINDS,
    )  # fmt: skip
