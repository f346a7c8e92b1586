"""`evaluate`: how well systems recommend, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import click

from ..registry.errors import UsageError
from .app import App, base_option, example, json_option, pass_app
from .click_evaluation import evaluate_clicks
from .console import answer, counted, say, table, warn
from .full_evaluation import evaluate_full
from .measured import interval, system_bar, warn_of_unkept

if TYPE_CHECKING:
    from ..engine.evaluation import Comparison
    from ..tasks import ClickOptions, Split, SplitBy

RANKED = ("test", "cold", "validation")
SPLITS = {"rank": RANKED, "full": RANKED, "clicks": ("time", "user")}  # of each task; the first is the default
NEGATIVES = 9


@click.command(
    epilog=example(
        "reccocktail evaluate popularity tfidf smollm2 spirit beauty ./merged --domain beauty",
        "reccocktail evaluate beauty@v1 beauty@v2 --domain beauty --split cold --limit 200 --against beauty@v1",
        "reccocktail evaluate smollm2 beauty --domain beauty --score constrained",
        "reccocktail evaluate popularity tfidf-last sasrec bert4rec --domain beauty --task full --against tfidf-last",
        "reccocktail evaluate item-user-mean din smollm2 movies --domain movies --task clicks --split user --limit 500",
    )
)
@click.argument("systems", metavar="REF_OR_BUILD_OR_PATH...", nargs=-1, required=True)
@click.option("--domain", metavar="D", required=True, help="Domain whose data is used.")
@click.option(
    "--task",
    type=click.Choice(list(SPLITS)),
    default="rank",
    show_default=True,
    help="rank: each user's next item among candidates. full: among all items of the catalogue. clicks: will a user like an item? Of the"
    " ratings in the domain's data.",
)
@click.option(
    "--split",
    type=click.Choice(list(dict.fromkeys(name for names in SPLITS.values() for name in names))),
    help="What is measured. rank and full: test (default), cold or validation. clicks: the last tenth of all rows by time (default), or of each user's.",
)
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
@click.option(
    "--template",
    metavar="T",
    help="Prompt template: a name or a file; default: next-title, for clicks yes-no.",
)
@click.option(
    "--negatives", type=click.IntRange(1), help=f"rank: candidates besides the target.  [default: {NEGATIVES}]"
)
@click.option("--threshold", type=float, help="clicks: the least rating of an item that is liked.  [default: 4]")
@click.option(
    "--min-history",
    type=click.IntRange(1),
    help="clicks: leave out rows with fewer rated items before them.  [default: 5]",
)
@click.option("--limit", type=click.IntRange(1), help="Use a random sample of this many users; of clicks, rows.")
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of candidates and sample.")
@click.option("--against", metavar="SYSTEM", help="Also report each system's difference to this one.")
@base_option
@json_option
@pass_app
def evaluate(
    app: App,
    systems: tuple[str, ...],
    domain: str,
    task: str,
    split: str | None,
    score: str | None,
    template: str | None,
    negatives: int | None,
    threshold: float | None,
    min_history: int | None,
    limit: int | None,
    seed: int,
    against: str | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Measure how well systems recommend, or predict clicks.

    Each user's next item, the target, is ranked among candidates. Reports HR@k, NDCG@k, MRR and AUC with 95 % intervals. What was found is
    recorded in the registry (`reccocktail evaluation list`); nothing that any machine has recorded is measured again.

    `popularity`, `tfidf` and `sasrec` are baselines from the domain's data: counts; likeness to the titles of the last ten
    items; a sequence model that reads no titles. The names are reserved: write a folder of that name with a slash, and an
    adapter with its version.

    With `--task full` the target is ranked among all items of the catalogue, what the user has taken included: Recall@k, NDCG@k and
    MRR. It takes bi-tunings, which rank by the index of their items. Its baselines are `popularity`, `tfidf`, `tfidf-last` (likeness to the last item alone), `sasrec` and `bert4rec`.

    With `--task clicks` ratings are likes and dislikes, and systems give each test row a probability: roc_auc, log_loss and
    accuracy over all rows, with intervals that draw whole users. Its baselines are `item-mean`, `item-user-mean` and `din`,
    a network trained on all training rows.
    """
    from dataclasses import asdict

    from ..engine.evaluation import DomainEvaluation, evaluate_domain
    from ..engine.score_choice import read_score
    from ..tasks import DEFAULT_TEMPLATE

    _expect_split(task, split)
    if task == "clicks":
        from ..engine.click_evaluation import ClickRequest
        from ..tasks import DEFAULT_CLICK_TEMPLATE

        _expect_none("rank", {"--score": score, "--negatives": negatives})
        options, wording = _click_options(split, threshold, min_history), template or DEFAULT_CLICK_TEMPLATE
        asked = ClickRequest(domain, systems, options, wording, limit, seed, against, base)
        evaluate_clicks(app, asked, as_json=as_json)
        return
    _expect_none("clicks", {"--threshold": threshold, "--min-history": min_history})
    part = cast("Split", split or RANKED[0])
    if task == "full":
        from ..engine.full_evaluation import FullRequest

        _expect_none("rank", {"--score": score, "--negatives": negatives, "--template": template})
        evaluate_full(app, FullRequest(domain, systems, part, limit, seed, against, base), as_json=as_json)
        return
    wanted = DomainEvaluation(
        domain,
        systems,
        part,
        read_score(score),
        template or DEFAULT_TEMPLATE,
        negatives or NEGATIVES,
        limit,
        seed,
        against,
        base,
    )
    with app.registry() as registry:
        found = evaluate_domain(registry, wanted, device=app.device(), bar=system_bar)
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


def _expect_split(task: str, split: str | None) -> None:
    if split is not None and split not in SPLITS[task]:
        raise UsageError(f"--task {task} has no split {split!r}", hint=f"its splits are {', '.join(SPLITS[task])}")


def _expect_none(task: str, given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} is an option of --task {task}", hint=f"leave {name} out, or add --task {task}")


def _click_options(split: str | None, threshold: float | None, min_history: int | None) -> ClickOptions:
    from ..tasks import ClickOptions

    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold:g} is no rating", hint="give a number, such as 4")
    given = {"threshold": threshold, "min_history": min_history}
    options = ClickOptions(by=cast("SplitBy", split or SPLITS["clicks"][0]))
    return options.model_copy(update={name: value for name, value in given.items() if value is not None})


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
                f"{result.label} named {counted(result.lists.entries, 'title')}: {shares[0]:.0%} are no candidate's,"
                f" {shares[1]:.0%} repeat an earlier one; both count as misses"
            )
