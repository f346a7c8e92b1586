"""What holds for every request, before any route: which names the server answers to, where changes may come from, and headers.

A page elsewhere can make a browser send requests here. Such a request is refused by its `Origin` or `Sec-Fetch-Site`, and one that came by a
name which was made to mean this machine (DNS rebinding) by its `Host`.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import failure
from .identity import SAFE

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer a form of our own pages has `Origin: null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


BODY_LIMIT = 4 * 2**20  # bytes, of what is not an upload
CHUNK_LIMIT = 64 * 2**20  # bytes of one piece of an upload
UPLOADS = "/api/v1/uploads/"


class Guard:
    """Wraps the application. `hosts` are the names that it answers to, without ports; none: to any."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        if "\0" in request.url.path or "%00" in scope.get("query_string", b"").decode("latin-1"):
            body = failure("usage", "an address has a NUL character")
            await JSONResponse(body, 400)(scope, receive, answered)
        elif (refusal := self._refusal(request)) is not None:
            await JSONResponse(failure("forbidden", refusal), 403)(scope, receive, answered)
        else:
            limit = CHUNK_LIMIT if scope["path"].startswith(UPLOADS) else BODY_LIMIT
            await self._app(scope, _limited(scope, receive, limit), answered)

    def _refusal(self, request: Request) -> str | None:
        headers = request.headers
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts:
            return f"this server does not answer to the name {_name(host)!r}; --allow-host adds one"
        if request.method not in SAFE and _is_foreign(headers, host):
            return "a page of another site cannot change anything here"
        return None


def _limited(scope: Scope, receive: Receive, limit: int) -> Receive:
    """The same, but a body ends with 413 where it is longer, whatever its Content-Length says."""
    announced = Headers(scope=scope).get("content-length", "0")
    taken = int(announced) if announced.isdigit() and int(announced) > limit else 0

    async def received() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"the body is longer than {limit} bytes")
        return message

    return received


def _name(host: str) -> str:
    """A Host header without its port."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower()


def _is_foreign(headers: Headers, host: str) -> bool:
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != host.lower()
