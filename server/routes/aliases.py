"""Aliases of adapters and of builds: seen with a tag, and moved by those who have seen where they are.

`ETag` says which event put the alias where it is. `If-Match` moves it only from there, and `If-None-Match: *` only where nothing has it; without
either it is moved wherever it is, as the command does.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from ...engine.gates import may_move, may_promote, move_champion, promote
from ...registry import Registry
from ...registry.catalog.expecting import Expected
from ...registry.catalog.gates import Passage
from ...registry.catalog.references import Reference, check_name
from ...registry.catalog.serving import BuildAlias
from ...registry.catalog.versions import AdapterAlias
from ...registry.errors import NotFoundError, UsageError
from ..identity import Promoting, Reading
from ..models import BuildAliasModel, model_of
from .declaring import BaseName, Name, router

routes = router("aliases")
AdapterAliasModel = model_of(AdapterAlias)
DryRun = Annotated[bool, Query(description="Say what would change, and change nothing.")]
IfMatch = Annotated[str | None, Header()]
Why = Annotated[str | None, Field(max_length=2000)]


class AdapterTarget(BaseModel):
    """Where an alias of adapters is to be; `override` is a reason in words to pass the domain's gate by."""

    model_config = ConfigDict(extra="forbid")
    ref: Annotated[str, Field(max_length=200)]
    override: Why = None


class BuildTarget(BaseModel):
    """Where an alias of builds is to be; `why` is kept with the event, `override` passes the domain's gate by."""

    model_config = ConfigDict(extra="forbid")
    build: Annotated[str, Field(max_length=200)]
    why: Why = None
    override: Why = None


def expected(if_match: str | None, if_none_match: str | None) -> Expected | None:
    """Raises UsageError for tags that are none of an alias."""
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise UsageError("If-None-Match of an alias is *, and alone")
        return Expected(None)
    if if_match is None:
        return None
    if (found := re.fullmatch(r'"a([0-9]{1,18})"', if_match.strip())) is None:
        raise UsageError(f"If-Match {if_match!r} is no tag of an alias", hint="take the ETag of the alias")
    return Expected(int(found[1]))


def _tag(event: int) -> str:
    return f'"a{event}"'


@routes.get("/domains/{name}/aliases", response_model=list[AdapterAliasModel])
def list_aliases(registry: Reading, name: Name, base: BaseName = None) -> Any:
    """Aliases of a domain's adapters, or of `spirit`."""
    return [each.to_json() for each in registry.adapters.aliases(name, base=base)]


@routes.get("/domains/{name}/aliases/{alias}", response_model=AdapterAliasModel)
def show_alias(response: Response, registry: Reading, name: Name, alias: Name, base: BaseName = None) -> Any:
    found = _alias(registry, name, alias, base)
    if found is None:
        raise NotFoundError(f"there is no alias {name}@{alias}")
    response.headers["ETag"] = _tag(found.event)
    return found.to_json()


def _alias(registry: Registry, name: str, alias: str, base: str | None) -> AdapterAlias | None:
    found = [each for each in registry.adapters.aliases(name, base=base) if each.alias == alias]
    if len(found) > 1:
        raise UsageError(f"{name}@{alias} is set for several base models", hint="name the base")
    return found[0] if found else None


@routes.put("/domains/{name}/aliases/{alias}", response_model=dict[str, Any])
def set_alias(
    response: Response, registry: Promoting, name: Name, alias: Name, target: AdapterTarget,
    base: BaseName = None, dry_run: DryRun = False, if_match: IfMatch = None, if_none_match: IfMatch = None,
) -> Any:  # fmt: skip
    """Sets the alias, or moves it, `champion` through the domain's gate; the answer is the version."""
    check_name("alias", alias)
    if Reference.parse(target.ref).name != name:
        raise UsageError(f"{target.ref} is no version of {name}")
    row = registry.adapters.resolve(target.ref, base=base, kind=None)
    seen = expected(if_match, if_none_match)
    if dry_run:
        now = _alias(registry, name, alias, row.base)
        if seen is not None:
            seen.check(f"{name}@{alias}", now and now.event)
        return _foreseen(now and now.ref, row.ref, may_move(registry, row, alias, override=target.override))
    moved = move_champion(registry, row.ref, alias, base=row.base, override=target.override, expected=seen)
    if (now := _alias(registry, name, alias, row.base)) is not None:
        response.headers["ETag"] = _tag(now.event)
    return moved.to_json()


def _foreseen(before: str | None, after: str | None, passage: Passage | None) -> dict[str, Any]:
    """What a move would change; `gate` is what the gate says, if there is one."""
    gate = None if passage is None else passage.detail()
    return {"dry_run": True, "from": before, "to": after, "changes": before != after, "gate": gate}


@routes.delete("/domains/{name}/aliases/{alias}", response_model=dict[str, Any])
def remove_alias(
    registry: Promoting, name: Name, alias: Name, override: Annotated[str | None, Query(max_length=2000)] = None,
    base: BaseName = None, dry_run: DryRun = False, if_match: IfMatch = None,
) -> Any:  # fmt: skip
    """Takes the alias away; the answer is the version that had it."""
    seen = expected(if_match, None)
    if dry_run:
        if (now := _alias(registry, name, alias, base)) is None:
            raise NotFoundError(f"there is no alias {name}@{alias}")
        if seen is not None:
            seen.check(f"{name}@{alias}", now.event)
        return _foreseen(now.ref, None, None)
    ref = Reference.parse(f"{name}@{alias}")
    return registry.adapters.remove_alias(ref, base=base, override=override, expected=seen).to_json()


@routes.get("/domains/{name}/build-aliases", response_model=list[BuildAliasModel])
def list_build_aliases(registry: Reading, name: Name) -> Any:
    """Aliases of a domain's builds."""
    return [each.to_json() for each in registry.serving.aliases(name)]


@routes.get("/domains/{name}/build-aliases/{alias}", response_model=BuildAliasModel)
def show_build_alias(response: Response, registry: Reading, name: Name, alias: Name, base: BaseName = None) -> Any:
    found = registry.serving.resolve(f"{name}@{alias}", base=base)
    response.headers["ETag"] = _tag(found.event)
    return found.to_json()


@routes.put("/domains/{name}/build-aliases/{alias}", response_model=dict[str, Any])
def set_build_alias(
    response: Response, registry: Promoting, name: Name, alias: Name, target: BuildTarget,
    dry_run: DryRun = False, if_match: IfMatch = None, if_none_match: IfMatch = None,
) -> Any:  # fmt: skip
    """Puts the alias on a build, that which is served through the domain's gate."""
    check_name("alias", alias)
    row = registry.builds.get(target.build)
    if row.domain != name:
        raise UsageError(f"build {row.id} is of {row.domain}, and not of {name}")
    is_served = alias == registry.serving.policy(name).alias
    if target.override is not None and not is_served:
        raise UsageError(f"only what {name} serves has a gate: override is for it")
    seen = expected(if_match, if_none_match)
    if dry_run:
        now = _build_alias(registry, name, alias, row.base)
        if seen is not None:
            seen.check(f"{name}@{alias}", now and now.event)
        passage = may_promote(registry, row, override=target.override) if is_served else None
        return _foreseen(now and now.build, row.id, passage)
    if is_served:
        moved = promote(registry, row, why=target.why, override=target.override, expected=seen)
    else:
        moved = registry.serving.alias(row.id, alias, why=target.why, expected=seen)
    response.headers["ETag"] = _tag(moved.event)
    return moved.to_json()


def _build_alias(registry: Registry, name: str, alias: str, base: str) -> BuildAlias | None:
    found = (each for each in registry.serving.aliases(name) if (each.alias, each.base) == (alias, base))
    return next(found, None)


@routes.delete("/domains/{name}/build-aliases/{alias}", response_model=BuildAliasModel)
def remove_build_alias(
    registry: Promoting, name: Name, alias: Name, override: Annotated[str | None, Query(max_length=2000)] = None,
    base: BaseName = None, if_match: IfMatch = None,
) -> Any:  # fmt: skip
    """Takes the alias away; the answer is where it was."""
    seen = expected(if_match, None)
    return registry.serving.remove(f"{name}@{alias}", base=base, override=override, expected=seen).to_json()
