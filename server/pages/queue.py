"""The queue: what waits, what runs and where, what failed last."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ...registry import Build
from ...registry.catalog.filters import BuildFilter
from ..identity import Reading
from .rendering import render

router = APIRouter()
SHOWN = 50


@router.get("/queue")
def queue(request: Request, registry: Reading) -> HTMLResponse:
    running, queued, failed = (
        registry.builds.list(BuildFilter(status=status), limit=SHOWN) for status in ("running", "queued", "failed")
    )
    return render(
        request, "queue.html", running=running, queued=queued, failed=failed, workers=by_worker(running),
        counts=registry.builds.counts(), next=registry.builds.claimable(limit=1),
    )  # fmt: skip


def by_worker(running: Sequence[Build]) -> dict[str, list[Build]]:
    """The builds that each worker has, workers by name."""
    found: dict[str, list[Build]] = {}
    for build in running:
        found.setdefault(build.worker or "nobody", []).append(build)
    return dict(sorted(found.items()))
