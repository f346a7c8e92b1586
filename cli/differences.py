"""`adapter diff`: what two versions differ in."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from .adapters import adapter
from .app import App, base_option, example, json_option, pass_app
from .console import answer, say, table

MOST_APART = 10


@adapter.command(
    epilog=example(
        "reccocktail adapter diff beauty@v1 beauty@v2",
        "reccocktail adapter diff beauty@champion beauty --json",
        "reccocktail adapter diff spirit beauty --base smollm2",
    )
)
@click.argument("ref")
@click.argument("other")
@base_option
@json_option
@pass_app
def diff(app: App, ref: str, other: str, base: str | None, as_json: bool) -> None:
    """Compare two versions: metadata and weights.

    Deltas are measured whole, s·B·A, whatever their ranks: by their norms (Frobenius), how far they are apart, and the cosine
    between them. What is equal on both sides is left out.
    """
    from ..engine.comparing import compare

    with app.registry() as registry:
        rows = [registry.adapters.resolve(each, base=base) for each in (ref, other)]
        found = compare(registry, *rows)
    weights = found.weights
    names = [row.ref if rows[0].base == rows[1].base else f"{row.ref} ({row.base})" for row in rows]
    document = {
        "one": rows[0].to_json(),
        "other": rows[1].to_json(),
        "fields": [asdict(field) for field in found.fields],
        "weights": None if weights is None else asdict(weights),
    }

    def show_all() -> None:
        cells = [[field.name, _written(field.one), _written(field.other)] for field in found.fields]
        table(["what", *names], cells, empty="their metadata are equal")
        if weights is None:
            click.echo("their weights are not compared: their base models have different weights")
            return
        apart = [each for each in (*weights.deltas, *weights.tensors) if not each.equal]
        if not apart:
            click.echo("their weights are the same")
            return
        total = weights.total
        click.echo(
            f"deltas: norms {_figure(total.one)} and {_figure(total.other)}, {_figure(total.distance)} apart,"
            f" cosine {_figure(total.cosine)}"
        )
        apart.sort(key=lambda each: -each.distance)
        figures = [
            [each.name, *map(_figure, (each.one, each.other, each.distance, each.cosine))]
            for each in apart[:MOST_APART]
        ]
        columns = ["furthest apart", "norm", "other's", "distance", "cosine"]
        table(columns, figures, empty="", right=columns[1:])
        if len(apart) > MOST_APART:
            say(f"({MOST_APART} of {len(apart)} that differ; --json has all)")

    answer(as_json, document, show_all)


def _written(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
