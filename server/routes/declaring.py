"""What the routes of the API have in common: their prefix, and what they can fail with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from ...engine.recipe_book import is_file_name
from ...engine.recipes import SHIPPED
from ...registry import Registry
from ...registry.errors import NotFoundError, UsageError
from ...tasks import shipped_templates
from ..models import Failure

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in {
        400: "The request makes no sense.",
        401: "No valid token.",
        403: "The token lacks the scope.",
        404: "There is no such thing.",
        409: "The state does not allow it.",
        422: "What was sent is malformed or refused.",
        429: "Too many requests.",
    }.items()
}
Name = Annotated[str, Path(max_length=200)]
BaseName = Annotated[str | None, Query(max_length=200, description="The base model, if there are several.")]
At = Annotated[str | None, Query(max_length=40, description="A day or moment in UTC: what was so then.")]


async def _raw(request: Request) -> bytes:
    return await request.body()


Raw = Annotated[bytes, Depends(_raw)]


def raw_body(*media: str) -> dict[str, Any]:
    """What the OpenAPI document says of a body that is taken as it comes."""
    content = {each: {"schema": {"type": "string", "format": "binary"}} for each in media}
    return {"requestBody": {"required": True, "content": content}}


def named_recipe(text: str) -> str:
    """The name of a recipe. Raises UsageError for a file: those of the server are not the caller's."""
    if text not in SHIPPED and is_file_name(text):
        raise UsageError(
            f"{text!r} is a file, and a recipe is NAME or NAME@vN here", hint="POST /api/v1/recipes adds one"
        )
    return text


def expect_named_template(registry: Registry, content: Mapping[str, Any] | None) -> None:
    """A recipe's prompt template is one that ships or the registry's. Raises UsageError otherwise: the server's files are not the caller's."""
    adaptive = (content or {}).get("adaptive")
    template = adaptive.get("template") if isinstance(adaptive, Mapping) else None
    if not isinstance(template, str) or template in shipped_templates():
        return
    try:
        registry.templates.get(template)
    except (NotFoundError, UsageError) as error:
        raise UsageError(
            f"there is no template {template!r}", hint="NAME or NAME@vN of `reccocktail template list`"
        ) from error


def router(noun: str) -> APIRouter:
    """A router of the API for one noun."""
    return APIRouter(prefix="/api/v1", tags=[noun], responses=FAILURES)
