"""The application: the pages, the API and what surrounds them, on one open registry."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.staticfiles import StaticFiles

from ..registry import Registry
from . import answers, health
from .asks import Asks
from .catalogues import Catalogues
from .identity import scope_of
from .limits import LOGINS_PER_MINUTE, REQUESTS_PER_MINUTE, RateLimit
from .oidc import OidcOptions, Provider
from .pages.routers import PAGES
from .routes import adapters, aliases, building, builds, catalog, governing, operating, records, registering, webhooks
from .security import LOOPBACK, Guard
from .sessions import Sessions, session_key
from .status_cache import StatusCache
from .uploads import Uploads

API = "/api/v1"
STATIC = Path(__file__).with_name("static")


@dataclass(frozen=True)
class ServerOptions:
    """`hosts` are the names that the server answers to; none: to any. With `login` everybody needs a token, or logs in at the provider of `oidc`."""

    hosts: tuple[str, ...] = LOOPBACK
    login: bool = False
    requests_per_minute: int = REQUESTS_PER_MINUTE
    oidc: OidcOptions | None = None


ROUTES = (
    catalog.routes,
    adapters.routes,
    aliases.routes,
    builds.routes,
    building.routes,
    governing.routes,
    records.routes,
    registering.routes,
    operating.routes,
    webhooks.routes,
)
"""The routers of the API."""


def create_app(registry: Registry, options: ServerOptions | None = None) -> FastAPI:
    """The application on an open registry, which the caller closes."""
    options = options or ServerOptions()
    app = FastAPI(
        title="RecCocktail",
        version=version("reccocktail"),
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # both load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.registry, app.state.options = registry, options
    app.state.ending = threading.Event()
    secure = options.oidc is not None and options.oidc.is_encrypted
    app.state.sessions = Sessions(session_key(registry.settings), secure=secure)
    app.state.provider = options.oidc and Provider(options.oidc)
    app.state.rate, app.state.logins = RateLimit(options.requests_per_minute), RateLimit(LOGINS_PER_MINUTE)
    app.state.uploads = Uploads(registry.store)
    app.state.status = StatusCache(registry)
    app.state.asks, app.state.catalogues = Asks(answers.failure), Catalogues()
    app.state.hub = Asks(answers.failure)  # what waits for the Hub does not wait for a model
    answers.install(app)
    app.add_middleware(Guard, hosts=options.hosts)
    _tell_scopes(ROUTES)
    _hide(PAGES)
    for router in (health.router, *ROUTES, *PAGES):
        # as they are: `include_router` makes each anew for every application, at its first request, for which that waits 0.2 s
        app.router.routes.extend(router.routes)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _tell_scopes(routers: Iterable[APIRouter]) -> None:
    """Puts into the OpenAPI document which scope each route needs."""
    for route in _routes(routers):
        if (scope := scope_of(route)) is not None:
            route.openapi_extra = {**(route.openapi_extra or {}), "x-scope": scope}


def _hide(routers: Iterable[APIRouter]) -> None:
    """Leaves each route out of the OpenAPI document."""
    for route in _routes(routers):
        route.include_in_schema = False


def _routes(routers: Iterable[APIRouter]) -> list[APIRoute]:
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
