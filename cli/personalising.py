"""`personalise`: the plain LoRA or checkpoint that a user has of a personalised LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .app import App, base_option, example, json_option, pass_app
from .builds import new_folder
from .console import answer, say

if TYPE_CHECKING:
    from ..engine.personal import Person, Personalised


@click.command(
    epilog=example(
        "reccocktail personalise movies 42 -o ./for-42",
        "reccocktail personalise movies@v3 42 43 -o ./people --format checkpoint",
        "reccocktail personalise movies 42 -o ./for-42 --spirit 0.4",
    )
)
@click.argument("ref", metavar="DOMAIN")
@click.argument("users", metavar="USER...", nargs=-1, required=True)
@click.option(
    "-o", "out", metavar="DIR", type=click.Path(path_type=Path), required=True, help="New folder for the result."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["adapter", "checkpoint"]),
    default="adapter",
    show_default=True,
    help="adapter: a PEFT LoRA. checkpoint: a model like the base.",
)
@click.option(
    "--spirit",
    metavar="W",
    type=click.FloatRange(0, 1),
    help="Mix in the base spirit with this weight, and the rest of the user's.",
)
@base_option
@json_option
@pass_app
def personalise(
    app: App,
    ref: str,
    users: tuple[str, ...],
    out: Path,
    format_: Literal["adapter", "checkpoint"],
    spirit: float | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Write a user's own LoRA, of a personalised one.

    DOMAIN means its newest personalised LoRA, DOMAIN@vN or DOMAIN@ALIAS that one. Histories are read from the domain's data. With
    several users each gets a folder of its own in DIR. The coefficients are beside the result, in coefficients.json.
    """
    from ..engine.merging.standalone import MergeOptions
    from ..engine.personal import PersonalRequest, personalise_users
    from ..engine.recipes import Output

    target = new_folder(out)
    options = MergeOptions(output=Output(format=format_), device=app.settings.device)
    with app.registry() as registry:
        done = personalise_users(
            registry, PersonalRequest(ref, users, base, options, spirit), target, notify=say_fallback
        )
    document = {"adapter": done.adapter.ref, "base": done.adapter.base, "format": format_, "spirit": spirit}
    document |= {"users": [_about(each.person) | {"path": str(each.folder)} for each in done.written]}
    answer(as_json, document, lambda: _show(done))


def _about(person: Person) -> dict[str, Any]:
    return {
        "user": person.user,
        "known_user": person.known,
        "history": person.history,
        "fallback": person.fallback,
    }


def say_fallback(person: Person) -> None:
    """What is done for a user without a rated history."""
    if person.fallback:
        whose = "what its id says" if person.known else "what it does for an unknown user"
        say(f"the domain's data have no ratings of a user {person.user}: the recommender falls back on {whose}")


def _show(done: Personalised) -> None:
    for each in done.written:
        click.echo(str(each.folder))
    say(f"of {done.adapter.ref}, for the base model {done.adapter.base}")
