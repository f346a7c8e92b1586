"""`adapter diff`: what two versions differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    with app.backend() as backend:
        found = backend.difference(ref, other, base=base)

    def show_all() -> None:
        rows = [found["one"], found["other"]]
        names = [row["ref"] if rows[0]["base"] == rows[1]["base"] else f"{row['ref']} ({row['base']})" for row in rows]
        cells = [[field["name"], _written(field["one"]), _written(field["other"])] for field in found["fields"]]
        table(["what", *names], cells, empty="their metadata are equal")
        _show_weights(found["weights"])

    answer(as_json, found, show_all)


def _show_weights(weights: Mapping[str, Any] | None) -> None:
    if weights is None:
        click.echo("their weights are not compared: their base models have different weights")
        return
    apart = [each for each in (*weights["deltas"], *weights["tensors"]) if not each["equal"]]
    if not apart:
        click.echo("their weights are the same")
        return
    one, other, distance, cosine = _figures(weights["total"])
    click.echo(f"deltas: norms {one} and {other}, {distance} apart, cosine {cosine}")
    apart.sort(key=lambda each: -each["distance"])
    columns = ["furthest apart", "norm", "other's", "distance", "cosine"]
    table(columns, [[each["name"], *_figures(each)] for each in apart[:MOST_APART]], empty="", right=columns[1:])
    if len(apart) > MOST_APART:
        say(f"({MOST_APART} of {len(apart)} that differ; --json has all)")


def _figures(apart: Mapping[str, Any]) -> list[str]:
    return [_figure(apart[name]) for name in ("one", "other", "distance", "cosine")]


def _written(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
