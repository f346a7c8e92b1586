"""One build: state, progress and log as they come, what went in, how the coefficients were found, files; and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response

from ...engine.coefficients import mean
from ...engine.documents import describe_build
from ...engine.gates import may_promote
from ...engine.gates import promote as promote_build
from ...registry import Build, Registry
from ...registry.errors import RecCocktailError
from ..downloads import listed
from ..identity import Building, Promoting, Reading, identify
from .acting import OWN_FORM, Done, Short, attempt, back, show
from .charts import coefficient_maps, search_curve
from .forms import Sent, form_of
from .gating import Promotion

router = APIRouter()
OPEN = ("queued", "running")
LINES = 200


@router.get("/builds/{id_}")
def build(request: Request, registry: Reading, id_: str, done: Done = None) -> HTMLResponse:
    return _page(request, registry, registry.builds.get(id_), done=done)


def _page(
    request: Request,
    registry: Registry,
    row: Build,
    *,
    done: str | None = None,
    refused: RecCocktailError | None = None,
) -> HTMLResponse:
    report = dict(row.report or {})
    return show(
        request, "build.html", done=done, refused=refused, row=row, document=describe_build(registry, row),
        is_open=row.status in OPEN, lines=registry.builds.logs(row.id)[-LINES:],
        marks=registry.serving.marks([row.id]).get(row.id, ()), served_as=registry.serving.policy(row.domain).alias,
        files=_files(registry, row), adaptation=report.get("adaptation"), merge=report.get("merge"),
        warnings=report.get("warnings", ()), curve=search_curve(report.get("adaptation") or {}),
        maps=coefficient_maps(row.coefficients), means=_means(row), approvers=registry.gates.approvers(build=row.id),
    )  # fmt: skip


def _means(row: Build) -> dict[str, float]:
    """One number per adapter; of those that differ by layer or module, the mean."""
    return {role: mean(value) for role, value in (row.coefficients or {}).items()}


def _files(registry: Registry, row: Build) -> dict[str, Any] | None:
    if row.digest is None or row.collected_at is not None or not registry.store.has(row.digest):
        return None
    return listed(registry, row.digest)


@router.post("/builds/{id_}/cancel", dependencies=OWN_FORM)
def cancel(request: Request, registry: Building, id_: str) -> Response:
    row = registry.builds.get(id_)
    return _ended(request, registry, row, attempt(lambda: registry.builds.cancel(row.id)), "cancelled")


@router.post("/builds/{id_}/retry", dependencies=OWN_FORM)
def retry(request: Request, registry: Building, id_: str) -> Response:
    row = registry.builds.get(id_)
    return _ended(request, registry, row, attempt(lambda: registry.builds.retry(row.id)), "retried")


@router.post("/builds/{id_}/pin", dependencies=OWN_FORM)
def pin(request: Request, registry: Building, id_: str, undo: Short = "") -> Response:
    row = registry.builds.get(id_)
    refused = attempt(lambda: registry.serving.pin(row.id, undo=bool(undo)))
    return _ended(request, registry, row, refused, "unpinned" if undo else "pinned")


def _ended(request: Request, registry: Registry, row: Build, refused: RecCocktailError | None, done: str) -> Response:
    """Back to the build, or the build with why it was refused."""
    if refused:
        return _page(request, registry, registry.builds.get(row.id), refused=refused)
    return back(f"/builds/{row.id}", done)


@router.get("/builds/{id_}/promote")
def ask_to_promote(request: Request, registry: Reading, id_: str, done: Done = None) -> HTMLResponse:
    """What the gate says of a build, before anything changes."""
    return _promotion(request, registry, registry.builds.get(id_), done=done)


@router.post("/builds/{id_}/promote", dependencies=OWN_FORM)
def promote(
    request: Request, registry: Promoting, id_: str, sent: Annotated[Sent[Promotion], Depends(form_of(Promotion))]
) -> Response:
    """Makes the build what its domain serves, through the gate; what the gate refuses is shown with what helps."""
    row = registry.builds.get(id_)
    identify(request).expect(f"promote:{row.domain}")

    def change() -> None:
        said = sent.read()
        promote_build(registry, row, why=said.why.strip() or None, override=said.override.strip() or None)

    if refused := attempt(change):
        return _promotion(request, registry, row, refused, typed=sent.typed)
    return back(f"/builds/{row.id}", "promoted")


@router.post("/builds/{id_}/approve", dependencies=OWN_FORM)
def approve(request: Request, registry: Promoting, id_: str) -> Response:
    """In the name of who is logged in, for a gate that asks for approvals."""
    row = registry.builds.get(id_)
    identify(request).expect(f"promote:{row.domain}")
    refused = attempt(lambda: registry.gates.approve_build(row.id))
    return _promotion(request, registry, row, refused) if refused else back(f"/builds/{row.id}/promote", "approved")


def _promotion(
    request: Request,
    registry: Registry,
    row: Build,
    refused: RecCocktailError | None = None,
    *,
    done: str | None = None,
    typed: Mapping[str, str] | None = None,
) -> HTMLResponse:
    closed = attempt(lambda: may_promote(registry, row))
    served = [each.build for each in registry.serving.served(row.domain) if each.base == row.base]
    values = {
        "author": row.created_by,
        "name": row.domain, "subject": f"build {row.id}", "what": registry.serving.policy(row.domain).alias,
        "now": served[0] if served else None, "closed": closed, "gate": registry.gates.get(row.domain),
        "approvers": registry.gates.approvers(build=row.id), "approve": f"/builds/{row.id}/approve",
        "path": f"/builds/{row.id}/promote", "home": f"/builds/{row.id}", "fields": {}, "asks_why": True,
    }  # fmt: skip
    return show(request, "promote.html", refused=refused, done=done, typed=typed, form=values)
