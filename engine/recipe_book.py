"""Recipes and templates by the names that people write: those that ship, those of the registry, and files.

A file is what it says at the moment it is read. What outlives the moment (a domain's own recipe) is read into the registry,
so that nothing on somebody's disk can change it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..registry import Registry
from ..registry.catalog.recipes import RecipeVersion
from ..registry.catalog.references import did_you_mean
from ..registry.errors import NotFoundError, RecCocktailError, UsageError
from ..registry.store.atomic import write_whole
from ..tasks import Template, load_template, parse_template, shipped_templates
from .errors import RecipeError
from .recipes import OWN_ROLES, SHIPPED, SUFFIXES, Recipe, load_recipe, parse_recipe, unknown_recipe

DEFAULT = "default"  # the recipe of a domain that has none of its own
_NAME_LENGTH = 63


def is_file_name(text: str) -> bool:
    """Whether a file is meant, and no name: it has a suffix that recipes have, or a folder before it."""
    return Path(text).suffix.lower() in SUFFIXES or "/" in text or "\\" in text


def find_recipe(registry: Registry, text: str) -> Recipe:
    """The recipe that ships under the name, the registry's `NAME` or `NAME@vN`, or what the file says now.

    Raises RecipeError for a name that means nothing and for what is no valid recipe.
    """
    if text in SHIPPED or is_file_name(text):
        return load_recipe(text)
    found = _registered(registry, text)
    return parse_recipe(found.content, where=found.ref)


def recipe_ref(registry: Registry, text: str) -> str | None:
    """What a name means now: the name of a recipe that ships, else NAME@vN; None for a file, which has no name that lasts."""
    if text in SHIPPED:
        return text
    return None if is_file_name(text) else _registered(registry, text).ref


def own_recipe(registry: Registry, text: str | None, contents: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    """The recipe that a domain has, by `domain.recipe`; `contents` spares asking for what versions say.

    Raises RecipeError for the path that a domain from before recipes were kept may still have.
    """
    text = text or DEFAULT
    if text in SHIPPED:
        return SHIPPED[text][1]
    if contents is not None and text in contents:
        return parse_recipe(contents[text], where=text)
    try:
        found = registry.recipes.get(text)
    except (UsageError, NotFoundError) as error:
        raise RecipeError(
            f"the domain's recipe is {text}, which the registry does not have: recipes are versions there, and no files",
            hint="give it one that is there: `reccocktail domain add DOMAIN --recipe NAME_OR_FILE`",
        ) from error
    return parse_recipe(found.content, where=found.ref)


def settle_recipe(registry: Registry, text: str, *, say: Callable[[str], None] = lambda line: None) -> str:
    """What a domain keeps of the recipe it is given: the name of one that ships, or NAME@vN; a file is read in first."""
    if text in SHIPPED:
        return text
    if not is_file_name(text):
        return _registered(registry, text).ref
    path = Path(text).expanduser()
    added = add_recipe(registry, name_of(path), path, say=say)
    say(f"{path} was {'read in' if added.created else 'read in before'} as recipe {added.ref}")
    return added.ref


def foreseen_recipe(registry: Registry, text: str) -> str:
    """What `settle_recipe` would answer, without reading anything in."""
    if text in SHIPPED or not is_file_name(text):
        return settle_recipe(registry, text)
    path = Path(text).expanduser()
    recipe, name = load_recipe(str(path)), name_of(path)
    versions = _versions(registry.recipes.log, name)
    for version in versions:
        try:
            if says_the_same(registry, parse_recipe(version.content, where=version.ref), recipe):
                return version.ref
        except RecCocktailError:  # of another version of RecCocktail, or a template that is not there
            continue
    return f"{name}@v{len(versions) + 1}"


def add_recipe(
    registry: Registry,
    name: str,
    path: Path,
    *,
    note: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RecipeVersion:
    """The file's content as the name's next version, or the version that says the same already.

    A template that the file names by its path is read in too. Raises UsageError for the name of a recipe that ships, RecipeError.
    """
    if name in SHIPPED:
        raise UsageError(f"a recipe {name!r} ships with RecCocktail", hint="choose another name")
    recipe = load_recipe(str(path))
    if recipe.adaptive is not None:
        template = settle_template(registry, recipe.adaptive.template, beside=path, say=say)
        recipe = recipe.model_copy(update={"adaptive": recipe.adaptive.model_copy(update={"template": template})})
    return keep_recipe(registry, name, recipe, note=note, read_from=str(path.absolute()))


def keep_recipe(
    registry: Registry, name: str, recipe: Recipe, *, note: str | None = None, read_from: str | None = None
) -> RecipeVersion:
    """The recipe as the name's next version, or the version that says the same already."""
    if name in SHIPPED:
        raise UsageError(f"a recipe {name!r} ships with RecCocktail", hint="choose another name")
    content = recipe.to_json()
    for version in _versions(registry.recipes.log, name):
        try:
            if parse_recipe(version.content, where=version.ref).to_json() == content:
                return version
        except RecipeError:  # of another version of RecCocktail
            continue
    return registry.recipes.add(name, content, note=note, read_from=read_from)


def roles_of(loras: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    """A role for each LoRA: those that are `given` by role, then spirit and ingredient in their order.

    One alone is the ingredient. Raises UsageError for a LoRA that is not there, and for more LoRAs than roles.
    """
    for role, lora in given.items():
        if lora not in loras:
            raise UsageError(
                f"{role}={lora}: the configuration has no LoRA {lora!r}{did_you_mean(lora, loras)}",
                hint=f"its LoRAs are {', '.join(loras)}",
            )
    by_lora = {lora: role for role, lora in given.items()}
    free = [role for role in (OWN_ROLES if len(loras) > 1 else OWN_ROLES[1:]) if role not in given]
    left = [lora for lora in loras if lora not in by_lora]
    if len(left) > len(free):
        raise UsageError(
            f"which adapter is {', '.join(left[len(free) :])}? A recipe mixes spirit, ingredient, and others by reference",
            hint=f"`--role DOMAIN={left[-1]}` says that it is that domain's ingredient",
        )
    by_lora |= dict(zip(left, free, strict=False))
    return tuple(by_lora[lora] for lora in loras)


def find_template(registry: Registry, text: str, contents: Mapping[str, Mapping[str, Any]] | None = None) -> Template:
    """The template that ships under the name, the registry's `NAME` or `NAME@vN`, or what the file says now.

    `contents` spares asking for what versions say.
    """
    if contents is not None and text in contents:
        return parse_template(contents[text], where=text)
    if text in shipped_templates() or is_file_name(text):
        return load_template(text)
    try:
        found = registry.templates.get(text)
    except (NotFoundError, UsageError):
        return load_template(text)  # a file without a suffix, or the error that lists those that ship
    return parse_template(found.content, where=found.ref)


def template_file(registry: Registry, text: str) -> tuple[Path, str] | None:
    """A file in the home with what the registry's `NAME` or `NAME@vN` says, for what reads files alone, and its reference by version.

    None for one that ships, a file, and a name that the registry does not have.
    """
    if text in shipped_templates() or is_file_name(text):
        return None
    try:
        found = registry.templates.get(text)
    except (NotFoundError, UsageError):
        return None
    path = registry.settings.own_folder("templates") / f"{found.digest.removeprefix('sha256:')}.yaml"
    if not path.is_file():
        write_whole(path, yaml.safe_dump(dict(found.content), sort_keys=False, allow_unicode=True))
    return path, found.ref


def add_template(registry: Registry, name: str, path: Path, *, note: str | None = None) -> RecipeVersion:
    """The template file as the name's next version, or the version that says the same already."""
    return keep_template(registry, name, load_template(path, name=name), note=note, read_from=str(path.absolute()))


def keep_template(
    registry: Registry, name: str, template: Template, *, note: str | None = None, read_from: str | None = None
) -> RecipeVersion:
    """As `add_template`, of what was read. Raises UsageError for the name of one that ships."""
    if name in shipped_templates():
        raise UsageError(f"a template {name!r} ships with RecCocktail", hint="choose another name")
    content = template.model_dump(mode="json")
    for version in _versions(registry.templates.log, name):
        if parse_template(version.content, where=version.ref).model_dump(mode="json") == content:
            return version
    return registry.templates.add(name, content, note=note, read_from=read_from)


def settle_template(registry: Registry, text: str, *, beside: Path, say: Callable[[str], None]) -> str:
    """What a recipe keeps of the template that it names: the name of one that ships, or NAME@vN; a file is read in first."""
    if text in shipped_templates():
        return text
    if not is_file_name(text):
        return registry.templates.get(text).ref
    path = Path(text).expanduser()
    if not path.is_file() and (beside.parent / path).is_file():
        path = beside.parent / path
    added = add_template(registry, name_of(path), path)
    say(f"{path} was {'read in' if added.created else 'read in before'} as template {added.ref}")
    return added.ref


def name_of(path: Path) -> str:
    """The name of what is read in without one: the file's own, in the letters that names have."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:_NAME_LENGTH].strip("-")
    if not name or name in SHIPPED or name in shipped_templates():
        return f"my-{name or 'recipe'}"
    return name


def says_the_same(registry: Registry, one: Recipe, other: Recipe) -> bool:
    """Whether two recipes are equal, wherever their templates lie."""
    if one.to_json() == other.to_json():
        return True
    if one.adaptive is None or other.adaptive is None or one.adaptive.template == other.adaptive.template:
        return False
    mine, theirs = (find_template(registry, each.adaptive.template).digest for each in (one, other) if each.adaptive)
    template = {"template": one.adaptive.template}
    again = other.model_copy(update={"adaptive": other.adaptive.model_copy(update=template)})
    return mine == theirs and one.to_json() == again.to_json()


def _registered(registry: Registry, text: str) -> RecipeVersion:
    try:
        return registry.recipes.get(text)
    except (NotFoundError, UsageError) as error:
        known = [version.name for version in registry.recipes.list()]
        if text.partition("@")[0] in known:
            raise
        raise unknown_recipe(text, known) from error


def _versions(log: Callable[[str], list[RecipeVersion]], name: str) -> list[RecipeVersion]:
    try:
        return log(name)
    except NotFoundError:
        return []
