"""The login of people, with a token or at an OpenID Connect provider, and its end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from ...registry.errors import NotFoundError, RecCocktailError
from ..errors import STATUSES, ProviderError, TooManyRequestsError, UnauthenticatedError
from ..identity import count_failure, expect_csrf, log_in, log_in_person
from ..oidc import CALLBACK, Attempt, Provider
from ..sessions import ATTEMPT_PATH, COOKIE, Sessions
from .rendering import LOGIN, render

router = APIRouter()


@router.get(LOGIN)
def ask(request: Request) -> Response:
    return _form(request)


def _form(request: Request, error: RecCocktailError | None = None) -> Response:
    provider: Provider | None = request.app.state.provider
    status = 200 if error is None else STATUSES[error.code]
    return render(request, "login.html", status=status, error=error, provider=provider and provider.options.label)


@router.post(LOGIN, dependencies=[Depends(expect_csrf)])
def enter(request: Request, token: Annotated[str, Form()]) -> Response:
    """To the overview, with a session; back to the form with what is wrong."""
    try:
        session = log_in(request, token.strip())
    except (UnauthenticatedError, TooManyRequestsError) as error:
        return _form(request, error)
    answer = RedirectResponse("/", 303)
    request.app.state.sessions.write(request, answer, session)
    return answer


@router.get(ATTEMPT_PATH)
def go_to_provider(request: Request) -> Response:
    """To the OpenID Connect provider, which sends back to CALLBACK."""
    attempt = Attempt.new()
    try:
        answer = RedirectResponse(_provider(request).address(attempt), 303)
    except ProviderError as error:
        return _form(request, error)
    request.app.state.sessions.write_attempt(request, answer, attempt)
    return answer


@router.get(CALLBACK)
def come_back(request: Request) -> Response:
    """From the provider: to the overview with a session, or to the form with what is wrong. What was begun has ended in either case."""
    sessions: Sessions = request.app.state.sessions
    try:
        if (attempt := sessions.read_attempt(request)) is None:
            raise UnauthenticatedError(
                "no login has begun in this browser, or too long ago", hint="begin again at /login"
            )
        session = log_in_person(request, _provider(request).person(attempt, request.query_params))
    except (UnauthenticatedError, ProviderError) as error:
        answer = _form(request, _counted(request, error))
    else:
        answer = RedirectResponse("/", 303)
        sessions.write(request, answer, session)
    sessions.end_attempt(answer)
    return answer


def _counted(request: Request, error: RecCocktailError) -> RecCocktailError:
    """The error, or that there were too many."""
    try:
        count_failure(request)
    except TooManyRequestsError as too_many:
        return too_many
    return error


def _provider(request: Request) -> Provider:
    """Raises NotFoundError where the server has none."""
    if (found := request.app.state.provider) is None:
        raise NotFoundError("this server has no OpenID Connect provider", hint="log in with a token at /login")
    return found


@router.post("/logout", dependencies=[Depends(expect_csrf)])
def leave() -> Response:
    answer = RedirectResponse(LOGIN, 303)
    answer.delete_cookie(COOKIE)
    return answer
