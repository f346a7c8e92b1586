"""Who asks, and what they may do.

A route names the scope that it needs by the type of its argument: `registry: Reading` is the registry in the caller's name, for callers
with the scope `read`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Form, Request
from fastapi.routing import APIRoute

from ..registry import Registry
from ..registry.catalog.tokens import Token
from .errors import ForbiddenError, UnauthenticatedError
from .oidc import OidcOptions, Person
from .sessions import Session

SAFE = ("GET", "HEAD", "OPTIONS")

ADMIN = "admin"


@dataclass(frozen=True)
class Identity:
    """The name that rows and events carry, and the scopes: `admin` is all of them, `promote:*` promotes in every domain."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """`promote` alone: in some domain."""
        noun, _, domain = scope.partition(":")
        if ADMIN in self.scopes or scope in self.scopes or (domain and f"{noun}:*" in self.scopes):
            return True
        return not domain and any(each.startswith(f"{noun}:") for each in self.scopes)

    def expect(self, scope: str) -> None:
        """Raises ForbiddenError, with the scope as `token create` takes it."""
        if not self.may(scope):
            named = "promote:DOMAIN" if scope == "promote" else scope
            raise ForbiddenError(f"{self.name} lacks the scope {named}", hint="ask for a token that has it")


def identify(request: Request) -> Identity:
    """By the token of the request, else by the session that began with one, else, where no login is asked for, whoever is on this machine.

    Raises UnauthenticatedError, TooManyRequestsError.
    """
    state = request.app.state
    if (known := getattr(request.state, "caller", None)) is not None:
        return known
    given = request.headers.get("authorization")
    if given is not None:
        found = _identity(request, _token(request, bearer(given)))
    elif (session := session_of(request)).token is not None:
        found = _identity(request, _valid(state.registry.tokens.of_id(session.token)))
        _expect_csrf_header(request, session)
    elif session.person is not None:
        found = _of_person(request, session.person)
        state.rate.take(found.name)
        _expect_csrf_header(request, session)
    elif state.options.login:
        raise UnauthenticatedError("this server wants a token", hint="Authorization: Bearer TOKEN, or log in at /login")
    else:
        found = Identity(state.registry.actor, frozenset({ADMIN}))
    request.state.caller = found
    return found


def seen_as(request: Request) -> Identity | None:
    """Whom a page is for that says what was refused: it is not counted, and asks nothing of a form."""
    state = request.app.state
    if (known := getattr(request.state, "caller", None)) is not None or "authorization" in request.headers:
        return known
    if (token := session_of(request).token) is not None:
        found = state.registry.tokens.of_id(token)
        return found and Identity(found.name, frozenset(found.scopes))
    if (person := session_of(request).person) is not None:
        return _known(request, person)
    return None if state.options.login else Identity(state.registry.actor, frozenset({ADMIN}))


def _known(request: Request, person: Person) -> Identity | None:
    """Somebody who logged in at the provider that the server has now, with the scopes that its configuration gives now."""
    options: OidcOptions | None = request.app.state.options.oidc
    if options is None or options.issuer != person.issuer:
        return None
    scopes = options.scopes_of(person.groups)
    return Identity(person.name, scopes) if scopes else None


def _of_person(request: Request, person: Person) -> Identity:
    if (found := _known(request, person)) is None:
        raise UnauthenticatedError(
            "the login is of a provider or group that has no scopes here", hint="log in at /login"
        )
    return found


def log_in_person(request: Request, person: Person) -> Session:
    """The session of who logged in at the provider. Raises UnauthenticatedError for somebody without scopes, or with the name of a token."""
    if _known(request, person) is None:
        raise UnauthenticatedError(f"{person.name} is in no group that has scopes here")
    if any(token.name == person.name for token in request.app.state.registry.tokens.list()):
        raise UnauthenticatedError(f"there is a token of the name {person.name}", hint="take another claim as `name`")
    return Session.new(person=person)


def log_in(request: Request, secret: str) -> Session:
    """The session of who has the token. Raises UnauthenticatedError, TooManyRequestsError."""
    return Session.new(_token(request, secret).id)


def bearer(header: str) -> str:
    """The token of an Authorization header; empty for another scheme."""
    scheme, _, secret = header.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def session_of(request: Request) -> Session:
    """Of the request's cookie, else a new one, which the page that is answered sets."""
    if (known := getattr(request.state, "session", None)) is None:
        known = request.app.state.sessions.read(request)
        request.state.is_new = known is None
        request.state.session = known = known or Session.new()
    return known


def expect_csrf(request: Request, csrf: Annotated[str, Form()] = "") -> None:
    """What every form of a page carries. Raises ForbiddenError."""
    if not request.app.state.sessions.is_csrf(request.app.state.sessions.read(request), csrf):
        raise ForbiddenError("the form is too old, or of another site", hint="load the page again")
    request.state.is_form = True


def _expect_csrf_header(request: Request, session: Session) -> None:
    """A script of a page that changes something says so; forms are looked at by `expect_csrf`."""
    if request.method in SAFE or getattr(request.state, "is_form", False):
        return
    if not request.app.state.sessions.is_csrf(session, request.headers.get("x-csrf-token", "")):
        raise ForbiddenError("a change by a session needs the header X-CSRF-Token, or the form's field")


def _token(request: Request, secret: str) -> Token:
    """Guesses from one address are slowed down; a token that holds passes all the same, for a proxy gives all callers its address."""
    if (found := request.app.state.registry.tokens.of_secret(secret)) is None:
        count_failure(request)
    return _valid(found)


def count_failure(request: Request) -> None:
    """A login that failed. Raises TooManyRequestsError where there were many from this address."""
    request.app.state.logins.take(request.client.host if request.client else "unknown")


def _valid(token: Token | None) -> Token:
    if token is None:
        raise UnauthenticatedError(
            "the token is unknown, expired or revoked", hint="`reccocktail token list` shows those that there are"
        )
    return token


def _identity(request: Request, token: Token) -> Identity:
    request.app.state.rate.take(token.name)
    return Identity(token.name, frozenset(token.scopes))


@dataclass(frozen=True)
class Needs:
    """What a route depends on: the registry in the caller's name. Raises UnauthenticatedError, ForbiddenError.

    To promote in the domain that the address names as `name`, else in any, where the route then looks at which.
    """

    scope: str

    def __call__(self, request: Request) -> Registry:
        caller = identify(request)
        domain = request.path_params.get("name") if self.scope == "promote" else None
        caller.expect(f"promote:{domain}" if domain else self.scope)
        return request.app.state.registry.acting_as(caller.name)


Reading = Annotated[Registry, Depends(Needs("read"))]
Registering = Annotated[Registry, Depends(Needs("register"))]
Building = Annotated[Registry, Depends(Needs("build"))]
Promoting = Annotated[Registry, Depends(Needs("promote"))]
Publishing = Annotated[Registry, Depends(Needs("publish"))]
Administering = Annotated[Registry, Depends(Needs(ADMIN))]


def scope_of(route: APIRoute) -> str | None:
    """The scope that a route needs; None for one that everybody may ask."""
    return next((each.call.scope for each in route.dependant.dependencies if isinstance(each.call, Needs)), None)
