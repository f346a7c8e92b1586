"""`resolve`: what a name means, in the form that a serving engine takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import ConflictError, LocalOnlyError, NotFoundError, UsageError
from .app import App, base_option, example, json_option, pass_app
from .builds import new_folder, say_chosen
from .console import answer, printable, say

if TYPE_CHECKING:
    from ..registry import Build
    from ..serving.resolve import Resizing
    from .app import Backend


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
    with app.backend() as backend:
        if merged:
            document, lines = _merged(backend, ref, format_, base)
        else:
            document, lines = _adapter(backend, ref, format_, out, base)

    def show() -> None:
        for line in lines:
            click.echo(printable(line))

    answer(as_json, {"ref": ref, "format": format_} | document, show)


def _adapter(
    backend: Backend, ref: str, format_: str, out: Path | None, base: str | None
) -> tuple[dict[str, Any], list[str]]:
    from ..api.remote_backend import RemoteBackend
    from ..serving import resolve as serving

    target = None if out is None else new_folder(out)
    if format_ != "path" and isinstance(backend, RemoteBackend):
        raise LocalOnlyError.of(f"--format {format_}", hint="--format path; its base model is on the server")
    located = backend.locate(ref, base=base)
    origin, found = located.origin, located.servable
    about = {
        "kind": "adapter",
        "adapter": None if origin.build else origin.ref,
        "build": origin.build,
        "base": origin.base,
        "digest": origin.digest,
    }
    if format_ == "path" or found is None or isinstance(backend, RemoteBackend):
        about["path"] = str(located.folder)
        return about | _resized(located.resizing) | _classified(located.folder), [str(located.folder)]
    registry = backend.registry
    if target is not None:
        model = serving.write_for_peft(registry, found, target)
        say(f"{found.origin.ref} is in {target}, for the base model in {model}")
        about |= {"path": str(target), "base_model_name_or_path": str(model)}
        return about | _resized(located.resizing) | _classified(found.folder), [str(target)]
    about["path"] = str(found.folder)
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


def _resized(resizing: Resizing | None) -> dict[str, Any]:
    """Says what has to be done to the base model first; what a program reads of it."""
    if resizing is None:
        return {}
    say(f"{resizing}: {resizing.way}")
    return {"resize_token_embeddings": resizing.after, "base_vocabulary": resizing.before}


def _merged(backend: Backend, domain: str, format_: str, base: str | None) -> tuple[dict[str, Any], list[str]]:
    """The build that the domain serves, or that has the alias or id."""
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
        choice, build = {}, backend.builds.get(backend.serving.resolve(domain, base=base).build)
    else:
        try:
            backend.domains.get(domain)
        except NotFoundError:
            choice, build = {}, _build(backend, domain, base)
        else:
            build, choice = backend.choose(domain, base=base)
    if build.recipe.get("output", {}).get("format") == "adapter":
        raise ConflictError(
            f"build {build.id} of {domain!r} made an adapter, not a checkpoint",
            hint=f"reccocktail resolve {domain}" if ref.alias else f"reccocktail build export {build.id} DIR",
        )
    folder = backend.build_folder(build)
    if choice:
        say_chosen(domain, build.id, choice)
    about = {
        "kind": "checkpoint",
        "build": build.id,
        "base": build.base,
        "digest": build.digest,
        "path": str(folder),
        **choice,
    }
    about |= _classified(folder)
    if format_ == "path":
        return about, [str(folder)]
    command = ["vllm", "serve", str(folder), "--served-model-name", domain]
    return about | {"command": command}, [shlex.join(command)]


def _build(backend: Backend, text: str, base: str | None) -> Build:
    """The build whose id begins so. Raises NotFoundError, also for one on another base model."""
    try:
        build = backend.builds.get(text)
    except NotFoundError:
        raise NotFoundError(
            f"there is no domain and no build {text!r}",
            hint="`reccocktail domain list` and `reccocktail build list` show them",
        ) from None
    if base is not None and build.base != base:
        raise NotFoundError(f"build {build.id} is on the base model {build.base!r}, not on {base!r}")
    return build
