"""Asking for a build of a domain, whatever it has: a merge by a recipe, or the index of a bi-tuning; and which domains are due for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...registry import Registry, Request
from ...registry.catalog.records import Record
from ...registry.errors import UsageError
from ..recipe_book import find_recipe, own_recipe, recipe_ref
from ..recipes import Recipe, parse_recipe
from .freshness import Freshness, freshness_by_domain
from .indexing import bi_tuning_of, has_only_bi_tunings, request_index, stale_indexes
from .planning import request


@dataclass(frozen=True)
class BuildOrder:
    """What is to be built of a domain: by its own recipe, by a `recipe` (a name or file) or its `content`, or the index of an `adapter`.

    An equal build is answered with, unless `force` is set.
    """

    domain: str
    recipe: str | None = None
    content: Mapping[str, Any] | None = None
    adapter: str | None = None
    base: str | None = None
    force: bool = False

    @property
    def has_recipe(self) -> bool:
        return self.recipe is not None or self.content is not None


def ask_for_build(registry: Registry, order: BuildOrder) -> Request:
    """The build, and whether it is new. Raises NotFoundError, RecipeError, UsageError for an adapter and a recipe."""
    if order.adapter is not None and order.has_recipe:
        raise UsageError("an index has no recipe", hint="build request DOMAIN --adapter REF")
    domain = registry.domains.get(order.domain)
    if order.adapter is not None or (not order.has_recipe and has_only_bi_tunings(registry, domain.name, order.base)):
        row = bi_tuning_of(registry, domain.name, order.adapter, order.base)
        return request_index(registry, row, force=order.force)
    named = None
    if order.content is not None:
        recipe = parse_recipe(order.content, where="the recipe")
    elif order.recipe is not None:
        recipe, named = find_recipe(registry, order.recipe), recipe_ref(registry, order.recipe)
    else:
        recipe = own_recipe(registry, domain.recipe)
    return request(registry, domain.name, recipe, base=order.base, force=order.force, named=named)


@dataclass(frozen=True)
class Due(Record):
    """The domains that a build is to be requested of, and the bi-tunings whose index is stale, by reference and base.

    `blocked` and `skipped` say of others why not; `ready` has the build that only has to be promoted. `held_up` is whether one that is blocked
    was built before.
    """

    domains: tuple[str, ...] = ()
    indexes: tuple[tuple[str, str], ...] = ()
    blocked: Mapping[str, str] = field(default_factory=dict)
    ready: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    held_up: bool = False


def builds_due(registry: Registry, *, every: bool, recipe: Recipe | None = None, base: str | None = None) -> Due:
    """Of `every` domain that can be built, or of those without a build of their present inputs; with a `recipe`, as if it were their own."""
    states = freshness_by_domain(registry, base=base, recipe=recipe)
    indexes = [each.adapter for each in stale_indexes(registry)] if not every and recipe is None else []
    wanted = ("fresh", "ready", "stale", "unbuilt") if every else ("stale", "unbuilt")
    stuck = {
        name: state
        for name, state in states.items()
        if state.state == "blocked" and not has_only_bi_tunings(registry, name, base)
    }
    return Due(
        domains=tuple(name for name, state in states.items() if state.state in wanted and not state.needs_data),
        indexes=tuple((row.ref, row.base) for row in indexes),
        blocked={name: _why(state) for name, state in stuck.items()},
        ready={name: state.ready.id for name, state in states.items() if state.ready is not None and not every},
        skipped={name: _why(state) for name, state in states.items() if state.state == "cold" or state.needs_data},
        held_up=recipe is None and any(state.build is not None for state in stuck.values()),
    )


def _why(state: Freshness) -> str:
    return "; ".join(state.reasons)
