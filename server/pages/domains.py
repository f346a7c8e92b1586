"""One domain, or the spirits: versions and their figures, where aliases were and are, recipes, builds, the gate; promotion, rollback, archiving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from ...engine.building.requesting import request_lacking
from ...engine.gates import may_move, move_champion
from ...engine.recipe_book import DEFAULT
from ...engine.standing_figures import METRIC
from ...publishing.status import status_of
from ...registry import Adapter, Registry
from ...registry.catalog.event_text import happened
from ...registry.catalog.filters import AdapterFilter, BuildFilter
from ...registry.catalog.references import CHAMPION, SPIRIT, Reference
from ...registry.errors import NotFoundError, RecCocktailError, UsageError
from ...registry.moments import moment
from ..identity import Administering, Building, Promoting, Reading, Registering
from .acting import OWN_FORM, Base, Done, Short, attempt, back, show
from .charts import intervals
from .forms import Sent, form_of
from .gating import GateForm, PolicyForm, Promotion
from .sliders import Slider, slider_of
from .words import Words

router = APIRouter()
VERSIONS, MOVES, BUILDS = 50, 30, 15


@dataclass(frozen=True)
class Past:
    """When somebody looks back to: a day or moment as text, or else a day of the slider."""

    at: str = ""
    day: int | None = None


When = Annotated[str | None, Query(max_length=40)]
After = Annotated[str | None, Query(max_length=200)]


@router.get("/domains/{name}")
def domain(
    request: Request, registry: Reading, name: str, at: When = None, after: After = None, done: Done = None,
    day: Annotated[int | None, Query(ge=0, le=100_000)] = None,
) -> HTMLResponse:  # fmt: skip
    """The domain now; with `at`, or `day` of the slider, also what was champion and what was served then."""
    return _page(request, registry, name, past=Past(at or "", day), after=after, done=done)


def _page(
    request: Request, registry: Registry, name: str, *, past: Past | None = None, after: str | None = None,
    done: str | None = None, refused: RecCocktailError | None = None, insist: Mapping[str, str] | None = None,
    typed: Mapping[str, str] | None = None,
) -> HTMLResponse:  # fmt: skip
    """`insist` are the fields of a form that does what was refused all the same, `typed` those of a form that is shown again."""
    is_spirit = name == SPIRIT
    row = None if is_spirit else registry.domains.get(name)
    entry = None if is_spirit else status_of(registry, name).entries[0]
    versions = registry.adapters.list(AdapterFilter(domain=name), limit=VERSIONS + 1, after=after or None)
    history = _history(registry, name)
    begun = [row.created_at] if row else []
    slider = slider_of(
        [*begun, *(event.created_at for event, _ in history["moves"]), *(move.at for move in history["served"])]
    )
    then = _then(registry, name, past or Past(), slider, sorted({each.base for each in versions}))
    return show(
        request, "domain.html", done=done, refused=refused, typed=typed, name=name, row=row, entry=entry, past=then, slider=slider,
        insist=insist,
        next=versions[VERSIONS - 1] if len(versions) > VERSIONS else None,
        **_versions(registry, versions[:VERSIONS], entry["measured"]["metric"] if entry else METRIC),
        **history, recipe=row and (row.recipe or DEFAULT),
    )  # fmt: skip


def _versions(registry: Registry, rows: list[Adapter], metric: str) -> dict[str, Any]:
    """Each version with its newest evaluation, and the chart of the metric that counts."""
    measured = registry.evaluations.of_adapters(rows)
    figures = {each.ref: measured.get((each.base, each.ref)) for each in rows}
    drawn = [(f"v{each.version}", found.metrics[metric]) for each in rows
             if (found := figures[each.ref]) is not None and metric in found.metrics]  # fmt: skip
    return {"versions": rows, "figures": figures, "metric": metric, "chart": intervals(metric, drawn)}


def _history(registry: Registry, name: str) -> dict[str, Any]:
    """Where aliases of versions and of builds were, which recipes it had, its builds and its gate; `before` are builds that were served."""
    changed = registry.events.list(domain=name, kind="domain", limit=MOVES)
    builds = registry.builds.list(BuildFilter(domain=name), limit=BUILDS)
    moves = registry.adapters.log(name, limit=3 * MOVES)
    served, policy = registry.serving.history(name, limit=MOVES), registry.serving.policy(name)
    return {
        "moves": [(event, happened(event)) for event in moves if event.kind.startswith("alias.")][:MOVES],
        "served": served,
        "before": {move.build for move in served if move.alias == policy.alias and move.build},
        "recipes": [event for event in changed if "recipe" in event.detail],
        "builds": builds,
        "marks": registry.serving.marks(build.id for build in builds),
        "gate": registry.gates.get(name),
        "gates": registry.gates.history(name)[:MOVES],
        "policy": policy,
    }


def _then(registry: Registry, name: str, past: Past, slider: Slider | None, bases: list[str]) -> dict[str, Any]:
    """What was champion for each base, and what was served, at the end of a day or at a moment; `problem` for what is none, or to come."""
    at = past.at or (slider.day(past.day) if slider is not None and past.day is not None else "")
    found: dict[str, Any] = {"at": at, "then": None, "problem": None}
    if at:
        try:
            found["then"] = _at(registry, name, moment(at, option="at"), bases)
        except UsageError as error:
            found["problem"] = f"{error}; {error.hint}"
    return found


def _at(registry: Registry, name: str, when: datetime, bases: list[str]) -> dict[str, Any]:
    champions: dict[str, str | None] = {}
    for base in bases:
        try:
            champions[base] = registry.adapters.resolve(Reference(name, alias=CHAMPION), base=base, at=when).ref
        except NotFoundError:
            champions[base] = None
    return {"when": when, "champions": champions, "served": registry.serving.served_at(when, name)}


@router.get("/domains/{name}/promote")
def ask_to_promote(
    request: Request, registry: Reading, name: str, ref: Annotated[str, Query(max_length=200)], base: Base = None,
    done: Done = None,
) -> HTMLResponse:  # fmt: skip
    """What the gate says of a version, before anything changes."""
    return _promotion(request, registry, _version_of(registry, name, ref, base), done=done)


@router.post("/domains/{name}/promote", dependencies=OWN_FORM)
def promote(
    request: Request, registry: Promoting, name: str, ref: Short, base: Short,
    sent: Annotated[Sent[Promotion], Depends(form_of(Promotion))],
) -> Response:  # fmt: skip
    """Makes a version champion, through the gate; what the gate refuses is shown with what helps."""
    row = _version_of(registry, name, ref, base)
    refused = attempt(
        lambda: move_champion(registry, row.ref, CHAMPION, base=row.base, override=sent.read().override.strip() or None)
    )
    if refused:
        return _promotion(request, registry, row, refused, typed=sent.typed)
    return back(f"/domains/{name}", "promoted")


@router.post("/domains/{name}/approve", dependencies=OWN_FORM)
def approve(request: Request, registry: Promoting, name: str, ref: Short, base: Short) -> Response:
    """In the name of who is logged in, for a gate that asks for approvals."""
    row = _version_of(registry, name, ref, base)
    refused = attempt(lambda: registry.gates.approve_adapter(row.ref, base=row.base))
    if refused:
        return _promotion(request, registry, row, refused)
    return back(f"/domains/{name}/promote", "approved", ref=row.ref, base=row.base)


@router.post("/domains/{name}/gate", dependencies=OWN_FORM)
def set_gate(
    request: Request, registry: Administering, name: str, sent: Annotated[Sent[GateForm], Depends(form_of(GateForm))]
) -> Response:
    """Replaces the gate as a whole, or removes it."""
    refused = attempt(lambda: sent.read().carry_out(registry, name))
    if refused:
        return _page(request, registry, name, refused=refused, typed=sent.typed)
    return back(f"/domains/{name}", "ungated" if sent.known.do == "remove" else "gated")


@router.post("/domains/{name}/policy", dependencies=OWN_FORM)
def set_policy(
    request: Request, registry: Promoting, name: str, sent: Annotated[Sent[PolicyForm], Depends(form_of(PolicyForm))]
) -> Response:
    """How the domain gets what it serves."""
    registry.domains.get(name)
    refused = attempt(lambda: sent.read().carry_out(registry, name))
    if refused:
        return _page(request, registry, name, refused=refused, typed=sent.typed)
    return back(f"/domains/{name}", "policy")


def _version_of(registry: Registry, name: str, ref: str, base: str | None) -> Adapter:
    """Raises UsageError for a version of another domain."""
    if Reference.parse(ref).name != name:
        raise UsageError(f"{ref} is no version of {name}")
    return registry.adapters.resolve(ref, base=base)


def _promotion(
    request: Request,
    registry: Registry,
    row: Adapter,
    refused: RecCocktailError | None = None,
    *,
    done: str | None = None,
    typed: Mapping[str, str] | None = None,
) -> HTMLResponse:
    name, closed = row.domain or SPIRIT, attempt(lambda: may_move(registry, row, CHAMPION))
    now = [each for each in registry.adapters.aliases(name, base=row.base) if each.alias == CHAMPION]
    values = {
        "author": row.created_by,
        "name": name, "subject": row.ref, "what": CHAMPION, "now": now[0].ref if now else None, "closed": closed,
        "approvers": registry.gates.approvers(adapter=(row.ref, row.base)), "approve": f"/domains/{name}/approve",
        "gate": registry.gates.get(name), "path": f"/domains/{name}/promote", "home": f"/domains/{name}",
        "fields": {"ref": row.ref, "base": row.base}, "asks_why": False,
    }  # fmt: skip
    return show(request, "promote.html", refused=refused, done=done, typed=typed, form=values)


@router.post("/domains/{name}/archive", dependencies=OWN_FORM)
def archive(
    request: Request, registry: Registering, name: str, ref: Short, base: Short, force: Short = "", undo: Short = ""
) -> Response:
    """Takes a version out of use, or into use again. One that is in use is refused, unless `force` is set."""
    row = registry.adapters.resolve(ref, base=base, kind=None)
    if (row.domain or SPIRIT) != name:
        raise UsageError(f"{ref} is no version of {name}")
    if undo:
        refused = attempt(lambda: registry.adapters.restore(row.ref, base=row.base))
    else:
        refused = attempt(lambda: registry.adapters.archive(row.ref, base=row.base, force=bool(force)))
    if refused:
        insist = None if undo or force else {"ref": row.ref, "base": row.base, "force": "1"}
        return _page(request, registry, name, refused=refused, insist=insist)
    return back(f"/domains/{name}", "restored" if undo else "archived")


@router.post("/domains/{name}/edit", dependencies=OWN_FORM)
def edit(
    request: Request, registry: Registering, name: str, sent: Annotated[Sent[Words], Depends(form_of(Words))]
) -> Response:
    """What people say of the domain is replaced by what the form says."""
    row = registry.domains.get(name)
    refused = attempt(lambda: registry.edits.domain(name, sent.read().edit(row)))
    if refused:
        return _page(request, registry, name, refused=refused, typed=sent.typed)
    return back(f"/domains/{name}", "edited")


@router.post("/domains/{name}/build", dependencies=OWN_FORM)
def request_one(request: Request, registry: Building, name: str, force: Short = "") -> Response:
    """What the domain lacks: a build by its own recipe, or the one that there is of the same inputs, and indexes that are stale."""
    found = []
    refused = attempt(lambda: found.extend(request_lacking(registry, name, force=bool(force))))
    if refused:
        return _page(request, registry, name, refused=refused)
    return back(f"/builds/{found[0].build.id}", "requested" if found[0].created else "known")
