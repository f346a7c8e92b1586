"""How failures are answered: one shape, `{error: {code, message, hint}}`, and for people a page that says the same."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ..registry.errors import RecCocktailError
from ..registry.redaction import redacted
from .errors import STATUSES
from .pages.rendering import error_page, wants_page

log = logging.getLogger(__name__)

RETRY_AFTER = "2"  # seconds, of what may succeed later


def failure(code: str, message: str, hint: str | None = None) -> dict[str, Any]:
    """The body of an answer that is an error, without secrets."""
    return {"error": {"code": code, "message": redacted(message), "hint": hint and redacted(hint)}}


def answer_failure(request: Request, status: int, body: dict[str, Any]) -> Response:
    """For a person a page, for a program the body."""
    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="reccocktail"'
    if wants_page(request):
        return error_page(request, status, body["error"], headers)
    return JSONResponse(body, status, headers=headers)


def install(app: FastAPI) -> None:
    """Every error that a route raises is answered in the one shape."""

    @app.exception_handler(RecCocktailError)
    def refused(request: Request, error: RecCocktailError) -> Response:
        status = STATUSES.get(error.code, 500)
        if status >= 500:
            log.warning("%s %s: %s", request.method, request.url.path, redacted(str(error)))
        return answer_failure(request, status, failure(error.code, str(error), error.hint))

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5]]
        hint = "correct the address, or go back" if wants_page(request) else "see /api/v1/openapi.json"
        body = failure("usage", f"the request is malformed: {'; '.join(problems)}", hint)
        return answer_failure(request, 422, body)

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "usage")
        what = f"{request.method} {request.url.path}: {error.detail}"
        hint = "the API is below /api/v1 of the server's address, the pages at /" if error.status_code == 404 else None
        answer = answer_failure(request, error.status_code, failure(code, what, hint))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> Response:
        # the traceback is for whoever runs the server, and not for whoever asks
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        body = failure("internal", f"{type(error).__name__} in the server", "the server's log says where")
        return answer_failure(request, 500, body)
