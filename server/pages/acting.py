"""What pages that change something have in common: forms against requests from elsewhere, what was done, and what was refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import Field

from ...registry.errors import RecCocktailError
from ..answers import failure
from ..errors import STATUSES
from ..identity import expect_csrf
from .forms import Filled, FormError
from .rendering import render

ShortText = Annotated[str, Field(max_length=200)]
LongText = Annotated[str, Field(max_length=2000)]

OWN_FORM = [Depends(expect_csrf)]
"""The dependencies of every route that a form of a page asks."""

DONE = {
    "promoted": "Promoted.",
    "approved": "Approved.",
    "gated": "The gate is set.",
    "ungated": "The gate is removed.",
    "policy": "The serving policy is set.",
    "rolled-back": "Rolled back.",
    "archived": "Archived.",
    "restored": "In use again.",
    "edited": "The changes are kept.",
    "requested": "The build is queued.",
    "rebuilding": "Queued, unless there is a build of the same inputs.",
    "known": "There was a build of the same inputs already: this one.",
    "cancelled": "Cancelled.",
    "retried": "Queued again.",
    "pinned": "Pinned: its files are kept for good.",
    "unpinned": "No longer pinned.",
    "added": "Added as a new version.",
    "published": "Published: the first of the list below.",
    "same": "A version that says the same was there already.",
}
"""What a page says after the redirect, by the word in its address; nothing else of an address is shown as a message."""

Short = Annotated[str, Form(max_length=200)]
Done = Annotated[str | None, Query(max_length=40)]
Base = Annotated[str | None, Query(max_length=200)]


def show(
    request: Request, template: str, *, done: str | None = None, refused: RecCocktailError | None = None,
    typed: Mapping[str, str] | None = None, status: int | None = None, **values: Any,
) -> HTMLResponse:  # fmt: skip
    """A page that says what was done, or, with the error's status unless there is another, what was refused; its form has what was typed."""
    text = refused.summary if isinstance(refused, FormError) else str(refused)
    error = refused and failure(refused.code, text, refused.hint)["error"]
    status = status or (STATUSES.get(refused.code, 500) if refused else 200)
    filled = Filled(typed or {}, refused.problems if isinstance(refused, FormError) else {})
    return render(request, template, status=status, done=DONE.get(done or ""), refused=error, filled=filled, **values)


def attempt(change: Callable[[], object]) -> RecCocktailError | None:
    """Why the change was refused; None where it was made. What is no fault of who asks is raised."""
    try:
        change()
    except RecCocktailError as error:
        if STATUSES.get(error.code, 500) >= 500:
            raise
        return error
    return None


def back(path: str, done: str, **more: str | None) -> RedirectResponse:
    """To a page, which says what was done; a browser that loads it again does not ask for the change again."""
    query = {name: value for name, value in more.items() if value is not None} | {"done": done}
    return RedirectResponse(f"{path}?{urlencode(query)}", 303)
