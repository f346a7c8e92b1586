"""The wording of prompts for a card: that of the template which was really used, wherever it can still be found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from ..engine.building.planning import PROMPTS
from ..engine.merging.card import CardPrompt
from ..engine.recipe_book import find_template
from ..registry import Adapter, Build, Registry
from ..registry.errors import RecCocktailError
from ..tasks import TaskError, Template
from ..tasks.prompts import SHIPPED as TEMPLATES


def prompt_of_build(registry: Registry, build: Build, adapters: list[Adapter]) -> CardPrompt | None:
    """The wording of the prompts that the coefficients were found with, else of those that the adapters were trained on."""
    template = build.inputs.get("template")
    if not template:
        return prompt_of_adapters(registry, adapters)
    adaptive = build.recipe.get("adaptive") or {}
    found = _wording(registry, template["digest"], (adaptive.get("template"), template.get("name"))) or _kept_wording(
        registry, build
    )
    return found and replace(found, used="its coefficients were found with")


def prompt_of_adapters(registry: Registry, adapters: list[Adapter]) -> CardPrompt | None:
    """The wording that the last adapter (of a mixture, its own domain's) was trained with, where it can still be found."""
    for adapter in reversed(adapters):
        training = adapter.training
        places = training.template_name, training.template_option
        if training.template_digest and (found := _wording(registry, training.template_digest, places)):
            return found
    return None


def _wording(registry: Registry, digest: object, places: Iterable[object]) -> CardPrompt | None:
    """The template of that digest, which may lie at one of these places or be one that ships."""
    shipped = sorted(path.stem.removeprefix("template_") for path in TEMPLATES.glob("template_*.yaml"))
    for place in (*places, *shipped):
        if not isinstance(place, str):
            continue
        try:
            found = find_template(registry, place)
        except (TaskError, OSError, ValueError):  # gone, or never on this machine
            continue
        if found.digest == digest:
            return _card_prompt(found)
    return None


def _kept_wording(registry: Registry, build: Build) -> CardPrompt | None:
    """What the store has of the template: it is kept with the prompts, which stay here."""
    try:
        content = json.loads((registry.store.folder(build.inputs["prompts"]["digest"]) / PROMPTS).read_text("utf-8"))
        found = Template.model_validate(content["template"])
    except (RecCocktailError, OSError, ValueError, KeyError, TypeError):
        return None
    return _card_prompt(found) if found.digest == build.inputs["template"]["digest"] else None


def _card_prompt(template: Template) -> CardPrompt:
    return CardPrompt(template.name, template.system, template.user, template.separator)
