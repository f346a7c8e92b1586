"""Who asks, and what they may do.

A route names the scope that it needs by the type of its argument: `registry: Reading` is the registry in the caller's name, for callers
with the scope `read`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from ..registry import Registry
from .errors import ForbiddenError

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
        """Raises ForbiddenError."""
        if not self.may(scope):
            raise ForbiddenError(f"{self.name} lacks the scope {scope}", hint="ask for a token that has it")


def identify(request: Request) -> Identity:
    """On loopback whoever is on this machine: the user that runs the server."""
    found = Identity(request.app.state.registry.actor, frozenset({ADMIN}))
    request.state.caller = found
    return found


@dataclass(frozen=True)
class Needs:
    """What a route depends on: the registry in the caller's name. Raises UnauthenticatedError, ForbiddenError."""

    scope: str

    def __call__(self, request: Request) -> Registry:
        caller = identify(request)
        caller.expect(self.scope)
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
