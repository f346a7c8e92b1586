"""The login of people, with a token or at an OpenID Connect provider, and its end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from ...registry.errors import NotFoundError, RecCocktailError
from ..errors import STATUSES, ProviderError, TooManyRequestsError, UnauthenticatedError
from ..identity import count_failure, expect_csrf, log_in, log_in_person
from ..oidc import CALLBACK, Attempt, Provider
from ..sessions import ATTEMPT_PATH, COOKIE, Sessions
from .rendering import render
from .ways import LOGIN, own_path

router = APIRouter()
Next = Annotated[str, Query(description="The page to go to afterwards, a path of this server.")]


@router.get(LOGIN)
def ask(request: Request, next: Next = "") -> Response:  # noqa: A002
    return _form(request, own_path(next))


def _form(request: Request, after: str | None, error: RecCocktailError | None = None) -> Response:
    """`after` is the page that somebody wanted to see."""
    provider: Provider | None = request.app.state.provider
    status = 200 if error is None else STATUSES[error.code]
    return render(
        request, "login.html", status=status, error=error, after=after, provider=provider and provider.options.label
    )


@router.post(LOGIN, dependencies=[Depends(expect_csrf)])
def enter(request: Request, token: Annotated[str, Form()] = "", next: Annotated[str, Form()] = "") -> Response:  # noqa: A002
    """To the page that was asked for before, with a session; back to the form with what is wrong."""
    after = own_path(next)
    try:
        session = log_in(request, token.strip())
    except (UnauthenticatedError, TooManyRequestsError) as error:
        return _form(request, after, error)
    answer = RedirectResponse(after or "/", 303)
    request.app.state.sessions.write(request, answer, session)
    return answer


@router.get(ATTEMPT_PATH)
def go_to_provider(request: Request, next: Next = "") -> Response:  # noqa: A002
    """To the OpenID Connect provider, which sends back to CALLBACK."""
    after = own_path(next)
    attempt = Attempt.new(after)
    try:
        answer = RedirectResponse(_provider(request).address(attempt), 303)
    except ProviderError as error:
        return _form(request, after, error)
    request.app.state.sessions.write_attempt(request, answer, attempt)
    return answer


@router.get(CALLBACK)
def come_back(request: Request) -> Response:
    """From the provider: to the page that was asked for before, with a session, or to the form with what is wrong.

    What was begun has ended in either case.
    """
    sessions: Sessions = request.app.state.sessions
    attempt = sessions.read_attempt(request)
    after = own_path(attempt and attempt.after)
    try:
        if attempt is None:
            raise UnauthenticatedError(
                "no login has begun in this browser, or too long ago", hint="begin again at /login"
            )
        session = log_in_person(request, _provider(request).person(attempt, request.query_params))
    except (UnauthenticatedError, ProviderError) as error:
        answer = _form(request, after, _counted(request, error))
    else:
        answer = RedirectResponse(after or "/", 303)
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
