"""`merge`: the engine without a registry."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..registry.errors import UsageError
from ..registry.strict_json import parse_value
from .app import App, example, json_option, pass_app
from .builds import about_rounding, new_folder
from .console import answer, details, progress, say
from .merge_inputs import FoundBase, GivenAdapter, Inputs, given_adapters, read_mix

if TYPE_CHECKING:
    from ..engine.merging.standalone import WeightedFolder
    from ..engine.recipes import Recipe


@click.command(
    epilog=example(
        "reccocktail merge ./base -a ./spirit=0.4 -a ./beauty=0.6 -o ./merged",
        "reccocktail merge ./base -a ./spirit -a ./beauty -r average -o ./merged --dtype float32",
        "reccocktail merge ./base -a ./spirit=1 -a ./beauty=1 --method ties_mergekit --option density=0.3 -o ./merged",
        "reccocktail merge ./base -a ./spirit=0.4 -a ./beauty=0.6 --format adapter --rank 16 -o ./mixed-lora",
        "reccocktail merge smollm2 -a spirit@champion=0.4 -a beauty@v2=0.6 -o ./merged",
        "reccocktail merge org/base -r mergekit.yaml -o ./merged",
    )
)
@click.argument("base")
@click.option(
    "-a",
    "adapters",
    metavar="ADAPTER[=WEIGHT]",
    multiple=True,
    help="LoRA and weight; a single LoRA needs none (1).",
)
@click.option(
    "-r",
    "--recipe",
    "recipe_name",
    metavar="RECIPE",
    help="Recipe with method, weights (spirit first) and output, or a mergekit configuration of LoRAs on one base.",
)
@click.option(
    "-o", "out", metavar="DIR", type=click.Path(path_type=Path), required=True, help="New folder for the result."
)
@click.option("--method", metavar="M", help="Merging method, without a recipe; default: linear; see `recipe methods`.")
@click.option("--option", "options", metavar="KEY=VALUE", multiple=True, help="An option of the method.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["checkpoint", "adapter"]),
    help="Output format; default: the recipe's, else checkpoint.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Truncate the adapter to this rank by SVD; default: exact.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Data type of the result; default: the base model's.",
)
@click.option("--device", metavar="D", help="Device; default: from the settings.")
@click.option("--allow-base-mismatch", is_flag=True, help="Accept adapters that name another base model.")
@click.option(
    "--allow-partial", is_flag=True, help="Accept adapters that lack tensors which their configuration names."
)
@json_option
@pass_app
def merge(
    app: App,
    base: str,
    adapters: tuple[str, ...],
    recipe_name: str | None,
    out: Path,
    method: str | None,
    options: tuple[str, ...],
    format_: str | None,
    rank: int | None,
    dtype: str | None,
    device: str | None,
    allow_base_mismatch: bool,
    allow_partial: bool,
    as_json: bool,
) -> None:
    """Merge LoRAs, without a registry where folders are named.

    The result is a checkpoint like BASE, or one LoRA. BASE is a folder, ORG/NAME on the Hub, package:NAME, or a base model of the
    registry; an ADAPTER is a folder, ORG/NAME, or a reference such as beauty@v2 or spirit@champion.

    Run the same command again to resume an interrupted merge.
    """
    from ..engine.merging.standalone import MergeOptions, merge_folders
    from ..engine.recipes import parse_output
    from ..registry.digests import DigestMemory

    if recipe_name and (method or options):
        raise UsageError("the recipe names the method and its options; leave out --method and --option, or -r")
    mix = read_mix(recipe_name) if recipe_name else None
    wanted = given_adapters(adapters, mix)
    recipe = _recipe(app, recipe_name) if recipe_name and mix is None else None
    given = {key: value for key, value in (("format", format_), ("rank", rank), ("dtype", dtype)) if value is not None}
    if mix is not None and mix.dtype is not None:
        given = {"dtype": mix.dtype} | given
    output = parse_output((recipe.output.model_dump(exclude_none=True) if recipe else {}) | given)
    says = mix or recipe
    target, settings = new_folder(out), app.here
    with ExitStack() as stack:
        inputs = stack.enter_context(closing(Inputs(app)))
        found = stack.enter_context(inputs.base(base))
        weighted = _weighted(inputs, found, wanted, recipe)
        bar = stack.enter_context(progress("merging", unit="bytes"))
        try:
            report = merge_folders(
                found.folder,
                weighted,
                target,
                MergeOptions(
                    method=says.method if says else method or "linear",
                    options=says.options if says else dict(map(_option, options)),
                    output=output,
                    device=device or settings.device,
                    allow_base_mismatch=allow_base_mismatch,
                    allow_partial=allow_partial,
                    base_names=found.known_as,
                ),
                memory=DigestMemory(settings.own_folder("cache") / "digests")
                if settings.home.is_dir() and app.url is None
                else None,
                progress=bar.update,
            )
        except KeyboardInterrupt:
            say("interrupted; run the same command again to resume after the finished shards")
            raise
    if resumed := report.summary().get("resumed_shards"):
        say(f"resumed after {resumed} finished by an earlier run")
    # the base's card gives way to one of its own
    left_out: Sequence[str] = getattr(report, "left_out", ())  # an adapter takes nothing from the base
    if left := [name for name in left_out if name.lower() != "readme.md"]:
        say(f"not taken from the base folder, because no model needs it: {', '.join(left)}")
    document: dict[str, object] = {
        "path": str(target),
        "format": output.format,
        **report.summary(),
        "tensors": [asdict(t) for t in report.tensors],
    }

    def show() -> None:
        say(f"merged into {target}")
        summary = report.summary()
        details(summary)
        if note := about_rounding(summary, "--dtype float32"):
            say(note)

    answer(as_json, document, show)


def _option(text: str) -> tuple[str, object]:
    """`KEY=VALUE`, the value as JSON reads it where it does: numbers, true and false; else text."""
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise UsageError(f"--option {text}: is not KEY=VALUE", hint="--option density=0.5")
    try:
        return key, parse_value(value)
    except ValueError:
        return key, value


def _recipe(app: App, name: str) -> Recipe:
    """A recipe that ships or a file needs no registry; any other name is one of the registry's."""
    from ..engine.recipe_book import find_recipe, is_file_name
    from ..engine.recipes import SHIPPED, load_recipe

    if name in SHIPPED or is_file_name(name):
        return load_recipe(name)
    with app.registry() as registry:
        return find_recipe(registry, name)


def _weighted(
    inputs: Inputs, base: FoundBase, wanted: Sequence[GivenAdapter], recipe: Recipe | None
) -> list[WeightedFolder]:
    """Each adapter's folder, with its weight and what it is called. Weights are checked before anything is fetched."""
    from ..engine.merging.standalone import WeightedFolder, weigh

    weights = [each.weight for each in weigh([(Path(each.text), each.weight) for each in wanted], recipe)]
    found = [inputs.adapter(each.text, base) for each in wanted]
    return [WeightedFolder(each.folder, weight, each.label) for each, weight in zip(found, weights, strict=True)]
