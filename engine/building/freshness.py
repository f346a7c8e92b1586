"""Which build a domain serves, whether that is fresh, and which input changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ...registry import Adapter, Build, Domain, Registry
from ...registry.catalog.evaluations import Weights
from ...registry.catalog.lookup import no_champion
from ...registry.catalog.references import A_FILE, SPIRIT, did_you_mean
from ...registry.catalog.serving import BuildAlias
from ...registry.errors import (
    GateError,
    NotFoundError,
    RecCocktailError,
    UsageError,
)
from ..recipe_book import DEFAULT, find_template, own_recipe
from ..recipes import SHIPPED, Recipe
from .planning import Lookups, NoDataError, Plan, data_digest, is_later, live_lookups, plan_with


@dataclass(frozen=True)
class Freshness:
    """Where a domain stands: the build that it serves, and whether that is what a build would be now.

    `state` is `fresh`; `ready` (a build of the current inputs is there and is not served: it is `ready`); `stale` (there is none);
    `unbuilt`; `cold` (not built, and there is only a spirit to build it of); or `blocked` (with why no build can be requested).
    `needs_data` is set for an unbuilt domain that has adapters and no data: its own recipe cannot be built, and others can, by name.
    `reasons` say what moved since the build that is served. `served` is the alias that makes it that build, and `why` says so.
    `trial` is the domain's newest build if that is an experiment by another recipe, which stands for nothing.
    `spirit` and `ingredient` are what the bare names mean now, where that is one version; `champion` is what the ingredient is measured as.
    """

    state: str
    reasons: tuple[str, ...] = ()
    build: Build | None = None
    spirit: str | None = None
    ingredient: str | None = None
    why: str | None = None
    trial: Build | None = None
    needs_data: bool = False
    ready: Build | None = None
    served: BuildAlias | None = None
    champion: Weights | None = None


def freshness_of(registry: Registry, domain: str, *, base: str | None = None, look: Lookups | None = None) -> Freshness:
    """Where one domain stands now."""
    row = registry.domains.get(domain)
    look = look or remembering(live_lookups(registry))
    now = _now(look, row, base)
    current = None if isinstance(now, str) else registry.builds.newest_succeeded(domain, key=now.key)
    served = _served(registry.serving.served(domain), now, base)
    build = None if served is None else registry.builds.get(served.build)
    found = _judged(look, row, base, now, build, current, registry.store.has)
    found = replace(found, champion=_champion(look, domain, base))
    return _explained(found, served, registry.builds.newest_succeeded(domain))


def freshness_if(registry: Registry, build: Build) -> Freshness:
    """Where the build's domain would stand if it served that build."""
    row = registry.domains.get(build.domain)
    look = live_lookups(registry)
    now = _now(look, row, build.base)
    current = None if isinstance(now, str) else registry.builds.newest_succeeded(build.domain, key=now.key)
    return _judged(look, row, build.base, now, build, current, registry.store.has)


def chosen(registry: Registry, domain: str, *, base: str | None = None) -> Freshness:
    """Where a domain stands that serves a build, for that base if one is named. Raises NotFoundError where it serves none.

    Raises UsageError where it serves builds for several base models and neither `base` nor its adapters say which is meant.
    """
    found = freshness_of(registry, domain, base=base)
    if found.build is not None:
        bases = sorted(each.base for each in registry.serving.served(domain))
        if base is None and found.state == "blocked" and len(bases) > 1:
            names = " and ".join(bases)
            raise UsageError(
                f"domain {domain!r} serves builds for several base models: {names}", hint="say --base NAME"
            )
        return found
    if base is not None and (others := registry.serving.served(domain)):
        raise NotFoundError(f"the build of {domain!r} is on the base model {others[0].base!r}, not on {base!r}")
    if found.ready is not None:
        raise NotFoundError(
            f"domain {domain!r} serves no build; build {found.ready.id} is of what it has now",
            hint=f"reccocktail build promote {found.ready.id}",
        )
    if found.trial is not None:
        raise NotFoundError(
            f"domain {domain!r} has only builds by other recipes than its own, and none of them represents it",
            hint=f"reccocktail build request {domain} --wait; or name a build by its id, such as {found.trial.id}",
        )
    if (last := registry.builds.newest_succeeded(domain)) is not None:
        raise NotFoundError(f"domain {domain!r} serves no build", hint=f"reccocktail build promote {last.id}")
    from .indexing import has_only_bi_tunings  # which imports more than most need

    if has_only_bi_tunings(registry, domain, base):
        raise NotFoundError(
            f"domain {domain!r} has a bi-tuning and nothing to merge, so it has no checkpoint",
            hint=f"`reccocktail recommend {domain} --user USER` asks it; `reccocktail build list --domain {domain} --kind index` has its indexes, by id",
        )
    raise NotFoundError(f"domain {domain!r} has no succeeded build", hint=f"reccocktail build request {domain} --wait")


def freshness_by_domain(
    registry: Registry, *, base: str | None = None, recipe: Recipe | None = None
) -> dict[str, Freshness]:
    """Where every domain stands, by name: `standing` for all at once, in as many queries for many domains as for few.

    With a `recipe`, as if it were every domain's own.
    """
    every = FreshnessIndex(registry, recipe=recipe)
    return {name: state for (name, _), state in every.of((name, base) for name in every.domains).items()}


class FreshnessIndex:
    """Where domains stand, for one base model or another, all by what was in the registry at the beginning."""

    def __init__(self, registry: Registry, *, recipe: Recipe | None = None) -> None:
        self.domains = {row.name: row for row in registry.domains.list()}
        self._trials = registry.builds.newest_succeeded_by_domain(own_recipe=False)
        self._served = registry.serving.served_by_domain()
        self._registry = registry
        self._builds: dict[str, Build] = {}
        self._fetch(each.build for served in self._served.values() for each in served)
        look = snapshot_lookups(registry, self.domains.values())
        self._look = look if recipe is None else replace(look, recipe=lambda name: recipe)
        self._stored = cache(registry.store.digests)
        self._plans: dict[tuple[str, str | None], Plan | str] = {}
        self._current: dict[str, Build | None] = {}
        """By key, the newest succeeded build of it, if there is one."""

    def of(self, places: Iterable[tuple[str, str | None]]) -> dict[tuple[str, str | None], Freshness]:
        """`standing` for each (domain, base), at one query for all that is not known yet."""
        plans = {place: self._plan(*place) for place in places}
        asked = {now.key for now in plans.values() if isinstance(now, Plan)} - self._current.keys()
        newest = self._registry.builds.ids_succeeded_with_keys(asked)
        self._fetch(newest.values())
        self._current |= dict.fromkeys(asked) | {key: self._builds[id_] for key, id_ in newest.items()}
        return {place: self._judge(*place, now) for place, now in plans.items()}

    def _fetch(self, ids: Iterable[str]) -> None:
        """Most are known: what is served is mostly of what there is now."""
        if missing := {*ids} - self._builds.keys():
            self._builds |= self._registry.builds.with_ids(missing)

    def _plan(self, name: str, base: str | None) -> Plan | str:
        if base is not None:
            # where bare names mean versions for one base only, naming it changes nothing
            freely = self._plan(name, None)
            if isinstance(freely, Plan) and freely.base.name == base:
                return freely
        if (name, base) not in self._plans:
            self._plans[name, base] = _now(self._look, self.domains[name], base)
        return self._plans[name, base]

    def _judge(self, name: str, base: str | None, now: Plan | str) -> Freshness:
        current = self._current.get(now.key) if isinstance(now, Plan) else None
        served, row = _served(self._served.get(name, ()), now, base), self.domains[name]
        build = None if served is None else self._builds[served.build]
        found = _judged(self._look, row, base, now, build, current, lambda d: d in self._stored())
        found = replace(found, champion=_champion(self._look, name, base))
        return _explained(found, served, self._trials.get(name))


def _served(served: Sequence[BuildAlias], now: Plan | str, base: str | None) -> BuildAlias | None:
    """Of what a domain serves, that for the base; without one, for the base that its adapters name, else what moved last."""
    if base is None and len(served) > 1 and isinstance(now, Plan):
        base = next((each.base for each in served if each.base == now.base.name), None)
    return next((each for each in served if base in (None, each.base)), None)


def _now(look: Lookups, domain: Domain, base: str | None) -> Plan | str:
    """What a build of the domain would be made of, or why there can be none."""
    try:
        return plan_with(look, domain, look.recipe(domain.recipe or DEFAULT), base)
    except NoDataError as error:
        return _LacksData(error)
    except RecCocktailError as error:
        return str(error)


class _LacksData(str):
    """Why there can be no build by the domain's own recipe, while there can be one by another."""

    __slots__ = ()


def _judged(
    look: Lookups,
    domain: Domain,
    base: str | None,
    now: Plan | str,
    served: Build | None,
    current: Build | None,
    stored: Callable[[str], bool],
) -> Freshness:
    """`served` is what the domain serves, `current` the newest build of the key that `now` has."""
    ingredient = _one(look, domain.name, base)
    spirit = _one(look, SPIRIT, ingredient.base if ingredient else base)
    refs = (spirit.ref if spirit else None, ingredient.ref if ingredient else None)
    if isinstance(now, _LacksData) and served is None and ingredient is not None:
        return Freshness("unbuilt", (str(now),), None, *refs, needs_data=True)
    if isinstance(now, str):
        return Freshness("blocked", (str(now),), served, *refs)
    is_cold = "ingredient" in now.recipe.roles and "ingredient" not in {a["role"] for a in now.inputs["adapters"]}
    ready = current if current is not None and current.digest is not None and stored(current.digest) else None
    if served is None:
        if ready is not None:
            return Freshness("ready", ("no build is served",), None, *refs, ready=ready)
        if is_cold and len(now.inputs["adapters"]) == 1:
            return Freshness("cold", ("no ingredient yet; a build would be the spirit alone",), None, *refs)
        return Freshness("unbuilt", (), None, *refs)
    if is_cold and any(adapter["role"] == "ingredient" for adapter in served.inputs["adapters"]):
        why = f"{domain.name!r} no longer has the ingredient of the build that it serves"
        return Freshness("blocked", (f"{why}; request it by name to build without it",), served, *refs)
    if served.digest is None or not stored(served.digest):
        return Freshness("stale", ("its files are missing from the store",), served, *refs, ready=ready)
    if served.key == now.key:
        return Freshness("fresh", (), served, *refs)
    moved = tuple(_moved(served, now, domain.recipe or DEFAULT)) or ("engine format",)
    return Freshness("stale" if ready is None else "ready", moved, served, *refs, ready=ready)


def _explained(found: Freshness, served: BuildAlias | None, last: Build | None) -> Freshness:
    """With why it is that build; `last` is the domain's newest succeeded build, which matters where its recipe is not the domain's own."""
    build = found.build
    why = None if served is None else f"it is {served.alias} since {served.since:%Y-%m-%d %H:%M} UTC, by {served.by}"
    if build is not None and build.own_recipe is False:
        why = f"{why}; its recipe is not the domain's own"
    is_trial = last is not None and last.own_recipe is False and (build is None or is_later(last, build))
    return replace(found, why=why, trial=last if is_trial else None, served=served)


def _one(look: Lookups, name: str, base: str | None) -> Adapter | None:
    try:
        return look.adapter(name, base)
    except (NotFoundError, GateError, UsageError):
        return None


def _champion(look: Lookups, name: str, base: str | None) -> Weights | None:
    row = _one(look, name, base)
    return None if row is None else Weights(row.digest, look.base(row.base).digest)


def snapshot_lookups(registry: Registry, domains: Iterable[Domain] = ()) -> Lookups:
    """Lookups in what was read once, to go through all domains; they fail as the registry's own do.

    The recipes of the `domains` are read at once, too, and the templates that they name.
    """
    contents = registry.recipes.contents({row.recipe for row in domains if row.recipe and row.recipe not in SHIPPED})
    templates = registry.templates.contents({name for content in contents.values() if (name := _template_of(content))})
    bases = {base.name: base for base in registry.bases.list()}
    placed = registry.adapters.placed()
    versions: dict[str, dict[str, Adapter]] = {}
    held: dict[str, dict[str, Adapter]] = {}
    for places, rows in zip((versions, held), registry.adapters.current_and_held_back(), strict=True):
        for row in rows:
            places.setdefault(row.domain or SPIRIT, {})[row.base] = row

    def adapter(name: str, base: str | None) -> Adapter:
        here = versions.get(name, {})
        if base is None and len(here) == 1:
            return next(iter(here.values()))
        if base is not None and base in here:
            return here[base]
        if base is None and here:
            names = " and ".join(sorted(here))
            raise UsageError(f"{name!r} means versions for several base models: {names}", hint="say --base NAME")
        if base is not None and base not in bases:
            raise NotFoundError(
                f"there is no base model {base!r}{did_you_mean(base, bases)}", hint="`reccocktail base list` shows them"
            )
        if waiting := [row for its_base, row in held.get(name, {}).items() if base in (None, its_base)]:
            named = base if base is not None or len(waiting) == 1 else waiting[-1].base
            raise no_champion(name, waiting[-1].ref, named)
        where = "" if base is None else f" for base model {base!r}"
        if any(name == domain and base in (None, its_base) for its_base, domain in placed):
            raise NotFoundError(f"there is no {name!r}{where}")
        raise NotFoundError(f"{name!r} has no adapter yet{where}")

    return Lookups(
        adapter=adapter,
        base=lambda name: bases[name] if name in bases else registry.bases.get(name),
        recipe=cache(lambda text: own_recipe(registry, text, contents)),
        template=cache(lambda text: find_template(registry, text, templates)),
        data_digest=cache(lambda folder: data_digest(registry, folder)),
    )


def remembering(look: Lookups) -> Lookups:
    """The same, for questions at one moment: each is asked once."""
    return Lookups(
        adapter=cache(look.adapter),
        base=cache(look.base),
        recipe=cache(look.recipe),
        template=cache(look.template),
        data_digest=cache(look.data_digest),
    )


def _template_of(content: Mapping[str, Any]) -> str | None:
    adaptive = content.get("adaptive")
    return adaptive.get("template") if isinstance(adaptive, Mapping) else None


def _moved(build: Build, now: Plan, recipe: str) -> Iterator[str]:
    """What differs between a build and one that would be made now, by the domain's own recipe of that name."""
    return differences(build, now.inputs, now.recipe.to_json(), recipe)


def differences(
    build: Build, after: Mapping[str, Any], recipe: Mapping[str, Any], recipe_ref: str | None
) -> Iterator[str]:
    """What of the inputs and the recipe differs from what the build was made of, like `spirit v1 → v2`."""
    before = build.inputs
    if before["base"]["digest"] != after["base"]["digest"]:
        yield f"base {before['base']['name']} → {after['base']['name']}"
    old = {a["role"]: a for a in before["adapters"]}
    new = {a["role"]: a for a in after["adapters"]}
    for role in dict.fromkeys(("spirit", "ingredient", *old, *new)):
        was, now_is = old.get(role), new.get(role)
        if (was or {}).get("digest") != (now_is or {}).get("digest"):
            yield f"{role} {was['ref'] if was else 'none'} → {now_is['ref'] if now_is else 'none'}"
    if build.recipe != recipe:
        yield _recipe_moved(before.get("recipe", {}).get("ref"), recipe_ref)
    for name in ("data", "template"):
        if name in before and name in after and before[name]["digest"] != after[name]["digest"]:
            yield name


def _recipe_moved(was: str | None, now: str | None) -> str:
    """`recipe: v2 → v3`; with names where they differ. One without a name was read from a file."""
    if was is None and now is None:
        return "recipe: a file → another file"
    if was is None or now is None:
        return f"recipe: {was or A_FILE} → {now or A_FILE}"
    if was == now:
        return f"recipe: {was}, of which the content changed"
    (old, _, before), (new, _, after) = was.partition("@"), now.partition("@")
    return f"recipe: {before} → {after}" if old == new else f"recipe: {was} → {now}"
