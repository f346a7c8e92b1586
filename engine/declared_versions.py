"""Recipes and templates that a registry's file declares: kept as versions, or compared with those that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..registry import Registry
from ..registry.artifacts.checkpoints import Checkpoint, checkpoint
from ..registry.artifacts.sources import AdapterSource, find_adapter_source
from ..registry.catalog.recipes import RecipeVersion
from ..registry.declared.applying import KeptVersion, Ways
from ..registry.declared.document import RecipeEntry
from ..registry.digests import digest_of_json
from ..registry.errors import NotFoundError, RecCocktailError, UsageError
from ..tasks import load_template, parse_template, shipped_templates
from .gates import move_champion
from .recipe_book import add_recipe, add_template, foreseen_recipe, keep_recipe, says_the_same, settle_recipe
from .recipes import SHIPPED, Recipe, load_recipe, parse_recipe


def ways_of(check_domain: Callable[[str, Mapping[str, str]], object], *, say: Callable[[str], None]) -> Ways:
    """What `apply` needs beside the registry, on this machine. `check_domain` looks at a domain's trainer and data."""

    @contextmanager
    def fetch_base(source: str, revision: str | None) -> Iterator[Checkpoint]:
        with checkpoint(source, revision, say=say) as found:
            yield found

    def settle(registry: Registry, recipe: str, dry_run: bool) -> str:
        return foreseen_recipe(registry, recipe) if dry_run else settle_recipe(registry, recipe)

    def move(registry: Registry, ref: str, alias: str, base: str) -> None:
        move_champion(registry, ref, alias, base=base)

    def fetch_adapter(source: str, revision: str | None) -> AdapterSource:
        return find_adapter_source(source, revision=revision)

    return Ways(fetch_base, fetch_adapter, check_domain, settle, move, keep_version)


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
    if entry.file:
        template = load_template(Path(entry.file), name=entry.name)
    else:
        template = parse_template(entry.content, where=entry.name, name=entry.name)
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
