"""The routers of all pages."""

from __future__ import annotations

from . import (
    activity,
    adapters,
    builds,
    comparing,
    domains,
    login,
    overview,
    publishing,
    queue,
    recipes,
    rolling_back,
    trying,
)

PAGES = (
    overview.router,
    domains.router,
    rolling_back.router,
    builds.router,
    adapters.router,
    queue.router,
    activity.router,
    recipes.router,
    comparing.router,
    trying.router,
    publishing.router,
    login.router,
)
