"""`evaluate`: how well systems recommend, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from .app import App, base_option, example, json_option, pass_app
from .console import answer, progress, say, table, warn

if TYPE_CHECKING:
    from ..engine.evaluation import Comparison, Evaluation
    from ..tasks import Interval, Split


@click.command(
    epilog=example(
        "reccocktail evaluate popularity tfidf smollm2 spirit beauty ./merged --domain beauty",
        "reccocktail evaluate beauty@v1 beauty@v2 --domain beauty --split cold --limit 200 --against beauty@v1",
        "reccocktail evaluate smollm2 beauty --domain beauty --score constrained",
    )
)
@click.argument("systems", metavar="REF_OR_BUILD_OR_PATH...", nargs=-1, required=True)
@click.option("--domain", metavar="D", required=True, help="Domain whose data is used.")
@click.option("--split", type=click.Choice(["test", "cold", "validation"]), default="test", show_default=True)
@click.option(
    "--score",
    "--mode",
    "score",
    metavar="SCORE",
    help="How models rank: likelihood: log P of each candidate's title. pmi[:WEIGHT]: the same, less WEIGHT (1) times its value without"
    " a history. constrained: log P among the tokens that continue some title of the catalogue. auto: the best of these on validation"
    " questions. hybrid[:WEIGHT]: pmi and WEIGHT times how alike titles are (tfidf); without WEIGHT the best one on validation questions."
    " generate: parse the titles that the model writes. Default: what a build was tuned with, else pmi."
    " (--mode is the old name.)",
)
@click.option("--template", metavar="T", help="Prompt template: a name or a file; default: next-title.")
@click.option(
    "--negatives", type=click.IntRange(1), default=9, show_default=True, help="Candidates besides the target."
)
@click.option("--limit", type=click.IntRange(1), help="Use a random sample of this many users.")
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of candidates and sample.")
@click.option("--against", metavar="SYSTEM", help="Also report each system's difference to this one.")
@base_option
@json_option
@pass_app
def evaluate(
    app: App,
    systems: tuple[str, ...],
    domain: str,
    split: Split,
    score: str | None,
    template: str | None,
    negatives: int,
    limit: int | None,
    seed: int,
    against: str | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Measure how well systems rank each user's next item.

    Each target is ranked among candidates. Reports HR@k, NDCG@k, MRR and AUC with 95 % intervals. What was found is
    recorded in the registry (`reccocktail evaluation list`); nothing that any machine has recorded is measured again.

    `popularity`, `tfidf` and `sasrec` are baselines from the domain's data: counts; likeness to the titles of the last ten
    items; a sequence model that reads no titles. The names are reserved: write a folder of that name with a slash, and an
    adapter with its version.
    """
    from dataclasses import asdict

    from ..engine.evaluation import DomainEvaluation, evaluate_domain
    from ..engine.score_choice import read_score
    from ..tasks import DEFAULT_TEMPLATE

    wanted = DomainEvaluation(
        domain, systems, split, read_score(score), template or DEFAULT_TEMPLATE, negatives, limit, seed, against, base
    )

    @contextmanager
    def bar(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        with progress(label, unit=unit) as shown:
            yield shown.update

    with app.registry() as registry:
        found = evaluate_domain(registry, wanted, device=app.device(), bar=bar)
    results, other, chosen = found.results, found.other, found.chosen
    warn_of_unkept(results)
    if chosen is not None and chosen.unkept is not None:
        warn(f"the figures of the choice were not kept, and would be measured again: {chosen.unkept}")
    rows = [result.to_json() for result in results]
    for document, result in zip(rows, results, strict=True):
        apart = None if other is None or result is other else result.minus(other)
        document["evaluation"] = result.record
        document["against"] = apart and {name: asdict(interval) for name, interval in apart.items()}
    document = {
        "task": rows[0]["task"],
        "score": chosen and str(chosen.score),
        "score_reason": chosen and chosen.reason,
        "score_losses": dict(chosen.losses) if chosen else {},
        "against": other and other.label,
        "systems": rows,
    }
    answer(as_json, document, lambda: show_comparison(found))


def warn_of_unkept(results: Sequence[Evaluation]) -> None:
    """What could not be kept will be measured again; the figures are the same."""
    for result in results:
        if result.unkept is not None:
            warn(f"the result of {result.label} was not kept, and would be measured again: {result.unkept}")


def show_comparison(found: Comparison) -> None:
    """The score; systems down, metrics across, each with its interval; then what sets them apart from the `other`."""
    results, other, chosen = found.results, found.other, found.chosen
    if chosen is not None:
        click.echo(f"models ranked by {chosen.score} ({chosen.reason})")
        if chosen.losses:
            click.echo("log-loss: " + ", ".join(f"{name} {loss:.3f}" for name, loss in chosen.losses.items()))
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = []
    for result in results:
        metrics = result.metrics
        rows.append([result.label, *(interval(metrics.get(name)) for name in names), len(result.ranks)])
    table(["system", *names, "users"], rows, empty="", right=("users",))
    if other is not None:
        rest = [(result.label, result.minus(other)) for result in results if result is not other]
        columns = list(rest[0][1]) if rest else []
        rows = [[label, *(interval(found[name], "+") for name in columns)] for label, found in rest]
        table([f"minus {other.label}", *columns], rows, empty="there is no other system to compare with")
    for result in results:
        if result.lists is not None and result.lists.entries:
            shares = (result.lists.unknown / result.lists.entries, result.lists.duplicates / result.lists.entries)
            say(
                f"{result.label} named {result.lists.entries} titles: {shares[0]:.0%} are no candidate's,"
                f" {shares[1]:.0%} repeat an earlier one; both count as misses"
            )


def interval(found: Interval | None, sign: str = "") -> str:
    if found is None:
        return ""
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"
