"""Templates to pages: what every page has, and the page of an error. Text is escaped wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...registry.catalog.event_text import remark
from ...registry.errors import RecCocktailError
from ...registry.sizes import size
from ..identity import Identity, seen_as, session_of
from .hints import on_page
from .ways import LOGIN, asked_path, login_for, own_path, page_before

FOLDER = Path(__file__).parents[1]
HEADINGS = {
    400: "This cannot be meant so",
    403: "You may not do this",
    404: "There is no such thing",
    409: "Not as things are now",
    412: "Somebody else was first",
    413: "This is too much",
    422: "This cannot be meant so",
    429: "Too much at once",
    502: "Somebody else's server did not answer as it should",
    503: "Not at the moment",
}
"""What a page of an error is called, by its status."""
UNITS = ((timedelta(days=365), "y"), (timedelta(days=1), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "min"))


@dataclass(frozen=True)
class Place:
    """An entry of the navigation, for those who have its scope."""

    path: str
    label: str
    scope: str = "read"


NAVIGATION = (
    Place("/", "Overview"),
    Place("/queue", "Queue"),
    Place("/activity", "Activity"),
    Place("/recipes", "Recipes"),
    Place("/compare", "Compare"),
    Place("/try", "Try it"),
    Place("/publish", "Publish", "publish"),
)
"""The pages that the navigation leads to, in its order."""


@cache
def _templates() -> Environment:
    found = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined)
    found.filters |= {"age": age, "moment": moment, "short": short, "on_page": on_page, "size": size, "remark": remark}
    found.trim_blocks = found.lstrip_blocks = True
    found.globals |= {"navigation": NAVIGATION, "version": version("reccocktail")}
    return found


def render(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """The page that a file of `templates/` makes of the values. `caller`, `path` and `csrf`, which every form carries, are there for each."""
    session, sessions = session_of(request), request.app.state.sessions
    values |= {"path": request.url.path, "caller": getattr(request.state, "caller", None)}
    values |= {"csrf": sessions.csrf(session), "logged_in": session.is_login}
    page = HTMLResponse(_templates().get_template(template).render(values), status, headers=dict(headers or {}))
    if request.state.is_new:
        sessions.write(request, page, session)
    return page


def wants_page(request: Request) -> bool:
    """Whether a person looks at the answer."""
    if request.url.path.startswith("/api/"):
        return False
    return "text/html" in request.headers.get("accept", "")


def error_page(
    request: Request, status: int, error: Mapping[str, Any], headers: Mapping[str, str]
) -> HTMLResponse | RedirectResponse:
    """Of somebody who is not known yet, the way to the login; of an address that only a form is sent to, the way to the page above."""
    if status == 401 and request.url.path != LOGIN:
        return RedirectResponse(login_for(asked_path(request)), 303)
    if status == 405 and request.method == "GET":
        return RedirectResponse(own_path(quote(request.url.path.rpartition("/")[0])) or "/", 303)
    request.state.caller = _seen(request)
    return render(
        request, "error.html", status=status, headers=headers, number=status, error=error,
        heading=HEADINGS.get(status, "Not so" if status < 500 else "The server could not do it"),
        is_change=request.method == "POST", before=_way_back(request),
    )  # fmt: skip


def _way_back(request: Request) -> str | None:
    """To the page that led here, else to the one of the navigation that this is below."""
    before = page_before(request)
    if before is not None and (request.method == "POST" or before != asked_path(request)):
        return before
    return next((each.path for each in NAVIGATION[1:] if request.url.path.startswith(f"{each.path}/")), None)


def _seen(request: Request) -> Identity | None:
    try:
        return seen_as(request)
    except RecCocktailError:  # the database may be what is wrong
        return None


def age(since: datetime | str | None) -> str:
    """How long ago, in the largest unit of which there is one, rounded down; `now` below a minute."""
    if since is None:
        return ""
    passed = datetime.now(UTC) - (datetime.fromisoformat(since) if isinstance(since, str) else since)
    unit = next(((length, name) for length, name in UNITS if passed >= length), None)
    return "now" if unit is None else f"{passed // unit[0]} {unit[1]}"


def moment(at: datetime | str | None) -> str:
    """A moment in UTC, to the minute."""
    if at is None:
        return ""
    found = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M}"


def short(digest: str | None) -> str:
    """The beginning of a digest, enough to tell it from others."""
    return (digest or "").removeprefix("sha256:")[:12]
