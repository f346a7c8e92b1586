"""`/healthz`: the process answers. `/readyz`: database and store do, too. `/metrics`: what Prometheus scrapes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ..publishing.status import is_in
from ..registry import Registry
from ..registry.database.migrate import require_head
from ..registry.errors import RecCocktailError
from .answers import failure
from .identity import Reading

router = APIRouter(include_in_schema=False)
COUNTED = ("stale", "blocked", "failed")


@router.get("/healthz")
def healthy() -> dict[str, Any]:
    """Asks for nothing, and says nothing of the registry."""
    return {"ok": True}


@router.get("/readyz")
def ready(request: Request) -> Response:
    """Whether the database is there and migrated, and the store can be looked at; 503 with what is wrong."""
    registry: Registry = request.app.state.registry
    try:
        require_head(registry.settings.database_url)
        registry.store.has("sha256:" + "0" * 64)
    except RecCocktailError as error:
        return JSONResponse(failure(error.code, f"not ready: {error.code}"), 503)
    return JSONResponse({"ok": True})


@router.get("/metrics")
def metrics(request: Request, registry: Reading) -> Response:
    """The state of the registry as gauges, in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    kept = CollectorRegistry()
    entries = request.app.state.status.get().entries
    domains = Gauge("reccocktail_domains", "Domains, by state.", ["state"], registry=kept)
    for state in COUNTED:
        domains.labels(state).set(sum(is_in(entry, (state,)) for entry in entries))
    builds = Gauge("reccocktail_builds_in_registry", "Builds in the registry.", ["status"], registry=kept)
    for status, count in registry.builds.counts().items():
        builds.labels(status).set(count)
    age = Gauge(
        "reccocktail_queue_age_seconds", "How long the oldest build waits that could be claimed.", registry=kept
    )
    age.set(_queue_age(registry))
    return PlainTextResponse(generate_latest(kept), media_type="text/plain; version=0.0.4; charset=utf-8")


def _queue_age(registry: Registry) -> float:
    waiting = registry.builds.claimable(limit=1)
    return (datetime.now(UTC) - waiting[0].created_at).total_seconds() if waiting else 0.0
