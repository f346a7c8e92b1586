"""Recipes: those of the registry and those that ship, their versions, what differs, and an editor that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from ...engine.documents import describe_recipes
from ...engine.errors import RecipeError
from ...engine.recipe_book import find_recipe, keep_recipe
from ...engine.recipes import SHIPPED, Recipe, parse_recipe
from ...registry import Registry
from ...registry.catalog.content_changes import differences, in_words
from ...registry.catalog.recipes import RecipeVersion
from ...registry.catalog.references import check_name
from ...registry.errors import RecCocktailError
from ...registry.strict_yaml import parse_yaml
from ..identity import Reading, Registering
from ..routes.declaring import expect_named_template, named_recipe
from .acting import OWN_FORM, Done, LongText, ShortText, attempt, back, show
from .forms import Problems, Sent, form_of

router = APIRouter()
EXAMPLE = (
    "method: linear\ncoefficients: {spirit: 0.5, ingredient: 0.5}\noutput: {format: checkpoint, dtype: bfloat16}\n"
)


class NewRecipe(BaseModel):
    """What the form says; `check` looks at it without keeping it."""

    name: ShortText = ""
    text: LongText = ""
    note: ShortText = ""
    check: ShortText = ""

    def keep(self, registry: Registry) -> RecipeVersion | None:
        """The version that says it; None where it was only looked at. Raises FormError."""
        problems, kept = Problems(), None
        with problems.of("name"):
            if self.name or not self.check:
                check_name("recipe", self.name)
        with problems.of("text"):
            recipe = _parsed(registry, self.text, self.name or "text")
        problems.expect_none()
        if not self.check:
            with problems.of("name"):
                kept = keep_recipe(registry, self.name, recipe, note=self.note or None)
            problems.expect_none()
        return kept


@router.get("/recipes")
def recipes(request: Request, registry: Reading) -> HTMLResponse:
    return _list(request, registry, NewRecipe(text=EXAMPLE))


def _list(
    request: Request, registry: Registry, form: NewRecipe, *, typed: Mapping[str, str] | None = None,
    refused: RecCocktailError | None = None, is_valid: bool = False,
) -> HTMLResponse:  # fmt: skip
    return show(
        request, "recipes.html", refused=refused, typed=typed, recipes=describe_recipes(registry), form=form,
        is_valid=is_valid,
    )  # fmt: skip


@router.get("/recipes/{ref}")
def recipe(request: Request, registry: Reading, ref: str, done: Done = None) -> HTMLResponse:
    """What a recipe says, its versions and what each changed."""
    name = named_recipe(ref)
    said = find_recipe(registry, name).to_json()
    form = NewRecipe(name="" if name in SHIPPED else name.partition("@")[0], text=_yaml(said))
    versions = [] if name in SHIPPED else registry.recipes.log(name.partition("@")[0])
    before = [*versions[1:], None][: len(versions)]
    changes = [
        [in_words(change) for change in differences(older.content, version.content)] if older else []
        for version, older in zip(versions, before, strict=True)
    ]
    return show(
        request, "recipe.html", done=done, ref=name, text=_yaml(said), form=form, is_valid=False,
        versions=[*zip(versions, changes, strict=True)], users=registry.recipes.users(),
        summary=SHIPPED[name][0] if name in SHIPPED else None,
    )  # fmt: skip


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


@router.post("/recipes", dependencies=OWN_FORM)
def keep(
    request: Request, registry: Registering, sent: Annotated[Sent[NewRecipe], Depends(form_of(NewRecipe))]
) -> Response:
    """Keeps the text as the name's next version; with `check`, only says whether it is a recipe."""
    kept: list[RecipeVersion | None] = []
    if refused := attempt(lambda: kept.append(sent.read().keep(registry))):
        return _list(request, registry, sent.known, typed=sent.typed, refused=refused)
    if (version := kept[0]) is None:
        return _list(request, registry, sent.known, typed=sent.typed, is_valid=True)
    return back(f"/recipes/{version.ref}", "added" if version.created else "same")


def _parsed(registry: Registry, text: str, where: str) -> Recipe:
    """Raises RecipeError, UsageError."""
    try:
        content = parse_yaml(text.encode())
    except ValueError as error:
        raise RecipeError(f"the text is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError("a recipe is a mapping", hint="method: …, coefficients: …, output: …")
    found = parse_recipe(content, where=where)
    expect_named_template(registry, content)
    return found
