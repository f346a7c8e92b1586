"""Recipes and templates that a registry's file declares: kept as versions, or compared with those that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..registry import Registry
from ..registry.catalog.recipes import RecipeVersion
from ..registry.declared.applying import KeptVersion
from ..registry.declared.document import RecipeEntry
from ..registry.digests import digest_of_json
from ..registry.errors import NotFoundError, RecCocktailError, UsageError
from ..tasks import load_template, parse_template, shipped_templates
from .recipe_book import add_recipe, add_template, keep_recipe, says_the_same
from .recipes import SHIPPED, Recipe, load_recipe, parse_recipe


def keep_version(registry: Registry, entry: RecipeEntry, dry_run: bool) -> KeptVersion:
    """The version that says what the entry says, which is added unless this is a dry run.

    Raises RecipeError, TaskError, and UsageError for the name of one that ships.
    """
    if entry.name in (SHIPPED if entry.kind == "recipe" else shipped_templates()):
        raise UsageError(f"a {entry.kind} {entry.name!r} ships with RecCocktail", hint="choose another name")
    known, content = _recipe(registry, entry) if entry.kind == "recipe" else _template(registry, entry)
    if known is not None or dry_run:
        return KeptVersion(known and known.version, known.digest if known else digest_of_json(content))
    added = _added(registry, entry, content)
    return KeptVersion(added.version, added.digest, added.created)


def _recipe(registry: Registry, entry: RecipeEntry) -> tuple[RecipeVersion | None, dict[str, Any]]:
    """The version that says the same, if there is one, and the content with its defaults."""
    recipe = load_recipe(entry.file) if entry.file else parse_recipe(entry.content or {}, where=entry.name)
    for version in _versions(registry, entry):
        try:
            if says_the_same(registry, parse_recipe(version.content, where=version.ref), recipe):
                return version, recipe.to_json()
        except RecCocktailError:  # of another version of RecCocktail, or a template that is not there
            continue
    return None, recipe.to_json()


def _template(registry: Registry, entry: RecipeEntry) -> tuple[RecipeVersion | None, dict[str, Any]]:
    template = load_template(Path(entry.file)) if entry.file else parse_template(entry.content, where=entry.name)
    content = template.model_dump(mode="json")
    same = (
        version
        for version in _versions(registry, entry)
        if parse_template(version.content, where=version.ref).model_dump(mode="json") == content
    )
    return next(same, None), content


def _added(registry: Registry, entry: RecipeEntry, content: dict[str, Any]) -> RecipeVersion:
    if entry.kind == "template":
        if entry.file:
            return add_template(registry, entry.name, Path(entry.file))
        return registry.templates.add(entry.name, content)
    if entry.file:
        return add_recipe(registry, entry.name, Path(entry.file))
    return keep_recipe(registry, entry.name, Recipe.model_validate(content))


def _versions(registry: Registry, entry: RecipeEntry) -> list[RecipeVersion]:
    kept = registry.recipes if entry.kind == "recipe" else registry.templates
    try:
        return kept.log(entry.name)
    except NotFoundError:
        return []
