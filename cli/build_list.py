"""`build list`: builds, filtered and sorted."""

from __future__ import annotations

from typing import Any

import click

from ..registry.errors import UsageError
from .app import App, base_option, example, json_option, paging_options, pass_app
from .build_table import show_builds
from .builds import build
from .console import NO_MORE

KINDS = ("merge", "index")
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
SORTS = ("created", "started", "finished", "domain", "status", "recipe", "requester")


@build.command(
    name="list",
    epilog=example(
        "reccocktail build list --domain beauty --status failed",
        "reccocktail build list --sort finished --since 2026-11-01",
        "reccocktail build list --adapter spirit@v2",
    ),
)
@click.option("--domain", metavar="D", help="Only this domain's.")
@click.option("--status", type=click.Choice(STATUSES))
@click.option("--kind", type=click.Choice(KINDS), help="Only merges, or only indexes of items by a bi-tuning.")
@click.option("--recipe", metavar="NAME", help="Only by this recipe: NAME for all its versions, or NAME@vN.")
@click.option("--requester", metavar="USER", help="Only what this user requested.")
@click.option("--since", metavar="MOMENT", help="Only requested from this moment or day (UTC) on.")
@click.option("--adapter", metavar="REF", help="Only builds with this adapter version.")
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default=SORTS[0],
    show_default=True,
    help="Times: the latest first, those without one last. Names: in alphabetical order.",
)
@base_option
@paging_options
@json_option
@pass_app
def list_(app: App, base: str | None, sort: str, limit: int, after: str | None, as_json: bool, **wanted: Any) -> None:
    """List builds, newest first.

    `recipe` is what a merge was made by; of an index of items it names the bi-tuning.

    `by` is who requested it, `age` how long ago. `outcome` is what came of the search, or why it failed.
    """
    from ..engine.queries import BuildQuery

    if base is not None and wanted["adapter"] is None:
        raise UsageError("--base selects the base model of --adapter, which is missing")
    with app.backend() as backend:
        builds = backend.list_builds(BuildQuery(**wanted, base=base, sort=sort), limit=limit + 1, after=after)
    narrowed = any(value is not None for value in wanted.values())
    empty = (
        NO_MORE if after else "no such build" if narrowed else "no build yet; `reccocktail build request DOMAIN --wait`"
    )
    show_builds(builds, as_json, empty=empty, limit=limit)
