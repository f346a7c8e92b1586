"""Ways within this server: where a page leads back to, after a login or from what was refused."""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode, urlsplit

from fastapi import Request

LOGIN = "/login"
LONGEST = 2000  # characters
OWN = re.compile(r"/(?![/\\])[!-\[\]-~]*")
"""A path with its query, in ASCII without spaces and backslashes, which browsers take for slashes: no other host, no scheme."""


def own_path(text: str | None) -> str | None:
    """The text, if a browser that is sent there stays on this server and is not sent to the login again."""
    if text is None or len(text) > LONGEST or OWN.fullmatch(text) is None:
        return None
    return None if re.match(r"/(login|logout|api)(?![^/?#])", text) else text


def asked_path(request: Request) -> str | None:
    """Of a request that reads, what it asks for; of one that changes something, the page that its form is on."""
    if request.method not in ("GET", "HEAD"):
        return page_before(request)
    query = request.scope.get("query_string", b"").decode("latin-1")
    return own_path(quote(request.scope["path"], safe="/@:!$&'()*+,;=~") + (f"?{query}" if query else ""))


def page_before(request: Request) -> str | None:
    """The page of this server that led to the request."""
    before = urlsplit(request.headers.get("referer", ""))
    if before.netloc.lower() != request.headers.get("host", "").lower():
        return None
    return own_path(before.path + (f"?{before.query}" if before.query else ""))


def login_for(path: str | None) -> str:
    """The address of the login that leads on to a path; the overview is where it leads without one."""
    return LOGIN if path in (None, "/") else f"{LOGIN}?{urlencode({'next': path})}"
