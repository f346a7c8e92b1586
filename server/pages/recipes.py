"""Recipes: those of the registry and those that ship, their versions, what differs, and an editor that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from ...engine.documents import describe_recipes
from ...engine.errors import RecipeError
from ...engine.recipe_book import find_recipe, keep_recipe
from ...engine.recipes import SHIPPED, parse_recipe
from ...registry import Registry
from ...registry.catalog.content_changes import differences, in_words
from ...registry.errors import RecCocktailError
from ...registry.strict_yaml import parse_yaml
from ..identity import Reading, Registering
from ..routes.declaring import expect_named_template, named_recipe
from .acting import OWN_FORM, Done, Short, Text, attempt, back, show

router = APIRouter()
EXAMPLE = (
    "method: linear\ncoefficients: {spirit: 0.5, ingredient: 0.5}\noutput: {format: checkpoint, dtype: bfloat16}\n"
)


@router.get("/recipes")
def recipes(request: Request, registry: Reading) -> HTMLResponse:
    return _list(request, registry, {"name": "", "text": EXAMPLE, "note": ""})


def _list(
    request: Request, registry: Registry, form: Mapping[str, str], refused: RecCocktailError | None = None
) -> HTMLResponse:
    return show(request, "recipes.html", refused=refused, recipes=describe_recipes(registry), form=form)


@router.get("/recipes/{ref}")
def recipe(request: Request, registry: Reading, ref: str, done: Done = None) -> HTMLResponse:
    """What a recipe says, its versions and what each changed."""
    name = named_recipe(ref)
    said = find_recipe(registry, name).to_json()
    form = {"name": "" if name in SHIPPED else name.partition("@")[0], "text": _yaml(said), "note": ""}
    versions = [] if name in SHIPPED else registry.recipes.log(name.partition("@")[0])
    before = [*versions[1:], None][: len(versions)]
    changes = [
        [in_words(change) for change in differences(older.content, version.content)] if older else []
        for version, older in zip(versions, before, strict=True)
    ]
    return show(
        request, "recipe.html", done=done, ref=name, text=_yaml(said), form=form,
        versions=[*zip(versions, changes, strict=True)], users=registry.recipes.users(),
        summary=SHIPPED[name][0] if name in SHIPPED else None,
    )  # fmt: skip


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


@router.post("/recipes", dependencies=OWN_FORM)
def keep(
    request: Request, registry: Registering, name: Short, text: Text, note: Short = "", check: Short = ""
) -> Response:
    """Keeps the text as the name's next version; with `check`, only says whether it is a recipe."""
    form = {"name": name, "text": text, "note": note}
    kept = []
    refused = attempt(lambda: kept.append(_kept(registry, form, is_check=bool(check))))
    if refused:
        return _list(request, registry, form, refused)
    if check:
        return show(request, "recipes.html", recipes=describe_recipes(registry), form=form | {"valid": "1"})
    return back(f"/recipes/{kept[0].ref}", "added" if kept[0].created else "same")


def _kept(registry: Registry, form: Mapping[str, str], *, is_check: bool) -> Any:
    try:
        content = parse_yaml(form["text"].encode())
    except ValueError as error:
        raise RecipeError(f"the text is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError("a recipe is a mapping", hint="method: …, coefficients: …, output: …")
    found = parse_recipe(content, where=form["name"] or "text")
    expect_named_template(registry, content)
    return found if is_check else keep_recipe(registry, form["name"], found, note=form["note"] or None)
