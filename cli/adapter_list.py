"""`adapter list`: versions with what was measured of them, filtered and sorted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import UsageError
from .adapters import adapter
from .app import App, base_option, example, json_option, paging_options, pass_app
from .console import NO_MORE, answer, page, size, table
from .evaluation_records import FIRST

if TYPE_CHECKING:
    from ..registry import Adapter

KINDS = ("lora", "personalised-lora", "bi-tuning")
EMPTY = "no adapter yet; `reccocktail adapter add` or `train`"


@adapter.command(
    name="list",
    epilog=example(
        "reccocktail adapter list --domain beauty --metric 'NDCG@3>=0.4'",
        "reccocktail adapter list --spirit --tag 2026-11 --search general",
    ),
)
@click.option("--domain", metavar="D", help="Only this domain's ingredients.")
@click.option("--spirit", is_flag=True, help="Only base spirits.")
@click.option("--kind", type=click.Choice(KINDS), help="Only of this kind; a plain `lora` is what mixes are made of.")
@click.option(
    "--tag", "tags", metavar="T", multiple=True, help="Only with this tag; repeat it for several, all must match."
)
@click.option(
    "--metric",
    "metrics",
    metavar="BOUND",
    multiple=True,
    help="Condition such as 'NDCG@3>=0.4' on what was measured last, else registered; all must hold.",
)
@click.option(
    "--sort",
    metavar="METRIC",
    help="Best value of this metric first, which is the smallest of a loss; only versions that have it.",
)
@click.option(
    "--search", "text", metavar="TEXT", help="Only with this text in domain, note or tags; case does not matter."
)
@base_option
@paging_options
@json_option
@pass_app
def list_(
    app: App,
    domain: str | None,
    spirit: bool,
    kind: str | None,
    tags: tuple[str, ...],
    metrics: tuple[str, ...],
    sort: str | None,
    text: str | None,
    base: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """List adapter versions, newest first.

    `measured` is the newest evaluation on the test split of the version's own domain, `registered` what was given with it.
    """
    from ..engine.queries import AdapterQuery

    if spirit and domain is not None:
        raise UsageError("a spirit belongs to no domain: give --spirit or --domain, not both")
    query = AdapterQuery(domain, base, spirit, kind, tags, metrics, sort, text)
    with app.backend() as backend:
        found = backend.list_adapters(query, limit=limit + 1, after=after)
        several = base is None and not as_json and len(backend.bases.list()) > 1
    keys = [(row.base, row.ref) for row, _ in found]
    rows, document = [row for row, _ in found[:limit]], [each for _, each in found[:limit]]
    mixed = len({a.base for a in rows}) > 1

    def show_rows() -> None:
        figures = [_figures(each["evaluation"], sort) for each in document]
        kinds = any(row.kind != "lora" for row in rows)
        columns = [
            "ref",
            *(["kind"] * kinds),
            *(["base"] * mixed),
            "rank",
            "size",
            "labels",
            "measured",
            "registered",
            "created",
        ]
        shown = [
            [
                a.ref,
                *([a.kind] * kinds),
                *([a.base] * mixed),
                a.rank or None,
                size(a.bytes),
                _labels(a),
                cell,
                a.metrics,
                f"{a.created_at:%Y-%m-%d}",
            ]
            for a, cell in zip(rows, figures, strict=True)
        ]
        narrowed = domain or spirit or kind or tags or metrics or text
        empty = (
            NO_MORE
            if after
            else "no such adapter"
            if narrowed
            else f"no adapter has the metric {sort}"
            if sort
            else EMPTY
        )
        spare = ("size", "rank", "created", "base", *(("registered",) if any(figures) else ("measured", "registered")))
        table(columns, shown, right=("rank", "size"), empty=empty, spare=spare)
        page([f"{base}:{ref}" if several else ref for base, ref in keys], limit)

    answer(as_json, document, show_rows)


def _figures(measured: Mapping[str, Any] | None, sort: str | None) -> dict[str, float]:
    """The metric that the list is sorted by, else those that tables show, as they were measured last."""
    wanted = (sort,) if sort else FIRST
    return {name: measured["metrics"][name]["mean"] for name in wanted if measured and name in measured["metrics"]}


def _labels(row: Adapter) -> list[str]:
    """Aliases as they are typed, tags, and that it is archived."""
    archived = ["archived"] if row.archived_at else []
    return [*(f"@{alias}" for alias in row.aliases), *row.tags, *archived]
