"""`resolve`: what a name means, in the form that a serving engine takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import ConflictError, NotFoundError, UsageError
from .app import App, base_option, example, json_option, pass_app
from .builds import about_choice, new_folder, say_chosen
from .console import answer, printable, say

if TYPE_CHECKING:
    from ..registry import Build, Registry
    from ..serving.resolve import Servable


@click.command(
    epilog=example(
        "reccocktail resolve beauty@champion --format path",
        "reccocktail resolve beauty@champion --format vllm",
        "reccocktail resolve spirit@v2 --format peft -o ./spirit",
        'vllm serve "$(reccocktail resolve beauty --merged)" --served-model-name beauty',
    )
)
@click.argument("ref", metavar="DOMAIN[@ALIAS]|ID")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["vllm", "peft", "path"]),
    default="path",
    show_default=True,
    help="vllm: a command. peft: a folder. path: the path in the store.",
)
@click.option("--merged", is_flag=True, help="The merged checkpoint of a domain or build, not an adapter.")
@click.option("-o", "out", metavar="DIR", type=click.Path(path_type=Path), help="New folder for --format peft.")
@base_option
@json_option
@pass_app
def resolve(app: App, ref: str, format_: str, merged: bool, out: Path | None, base: str | None, as_json: bool) -> None:
    """Print what a serving engine needs for a name.

    The path of the adapter that the name refers to; an alias of builds counts where no adapter has it. With --merged, of the merged checkpoint that the domain serves, which is the
    build with its alias `production`, or of the build with the alias or id.

    Fetches the files if they are in an object store. They belong to the store: do not change them.
    """
    if (format_ == "peft") != (out is not None):
        raise UsageError(
            "--format peft writes a folder, the other formats none", hint="-o DIR belongs to --format peft"
        )
    with app.registry() as registry:
        if merged:
            document, lines = _merged(registry, ref, format_, base)
        else:
            document, lines = _adapter(registry, ref, format_, out, base)

    def show() -> None:
        for line in lines:
            click.echo(printable(line))

    answer(as_json, {"ref": ref, "format": format_} | document, show)


def _adapter(
    registry: Registry, ref: str, format_: str, out: Path | None, base: str | None
) -> tuple[dict[str, Any], list[str]]:
    from ..serving import resolve as serving

    target = None if out is None else new_folder(out)
    found = serving.find(registry, ref, base=base)
    about = {
        "kind": "adapter",
        "adapter": None if found.origin.build else found.origin.ref,
        "build": found.origin.build,
        "base": found.origin.base,
        "digest": found.origin.digest,
    }
    if target is not None:
        model = serving.write_for_peft(registry, found, target)
        say(f"{found.origin.ref} is in {target}, for the base model in {model}")
        about |= {"path": str(target), "base_model_name_or_path": str(model)}
        return about | _resized(registry, found) | _classified(found.folder), [str(target)]
    about["path"] = str(found.folder)
    if format_ == "path":
        return about | _resized(registry, found) | _classified(found.folder), [str(found.folder)]
    module, command = serving.vllm_command(registry, found, ref)
    if found.is_uneven:
        say(f"{found.origin.ref} has a rank_pattern or an alpha_pattern: vLLM 0.32 supports it, older versions may not")
    return about | {"lora_module": module, "command": command}, [shlex.join(command)]


def _classified(folder: Path) -> dict[str, Any]:
    """Says of which class a classifier or its kin has to be loaded, an adapter's base model or a merged checkpoint."""
    from ..registry.artifacts.task_heads import TASK_CLASSES, task_in

    task = task_in(folder)
    if task is None:
        return {}
    loaded = f"AutoModel{TASK_CLASSES[task]}"
    say(f"it answers with labels and not with words: load it, or the base model under the adapter, as {loaded}")
    return {"auto_class": loaded}


def _resized(registry: Registry, found: Servable) -> dict[str, Any]:
    """Says what has to be done to the base model first; what a program reads of it."""
    from ..serving import resolve as serving

    resizing = serving.resizing(registry, found)
    if resizing is None:
        return {}
    say(f"{resizing}: {resizing.way}")
    return {"resize_token_embeddings": resizing.after, "base_vocabulary": resizing.before}


def _merged(registry: Registry, domain: str, format_: str, base: str | None) -> tuple[dict[str, Any], list[str]]:
    """The build that the domain serves, or that has the alias or id."""
    from ..engine.building.freshness import chosen
    from ..engine.building.planning import result_folder
    from ..registry.catalog.references import SPIRIT, Reference

    ref = Reference.parse(domain)
    if ref.name == SPIRIT or ref.version is not None:
        raise UsageError(
            f"{domain!r} names an adapter, and --merged belongs to a domain or build",
            hint="write DOMAIN, DOMAIN@ALIAS of a build, or a build's id",
        )
    if format_ == "peft":
        raise UsageError(
            "a merged checkpoint is no adapter", hint="--format path, for transformers and any other engine"
        )
    if ref.alias is not None:
        found, build = None, registry.builds.get(registry.serving.resolve(domain, base=base).build)
    else:
        try:
            registry.domains.get(domain)
        except NotFoundError:
            found, build = None, _build(registry, domain, base)
        else:
            found = chosen(registry, domain, base=base)
            build = found.build
    assert build is not None
    if build.recipe.get("output", {}).get("format") == "adapter":
        raise ConflictError(
            f"build {build.id} of {domain!r} made an adapter, not a checkpoint",
            hint=f"reccocktail resolve {domain}" if ref.alias else f"reccocktail build export {build.id} DIR",
        )
    folder = result_folder(registry, build)
    if found is not None:
        say_chosen(domain, found)
    about = {
        "kind": "checkpoint",
        "build": build.id,
        "base": build.base,
        "digest": build.digest,
        "path": str(folder),
        **(about_choice(found) if found else {}),
    }
    about |= _classified(folder)
    if format_ == "path":
        return about, [str(folder)]
    command = ["vllm", "serve", str(folder), "--served-model-name", domain]
    return about | {"command": command}, [shlex.join(command)]


def _build(registry: Registry, text: str, base: str | None) -> Build:
    """The build whose id begins so. Raises NotFoundError, also for one on another base model."""
    try:
        build = registry.builds.get(text)
    except NotFoundError:
        raise NotFoundError(
            f"there is no domain and no build {text!r}",
            hint="`reccocktail domain list` and `reccocktail build list` show them",
        ) from None
    if base is not None and build.base != base:
        raise NotFoundError(f"build {build.id} is on the base model {build.base!r}, not on {base!r}")
    return build
