"""What becomes of each object of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..catalog.records import Record
from ..errors import RecCocktailError

Kind = Literal["base", "template", "recipe", "domain", "adapter", "alias", "policy", "webhook"]
Action = Literal["created", "changed", "unchanged", "failed"]


@dataclass(frozen=True)
class Outcome(Record):
    """What became, or in a dry run would become, of one object.

    `changes` has of each field what it was (None of a new object) and what it is; `line` is where the file has the object.
    """

    kind: Kind
    name: str
    base: str | None
    action: Action
    line: int | None
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = ()


def new(**fields: Any) -> dict[str, tuple[Any, Any]]:
    return {name: (None, value) for name, value in fields.items() if value}


def failure(outcome: Outcome, error: Exception) -> Outcome:
    code = error.code if isinstance(error, RecCocktailError) else "os"
    hint = error.hint if isinstance(error, RecCocktailError) else None
    return replace(
        outcome, action="failed", changes={}, remarks=(), error={"code": code, "message": str(error), "hint": hint}
    )


def described(outcomes: Sequence[Outcome], dry_run: bool) -> dict[str, Any]:
    """All that became, or would become, of a file, as plain JSON."""
    counts = Counter(outcome.action for outcome in outcomes)
    return {"dry_run": dry_run, "counts": dict(counts), "objects": [outcome.to_json() for outcome in outcomes]}
