"""`publish`, `unpublish`, `publication` and `verify`: trips to the Hugging Face Hub, and what is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import LocalOnlyError, RecCocktailError, UsageError
from ..registry.store.room import NO_ROOM, lacks_room
from .app import App, base_option, example, json_option, paging_options, pass_app
from .builds import say_chosen
from .console import NO_MORE, alarm, answer, counted, details, page, printable, say, size, table, warn
from .display import begin_line, working

if TYPE_CHECKING:
    from ..publishing.packing import PublishOptions
    from ..publishing.plan import PublicationPlan
    from ..publishing.release import Release
    from ..registry import Adapter, Build, Publication, Registry

FILE = click.Path(path_type=Path)


@click.command(
    epilog=example(
        "reccocktail publish beauty --to acme/beauty-cocktail --dry-run",
        "reccocktail publish beauty --to acme/beauty-cocktail --tag v1",
        "reccocktail publish spirit@v2 --to acme/spirit",
        "reccocktail publish --stale",
    )
)
@click.argument("what", metavar="[BUILD_OR_DOMAIN_OR_REF]", required=False)
@click.option("--to", "repo", metavar="ORG/NAME", help="Repository on the Hub.")
@click.option(
    "--stale", is_flag=True, help="Every domain whose build is newer than its publication, to the same repository."
)
@click.option("--private/--public", default=True, show_default=True, help="Visibility of a new repository.")
@click.option("--tag", metavar="T", help="Tag the commit.")
@click.option("--rebase", is_flag=True, help="Commit on top of commits by others.")
@click.option("--replace", "replaces", is_flag=True, help="Remove all files that are not part of this publication.")
@click.option(
    "--license", "license_id", metavar="ID", help="License; default: the strictest of base model and adapters."
)
@click.option(
    "--card-template", metavar="FILE", type=FILE, help="Jinja template of the model card; it may extend card.jinja."
)
@click.option("--strip-users", is_flag=True, help="Leave the ids and embeddings of users out of a personalised LoRA.")
@click.option("--sign", "key", metavar="KEY", type=FILE, help="Sign all files with this private key (PEM), offline.")
@click.option(
    "--dry-run", is_flag=True, help="Show files, changes and the card, check all that publishing checks; send nothing."
)
@click.option("--offline", is_flag=True, help="With --dry-run: do not ask the Hub, so show files and card alone.")
@base_option
@json_option
@pass_app
def publish(
    app: App,
    what: str | None,
    repo: str | None,
    stale: bool,
    private: bool,
    tag: str | None,
    rebase: bool,
    replaces: bool,
    license_id: str | None,
    card_template: Path | None,
    strip_users: bool,
    key: Path | None,
    dry_run: bool,
    offline: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Publish a build or an adapter version to the Hub.

    The files are sent as one commit.

    A domain means the build of its current inputs, else the newest by its own recipe, never one by another `--recipe`.
    NAME@v1, NAME@ALIAS and `spirit` mean adapters. Files that the repository has are not sent again; run the same
    command to resume. A repository that holds another kind of artifact is refused; --replace removes what is there.
    """
    if stale == (what is not None) or stale == (repo is not None):
        raise UsageError("give what to publish and --to ORG/NAME, or --stale alone")
    if stale and tag is not None:
        raise UsageError("--stale publishes to several repositories, and one tag would be set in all of them")
    if stale and (base is not None or _is_given("private")):
        raise UsageError(
            "--stale keeps the base model and visibility of each repository; leave out --base, --private and --public"
        )
    if offline and not dry_run:
        raise UsageError("--offline asks nothing of the Hub, so it cannot publish", hint="--dry-run --offline")
    from ..publishing.licenses import parse
    from ..publishing.names import check_names
    from ..publishing.packing import PublishOptions
    from ..publishing.release import describe_plan, planned, rehearse

    if repo is not None:
        check_names(repo, tag)
    if app.url is not None:
        _refuse_local(stale, card_template, key)
        wanted = {"what": what, "to": repo, "base": base, "private": private, "tag": tag, "license": license_id,
                  "rebase": rebase, "replace": replaces, "strip_users": strip_users, "offline": offline}  # fmt: skip
        _publish_by_server(app, wanted, dry_run=dry_run, as_json=as_json)
        return
    options = PublishOptions(
        repo,
        parse(license_id) if license_id else None,
        card_template,
        key,
        rebase=rebase,
        replaces=replaces,
        offline=offline,
        strip_users=strip_users,
    )
    with app.registry() as registry:
        if stale:
            _publish_stale(registry, options, dry_run=dry_run, as_json=as_json)
            return
        assert what is not None
        subject, choice = _subject(registry, what, base)
        with planned(registry, subject, options, private=private, tag=tag, notify=say) as release:
            if dry_run:
                rehearse(release, notify=say)
                document = describe_plan(release) | choice
                answer(as_json, document, lambda: _show_plan(release.plan, subject))
                return
            done = _send(registry, release)
    answer(as_json, done.to_json() | choice, lambda: None)


def _refuse_local(stale: bool, *files: Path | None) -> None:
    """Raises LocalOnlyError for what a server does not do for others."""
    if stale:
        raise LocalOnlyError.of("--stale", hint="name the domains one by one: publish DOMAIN --to ORG/NAME")
    if any(files):
        raise LocalOnlyError.of("--card-template or --sign", hint="leave it out: a file of yours is not sent")


def _publish_by_server(app: App, wanted: Mapping[str, Any], *, dry_run: bool, as_json: bool) -> None:
    with app.remote() as server:
        document = server.publish(wanted, dry_run=dry_run)
    place = f"{document['build'] or document['adapter']} to {document['repo']}"

    def show() -> None:
        if not dry_run:
            say(f"published: {place} at commit {document['revision']}")
            return
        for path in document["removed"]:
            alarm(f"- would remove {path}")
        rows = [[each["path"], size(each["bytes"]), each["change"] or "not compared"] for each in document["files"]]
        table(["file", "size", "change"], rows, right=("size",), empty="no files")
        click.echo(printable(document["card"], indent=""))
        say(f"dry run: {place}, {size(document['bytes'])}; nothing was sent")

    answer(as_json, document, show)


def _is_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def _subject(registry: Registry, text: str, base: str | None) -> tuple[Build | Adapter, dict[str, Any]]:
    """What is published, and for a domain, why its build is that one."""
    from ..engine.documents import describe_choice
    from ..publishing.release import find_subject
    from ..registry import Build

    subject, found = find_subject(registry, text, base=base)
    if found is None or not isinstance(subject, Build):
        return subject, {}
    choice = describe_choice(found)
    say_chosen(text, subject.id, choice)
    return subject, choice


def _send(registry: Registry, release: Release) -> Publication:
    """Publishes the release and reports what is done."""
    from ..publishing.release import send

    plan = release.plan
    if plan.commit is None:
        uploads = plan.uploads
        say(
            f"publishing {_title(release.subject)} to {plan.repo}: {counted(len(plan.files), 'file')}, {size(plan.bytes)}; to be sent:"
            f" {len(uploads)}, {size(sum(file.bytes for file in uploads))}"
        )
    _say_losses(plan, "removing", "replacing")
    with working():
        row = send(registry, release, notify=_say_on_a_new_line)
    state = "published" if plan.commit is None else "already on the Hub"
    say(f"{state}: {row.repo} at commit {row.revision}" + (f", tag {row.tag}" if row.tag else ""))
    return row


def _say_on_a_new_line(line: str) -> None:
    """As `say`; an interrupted upload leaves a progress bar of the Hub client, and a terminal's `^C`, in the line of the cursor."""
    begin_line()
    say(line)


def _say_losses(plan: PublicationPlan, removing: str, replacing: str) -> None:
    """What the repository loses, in red where there are colours."""
    from ..publishing.repository import NAMES

    if plan.held is not None and (plan.removed or plan.replaced):
        alarm(f"- {plan.repo} holds {NAMES[plan.held]}, and this is {NAMES[plan.kind]}")
    for path in plan.removed:
        whose = "which RecCocktail did not publish" if path in plan.foreign else "which is not part of this publication"
        alarm(f"- {removing} {path}, {whose}")
    for path in plan.replaced:
        alarm(f"- {replacing} {path}, which RecCocktail did not publish")


def _publish_stale(registry: Registry, options: PublishOptions, *, dry_run: bool, as_json: bool) -> None:
    from ..publishing.outdated import behind
    from ..publishing.release import describe_plan, planned, rehearse

    done: list[dict[str, Any]] = []
    failed = skipped = False
    for each in behind(registry):
        build, last = each.build, each.last
        if each.skipped:
            say(f"{last.repo} is not changed: {each.skipped}")
            skipped = True
            continue
        try:
            mine = options.inherit(last)
            with planned(registry, build, mine, private=False, again=True, notify=say) as release:
                if dry_run:
                    _say_losses(release.plan, "would remove", "would replace")
                    rehearse(release, notify=say)
                    done.append(describe_plan(release))
                    say(f"would publish build {build.id} to {last.repo}, which has build {last.build}")
                else:
                    done.append(_send(registry, release).to_json())
        except (RecCocktailError, OSError) as error:  # the others are to have their turn
            hint = error.hint if isinstance(error, RecCocktailError) else NO_ROOM if lacks_room(error) else None
            code = error.code if isinstance(error, RecCocktailError) else "os"
            problem = {"code": code, "message": str(error), "hint": hint}
            warn(f"{build.domain} was not published to {last.repo}: {error}" + (f" ({hint})" if hint else ""))
            done.append({"repo": last.repo, "build": build.id, "error": problem})
            failed = True
    answer(as_json, done, lambda: None if done or skipped else say("nothing is stale"))
    if failed:
        raise click.exceptions.Exit(1)


def _title(subject: Build | Adapter) -> str:
    from ..registry import Build

    return f"build {subject.id}" if isinstance(subject, Build) else subject.ref


def _show_plan(plan: PublicationPlan, subject: Build | Adapter) -> None:
    _say_losses(plan, "would remove", "would replace")
    rows = [[f.path, size(f.bytes), f.change or "not compared"] for f in plan.files]
    table(["file", "size", "change"], rows, right=("size",), empty="no files")
    click.echo(printable(plan.card, indent=""))
    there = {True: "is there", False: "would be made", None: plan.unreached}[plan.repo_exists]
    kind = "private" if plan.private else "public"
    say(f"dry run: {_title(subject)}, {size(plan.bytes)} to {plan.repo} ({kind}; {there}); nothing was sent")
    if plan.commit is not None:
        say(f"already on the Hub, at commit {plan.commit}")
    elif plan.repo_exists:
        uploads = plan.uploads
        say(
            f"would send {len(uploads)} of {counted(len(plan.files), 'file')}, {size(sum(f.bytes for f in uploads))}, on top of {plan.parent}"
        )
    for path in plan.kept:
        say(f"would keep {path}, which RecCocktail did not publish")


@click.command(epilog=example("reccocktail unpublish acme/beauty-cocktail", "reccocktail unpublish 12 --make-private"))
@click.argument("what", metavar="ORG/NAME_OR_ID")
@click.option("--make-private", is_flag=True, help="Also make the repository private on the Hub.")
@json_option
@pass_app
def unpublish(app: App, what: str, make_private: bool, as_json: bool) -> None:
    """Mark publications as withdrawn.

    All of a repository, or one by its id. Nothing is deleted, here or on the Hub."""
    from ..registry import Publication

    with app.backend() as backend:
        found = backend.withdraw(what, make_private=make_private, say=say)
    if make_private:
        say(f"{found['repo']} is private")
    rows = [Publication.from_json(row, base="") for row in found["withdrawn"]]
    named = ", ".join(f"{row.repo}@{row.revision[:12]} ({row.subject})" for row in rows)
    answer(as_json, found, lambda: say(f"withdrawn: {named}"))


@click.group(epilog=example("reccocktail publication list --domain beauty"))
def publication() -> None:
    """Publications: what was sent to the Hub."""


@publication.command(name="list", epilog=example("reccocktail publication list --domain beauty"))
@click.option("--domain", metavar="D", help="Only of this domain; `spirit` for the spirits'.")
@click.option("--repo", metavar="ORG/NAME", help="Only to this repository.")
@paging_options
@json_option
@pass_app
def list_(app: App, domain: str | None, repo: str | None, limit: int, after: str | None, as_json: bool) -> None:
    """List publications, newest first."""
    if after is not None and not after.isdecimal():
        raise UsageError(f"--after {after!r} is no publication's number")
    with app.backend() as backend:
        rows = backend.publications.list(domain, repo=repo, limit=limit + 1, after=int(after) if after else None)

    def show_rows() -> None:
        shown = [
            [p.id, p.domain, p.subject, p.repo, p.revision[:12], p.tag, "withdrawn" if p.withdrawn_at else "-",
             f"{p.created_at:%Y-%m-%d}"]
            for p in rows[:limit]
        ]  # fmt: skip
        columns = ["id", "domain", "what", "repository", "commit", "tag", "state", "created"]
        empty = "nothing is published yet" if domain is repo is None else "no such publication"
        table(columns, shown, empty=NO_MORE if after else empty, spare=("created", "commit", "domain"))
        page([p.id for p in rows], limit)

    answer(as_json, [row.to_json() for row in rows[:limit]], show_rows)


@publication.command(epilog=example("reccocktail publication show acme/beauty-cocktail"))
@click.argument("what", metavar="ORG/NAME_OR_ID")
@json_option
@pass_app
def show(app: App, what: str, as_json: bool) -> None:
    """Show a publication and its files.

    For a repository, its newest publication."""
    with app.backend() as backend:
        document = backend.describe_publication(what)
    files = document["files"]

    def show_one() -> None:
        details({k: v for k, v in document.items() if k != "files"})
        click.echo("")
        table(["file", "sha256"], [[f["path"], f["sha256"]] for f in files], empty="its files were not recorded")

    answer(as_json, document, show_one)


@click.command(
    epilog=example(
        "reccocktail verify ./downloaded", "reccocktail verify acme/beauty-cocktail --revision v1 --key key.pub"
    )
)
@click.argument("source", metavar="PATH_OR_REPO")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a repository; default: main.")
@click.option("--key", metavar="PUBLIC_KEY", type=FILE, help="Check the signature with this public key (PEM).")
@json_option
@pass_app
def verify(app: App, source: str, revision: str | None, key: Path | None, as_json: bool) -> None:
    """Check a published folder or Hub repository.

    Compares digests with the provenance, checks the signature, and reports whether this registry knows it."""
    from ..publishing import verification
    from ..registry.artifacts.sources import is_folder, without_secrets

    folder, commit = Path(source).expanduser(), None
    if is_folder(folder):
        if revision is not None:
            raise UsageError("--revision belongs to a Hub repo, and this is a folder")
    else:
        from ..publishing.names import check_names
        from ..registry.artifacts.hub import download

        if source.startswith((".", "/", "~")):
            raise UsageError(f"{folder} is not a folder", hint="a folder, or ORG/NAME on the Hub")
        check_names(without_secrets(source))
        snapshot = download(source, revision=revision)
        folder, commit = snapshot.folder, snapshot.commit
    found = verification.verify(folder, key=key)
    known = None
    try:
        with app.registry() as registry:
            if found.statement is not None:
                known = verification.known_as(registry, found.statement)
            recorded = commit is not None and any(
                row.revision == commit for row in registry.publications.of_repo(source)
            )
    except LocalOnlyError:
        raise
    except RecCocktailError as error:
        warn(f"the registry could not be read: {error}")
        recorded = None
    document = {
        "ok": not found.problems,
        "files": found.files,
        "commit": commit,
        "problems": list(found.problems),
        "notes": list(found.notes),
        "signature": found.signature,
        "known_as": known,
        "recorded": recorded if commit is not None else None,
    }

    def show_found() -> None:
        for problem in found.problems:
            warn(f"problem: {problem}")
        for note in found.notes:
            say(f"note: {note}")
        say(f"signature: {found.signature}")
        say(f"the registry knows it as {known}" if known else "the registry does not know it")
        if commit is not None:
            say(f"commit {commit}" + (", which is a publication of this registry" if recorded else ""))
        if not found.problems:
            say(f"sound: {counted(found.files, 'file')}")

    answer(as_json, document, show_found)
    if found.problems:
        raise click.exceptions.Exit(1)
