"""Builds of a domain: what they would be made of, requests for them, how domains stand, and what came of them.

A request resolves its inputs to digests and writes them into the row, so that a build depends on nothing that can move.
What computes is imported where it is used: to tell how builds stand, torch is not needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ..registry import Adapter, Base, Build, Domain, Registry, Request
from ..registry.card import CardAdaptation, CardFacts, CardInput
from ..registry.digests import digest_of_json, write_whole
from ..registry.documents import OWN_LIMIT, read_object
from ..registry.errors import (
    ConflictError,
    InvalidArtifactError,
    NotFoundError,
    RecCocktailError,
    StoreError,
    UsageError,
)
from ..registry.references import SPIRIT, Reference, did_you_mean
from ..tasks import Question, Split, TaskError, Template, load_template, questions, read_domain, write_questions
from ..tasks.data import READING
from .coefficients import Weight, mean
from .errors import AdaptationError
from .journal import FORMAT_VERSION
from .recipes import OWN_ROLES, SHIPPED, Coefficient, Recipe, Role, load_recipe

DEFAULT = "default"  # the recipe of a domain that has none of its own
PROMPTS, LABELLED = "prompts.json", "labelled.json"  # what an adaptive build asks, in a folder of the store
FIXED = ", ".join(name for name, (_, recipe) in SHIPPED.items() if recipe.adaptive is None)
RACE_SECONDS = 2.0  # within a tick of the file system's clock a file can change without any sign of it


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
    return _planned(_asking(registry), registry.domains.get(domain), recipe, base)


@dataclass(frozen=True)
class _Lookups:
    """Where a plan finds what it is made of: `adapter(name, base)` is what the bare name means now."""

    adapter: Callable[[str, str | None], Adapter]
    base: Callable[[str], Base]
    recipe: Callable[[str], Recipe]
    template: Callable[[str], Template]
    data_digest: Callable[[str], str]


def _asking(registry: Registry) -> _Lookups:
    """Lookups that ask the registry each time."""
    return _Lookups(
        adapter=lambda name, base: registry.adapters.resolve(name, base=base),
        base=registry.bases.get,
        recipe=load_recipe,
        template=load_template,
        data_digest=lambda folder: _data_digest(registry, folder),
    )


def _planned(look: _Lookups, domain: Domain, recipe: Recipe, base: str | None) -> Plan:
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
    if recipe.adaptive is not None and not _needs_no_search(recipe, roles):
        if domain.data is None:
            raise UsageError(
                f"domain {domain.name!r} has no data, which an adaptive recipe needs; {FIXED} need none",
                hint=f"`reccocktail domain add {domain.name} --data DIR`, or `--recipe average`",
            )
        template = look.template(recipe.adaptive.template)
        recipe.adaptive.expect_lists(template)
        recipe = recipe.with_absolute_template()  # whoever carries the build out may work in another folder
        inputs["data"] = {"path": domain.data, "digest": look.data_digest(domain.data)}
        inputs["template"] = {"name": template.name, "digest": template.digest}
    return Plan(domain.name, base_model, recipe, inputs, _key(domain.name, recipe, inputs))


def _needs_no_search(recipe: Recipe, roles: Sequence[Role]) -> bool:
    """Whether there is one adapter alone whose coefficients sum to 1."""
    return recipe.adaptive is not None and len(roles) == 1 and recipe.adaptive.constraint in ("simplex", "softmax")


_own_version = cache(version)


def _data_digest(registry: Registry, folder: str) -> str:
    """The digest of a domain's data, remembered under the home until a file of the folder changes.

    Raises what `read_domain` raises.
    """
    place = Path(os.path.realpath(folder))
    files = _signs(place)
    note = (
        registry.settings.own_folder("cache") / "data" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"
    )
    about = {"version": _own_version("reccocktail"), "reading": READING, "folder": str(place), "files": files}
    with suppress(InvalidArtifactError):
        content = read_object(note, limit=OWN_LIMIT)
        if files and content == about | {"digest": content.get("digest")}:
            return str(content["digest"])
    digest = read_domain(Path(folder)).digest
    settled = all(seen[-1] < (time.time() - RACE_SECONDS) * 1e9 for seen in files.values())
    if files and settled and _signs(place) == files:
        with suppress(OSError, ValueError):  # a home that cannot be written costs time, nothing else
            write_whole(note, json.dumps(about | {"digest": digest}))
    return digest


def _signs(folder: Path) -> dict[str, list[int]]:
    """Inode, size and times of every file by its name, where a change shows; nothing if they cannot be seen."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return {}
    return {name: [seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns] for name, seen in sorted(found)}


def _key(domain: str, recipe: Recipe, inputs: dict) -> str:
    """SHA-256 over everything that decides the weights and what their papers say of them.

    The domain and the base's name are in the papers; where data and templates lie is not.
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
    registry: Registry, domain: str, recipe: Recipe, *, base: str | None = None, force: bool = False
) -> Request:
    """Ask for a build; an equal one that is queued, running or succeeded is returned instead of a new row.

    One by another recipe than the domain's own is an experiment: it is built, and does not stand for the domain.
    """
    planned = plan(registry, domain, recipe, base=base)
    if "data" in planned.inputs and not registry.builds.is_asked(planned.key, force=force):
        planned.inputs["prompts"] = {"digest": _keep_prompts(registry, planned)}
    return registry.builds.request(
        planned.domain,
        planned.base.name,
        planned.key,
        planned.recipe.to_json(),
        planned.inputs,
        force=force,
        own_recipe=_is_own(registry.domains.get(domain), recipe),
    )


def _is_own(domain: Domain, recipe: Recipe) -> bool:
    """Whether the recipe says what the domain's own does, however it was named."""
    try:
        own = load_recipe(domain.recipe or DEFAULT)
    except RecCocktailError:
        return False
    return own.with_absolute_template().to_json() == recipe.with_absolute_template().to_json()


def _keep_prompts(registry: Registry, planned: Plan) -> str:
    """Store what an adaptive build asks the model: its worker may be on a machine that has neither the data nor the template."""
    adaptive = planned.recipe.adaptive
    assert adaptive is not None
    data = read_domain(Path(planned.inputs["data"]["path"]), planned.domain)
    template = load_template(adaptive.template)
    for name, digest in ("data", data.digest), ("template", template.digest):
        if digest != planned.inputs[name]["digest"]:
            raise AdaptationError(
                f"the {name} of {planned.domain} changed while the build was requested", hint="request it again"
            )

    def drawn(split: Split, limit: int) -> list[Question]:
        return questions(data, split, template, n_negatives=adaptive.negatives, seed=adaptive.seed, limit=limit)[1]

    with registry.store.staging("prompts") as folder:
        write_questions(
            folder / PROMPTS,
            drawn("validation" if adaptive.adaptation_set == "validation" else "test", adaptive.prompts),
        )
        write_questions(folder / LABELLED, drawn("validation", adaptive.labels) if adaptive.labels else [])
        return registry.store.adopt(folder).digest


@dataclass(frozen=True)
class Standing:
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


def standing(registry: Registry, domain: str, *, base: str | None = None) -> Standing:
    """A build of the present inputs makes a domain fresh even if others finished later: going back is no change."""
    row = registry.domains.get(domain)
    look = _asking(registry)
    now = _now(look, row, base)
    found = None if isinstance(now, str) else registry.builds.newest_succeeded(domain, key=now.key)
    last, own = registry.builds.newest_succeeded(domain), registry.builds.newest_own(domain)
    return _explained(_judged(look, row, base, now, own or found, found, registry.store.has), row, last)


def chosen(registry: Registry, domain: str, *, base: str | None = None) -> Standing:
    """Where a domain stands that has a build to be published or served. Raises NotFoundError where it has none."""
    found = standing(registry, domain, base=base)
    if found.build is None:
        if found.trial is None:
            raise NotFoundError(
                f"domain {domain!r} has no succeeded build", hint=f"reccocktail build request {domain} --wait"
            )
        raise NotFoundError(
            f"domain {domain!r} has builds by other recipes than its own alone, and none of them stands for it",
            hint=f"reccocktail build request {domain} --wait; or name a build by its id, such as {found.trial.id}",
        )
    if base is not None and found.build.base != base:
        raise NotFoundError(f"the build of {domain!r} is on the base model {found.build.base!r}, not on {base!r}")
    return found


def standings(registry: Registry, *, base: str | None = None, recipe: Recipe | None = None) -> dict[str, Standing]:
    """Where every domain stands, by name: `standing` for all at once, in as many queries for many domains as for few.

    With a `recipe`, as if it were every domain's own.
    """
    every = Standings(registry, recipe=recipe)
    return {name: state for (name, _), state in every.among((name, base) for name in every.domains).items()}


class Standings:
    """Where domains stand, for one base model or another, all by what was in the registry at the beginning."""

    def __init__(self, registry: Registry, *, recipe: Recipe | None = None) -> None:
        self.domains = {row.name: row for row in registry.domains.list()}
        self._last = registry.builds.newest_succeeded_by_domain()
        self._newest = registry.builds.newest_own_by_domain()
        look = _knowing(registry)
        self._look = look if recipe is None else replace(look, recipe=lambda name: recipe)
        self._succeeded_with_keys = registry.builds.succeeded_with_keys
        self._stored = cache(registry.store.digests)
        self._plans: dict[tuple[str, str | None], Plan | str] = {}
        self._current: dict[str, Build | None] = {build.key: build for build in self._newest.values()}
        """By key, the newest succeeded build of it."""

    def among(self, places: Iterable[tuple[str, str | None]]) -> dict[tuple[str, str | None], Standing]:
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

    def _judge(self, name: str, base: str | None, now: Plan | str) -> Standing:
        current = self._current.get(now.key) if isinstance(now, Plan) else None
        own, row = self._newest.get(name) or current, self.domains[name]
        found = _judged(self._look, row, base, now, own, current, lambda d: d in self._stored())
        return _explained(found, row, self._last.get(name))


def _now(look: _Lookups, domain: Domain, base: str | None) -> Plan | str:
    """What a build of the domain would be made of, or why there can be none."""
    try:
        return _planned(look, domain, look.recipe(domain.recipe or DEFAULT), base)
    except (RecCocktailError, TaskError) as error:
        return str(error)


def _judged(
    look: _Lookups,
    domain: Domain,
    base: str | None,
    now: Plan | str,
    newest: Build | None,
    current: Build | None,
    stored: Callable[[str], bool],
) -> Standing:
    """`newest` is the domain's newest build by its own recipe, `current` the newest of the key that `now` has."""
    ingredient = _one(look, domain.name, base)
    spirit = _one(look, SPIRIT, ingredient.base if ingredient else base)
    refs = (spirit.ref if spirit else None, ingredient.ref if ingredient else None)
    if isinstance(now, str):
        return Standing("blocked", (now,), newest, *refs)
    is_cold = "ingredient" in now.recipe.roles and "ingredient" not in {a["role"] for a in now.inputs["adapters"]}
    if newest is None:
        if is_cold and len(now.inputs["adapters"]) == 1:
            return Standing("cold", ("no ingredient yet; a build would be the spirit alone",), None, *refs)
        return Standing("unbuilt", (), None, *refs)
    if is_cold and any(adapter["role"] == "ingredient" for adapter in newest.inputs["adapters"]):
        why = f"{domain.name!r} has no ingredient any more, which its newest build was made with"
        return Standing("blocked", (f"{why}; asked for by name, it is built without",), newest, *refs)
    if current is None:
        return Standing("stale", tuple(_moved(newest, now)) or ("engine format",), newest, *refs)
    if current.digest is None or not stored(current.digest):
        return Standing("stale", ("its files are missing from the store",), current, *refs)
    return Standing("fresh", (), current, *refs)


def _explained(found: Standing, domain: Domain, last: Build | None) -> Standing:
    """With why it is that build; `last` is the domain's newest succeeded build, whatever its recipe."""
    build = found.build
    recipe = f"the domain's own recipe, {domain.recipe or DEFAULT}"
    if build is None:
        why = None
    elif found.state == "fresh":
        why = f"it is of the present inputs, by {recipe}"
    elif build.own_recipe is None:
        why = "it is the newest; whether by the domain's own recipe was not kept when it was asked for"
    else:
        why = "it is the newest by the domain's own recipe" + (" of then" if "recipe" in found.reasons else "")
    is_trial = last is not None and last.own_recipe is False and (build is None or _later(last, build))
    return replace(found, why=why, trial=last if is_trial else None)


def _later(one: Build, other: Build) -> bool:
    assert one.finished_at is not None
    assert other.finished_at is not None
    return (one.finished_at, one.id) > (other.finished_at, other.id)


def _one(look: _Lookups, name: str, base: str | None) -> Adapter | None:
    try:
        return look.adapter(name, base)
    except (NotFoundError, UsageError):
        return None


def _knowing(registry: Registry) -> _Lookups:
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

    return _Lookups(
        adapter=adapter,
        base=lambda name: bases[name] if name in bases else registry.bases.get(name),
        recipe=cache(load_recipe),
        template=cache(load_template),
        data_digest=cache(lambda folder: _data_digest(registry, folder)),
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
            CardInput(a["role"], a["ref"], a["digest"], lacks=tuple(known.context.get("partial", ())))
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


def result_folder(registry: Registry, build: Build) -> Path:
    """The merged checkpoint of a succeeded build, fetched to this machine where it is not here yet.

    Raises ConflictError for a build without a result, StoreError when its files are gone or cannot be fetched.
    """
    if build.status != "succeeded" or build.digest is None:
        raise ConflictError(f"build {build.id} is {build.status} and has no result")
    if not registry.store.has(build.digest):
        raise StoreError(
            f"the files of build {build.id} ({build.digest}) are missing from the store",
            hint=f"restore the store, or build again: `reccocktail build request {build.domain} --force --wait`",
        )
    return registry.store.folder(build.digest)
