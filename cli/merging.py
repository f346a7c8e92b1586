"""`merge`: the engine without a registry."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..registry.errors import UsageError
from .app import App, example, json_option, pass_app
from .builds import new_folder
from .console import answer, details, progress, say


@click.command(
    epilog=example(
        "reccocktail merge ./base -a ./spirit=0.4 -a ./beauty=0.6 -o ./merged",
        "reccocktail merge ./base -a ./spirit -a ./beauty -r average -o ./merged --dtype float32",
    )
)
@click.argument("base", type=click.Path(path_type=Path))
@click.option(
    "-a", "adapters", metavar="ADAPTER[=WEIGHT]", multiple=True, required=True, help="A LoRA folder, its weight."
)
@click.option("-r", "--recipe", "recipe_name", metavar="RECIPE", help="Method, weights (spirit first) and output.")
@click.option(
    "-o", "out", metavar="DIR", type=click.Path(path_type=Path), required=True, help="New folder for the result."
)
@click.option("--method", type=click.Choice(["linear", "factor"]), help="Without a recipe: linear unless said.")
@click.option("--format", "format_", type=click.Choice(["checkpoint"]), default="checkpoint", show_default=True)
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), help="Of the result; else the base's.")
@click.option("--device", metavar="D", help="Else the device of the settings.")
@click.option("--allow-base-mismatch", is_flag=True, help="Take adapters that name another base model.")
@json_option
@pass_app
def merge(
    app: App,
    base: Path,
    adapters: tuple[str, ...],
    recipe_name: str | None,
    out: Path,
    method: str | None,
    format_: str,
    dtype: str | None,
    device: str | None,
    allow_base_mismatch: bool,
    as_json: bool,
) -> None:
    """Merge LoRA folders into the checkpoint in the folder BASE; no registry is needed."""
    from ..engine.models import pick_device
    from ..engine.recipes import load_recipe
    from ..engine.standalone import merge_folders, weigh

    if recipe_name and method:
        raise UsageError("the recipe names the method; leave out --method or -r")
    recipe = load_recipe(recipe_name) if recipe_name else None
    weighted = weigh([_adapter(text) for text in adapters], recipe)
    target = new_folder(out)
    with progress("merging", unit="bytes") as update:
        report = merge_folders(
            base.expanduser(),
            weighted,
            target,
            method=recipe.method if recipe else method or "linear",
            dtype=dtype or (recipe.output.dtype if recipe else None),  # pyright: ignore[reportArgumentType]
            device=pick_device(device or app.settings.device),
            allow_base_mismatch=allow_base_mismatch,
            progress=lambda done, total: update(done, total, ""),
        )
    document = {
        "path": str(target),
        "format": format_,
        **report.summary(),
        "tensors": [asdict(t) for t in report.tensors],
    }

    def show() -> None:
        say(f"merged into {target}")
        details(report.summary())

    answer(as_json, document, show)


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
