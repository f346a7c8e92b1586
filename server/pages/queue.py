"""The queue: what waits, what runs and where, what failed last, and whether any worker lives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ...registry import Registry
from ...registry.catalog.filters import BuildFilter
from ..identity import Reading
from .rendering import render

router = APIRouter()
SHOWN = 50
PROMPT = timedelta(seconds=15)
"""An idle worker, which looks every two seconds, has taken a build by then."""


@router.get("/queue")
def queue(request: Request, registry: Reading) -> HTMLResponse:
    running, queued, failed = (
        registry.builds.list(BuildFilter(status=status), limit=SHOWN) for status in ("running", "queued", "failed")
    )
    workers = registry.builds.workers()
    since = None if any(each.is_alive for each in workers) else waiting_since(registry)
    return render(
        request, "queue.html", running=running, queued=queued, failed=failed, workers=workers,
        domains={build.id: build.domain for build in running}, counts=registry.builds.counts(), since=since,
        is_alone=since is not None and datetime.now(UTC) - since > PROMPT,
    )  # fmt: skip


def waiting_since(registry: Registry) -> datetime | None:
    """Since when the next build could have been claimed; None where none can be."""
    if not (waiting := registry.builds.claimable(limit=1)):
        return None
    build = waiting[0]
    said = registry.events.list(kind="build", subject=build.id, limit=1)
    until = [sign.lease_until for sign in registry.builds.workers() if build.id in sign.builds and sign.lease_until]
    return max([build.created_at, *(event.created_at for event in said), *filter(None, [build.retry_at]), *until])
