"""Base models, domains, recipes and prompt templates."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...engine.documents import describe_recipes, describe_templates
from ...engine.domain_data import domain_data
from ...engine.recipe_book import find_recipe
from ...tasks import DataFacts, describe, load_template, parse_template, shipped_templates
from ..identity import Reading
from ..models import BaseModelModel, DomainModel, RecipeEntryModel, RecipeModel, TemplateEntryModel
from .declaring import Name, named_recipe, router

routes = router("catalog")


@routes.get("/bases", response_model=list[BaseModelModel])
def list_bases(registry: Reading) -> Any:
    """All base models, by name."""
    return [row.to_json() for row in registry.bases.list()]


@routes.get("/bases/{name}", response_model=BaseModelModel)
def show_base(registry: Reading, name: Name) -> Any:
    return registry.bases.get(name).to_json()


@routes.get("/domains", response_model=list[DomainModel])
def list_domains(registry: Reading) -> Any:
    """All domains, by name."""
    return [row.to_json() for row in registry.domains.list()]


@routes.get("/domains/{name}", response_model=DomainModel)
def show_domain(registry: Reading, name: Name) -> Any:
    return registry.domains.get(name).to_json()


@routes.get("/domains/{name}/facts", response_model=DataFacts | None)
def show_facts(registry: Reading, name: Name) -> Any:
    """What is in a domain's data, which is read for it; null without any."""
    row = registry.domains.get(name)
    return None if row.data is None else asdict(describe(domain_data(registry, name)))


@routes.get("/recipes", response_model=list[RecipeEntryModel])
def list_recipes(registry: Reading) -> Any:
    """Recipes of the registry, and those that ship, with the domains that use them."""
    return describe_recipes(registry)


@routes.get("/recipes/{name}")
def show_recipe(registry: Reading, name: Name) -> dict[str, Any]:
    """A recipe with its defaults: NAME, or NAME@vN."""
    return find_recipe(registry, named_recipe(name)).complete()


@routes.get("/recipes/{name}/versions", response_model=list[RecipeModel])
def list_recipe_versions(registry: Reading, name: Name) -> Any:
    """All versions of a recipe of the registry, the newest first."""
    return [row.to_json() for row in registry.recipes.log(name)]


@routes.get("/templates", response_model=list[TemplateEntryModel])
def list_templates(registry: Reading) -> Any:
    """Prompt templates of the registry, and those that ship."""
    return describe_templates(registry)


@routes.get("/templates/{name}")
def show_template(registry: Reading, name: Name) -> dict[str, Any]:
    """A template with its defaults: one that ships, NAME, or NAME@vN."""
    if name in shipped_templates():
        return load_template(name).model_dump(mode="json")
    found = registry.templates.get(name)
    return parse_template(found.content, where=found.ref).model_dump(mode="json")


@routes.get("/templates/{name}/versions", response_model=list[RecipeModel])
def list_template_versions(registry: Reading, name: Name) -> Any:
    """All versions of a template of the registry, the newest first."""
    return [row.to_json() for row in registry.templates.log(name)]
