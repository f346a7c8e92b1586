"""Serving an earlier build of a domain again: what that would change comes first."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from ...engine.building.rollback import Rollback, plan_rollback, roll_back, rollback_target
from ...registry import Registry
from ...registry.errors import RecCocktailError
from ..identity import Promoting, Reading
from .acting import OWN_FORM, LongText, ShortText, attempt, back, show
from .forms import Problems, Sent, form_of, query_of

router = APIRouter()
SHOWN = 15


class Return(BaseModel):
    """`to` is a build, or a moment whose build is served again; empty: what was served before."""

    to: ShortText = ""
    base: ShortText = ""
    why: LongText = ""

    def plan(self, registry: Registry, domain: str) -> Rollback:
        """Raises FormError for a `to` that there is no going back to; without one, what `plan_rollback` does."""
        problems = Problems()
        if not self.to.strip():
            return plan_rollback(registry, domain, base=self.base or None)
        with problems.of("to"):
            return plan_rollback(registry, domain, to=rollback_target(self.to.strip()), base=self.base or None)
        problems.expect_none()
        raise AssertionError("what went wrong is a problem")


@router.get("/domains/{name}/rollback")
def ask_to_roll_back(
    request: Request, registry: Reading, name: str, sent: Annotated[Sent[Return], Depends(query_of(Return))]
) -> HTMLResponse:
    """What going back would change, or why there is no going back; nothing is changed."""
    registry.domains.get(name)
    return _page(request, registry, name, sent)


@router.post("/domains/{name}/rollback", dependencies=OWN_FORM)
def carry_out_rollback(
    request: Request, registry: Promoting, name: str, sent: Annotated[Sent[Return], Depends(form_of(Return))]
) -> Response:
    registry.domains.get(name)

    def change() -> None:
        wanted = sent.read()
        planned = wanted.plan(registry, name)
        if planned.is_needed:
            roll_back(registry, planned, why=wanted.why.strip() or None)

    if refused := attempt(change):
        return _page(request, registry, name, sent, refused)
    return back(f"/domains/{name}", "rolled-back")


def _page(
    request: Request, registry: Registry, name: str, sent: Sent[Return], refused: RecCocktailError | None = None
) -> HTMLResponse:
    planned: list[Rollback] = []
    unplanned = attempt(lambda: planned.append(sent.read().plan(registry, name)))
    served = registry.serving.history(name, alias=registry.serving.policy(name).alias, limit=SHOWN)
    return show(
        request, "rollback.html", refused=refused or unplanned, typed=sent.typed, name=name, served=served,
        planned=planned[0] if planned else None,
    )  # fmt: skip
