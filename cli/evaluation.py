"""`evaluate`: how well systems recommend, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .app import App, base_option, example, json_option, pass_app
from .console import answer, progress, table

if TYPE_CHECKING:
    from ..engine.evaluation import Evaluation


@click.command(
    epilog=example(
        "reccocktail evaluate smollm2 spirit beauty ./merged --domain beauty",
        "reccocktail evaluate beauty@v1 beauty@v2 --domain beauty --split cold --limit 200",
    )
)
@click.argument("systems", metavar="REF_OR_BUILD_OR_PATH...", nargs=-1, required=True)
@click.option("--domain", metavar="D", required=True, help="Domain whose data to rank.")
@click.option("--split", type=click.Choice(["test", "cold", "validation"]), default="test", show_default=True)
@click.option("--template", metavar="T", help="Prompt template: a name or a file; next-title unless said.")
@click.option("--negatives", type=click.IntRange(1), default=9, show_default=True, help="Candidates beside the target.")
@click.option("--limit", type=click.IntRange(1), help="A seeded sample of this many users.")
@click.option("--seed", type=int, default=42, show_default=True, help="Of candidates and sample.")
@base_option
@json_option
@pass_app
def evaluate(
    app: App,
    systems: tuple[str, ...],
    domain: str,
    split: str,
    template: str | None,
    negatives: int,
    limit: int | None,
    seed: int,
    base: str | None,
    as_json: bool,
) -> None:
    """Rank each user's next item among candidates by likelihood; HR@k, NDCG@k and MRR with 95 % intervals."""
    from pathlib import Path

    from ..engine.evaluation import evaluate as measure
    from ..engine.evaluation import find_system
    from ..registry.errors import UsageError
    from ..tasks import DEFAULT_TEMPLATE, load_template, questions, read_domain

    with app.registry() as registry:
        row = registry.domains.get(domain)
        if row.data is None:
            raise UsageError(f"domain {domain!r} has no data", hint=f"reccocktail domain add {domain} --data DIR")
        found = [find_system(registry, text, base=base) for text in systems]
        data = read_domain(Path(row.data), domain)
        task, asked = questions(
            data,
            split,  # pyright: ignore[reportArgumentType]  click has checked the choice
            load_template(template or DEFAULT_TEMPLATE),
            n_negatives=negatives,
            seed=seed,
            limit=limit,
        )
        device = app.device()
        results = []
        for system in found:
            with progress(f"ranking with {system.label}", unit="users") as update:
                results.append(
                    measure(
                        system,
                        task,
                        asked,
                        device=device,
                        kept_in=registry.settings.home / "evaluations",
                        progress=lambda done, total, update=update: update(done, total, ""),
                    )
                )
    answer(as_json, [r.to_json() for r in results], lambda: show_evaluations(results))


def show_evaluations(results: Sequence[Evaluation]) -> None:
    """Systems down, metrics across, each with its interval."""
    names = list(results[0].metrics)
    rows = []
    for result in results:
        cells = [f"{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in result.metrics.values()]
        rows.append([result.label, *cells, len(result.ranks)])
    table(["system", *names, "users"], rows, empty="", right=("users",))
