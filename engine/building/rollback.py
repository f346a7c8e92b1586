"""Serving an earlier build of a domain again: which one, what that changes, and what is out of date afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...registry import Build, Registry
from ...registry.errors import ConflictError, NotFoundError, UsageError
from ...registry.moments import moment
from ..coefficients import mean
from .freshness import chosen, differences, freshness_if


@dataclass(frozen=True)
class Rollback:
    """From the build `now` that a domain serves to the build `to`.

    `changes` say what differs between them, `state` and `reasons` where the domain stands afterwards, and `publications` which
    repositories have another build than the one that is served then.
    """

    now: Build
    to: Build
    alias: str
    changes: tuple[str, ...]
    state: str
    reasons: tuple[str, ...]
    publications: tuple[str, ...]

    @property
    def is_needed(self) -> bool:
        return self.now.id != self.to.id


def plan_rollback(
    registry: Registry, domain: str, *, to: str | datetime | None = None, base: str | None = None
) -> Rollback:
    """To the build that `to` names or that was served at that moment; without it, to what was served before this one.

    Raises NotFoundError; UsageError for a build of another domain; ConflictError where nothing was served before, for a build that
    has not succeeded, or one whose files are gone.
    """
    found = chosen(registry, domain, base=base)
    assert found.build is not None
    assert found.served is not None
    now, alias = found.build, found.served.alias
    target = registry.builds.get(_target(registry, now, to))
    if target.domain != domain or target.base != now.base:
        raise UsageError(
            f"build {target.id} is of {target.domain!r} on {target.base!r}, and {domain}@{alias} of {domain!r} on {now.base!r}",
            hint=f"`reccocktail build history {domain}`",
        )
    if not registry.store.has(target.stored_digest()):
        raise ConflictError(
            f"the files of build {target.id} are not in the store",
            hint="`reccocktail store verify`; docs/operations.md",
        )
    after = freshness_if(registry, target)
    behind = (p for p in registry.publications.standing(domain) if p.base == target.base and p.build != target.id)
    return Rollback(
        now=now,
        to=target,
        alias=alias,
        changes=tuple(_changes(now, target)),
        state=after.state,
        reasons=after.reasons,
        publications=tuple(sorted(p.repo for p in behind)),
    )


def rollback_target(text: str | None) -> str | datetime | None:
    """A build, or the moment that was written instead. Raises UsageError."""
    return moment(text, option="--to") if text is not None and re.match(r"\d{4}-\d{2}-\d{2}", text) else text


def describe_rollback(planned: Rollback) -> dict[str, Any]:
    """What going back changes, as plain JSON."""
    return {
        "domain": planned.now.domain,
        "base": planned.now.base,
        "alias": planned.alias,
        "from": planned.now.id,
        "to": planned.to.id,
        "changes": list(planned.changes),
        "state": planned.state,
        "reasons": list(planned.reasons),
        "publications": list(planned.publications),
    }


def roll_back(registry: Registry, planned: Rollback, *, why: str | None = None) -> None:
    registry.serving.promote(planned.to.id, why=why, rollback=True)


def _target(registry: Registry, now: Build, to: str | datetime | None) -> str:
    if to is None:
        return registry.serving.before(now.domain, now.base)
    if isinstance(to, str):
        return to
    then = next((m for m in registry.serving.served_at(to, now.domain) if m.base == now.base), None)
    if then is None or then.build is None:
        raise NotFoundError(
            f"{now.domain!r} served no build at {to:%Y-%m-%d %H:%M} UTC",
            hint=f"`reccocktail build history {now.domain}`",
        )
    return then.build


def _changes(now: Build, to: Build) -> Iterator[str]:
    yield from differences(now, to.inputs, to.recipe, to.inputs.get("recipe", {}).get("ref"))
    before, after = _coefficients(now), _coefficients(to)
    if before != after:
        yield f"coefficients {before or 'none'} → {after or 'none'}"
    if now.digest == to.digest:
        yield "nothing in the files: both builds have the same bytes"


def _coefficients(build: Build) -> str:
    return ", ".join(f"{role} {mean(value):.3g}" for role, value in (build.coefficients or {}).items())
