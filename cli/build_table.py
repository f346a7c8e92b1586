"""The table of builds that `build list` and `build request` print."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..registry.catalog.references import A_FILE, MERGE
from .console import answer, page, short, table
from .searches import outcome_of

if TYPE_CHECKING:
    from ..registry import Build

STEPS = ((timedelta(days=365), "y"), (timedelta(days=1), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "min"))


def show_builds(builds: list[Build], as_json: bool, *, empty: str, limit: int | None = None) -> None:
    """`outcome` is what came of the search or, of a build that failed, why. With a `limit`, one build more shows that there is a next page."""
    keys, builds = [b.id for b in builds], builds[:limit]
    moment = datetime.now(UTC)
    columns = ["id", "domain", "status", "recipe", "by", "age", "outcome", "coefficients", "digest"]
    rows = [
        [
            b.id,
            b.domain,
            _how_far(b),
            _made_by(b),
            b.created_by,
            age(moment - b.created_at),
            (b.error or {}).get("message") or outcome_of(b.report) or _embedded(b.report),
            means(b.coefficients),
            short(b.digest),
        ]
        for b in builds
    ]

    def show_rows() -> None:
        spare = ("digest", "coefficients", "by", "age", "recipe", "outcome")
        table(columns, rows, empty=empty, spare=spare, right=("age",))
        if limit:
            page(keys, limit)

    answer(as_json, [b.to_json() for b in builds], show_rows)


def _made_by(build: Build) -> str:
    """The recipe of a merge; of an index, which has none, the bi-tuning."""
    return build.recipe_ref or A_FILE if build.kind == MERGE else f"{build.kind} {build.inputs['adapters'][0]['ref']}"


def _how_far(build: Build) -> str:
    """The status; of a build that is being made, how much of its stage is done; `removed` where the result is gone."""
    if build.status == "running" and build.total:
        return f"{build.stage or 'running'} {build.done / build.total:.0%}"
    return "removed" if build.collected_at is not None else build.status


def _embedded(report: Mapping[str, Any] | None) -> str | None:
    """Of an index, how many items it has and how many of them were new to the model."""
    found = (report or {}).get("index")
    return found and f"{found['items']:,} items, {found['embedded']:,} embedded"


def age(passed: timedelta) -> str:
    """In the largest unit of which there is one, rounded down: `3 d`; `now` where less than a minute has passed."""
    unit = next(((length, name) for length, name in STEPS if passed >= length), None)
    return "now" if unit is None else f"{passed // unit[0]} {unit[1]}"


def means(coefficients: Mapping[str, Any] | None) -> dict[str, float] | None:
    """One number per adapter; of those that differ by layer or module, the mean."""
    from ..engine.coefficients import mean

    return None if coefficients is None else {role: round(mean(value), 4) for role, value in coefficients.items()}
