"""`recommend`: what the build that is served for a domain would recommend to somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import UsageError
from .app import App, base_option, example, json_option, pass_app
from .builds import say_chosen
from .candidates import about_candidates, say_of_list, where_from
from .console import answer, progress, say, table
from .index_recommending import tell_by_index
from .personal_recommending import tell_personally

if TYPE_CHECKING:
    from ..engine.recommending import Recommendations
    from ..tasks import Score

TOP = 3  # of each list, side by side
UNKNOWN_SHOWN = 5


@click.command(
    epilog=example(
        "reccocktail recommend beauty --user A2X91",
        'reccocktail recommend beauty --history "Rose Cream || Green Tea Toner" -k 5 --compare',
        "reccocktail recommend beauty --user A2X91 --candidates in-stock.txt --json",
        "reccocktail recommend movies --user 42 --adapter movies@v2",
        'reccocktail recommend shoes --history "Trail Boot || Wool Sock" --adapter shoes@v3 --exclude-seen',
    )
)
@click.argument("domain")
@click.option("--user", metavar="U", help="A user of the domain's data, with all that the user took.")
@click.option("--history", metavar='"A || B"', help="Titles instead of a user, the newest last.")
@click.option("-k", "count", type=click.IntRange(1), default=10, show_default=True, help="How many titles to show.")
@click.option(
    "--candidates",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Rank these: an item id or a title a line, or JSON Lines with item_id or title.",
)
@click.option(
    "--retrieve",
    metavar="N",
    type=click.IntRange(1),
    help="Rank the N items of the catalogue most like the history, and most popular ones.  [default: all items up to 200, else 100; 30 of a personalised LoRA]",
)
@click.option(
    "--build",
    "build_id",
    metavar="ID",
    help="Another build of the domain than the one that is served: its id, or the beginning of it; `build list` shows them.",
)
@click.option(
    "--adapter",
    metavar="REF",
    help="A personalised LoRA or bi-tuning instead of a build.  [default: the newest, of a domain with no build and no plain LoRA]",
)
@click.option(
    "--exclude-seen",
    is_flag=True,
    help="Leave out what the history has; builds and personalised LoRAs always do.",
)
@click.option("--compare", is_flag=True, help="Also rank with each adapter of the build alone.")
@click.option(
    "--score",
    "score_text",
    metavar="S",
    help="likelihood, pmi, pmi:WEIGHT, constrained or hybrid:WEIGHT.  [default: what the build was tuned with, else pmi]",
)
@click.option("--template", metavar="T", help="Prompt template.  [default: the build's, else next-title]")
@base_option
@json_option
@pass_app
def recommend(
    app: App,
    domain: str,
    user: str | None,
    history: str | None,
    count: int,
    candidates: Path | None,
    retrieve: int | None,
    build_id: str | None,
    adapter: str | None,
    exclude_seen: bool,
    compare: bool,
    score_text: str | None,
    template: str | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Show what a domain's build would recommend.

    To a user of the domain's data, or after a history of titles. The build is the one that `resolve --merged` serves. Items that
    the history has are not recommended. Of a personalised LoRA the recommender picks 30 items, or as many as --retrieve says, and
    the language model ranks them by whether the user would like each. Of a bi-tuning the language model reads the history once, and its
    item index is searched.
    """
    from ..engine.answering import answer as ask
    from ..engine.index_recommending import IndexRecommendations
    from ..engine.personal_recommending import PersonalRecommendations
    from ..engine.recommending import SEPARATOR, RecommendationRequest

    wanted = RecommendationRequest(
        domain,
        user=user,
        history=None if history is None else history.split(SEPARATOR),
        candidates=candidates,
        retrieve=retrieve,
        build=build_id,
        base=base,
        score=_score(score_text),
        template=template,
        compare=compare,
        adapter=adapter,
        exclude_seen=exclude_seen,
    )

    @contextmanager
    def bar(label: str) -> Iterator[Callable[[int, int], None]]:
        with progress(f"ranking with {label}", unit="titles") as shown:
            yield shown.update

    with app.registry() as registry:
        found = ask(registry, wanted, count=count, device=app.device(), bar=bar)
        if isinstance(found, IndexRecommendations):
            tell_by_index(found, as_json=as_json)
            return
        if isinstance(found, PersonalRecommendations):
            tell_personally(found, count, as_json=as_json)
            return
    _say_about(found)
    answer(as_json, _document(found, count), lambda: _show(found, count))


def _score(text: str | None) -> Score | None:
    """Raises UsageError."""
    from ..engine.score_choice import read_score

    score = read_score(text)
    if isinstance(score, str):
        raise UsageError(
            f"--score {score} belongs to `evaluate`",
            hint="name one: likelihood, pmi, pmi:WEIGHT, constrained, hybrid:WEIGHT",
        )
    return score


def _document(found: Recommendations, count: int) -> dict[str, Any]:
    """The first `count` of each list; in the build's, each item's rank in the others."""
    from ..engine.documents import describe_choice

    build, ranks = found.build, [{item.item_id: item.rank for item in each.items} for each in found.lists]
    candidates = found.candidates
    return {
        "domain": build.domain,
        "build": {
            "id": build.id,
            "digest": build.digest,
            "base": build.base,
            "outcome": found.outcome,
            **(describe_choice(found.choice) if found.choice else {}),
        },
        "score": str(found.score),
        "score_from": found.score_origin,
        "template": found.template.name,
        "user": found.user,
        "history": [{"item_id": item.item_id or None, "title": item.title} for item in found.history],
        "candidates": about_candidates(candidates),
        "lists": [
            {
                "system": each.label,
                "role": each.role,
                "items": [
                    {
                        "rank": item.rank,
                        "item_id": item.item_id,
                        "title": item.title,
                        "score": item.score,
                        "ranks": {
                            other.role: ranks[place][item.item_id]
                            for place, other in enumerate(found.lists)
                            if other is not each
                        },
                    }
                    for item in each.items[:count]
                ],
            }
            for each in found.lists
        ],
    }


def _say_about(found: Recommendations) -> None:
    """Which build, score and candidates, and what was read otherwise than it is written."""
    candidates, build = found.candidates, found.build
    if found.choice is not None:
        from ..engine.documents import describe_choice

        say_chosen(build.domain, build.id, describe_choice(found.choice))
    if found.outcome == "parent":
        say(f"build {build.id} is one adapter alone, for no mix was shown to be as good")
    unknown = [item.title for item in found.history if not item.item_id]
    if unknown:
        more = f" and {len(unknown) - UNKNOWN_SHOWN} more" if len(unknown) > UNKNOWN_SHOWN else ""
        named = ", ".join(map(repr, unknown[:UNKNOWN_SHOWN]))
        say(f"not in the catalogue, used as text: {named}{more}")
    say_of_list(candidates)
    origin = {"request": "as asked", "build": "as the build was tuned", "default": "the default"}[found.score_origin]
    say(f"build {build.id}, score {found.score} ({origin}), {where_from(candidates)}")


def _show(found: Recommendations, count: int) -> None:
    others = found.lists[1:]
    ranks = [{item.item_id: item.rank for item in each.items} for each in others]
    rows = [
        [item.rank, item.title, f"{item.score:.2f}", *(each[item.item_id] for each in ranks)]
        for item in found.best[:count]
    ]
    names = [each.role for each in others]
    table(["#", "title", "score", *names], rows, empty="", right=("#", "score", *names), cut=("title",))
    if others:
        tops = [[item.title for item in each.items[: min(TOP, count)]] for each in found.lists]
        columns = ["cocktail", *(f"{name} alone" for name in names)]
        rows = [[place, *row] for place, row in enumerate(zip(*tops, strict=True), start=1)]
        table(["#", *columns], rows, empty="", right=("#",), cut=columns)
