"""`evaluation`: what `evaluate` recorded, and how two of its records compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .app import App, base_option, example, json_option, pass_app
from .console import NO_MORE, answer, counted, details, page, say, table

if TYPE_CHECKING:
    from ..registry.catalog.evaluations import EvaluationRecord

FIRST = (
    "NDCG@3",
    "HR@1",
    "NDCG@10",
    "Recall@10",
    "roc_auc",
    "log_loss",
)  # of the metrics, in tables: those that any row has
LESS_IS_BETTER = ("log_loss",)


@click.group(epilog=example("reccocktail evaluation list --domain beauty --sort NDCG@3"))
def evaluation() -> None:
    """Evaluations: list, show and compare what was measured."""


@evaluation.command(
    name="list",
    epilog=example(
        "reccocktail evaluation list --domain beauty --sort NDCG@3",
        "reccocktail evaluation list --system beauty@v3 --metric 'HR@1>=0.4'",
    ),
)
@click.option("--domain", metavar="D", help="Only on this domain's data.")
@click.option("--system", metavar="REF_OR_BUILD", help="Only of this adapter, build, base model or folder.")
@click.option(
    "--split",
    type=click.Choice(
        ["test", "cold", "validation", "full-test", "full-cold", "full-validation", "clicks-time", "clicks-user"]
    ),
    help="Only on this split; those of full rankings and of clicks begin with the task.",
)
@click.option("--score", metavar="SCORE", help="Only with this score, such as pmi or generate.")
@click.option(
    "--metric", "metrics", metavar="BOUND", multiple=True, help="Condition such as 'NDCG@3>=0.4'; all must hold."
)
@click.option(
    "--sort",
    metavar="METRIC",
    help="Best value of this metric first, which is the smallest of a loss; without it, newest first.",
)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option(
    "--after", type=click.IntRange(1), metavar="ID", help="Start after this entry: the last of the previous page."
)
@base_option
@json_option
@pass_app
def list_(
    app: App,
    domain: str | None,
    system: str | None,
    split: str | None,
    score: str | None,
    metrics: tuple[str, ...],
    sort: str | None,
    limit: int,
    after: int | None,
    base: str | None,
    as_json: bool,
) -> None:
    """List evaluations, newest first."""
    from ..engine.queries import EvaluationQuery

    query = EvaluationQuery(domain, system, split, score, metrics, sort, base)
    with app.backend() as backend:
        rows = backend.list_evaluations(query, limit=limit + 1, after=after)

    def show_rows() -> None:
        narrowed = domain or system or split or score or metrics
        empty = (
            NO_MORE
            if after
            else f"no such evaluation has the metric {sort}"
            if sort
            else "no such evaluation"
            if narrowed
            else "no evaluation yet; `reccocktail evaluate SYSTEM... --domain D`"
        )
        show_records(rows[:limit], empty=empty, sort=sort)
        page([row.id for row in rows], limit)

    answer(as_json, [row.to_json() for row in rows[:limit]], show_rows)


@evaluation.command(epilog=example("reccocktail evaluation show 12", "reccocktail evaluation show 12 --ranks --json"))
@click.argument("id_", metavar="ID", type=click.IntRange(1))
@click.option(
    "--ranks",
    is_flag=True,
    help="Also print the rank of each user's item (0 is best), in order; of clicks each row's probability, and + if it was liked.",
)
@json_option
@pass_app
def show(app: App, id_: int, ranks: bool, as_json: bool) -> None:
    """Show one evaluation: metrics, task, and who measured it when."""
    with app.backend() as backend:
        row = backend.evaluations.get(id_)
        per_row = backend.ranks(row) if ranks else {}
    document = row.to_json() | per_row

    def show_all() -> None:
        hidden = ("metrics", "task", "detail", "ranks", *per_row)
        details({"score" if name == "mode" else name: value for name, value in document.items() if name not in hidden})
        details({"task": row.task, "detail": {name: value for name, value in row.detail.items() if value}})
        details({"ranks": row.ranks})
        table(
            ["metric", "mean", "95 % interval"],
            [[n, f"{m['mean']:.3f}", _span(m)] for n, m in row.metrics.items()],
            empty="",
        )
        if "row_scores" in per_row:
            both = zip(per_row["row_scores"], per_row["row_labels"], strict=True)
            click.echo(" ".join(f"{score:.3f}{'+' if liked else '-'}" for score, liked in both))
        elif ranks:
            click.echo(" ".join("-" if rank is None else str(rank) for rank in per_row["user_ranks"]))

    answer(as_json, document, show_all)


@evaluation.command(
    epilog=example(
        "reccocktail evaluation compare beauty@v3 beauty@champion",
        "reccocktail evaluation compare 12 17 --metric NDCG@3",
    )
)
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option("--domain", metavar="D", help="For names: only evaluations on this domain's data.")
@click.option("--metric", "metrics", metavar="METRIC", multiple=True, help="Only this metric; repeat it for several.")
@base_option
@json_option
@pass_app
def compare(
    app: App, one: str, other: str, domain: str | None, metrics: tuple[str, ...], base: str | None, as_json: bool
) -> None:
    """Compare two evaluations user by user, of clicks row by row. No model runs.

    A and B are ids of evaluations, or an adapter, a build or another system: then their newest evaluations on the same
    users are taken. Reports A minus B with paired 95 % intervals (bootstrap). Evaluations of different users or candidates
    are refused.
    """
    from ..registry.catalog.evaluations import EvaluationRecord

    with app.backend() as backend:
        document = backend.compare(one, other, domain=domain, metrics=metrics, base=base)
    first, second = EvaluationRecord.from_json(document["a"]), EvaluationRecord.from_json(document["b"])

    def show_all() -> None:
        click.echo(f"A: {_called(first)}\nB: {_called(second)}")
        click.echo(f"{counted(first.users, 'user')} of {first.domain}, {first.split} split")
        if first.mode != second.mode:
            say(f"note: they were scored differently: {first.mode} and {second.mode}")
        rows = [
            [name, f"{first.metrics[name]['mean']:.3f}", f"{second.metrics[name]['mean']:.3f}",
             f"{each['mean']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}]", _verdict(name, each["low"], each["high"])]
            for name, each in document["differences"].items()
        ]  # fmt: skip
        table(["metric", "A", "B", "A minus B", ""], rows, empty="they have no metric in common")

    answer(as_json, document, show_all)


def _called(row: EvaluationRecord) -> str:
    return f"{row.label}, scored by {row.mode} (evaluation {row.id}, {row.created_at:%Y-%m-%d}, {row.created_by})"


def _verdict(metric: str, low: float, high: float) -> str:
    if low == high == 0:
        return "equal"
    if metric in LESS_IS_BETTER:
        low, high = -high, -low
    return "A is better" if low > 0 else "B is better" if high < 0 else "not settled"


def _span(interval: Mapping[str, float]) -> str:
    return f"[{interval['low']:.3f}, {interval['high']:.3f}]"


def figure(row: EvaluationRecord, metric: str) -> str | None:
    """A mean with its interval; None where it was not measured."""
    found = row.metrics.get(metric)
    return None if found is None else f"{found['mean']:.3f} {_span(found)}"


def show_records(rows: Sequence[EvaluationRecord], *, empty: str, sort: str | None = None) -> None:
    """Evaluations as a table, with the metric that they are sorted by."""
    measured = {name for row in rows for name in row.metrics}
    first = [name for name in FIRST if name in measured] or list(FIRST[:2])
    shown: list[str] = [*([sort] if sort and sort not in FIRST else []), *first]
    cells: list[list[Any]] = [
        [
            row.id,
            row.label,
            row.domain,
            row.split,
            row.mode,
            *(figure(row, name) for name in shown),
            row.users,
            f"{row.created_at:%Y-%m-%d}",
            row.created_by,
        ]
        for row in rows
    ]
    columns = ["id", "system", "domain", "split", "score", *shown, "users", "created", "by"]
    spare = ("by", "split", "created", shown[-1], "users", "domain")
    table(columns, cells, empty=empty, right=("users",), spare=spare)


def show_measured(rows: Sequence[EvaluationRecord], system: str) -> None:
    """The newest evaluations of one system, after other things that are known of it."""
    from ..engine.documents import MOST_SHOWN

    click.echo(f"\nevaluations: {'none yet' if not rows else ''}".rstrip())
    show_records(rows[:MOST_SHOWN], empty="")
    if len(rows) > MOST_SHOWN:
        say(f"({MOST_SHOWN} shown; all: reccocktail evaluation list --system {system})")
