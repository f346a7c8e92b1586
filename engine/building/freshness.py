"""Whether a domain is fresh, stale, unbuilt, cold or blocked, and which input changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from ...registry import Adapter, Build, Domain, Registry
from ...registry.catalog.references import SPIRIT, did_you_mean
from ...registry.errors import (
    NotFoundError,
    RecCocktailError,
    UsageError,
)
from ...tasks import load_template
from ..recipes import Recipe, load_recipe
from .planning import DEFAULT, Lookups, Plan, data_digest, is_later, live_lookups, plan_with


@dataclass(frozen=True)
class Freshness:
    """Where a domain stands: the build that would be published, and whether it is what a build would be now.

    `state` is `fresh`, `stale` (with what moved in `reasons`), `unbuilt`, `cold` (not built, and there is only a spirit to build it
    of), or `blocked` (with why no build can be requested).
    `why` says why it is that build. `trial` is the domain's newest build if that is an experiment by another recipe, which stands
    for nothing. `spirit` and `ingredient` are what the bare names mean now, where that is one version.
    """

    state: str
    reasons: tuple[str, ...] = ()
    build: Build | None = None
    spirit: str | None = None
    ingredient: str | None = None
    why: str | None = None
    trial: Build | None = None


def freshness_of(registry: Registry, domain: str, *, base: str | None = None) -> Freshness:
    """A build of the current inputs makes a domain fresh even if others finished later: going back is no change."""
    row = registry.domains.get(domain)
    look = live_lookups(registry)
    now = _now(look, row, base)
    found = None if isinstance(now, str) else registry.builds.newest_succeeded(domain, key=now.key)
    last, own = registry.builds.newest_succeeded(domain), registry.builds.newest_own(domain)
    return _explained(_judged(look, row, base, now, own or found, found, registry.store.has), row, last)


def chosen(registry: Registry, domain: str, *, base: str | None = None) -> Freshness:
    """Where a domain stands that has a build to be published or served. Raises NotFoundError where it has none."""
    found = freshness_of(registry, domain, base=base)
    if found.build is None:
        if found.trial is None:
            raise NotFoundError(
                f"domain {domain!r} has no succeeded build", hint=f"reccocktail build request {domain} --wait"
            )
        raise NotFoundError(
            f"domain {domain!r} has only builds by other recipes than its own, and none of them represents it",
            hint=f"reccocktail build request {domain} --wait; or name a build by its id, such as {found.trial.id}",
        )
    if base is not None and found.build.base != base:
        raise NotFoundError(f"the build of {domain!r} is on the base model {found.build.base!r}, not on {base!r}")
    return found


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
        self._last = registry.builds.newest_succeeded_by_domain()
        self._newest = registry.builds.newest_own_by_domain()
        look = snapshot_lookups(registry)
        self._look = look if recipe is None else replace(look, recipe=lambda name: recipe)
        self._succeeded_with_keys = registry.builds.succeeded_with_keys
        self._stored = cache(registry.store.digests)
        self._plans: dict[tuple[str, str | None], Plan | str] = {}
        self._current: dict[str, Build | None] = {build.key: build for build in self._newest.values()}
        """By key, the newest succeeded build of it."""

    def of(self, places: Iterable[tuple[str, str | None]]) -> dict[tuple[str, str | None], Freshness]:
        """`standing` for each (domain, base), at one query for all that is not known yet."""
        plans = {place: self._plan(*place) for place in places}
        asked = {
            now.key for (name, _), now in plans.items() if isinstance(now, Plan) and name in self._last
        } - self._current.keys()
        self._current |= dict.fromkeys(asked) | self._succeeded_with_keys(asked)
        return {place: self._judge(*place, now) for place, now in plans.items()}

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
        own, row = self._newest.get(name) or current, self.domains[name]
        found = _judged(self._look, row, base, now, own, current, lambda d: d in self._stored())
        return _explained(found, row, self._last.get(name))


def _now(look: Lookups, domain: Domain, base: str | None) -> Plan | str:
    """What a build of the domain would be made of, or why there can be none."""
    try:
        return plan_with(look, domain, look.recipe(domain.recipe or DEFAULT), base)
    except RecCocktailError as error:
        return str(error)


def _judged(
    look: Lookups,
    domain: Domain,
    base: str | None,
    now: Plan | str,
    newest: Build | None,
    current: Build | None,
    stored: Callable[[str], bool],
) -> Freshness:
    """`newest` is the domain's newest build by its own recipe, `current` the newest of the key that `now` has."""
    ingredient = _one(look, domain.name, base)
    spirit = _one(look, SPIRIT, ingredient.base if ingredient else base)
    refs = (spirit.ref if spirit else None, ingredient.ref if ingredient else None)
    if isinstance(now, str):
        return Freshness("blocked", (now,), newest, *refs)
    is_cold = "ingredient" in now.recipe.roles and "ingredient" not in {a["role"] for a in now.inputs["adapters"]}
    if newest is None:
        if is_cold and len(now.inputs["adapters"]) == 1:
            return Freshness("cold", ("no ingredient yet; a build would be the spirit alone",), None, *refs)
        return Freshness("unbuilt", (), None, *refs)
    if is_cold and any(adapter["role"] == "ingredient" for adapter in newest.inputs["adapters"]):
        why = f"{domain.name!r} no longer has the ingredient of its newest build"
        return Freshness("blocked", (f"{why}; request it by name to build without it",), newest, *refs)
    if current is None:
        return Freshness("stale", tuple(_moved(newest, now)) or ("engine format",), newest, *refs)
    if current.digest is None or not stored(current.digest):
        return Freshness("stale", ("its files are missing from the store",), current, *refs)
    return Freshness("fresh", (), current, *refs)


def _explained(found: Freshness, domain: Domain, last: Build | None) -> Freshness:
    """With why it is that build; `last` is the domain's newest succeeded build, whatever its recipe."""
    build = found.build
    recipe = f"the domain's own recipe, {domain.recipe or DEFAULT}"
    if build is None:
        why = None
    elif found.state == "fresh":
        why = f"it is of the current inputs, by {recipe}"
    elif build.own_recipe is None:
        why = "it is the newest; it was not recorded whether it has the domain's own recipe"
    else:
        why = "it is the newest by the domain's own recipe" + (" of then" if "recipe" in found.reasons else "")
    is_trial = last is not None and last.own_recipe is False and (build is None or is_later(last, build))
    return replace(found, why=why, trial=last if is_trial else None)


def _one(look: Lookups, name: str, base: str | None) -> Adapter | None:
    try:
        return look.adapter(name, base)
    except (NotFoundError, UsageError):
        return None


def snapshot_lookups(registry: Registry) -> Lookups:
    """Lookups in what was read once, to go through all domains; they fail as the registry's own do."""
    bases = {base.name: base for base in registry.bases.list()}
    placed = registry.adapters.placed()
    versions: dict[str, dict[str, Adapter]] = {}
    for version_ in registry.adapters.current():
        versions.setdefault(version_.domain or SPIRIT, {})[version_.base] = version_

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
        where = "" if base is None else f" for base model {base!r}"
        if any(name == domain and base in (None, its_base) for its_base, domain in placed):
            raise NotFoundError(f"there is no {name!r}{where}")
        raise NotFoundError(f"{name!r} has no adapter yet{where}")

    return Lookups(
        adapter=adapter,
        base=lambda name: bases[name] if name in bases else registry.bases.get(name),
        recipe=cache(load_recipe),
        template=cache(load_template),
        data_digest=cache(lambda folder: data_digest(registry, folder)),
    )


def _moved(build: Build, now: Plan) -> Iterator[str]:
    before, after = build.inputs, now.inputs
    if before["base"]["digest"] != after["base"]["digest"]:
        yield f"base {before['base']['name']} → {after['base']['name']}"
    old = {a["role"]: a for a in before["adapters"]}
    new = {a["role"]: a for a in after["adapters"]}
    for role in dict.fromkeys(("spirit", "ingredient", *old, *new)):
        was, now_is = old.get(role), new.get(role)
        if (was or {}).get("digest") != (now_is or {}).get("digest"):
            yield f"{role} {was['ref'] if was else 'none'} → {now_is['ref'] if now_is else 'none'}"
    if build.recipe != now.recipe.to_json():
        yield "recipe"
    for name in ("data", "template"):
        if name in before and name in after and before[name]["digest"] != after[name]["digest"]:
            yield name
