"""`adapter`: spirits and ingredients, their versions and aliases."""

from __future__ import annotations

from pathlib import Path

import click

from ..registry.errors import UsageError
from .app import App, base_option, example, json_option, paging_options, pass_app
from .console import answer, details, page, progress, say, short, size, table


@click.group(epilog=example("reccocktail adapter list --domain beauty"))
def adapter() -> None:
    """Spirits and ingredients: versions, aliases, checks."""


def key_values(pairs: tuple[str, ...], option: str) -> dict[str, str]:
    """`k=v` pairs as a mapping. Raises UsageError for one without a name or a sign."""
    found = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"{option} takes key=value, not {pair!r}")
        found[key] = value
    return found


@adapter.command(
    epilog=example(
        "reccocktail adapter add ./lora --base smollm2 --domain beauty --metric HR@1=0.41",
        "reccocktail adapter add ./general-lora --base smollm2 --spirit --tag 2026-11",
    )
)
@click.argument("source", metavar="PATH_OR_REPO")
@click.option("--base", "base_name", metavar="B", required=True, help="Base model it was trained on.")
@click.option("--spirit", is_flag=True, help="Register it as the base spirit.")
@click.option("--domain", metavar="D", help="Register it as this domain's ingredient.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repo.")
@click.option("--metric", "metrics", metavar="K=V", multiple=True, help="A figure to keep with it.")
@click.option("--tag", "tags", metavar="T", multiple=True, help="A word to find it by.")
@click.option("--note", metavar="S", help="What people should know about it.")
@click.option("--no-scan", is_flag=True, help="Do not read the weights to check that all are finite.")
@click.option("--allow-base-mismatch", is_flag=True, help="Take it although it names another base model.")
@json_option
@pass_app
def add(
    app: App,
    source: str,
    base_name: str,
    spirit: bool,
    domain: str | None,
    revision: str | None,
    metrics: tuple[str, ...],
    tags: tuple[str, ...],
    note: str | None,
    no_scan: bool,
    allow_base_mismatch: bool,
    as_json: bool,
) -> None:
    """Check a PEFT LoRA folder or Hub repo and register it as the next version."""
    if spirit == (domain is not None):
        raise UsageError("say either --spirit or --domain NAME")
    figures = {key: _number(key, value) for key, value in key_values(metrics, "--metric").items()}
    with app.registry() as registry:
        base = registry.bases.get(base_name)
        if domain is not None:
            registry.domains.get(domain)  # before anything is fetched or copied
        folder, origin, linked = _adapter_folder(source, revision)
        with progress("storing", unit="bytes") as update:
            total = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                update(done, max(total, done), "")

            row = registry.adapters.add(
                folder,
                base=base,
                role="spirit" if spirit else "ingredient",
                domain=domain,
                metrics=figures,
                tags=tags,
                note=note,
                context=origin,
                allow_base_mismatch=allow_base_mismatch,
                scan=not no_scan,
                allow_links=linked,
                progress=advance,
            )
    if row.ignored:
        say(f"not applied, because a version never changes: {', '.join(row.ignored)}")
    if row.skipped:
        say(f"not stored, because it is the trainer's own state: {', '.join(row.skipped)}")
    answer(as_json, row.to_json(), lambda: say(f"{'registered' if row.created else 'already there'}: {row.ref}"))


def _number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--metric {key}={value!r}: not a number") from None


def _adapter_folder(source: str, revision: str | None) -> tuple[Path, dict[str, str], bool]:
    """(folder, where it came from, whether its files are links into the Hub's cache)."""
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError("--revision belongs to a Hub repo, and this source is a folder")
        return path, {}, False
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UsageError(f"{source!r} is no folder, and no Hub repo has such a name", hint="a folder, or ORG/NAME")
    from ..registry.hub import fetch

    snapshot = fetch(source, revision=revision, kind="adapter")
    return snapshot.folder, {"hub_repo": snapshot.repo_id, "hub_commit": snapshot.commit}, True


@adapter.command(
    name="list", epilog=example("reccocktail adapter list --domain beauty", "reccocktail adapter list --spirit")
)
@click.option("--domain", metavar="D", help="Only this domain's ingredients.")
@click.option("--spirit", is_flag=True, help="Only base spirits.")
@base_option
@paging_options
@json_option
@pass_app
def list_(
    app: App, domain: str | None, spirit: bool, base: str | None, limit: int, after: str | None, as_json: bool
) -> None:
    """List adapter versions, newest first."""
    with app.registry() as registry:
        rows = registry.adapters.list(
            domain=domain, base=base, role="spirit" if spirit else None, limit=limit, after=after
        )
    shown = [
        [
            a.ref,
            a.base,
            a.rank,
            size(a.bytes),
            a.aliases,
            a.metrics,
            f"{a.created_at:%Y-%m-%d}",
        ]
        for a in rows
    ]

    def show_rows() -> None:
        columns = ["ref", "base", "rank", "size", "aliases", "metrics", "created"]
        table(columns, shown, right=("rank", "size"), empty="no adapter yet; `reccocktail adapter add` or `train`")
        page(rows, limit)

    answer(as_json, [a.to_json() for a in rows], show_rows)


@adapter.command(epilog=example("reccocktail adapter show beauty@champion"))
@click.argument("ref")
@base_option
@json_option
@pass_app
def show(app: App, ref: str, base: str | None, as_json: bool) -> None:
    """Show one adapter version."""
    with app.registry() as registry:
        row = registry.adapters.resolve(ref, base=base)
        document = row.to_json() | {"path": str(registry.adapters.folder(row))}
    answer(as_json, document, lambda: details(document))


@adapter.command(epilog=example("reccocktail adapter alias beauty@v3 champion"))
@click.argument("ref")
@click.argument("name")
@base_option
@json_option
@pass_app
def alias(app: App, ref: str, name: str, base: str | None, as_json: bool) -> None:
    """Move an alias to a version."""
    with app.registry() as registry:
        row = registry.adapters.alias(ref, name, base=base)
    answer(as_json, row.to_json(), lambda: say(f"{name} is {row.ref}"))


@adapter.command(epilog=example("reccocktail adapter archive beauty@v1"))
@click.argument("ref")
@base_option
@json_option
@pass_app
def archive(app: App, ref: str, base: str | None, as_json: bool) -> None:
    """Take a version out of use; it stays resolvable by its number."""
    with app.registry() as registry:
        row = registry.adapters.archive(ref, base=base)
    answer(as_json, row.to_json(), lambda: say(f"{row.ref} is archived"))


@adapter.command(epilog=example("reccocktail adapter verify beauty@v3"))
@click.argument("ref")
@base_option
@json_option
@pass_app
def verify(app: App, ref: str, base: str | None, as_json: bool) -> None:
    """Repeat every registration check on a registered version, its weights and their digests included."""
    from ..registry.inspect import inspect_adapter

    with app.registry() as registry:
        row = registry.adapters.resolve(ref, base=base)
        registry.store.verify_tree(row.digest)
        inspect_adapter(registry.adapters.folder(row), registry.bases.facts(registry.bases.get(row.base)))
    document = {"ref": row.ref, "digest": row.digest, "ok": True}
    answer(as_json, document, lambda: say(f"{row.ref} is sound: {short(row.digest)}"))
