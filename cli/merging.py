"""`merge`: the engine without a registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from ..registry.errors import UsageError
from ..registry.strict_json import parse_value
from .app import App, example, json_option, pass_app
from .builds import new_folder
from .console import answer, details, progress, say


@click.command(
    epilog=example(
        "reccocktail merge ./base -a ./spirit=0.4 -a ./beauty=0.6 -o ./merged",
        "reccocktail merge ./base -a ./spirit -a ./beauty -r average -o ./merged --dtype float32",
        "reccocktail merge ./base -a ./spirit=1 -a ./beauty=1 --method ties_mergekit --option density=0.3 -o ./merged",
        "reccocktail merge ./base -a ./spirit=0.4 -a ./beauty=0.6 --format adapter --rank 16 -o ./mixed-lora",
    )
)
@click.argument("base", type=click.Path(path_type=Path))
@click.option(
    "-a",
    "adapters",
    metavar="ADAPTER[=WEIGHT]",
    multiple=True,
    required=True,
    help="LoRA folder and weight; a single LoRA needs none (1).",
)
@click.option(
    "-r", "--recipe", "recipe_name", metavar="RECIPE", help="Recipe with method, weights (spirit first) and output."
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
    base: Path,
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
    """Merge LoRA folders, without a registry.

    The result is a checkpoint like the one in the folder BASE, or one LoRA.

    Run the same command again to resume an interrupted merge.
    """
    from ..engine.merging.standalone import MergeOptions, merge_folders, weigh
    from ..engine.recipes import load_recipe, parse_output
    from ..registry.digests import DigestMemory

    if recipe_name and (method or options):
        raise UsageError("the recipe names the method and its options; leave out --method and --option, or -r")
    recipe = load_recipe(recipe_name) if recipe_name else None
    weighted = weigh([_adapter(text) for text in adapters], recipe)
    given = {key: value for key, value in (("format", format_), ("rank", rank), ("dtype", dtype)) if value is not None}
    output = parse_output((recipe.output.model_dump(exclude_none=True) if recipe else {}) | given)
    target, settings = new_folder(out), app.settings
    with progress("merging", unit="bytes") as bar:
        try:
            report = merge_folders(
                base.expanduser(),
                weighted,
                target,
                MergeOptions(
                    method=recipe.method if recipe else method or "linear",
                    options=recipe.options if recipe else dict(map(_option, options)),
                    output=output,
                    device=device or app.settings.device,
                    allow_base_mismatch=allow_base_mismatch,
                    allow_partial=allow_partial,
                ),
                memory=DigestMemory(settings.own_folder("cache") / "digests") if settings.home.is_dir() else None,
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
        details(report.summary())

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


def _adapter(text: str) -> tuple[Path, float | None]:
    """`FOLDER=WEIGHT` or `FOLDER`; a folder whose own name has an equals sign wins over the split."""
    path = Path(text).expanduser()
    if path.is_dir() or "=" not in text:
        return path, None
    folder, _, weight = text.rpartition("=")
    try:
        return Path(folder).expanduser(), float(weight)
    except ValueError:
        raise UsageError(f"-a {text}: {weight!r} is not a number") from None
