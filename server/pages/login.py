"""The login of people who have a token, and its end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from ..errors import STATUSES, TooManyRequestsError, UnauthenticatedError
from ..identity import expect_csrf, log_in
from ..sessions import COOKIE
from .rendering import LOGIN, render

router = APIRouter()


@router.get(LOGIN)
def ask(request: Request) -> Response:
    return render(request, "login.html", error=None)


@router.post(LOGIN, dependencies=[Depends(expect_csrf)])
def enter(request: Request, token: Annotated[str, Form()]) -> Response:
    """To the overview, with a session; back to the form with what is wrong."""
    try:
        session = log_in(request, token.strip())
    except (UnauthenticatedError, TooManyRequestsError) as error:
        return render(request, "login.html", status=STATUSES[error.code], error=error)
    answer = RedirectResponse("/", 303)
    request.app.state.sessions.write(request, answer, session)
    return answer


@router.post("/logout", dependencies=[Depends(expect_csrf)])
def leave() -> Response:
    answer = RedirectResponse(LOGIN, 303)
    answer.delete_cookie(COOKIE)
    return answer
