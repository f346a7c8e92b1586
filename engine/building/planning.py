"""Builds of a domain: what they would be made of, requests for them, how domains stand, and what came of them.

A request resolves its inputs to digests and writes them into the row, so that a build depends on nothing that can move.
What computes is imported where it is used: torch is not needed to report the state of builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ...registry import Adapter, Base, Build, Domain, Registry, Request
from ...registry.catalog.collecting import request_options
from ...registry.catalog.references import MERGE, SPIRIT, Reference
from ...registry.digests import DigestMemory, digest_of_json
from ...registry.errors import (
    NotFoundError,
    RecCocktailError,
    StoreError,
    UsageError,
)
from ...tasks import Question, Split, Template, questions, write_questions
from ...tasks.data import READING
from ..coefficients import Weight, mean
from ..errors import AdaptationError
from ..merging.card import CardAdaptation, CardFacts, CardInput
from ..merging.journal import FORMAT_VERSION
from ..recipe_book import DEFAULT as DEFAULT
from ..recipe_book import find_template, own_recipe, says_the_same
from ..recipes import OWN_ROLES, SHIPPED, Coefficient, Recipe, Role
from .labels import keep_labels
from .pseudo import keep_pseudo_users

PROMPTS, LABELLED = "prompts.json", "labelled.json"  # what an adaptive build asks, in a folder of the store
FIXED = ", ".join(name for name, (_, recipe) in SHIPPED.items() if recipe.adaptive is None)


class NoDataError(UsageError):
    """A recipe wants to look at a domain's data, and the domain has none: other recipes can be built."""


@dataclass(frozen=True)
class Plan:
    """What a build of a domain would be made of right now, and the key that follows from it."""

    domain: str
    base: Base
    recipe: Recipe
    inputs: dict
    key: str


def plan(registry: Registry, domain: str, recipe: Recipe, *, base: str | None = None) -> Plan:
    """Resolve a domain's current inputs. Raises NotFoundError, UsageError when spirit and ingredient do not fit."""
    return plan_with(live_lookups(registry), registry.domains.get(domain), recipe, base)


@dataclass(frozen=True)
class Lookups:
    """Where a plan finds what it is made of: `adapter(name, base)` is what the bare name means now."""

    adapter: Callable[[str, str | None], Adapter]
    base: Callable[[str], Base]
    recipe: Callable[[str], Recipe]
    template: Callable[[str], Template]
    data_digest: Callable[[str], str]


def live_lookups(registry: Registry) -> Lookups:
    """Lookups that ask the registry each time."""
    return Lookups(
        adapter=lambda name, base: registry.adapters.resolve(name, base=base),
        base=registry.bases.get,
        recipe=lambda text: own_recipe(registry, text),
        template=lambda text: find_template(registry, text),
        data_digest=lambda data: data_digest(registry, data),
    )


def plan_with(look: Lookups, domain: Domain, recipe: Recipe, base: str | None) -> Plan:
    adapters: dict[Role, Adapter] = {}
    # The ingredient first, since it says which base is meant.
    for role in sorted(recipe.roles, key=lambda role: role != "ingredient"):
        name = {"ingredient": domain.name, "spirit": SPIRIT}.get(role, role)
        if Reference.parse(name).name == domain.name and role != "ingredient":
            raise UsageError(f"the recipe names {role} as a neighbour of its own domain {domain.name}")
        try:
            adapters[role] = look.adapter(name, base)
        except NotFoundError:
            if role == "ingredient" and recipe.adaptive is not None:
                continue  # a cold domain: what there is, is mixed
            raise
        base = adapters[role].base
    roles = [role for role in recipe.roles if role in adapters]
    seen: dict[str, Role] = {}
    for role in roles:
        twin = seen.setdefault(adapters[role].digest, role)
        if twin != role and twin not in OWN_ROLES:
            raise UsageError(f"the recipe names {adapters[role].ref} twice, as {twin} and as {role}")
    assert base is not None
    base_model = look.base(base)
    inputs: dict = {
        "base": {"name": base_model.name, "digest": base_model.digest},
        "adapters": [{"role": r, "ref": adapters[r].ref, "digest": adapters[r].digest} for r in roles],
    }
    if recipe.adaptive is not None and not _needs_no_search(recipe, roles) and not _takes_average(recipe, domain):
        if domain.data is None:
            raise NoDataError(
                f"domain {domain.name!r} has no data, which an adaptive recipe needs; {FIXED} need none",
                hint=f"`reccocktail build request {domain.name} --recipe average`, or `reccocktail domain add {domain.name} --data DIR`",
            )
        template = look.template(recipe.adaptive.template)
        recipe.adaptive.expect_lists(template)
        recipe = recipe.with_absolute_template()  # the worker may run in another folder
        inputs["data"] = {"path": domain.data, "digest": look.data_digest(domain.data)}
        inputs["template"] = {"name": template.name, "digest": template.digest}
    return Plan(domain.name, base_model, recipe, inputs, _key(domain.name, recipe, inputs))


def _needs_no_search(recipe: Recipe, roles: Sequence[Role]) -> bool:
    """Whether there is one adapter alone whose coefficients sum to 1."""
    return recipe.adaptive is not None and len(roles) == 1 and recipe.adaptive.constraint in ("simplex", "softmax")


def _takes_average(recipe: Recipe, domain: Domain) -> bool:
    """Whether the recipe says what to do for a domain without data, which has no labelled users."""
    adaptive = recipe.adaptive
    ranks = adaptive is not None and adaptive.objective == "ranking" and adaptive.too_few_labels == "average"
    return ranks and domain.data is None


own_version = cache(version)


def data_digest(registry: Registry, data: str) -> str:
    """The digest of a domain's data, remembered under the home until a file of the folder changes.

    Raises what `read_domain` raises, and StoreError.
    """
    place, where = registry.settings.own_folder("cache") / "data", registry.data_folder(data)
    memory = DigestMemory(place, version=own_version("reccocktail"), reading=READING)

    def read() -> str:
        from ...tasks import read_domain  # the readers import numpy, and `status` seldom reads data

        return read_domain(where).digest

    return memory.digest(where, read)


def _key(domain: str, recipe: Recipe, inputs: dict) -> str:
    """SHA-256 over everything that determines the weights and their metadata files.

    The domain and the base's name are in the metadata files; the paths of data and templates are not.
    """
    content = recipe.to_json()
    if recipe.adaptive is not None:
        # Where templates lie does not matter; what is left to be chosen does, should the choice ever change.
        del content["adaptive"]["template"]
        content["adaptive"].pop("search", None)
        if recipe.adaptive.searching == "gradient":
            content["adaptive"] |= {"search": "gradient", "learning_rates": list(recipe.adaptive.rates)}
    return digest_of_json(
        {
            "domain": domain,
            "base": [inputs["base"]["name"], inputs["base"]["digest"]],
            "adapters": [[a["role"], a["digest"]] for a in inputs["adapters"]],
            "recipe": content,
            "data": inputs.get("data", {}).get("digest"),
            "template": inputs.get("template", {}).get("digest"),
            "format": FORMAT_VERSION,
        }
    )


def request(
    registry: Registry,
    domain: str,
    recipe: Recipe,
    *,
    base: str | None = None,
    force: bool = False,
    named: str | None = None,
) -> Request:
    """Ask for a build; an equal one that is queued, running or succeeded is returned instead of a new row.

    One by another recipe than the domain's own is an experiment: it is built, and does not represent the domain. `named` is
    what the recipe is called where it has a name that lasts, for the build's record.
    """
    planned = plan(registry, domain, recipe, base=base)
    row = registry.domains.get(domain)
    is_own = _is_own(registry, row, recipe)
    if is_own:
        named = row.recipe or DEFAULT
    if named is not None:
        planned.inputs["recipe"] = {"ref": named, "digest": recipe.digest}
    if "data" in planned.inputs and not registry.builds.has_reusable_build(planned.key, force=force):
        _keep_prompts(registry, planned)
    return registry.builds.request(
        planned.domain,
        planned.base.name,
        planned.key,
        planned.recipe.to_json(),
        planned.inputs,
        force=force,
        own_recipe=is_own,
    )


def _is_own(registry: Registry, domain: Domain, recipe: Recipe) -> bool:
    """Whether the recipe says what the domain's own does, however it was named."""
    try:
        return says_the_same(registry, own_recipe(registry, domain.recipe), recipe)
    except RecCocktailError:
        return False


def _keep_prompts(registry: Registry, planned: Plan) -> None:
    """Store what an adaptive build asks the model: its worker may be on a machine that has neither the data nor the template.

    The plan's inputs get the digest of what was stored, and how many labelled users or pseudo-users there are.
    """
    adaptive = planned.recipe.adaptive
    assert adaptive is not None
    from ...tasks import read_domain

    data = read_domain(registry.data_folder(planned.inputs["data"]["path"]), planned.domain)
    template = find_template(registry, adaptive.template)
    for name, digest in ("data", data.digest), ("template", template.digest):
        if digest != planned.inputs[name]["digest"]:
            raise AdaptationError(
                f"the {name} of {planned.domain} changed while the build was requested", hint="request it again"
            )

    def drawn(split: Split, limit: int) -> list[Question]:
        return questions(data, split, template, n_negatives=adaptive.negatives, seed=adaptive.seed, limit=limit)[1]

    with registry.store.staging("prompts") as folder:
        if adaptive.objective == "ranking":
            adapters = [registry.adapters.resolve(a["ref"], base=planned.base.name) for a in planned.inputs["adapters"]]
            planned.inputs["labels"] = keep_labels(folder, data, template, adaptive, adapters)
        elif adaptive.objective == "agreement":
            planned.inputs["pseudo_users"] = keep_pseudo_users(folder, data, template, adaptive)
        else:
            write_questions(
                folder / PROMPTS,
                drawn("validation" if adaptive.adaptation_set == "validation" else "test", adaptive.prompts),
            )
            write_questions(folder / LABELLED, drawn("validation", adaptive.labels) if adaptive.labels else [])
        planned.inputs["prompts"] = {"digest": registry.store.adopt(folder).digest}


def is_later(one: Build, other: Build) -> bool:
    assert one.finished_at is not None
    assert other.finished_at is not None
    return (one.finished_at, one.id) > (other.finished_at, other.id)


def called(role: Role) -> str:
    """How an adapter is called beside the base: a neighbour's domain may have any name."""
    return role if role in OWN_ROLES else f"neighbour {role}"


def card_facts(
    registry: Registry,
    build: Build,
    coefficients: Mapping[Role, Coefficient | Weight],
    *,
    recipe: str | None = None,
    adaptive: CardAdaptation | None = None,
    tokenizer: str | None = None,
) -> CardFacts:
    """The card as the build itself makes it; `publishing` adds what is known when it is published."""
    base = registry.bases.get(build.base)
    return CardFacts(
        title=f"{build.domain}: {base.name} with a RecCocktail",
        kind="adapter" if build.recipe["output"].get("format") == "adapter" else "checkpoint",
        domain=build.domain,
        domain_title=registry.domains.get(build.domain).title,
        base_name=base.name,
        base_source=base.source if base.revision else None,  # a folder's path may look like a repository
        license=None,
        method=build.recipe["method"],
        coefficients={role: mean(value) for role, value in coefficients.items()},
        inputs=tuple(
            CardInput(a["role"], a["ref"], a["digest"], lacks=known.training.lacking)
            for a in build.inputs["adapters"]
            for known in [registry.adapters.resolve(a["ref"], base=build.base)]
        ),
        adaptive=adaptive,
        metrics=None,
        dtype=build.recipe["output"].get("dtype") or base.dtype,
        recipe=recipe,
        reccocktail_version=version("reccocktail"),
        tokenizer=tokenizer,
    )


def result_folder(registry: Registry, build: Build, kind: str | None = MERGE) -> Path:
    """The result of a succeeded build of this kind, by default a merged checkpoint, fetched to this machine where it is not here yet.

    Raises WrongKindError, ConflictError for a build without a result or whose result was removed, StoreError when its files are gone or cannot be fetched.
    """
    digest = build.stored_digest(kind)
    if not registry.store.has(digest):
        raise StoreError(
            f"the files of build {build.id} ({digest}) are missing from the store",
            hint=f"restore the store, or build again: `reccocktail build request {build.domain}{request_options(build.inputs)} --force --wait`",
        )
    return registry.store.folder(digest)
