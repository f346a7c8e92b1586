"""Requesting builds, and what becomes of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ...engine.building.asking import BuildOrder, ask_for_build
from ...engine.gates import promote
from ...registry.catalog.build_requests import Once
from ...registry.digests import digest_of_json
from ..identity import Building, Promoting, identify
from ..models import BuildAliasModel, BuildModel
from .aliases import IfMatch, Why, expected
from .builds import OPEN
from .declaring import Name, expect_named_template, named_recipe, router

routes = router("builds")
Key = Annotated[str | None, Header(description="Names the request: sent again, it has the same answer.")]
ShortText = Annotated[str, Field(max_length=200)]


class BuildRequest(BaseModel):
    """A build of a domain, by its own recipe, by NAME or NAME@vN or by a recipe's `content`, or the index of an `adapter`.

    `force` makes one although an equal one has succeeded.
    """

    model_config = ConfigDict(extra="forbid")
    domain: ShortText
    recipe: ShortText | None = None
    content: dict[str, Any] | None = None
    adapter: ShortText | None = None
    base: ShortText | None = None
    force: bool = False


class Promotion(BaseModel):
    """Why, and, where the domain's gate is to be passed by, why that."""

    model_config = ConfigDict(extra="forbid")
    why: Why = None
    override: Why = None


@routes.post("/builds", response_model=BuildModel, status_code=202)
def request_build(response: Response, registry: Building, wanted: BuildRequest, idempotency_key: Key = None) -> Any:
    """A build that is queued (202), or the one that there is of the same inputs (200 where it has succeeded)."""
    if idempotency_key is not None:
        once = Once(registry.actor, idempotency_key, digest_of_json(wanted.model_dump()))
        registry = registry.acting_as(registry.actor, once=once.checked())
    if (build := registry.builds.answered()) is None:
        recipe = None if wanted.recipe is None else named_recipe(wanted.recipe)
        expect_named_template(registry, wanted.content)
        order = BuildOrder(wanted.domain, recipe, wanted.content, wanted.adapter, wanted.base, wanted.force)
        answered = ask_for_build(registry, order)
        build, created = answered.build, answered.created
    else:
        created = False
    response.status_code = 202 if build.status in OPEN else 200
    response.headers["Location"] = f"/api/v1/builds/{build.id}"
    return build.to_json() | {"created": created}


@routes.post("/builds/{id}:cancel", response_model=BuildModel)
def cancel_build(registry: Building, id: Name) -> Any:  # noqa: A002
    """A running build's worker finds out when it next reports."""
    return registry.builds.cancel(registry.builds.get(id).id).to_json()


@routes.post("/builds/{id}:retry", response_model=BuildModel)
def retry_build(registry: Building, id: Name) -> Any:  # noqa: A002
    """Queues a failed or cancelled build again."""
    return registry.builds.retry(registry.builds.get(id).id).to_json()


@routes.post("/builds/{id}:pin", response_model=dict[str, Any])
def pin_build(registry: Building, id: Name, undo: bool = False) -> Any:  # noqa: A002
    """Keeps the files of a build for good, or ends that."""
    return {"id": registry.serving.pin(registry.builds.get(id).id, undo=undo), "pinned": not undo}


@routes.post("/builds/{id}:promote", response_model=BuildAliasModel)
def promote_build(
    request: Request,
    registry: Promoting,
    id: Name,  # noqa: A002
    wanted: Promotion | None = None,
    if_match: IfMatch = None,
) -> Any:
    """Makes the build what its domain serves, through the domain's gate. `If-Match` is the ETag of the domain's serving alias."""
    row = registry.builds.get(id)
    identify(request).expect(f"promote:{row.domain}")
    wanted = wanted or Promotion()
    seen = expected(if_match, None)
    return promote(registry, row, why=wanted.why, override=wanted.override, expected=seen).to_json()
