"""`publish`: a build's trip to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..registry.errors import NotFoundError
from .app import App, example, json_option, pass_app
from .console import answer, printable, say, size, table


@click.command(
    epilog=example(
        "reccocktail publish beauty --to acme/beauty-cocktail --dry-run",
        "reccocktail publish beauty --to acme/beauty-cocktail --tag v1",
    )
)
@click.argument("build_or_domain", metavar="BUILD_OR_DOMAIN")
@click.option("--to", "repo", metavar="ORG/NAME", required=True, help="Repository on the Hub.")
@click.option("--private/--public", default=True, show_default=True, help="Visibility of a repository that is made.")
@click.option("--tag", metavar="T", help="Tag the commit.")
@click.option("--dry-run", is_flag=True, help="Only show files, sizes and the card.")
@json_option
@pass_app
def publish(
    app: App, build_or_domain: str, repo: str, private: bool, tag: str | None, dry_run: bool, as_json: bool
) -> None:
    """Publish a build, or the one that stands for a domain, as one commit.

    That is the build of the domain's present inputs, else its newest.
    """
    from ..engine.builds import publishable, standing
    from ..registry import hub

    with app.registry() as registry:
        try:
            registry.domains.get(build_or_domain)
        except NotFoundError:
            row = registry.builds.get(build_or_domain)
        else:
            row = standing(registry, build_or_domain).build
            if row is None:
                raise NotFoundError(
                    f"domain {build_or_domain!r} has no succeeded build",
                    hint=f"reccocktail build request {build_or_domain} --wait",
                )
        with publishable(registry, row) as folder:
            planned = hub.plan(folder, repo, private=private, tag=tag)
            if dry_run:
                document = asdict(planned) | {"build": row.id, "dry_run": True}
                answer(as_json, document, lambda: _show_plan(planned, row.id))
                return
            say(f"publishing build {row.id} to {repo}: {len(planned.files)} files, {size(planned.bytes)}")
            for path in planned.removed:
                say(f"removing {path}, which this build does not have")
            done = hub.publish(planned, folder, message=f"RecCocktail build {row.id} of {row.domain}")
        publication = registry.publications.add(row, done.repo, done.commit, done.tag)
    document = publication.to_json()
    answer(as_json, document, lambda: say(f"published: {done.repo} at commit {done.commit}"))


def _show_plan(planned: object, build: str) -> None:
    from ..registry.hub import PublicationPlan

    assert isinstance(planned, PublicationPlan)
    table(["file", "size"], [[f.path, size(f.bytes)] for f in planned.files], right=("size",), empty="no files")
    click.echo(printable(planned.card, indent=""))
    there = {True: "is there", False: "would be made", None: planned.unreached}[planned.repo_exists]
    kind = "private" if planned.private else "public"
    say(f"dry run: build {build}, {size(planned.bytes)} to {planned.repo} ({kind}; {there}); nothing was sent")
    for path in planned.removed:
        say(f"would remove {path}, which this build does not have")
