"""Running builds: from a domain's name to a merged checkpoint in the store.

A request resolves its inputs to digests and writes them into the row, so that a build depends on nothing that can move.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..registry import Adapter, Base, Build, Registry, Request
from ..registry.card import CardAdaptation, CardFacts, CardInput, render_card
from ..registry.digests import digest_of_json
from ..registry.errors import ConflictError, RecCocktailError, StoreError, UsageError
from ..tasks import Question, TaskError, load_template, questions, read_domain
from .adaptive import Adaptation, adapt, plot
from .errors import AdaptationError, MergeError
from .merge import MergeReport, Part, merge
from .provenance import write_papers
from .recipes import SHIPPED, Adaptive, Recipe, Role, load_recipe, parse_recipe

# Part of every key: raised when the engine would write other bytes for the same inputs.
FORMAT_VERSION = 1
LEASE_SECONDS = 60.0
NOTE_SECONDS = 1.0
PLOT = "entropy.png"

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total); bytes while merging, prompts while adapting."""


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
    row = registry.domains.get(domain)
    adapters: dict[Role, Adapter] = {}
    if "ingredient" in recipe.roles:
        adapters["ingredient"] = registry.adapters.resolve(domain, base=base)
        base = adapters["ingredient"].base
    if "spirit" in recipe.roles:
        adapters["spirit"] = registry.adapters.resolve("spirit", base=base)
        base = adapters["spirit"].base
    if base is None:
        raise UsageError("the recipe mixes no adapter")
    base_model = registry.bases.get(base)
    inputs: dict = {
        "base": {"name": base_model.name, "digest": base_model.digest},
        "adapters": [{"role": r, "ref": adapters[r].ref, "digest": adapters[r].digest} for r in recipe.roles],
    }
    if recipe.adaptive is not None:
        if row.data is None:
            raise UsageError(
                f"domain {domain!r} has no data, which an adaptive recipe needs",
                hint=f"`reccocktail domain add {domain} --data DIR`, or a recipe with fixed coefficients",
            )
        template = load_template(recipe.adaptive.template)
        recipe = recipe.with_absolute_template()  # whoever carries the build out may work in another folder
        inputs["data"] = {"path": row.data, "digest": read_domain(Path(row.data), domain).digest}
        inputs["template"] = {"name": template.name, "digest": template.digest}
    return Plan(domain, base_model, recipe, inputs, _key(domain, recipe, inputs))


def _key(domain: str, recipe: Recipe, inputs: dict) -> str:
    """SHA-256 over everything that decides the weights and what their papers say of them.

    The domain and the base's name are in the papers; where data and templates lie is not.
    """
    content = recipe.to_json()
    content.get("adaptive", {}).pop("template", None)
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
    """Ask for a build; an equal one that is queued, running or succeeded is returned instead of a new row."""
    planned = plan(registry, domain, recipe, base=base)
    return registry.builds.request(
        planned.domain, planned.base.name, planned.key, planned.recipe.to_json(), planned.inputs, force=force
    )


@dataclass(frozen=True)
class Standing:
    """Where a domain stands: the build that would be published, and whether it is what a build would be now.

    `state` is `fresh`, `stale` (with what moved in `reasons`), `unbuilt`, or `blocked` (with why no build can be requested).
    """

    state: str
    reasons: tuple[str, ...] = ()
    build: Build | None = None


def standing(registry: Registry, domain: str, *, base: str | None = None) -> Standing:
    """A build of the present inputs makes a domain fresh even if others finished later: going back is no change."""
    newest = registry.builds.newest_succeeded(domain)
    recipe_name = registry.domains.get(domain).recipe or "default"
    try:
        now = plan(registry, domain, load_recipe(recipe_name), base=base)
    except (RecCocktailError, TaskError) as error:
        return Standing("blocked", (str(error),), newest)
    if newest is None:
        return Standing("unbuilt")
    current = registry.builds.newest_succeeded(domain, key=now.key)
    if current is None:
        return Standing("stale", tuple(_moved(newest, now)) or ("engine format",), newest)
    if current.path is None:
        return Standing("stale", ("its files are missing from the store",), current)
    return Standing("fresh", (), current)


def _moved(build: Build, now: Plan) -> Iterator[str]:
    before, after = build.inputs, now.inputs
    if before["base"]["digest"] != after["base"]["digest"]:
        yield f"base {before['base']['name']} → {after['base']['name']}"
    old = {a["role"]: a for a in before["adapters"]}
    new = {a["role"]: a for a in after["adapters"]}
    for role in ("spirit", "ingredient"):
        was, now_is = old.get(role), new.get(role)
        if (was or {}).get("digest") != (now_is or {}).get("digest"):
            yield f"{role} {was['ref'] if was else 'none'} → {now_is['ref'] if now_is else 'none'}"
    if build.recipe != now.recipe.to_json():
        yield "recipe"
    for name in ("data", "template"):
        if name in before and name in after and before[name]["digest"] != after[name]["digest"]:
            yield name


def worker_name() -> str:
    """Host, process and thread: who holds a lease."""
    return f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident() % 100_000}"


def run(registry: Registry, build: Build, *, worker: str, device: str, progress: Progress) -> Build:
    """Carry out a build that `worker` has claimed. Whatever goes wrong is written into the row and raised again."""
    try:
        with _kept_lease(registry, build, worker):
            digest, coefficients, report = _make(registry, build, device, _noted(registry, build, worker, progress))
        return registry.builds.succeed(build.id, worker, digest, coefficients, report)
    except BaseException as error:
        code = getattr(error, "code", "interrupted" if isinstance(error, KeyboardInterrupt) else "internal")
        with suppress(ConflictError):  # the lease may be another worker's by now, and so the row
            registry.builds.fail(build.id, worker, {"code": code, "message": str(error) or type(error).__name__})
        raise


def _noted(registry: Registry, build: Build, worker: str, progress: Progress) -> Progress:
    """Progress that is also written into the row, now and then; a build that was cancelled meanwhile ends there."""
    lock = threading.Lock()
    written = time.monotonic()

    def note(stage: str, done: int, total: int) -> None:
        nonlocal written
        progress(stage, done, total)
        with lock:
            if time.monotonic() - written < NOTE_SECONDS:
                return
            written = time.monotonic()
        try:
            registry.builds.progress(build.id, worker, done, total)
        except ConflictError:
            raise
        except RecCocktailError:
            return  # a note that could not be written is no reason to stop

    return note


@contextmanager
def _kept_lease(registry: Registry, build: Build, worker: str) -> Iterator[None]:
    """Renew the lease from a thread while the work is done."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(LEASE_SECONDS / 3):
            try:
                registry.builds.heartbeat(build.id, worker, lease_seconds=LEASE_SECONDS)
            except ConflictError:
                return  # lost: `succeed` will be refused and say so
            except RecCocktailError:
                continue  # the database may be back before the lease ends

    thread = threading.Thread(target=beat, name=f"lease-{build.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _make(registry: Registry, build: Build, device: str, progress: Progress) -> tuple[str, dict, dict]:
    """(digest of the result folder, final coefficients, report)."""
    started = time.monotonic()
    recipe = parse_recipe(build.recipe, where=f"of build {build.id}")
    base = registry.bases.get(build.base)
    _expect(base.digest, build.inputs["base"]["digest"], f"base {base.name}")
    adapters: dict[Role, Adapter] = {}
    for entry in build.inputs["adapters"]:
        adapter = registry.adapters.resolve(entry["ref"], base=base.name)
        _expect(adapter.digest, entry["digest"], entry["ref"])
        adapters[entry["role"]] = adapter
    parts: dict[Role, Part] = {
        role: Part(registry.adapters.folder(adapter), registry.adapters.facts(adapter), 1.0)
        for role, adapter in adapters.items()
    }
    report: dict = {}
    coefficients: Mapping[Role, float] | None = recipe.coefficients
    if coefficients is None:
        assert recipe.adaptive is not None
        found = adapt(
            registry.bases.folder(base),
            parts["spirit"],
            parts["ingredient"],
            _prompts(build, recipe.adaptive),
            recipe.adaptive,
            method=recipe.method,
            device=device,
            progress=lambda done, total: progress("adapt", done, total),
        )
        coefficients = {"spirit": found.spirit, "ingredient": found.ingredient}
        report["adaptation"] = found.to_json()
        report["warnings"] = list(found.warnings)
        report["artifact"] = _keep_plot(registry, build, found)
    with registry.store.staging(f"build-{build.id}") as staged:
        merged = _write_result(registry, build, recipe, coefficients, parts, adapters, staged, device, progress)
        stored = registry.store.adopt(staged)
    report["merge"] = merged.summary()
    report["seconds"] = round(time.monotonic() - started, 2)
    return stored.digest, dict(coefficients), report


def _expect(digest: str, recorded: str, what: str) -> None:
    if digest != recorded:
        raise MergeError(f"{what} is not what the build was requested with: {digest}, recorded {recorded}")


def _prompts(build: Build, adaptive: Adaptive) -> list[Question]:
    data = read_domain(Path(build.inputs["data"]["path"]), build.domain)
    if data.digest != build.inputs["data"]["digest"]:
        raise AdaptationError(
            f"the data of {build.domain} changed after the build was requested", hint="request the build again"
        )
    template = load_template(adaptive.template)
    if template.digest != build.inputs["template"]["digest"]:
        raise AdaptationError(
            f"the template {adaptive.template} changed after the build was requested", hint="request the build again"
        )
    _, drawn = questions(
        data,
        adaptive.adaptation_set,
        template,
        n_negatives=adaptive.negatives,
        seed=adaptive.seed,
        limit=adaptive.prompts,
    )
    return drawn


def _keep_plot(registry: Registry, build: Build, found: Adaptation) -> str:
    """Store curve and plot beside the result, not in it: the checkpoint is a function of the coefficients alone."""
    with registry.store.staging(f"report-{build.id}") as folder:
        plot(found, folder / PLOT, title=f"{build.domain}: entropy over the mix")
        (folder / "adaptation.json").write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
        return registry.store.adopt(folder).digest


def _write_result(
    registry: Registry,
    build: Build,
    recipe: Recipe,
    coefficients: Mapping[Role, float],
    parts: Mapping[Role, Part],
    adapters: Mapping[Role, Adapter],
    out: Path,
    device: str,
    progress: Progress,
) -> MergeReport:
    base = registry.bases.get(build.base)
    done = 0
    lock = threading.Lock()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            so_far = done
        progress("merge", so_far, total)

    facts = registry.bases.facts(base)
    total = sum(tensor.info.end - tensor.info.start for tensor in facts.tensors.values())
    used = [Part(part.folder, part.facts, coefficients[role]) for role, part in parts.items()]
    merged = merge(
        registry.bases.folder(base),
        facts,
        used,
        out,
        method=recipe.method,
        dtype=recipe.output.dtype,
        device=device,
        progress=advance,
    )
    write_papers(
        out,
        recipe.resolved(coefficients).to_json(),
        _card(registry, build, {str(role): value for role, value in coefficients.items()}),
        {"base": base.digest} | {role: adapter.digest for role, adapter in adapters.items()},
        build.domain,
    )
    return merged


def _card(
    registry: Registry,
    build: Build,
    coefficients: Mapping[str, float],
    *,
    recipe: str | None = None,
    adaptive: CardAdaptation | None = None,
) -> CardFacts:
    base = registry.bases.get(build.base)
    return CardFacts(
        title=f"{build.domain}: {base.name} with a RecCocktail",
        domain=build.domain,
        domain_title=registry.domains.get(build.domain).title,
        base_name=base.name,
        base_source=base.source,
        license=None,
        method=build.recipe["method"],
        coefficients=coefficients,
        inputs=tuple(CardInput(a["role"], a["ref"], a["digest"]) for a in build.inputs["adapters"]),
        adaptive=adaptive,
        metrics=None,
        dtype=build.recipe["output"].get("dtype") or base.dtype,
        recipe=recipe,
        reccocktail_version=version("reccocktail"),
    )


def result_folder(build: Build) -> Path:
    """The merged checkpoint of a succeeded build. Raises ConflictError, and StoreError when its files are gone."""
    if build.status != "succeeded":
        raise ConflictError(f"build {build.id} is {build.status} and has no result")
    if build.path is None:
        raise StoreError(
            f"the files of build {build.id} ({build.digest}) are missing from the store",
            hint="restore the store, or build again: `reccocktail build request DOMAIN --force --wait`",
        )
    return build.path


@contextmanager
def publishable(registry: Registry, build: Build) -> Iterator[Path]:
    """The build's folder as it goes to the Hub: the same bytes, and a card that also tells how the mix was found.

    Raises ConflictError when the build has not succeeded.
    """
    folder = result_folder(build)
    assert build.coefficients is not None
    report = build.report or {}
    name = next((name for name, (_, shipped) in SHIPPED.items() if shipped.to_json() == build.recipe), None)
    with registry.store.staging(f"publish-{build.id}") as staged:
        for path in folder.iterdir():
            if path.name != "README.md":
                registry.store.link(path, staged / path.name)
        adaptive = None
        if "adaptation" in report:
            found = report["adaptation"]
            shutil.copyfile(registry.store.folder(report["artifact"]) / PLOT, staged / PLOT)
            worst = max(point["entropy"] for point in found["curve"])
            adaptive = CardAdaptation("entropy", worst, found["entropy"], found["prompts"], found["tokens"], PLOT)
        card = _card(registry, build, dict(build.coefficients), recipe=name, adaptive=adaptive)
        (staged / "README.md").write_text(render_card(card), encoding="utf-8")
        yield staged
