"""What goes to the Hub of a build or an adapter version: the bytes that are kept, a card with all that is known, the recipe and the provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..engine.building.freshness import Freshness, chosen
from ..registry import Adapter, Build, Publication, Registry
from ..registry.catalog.publications import SIGNATURE
from ..registry.catalog.references import SPIRIT
from ..registry.errors import ConflictError, HubError, InvalidReferenceError, NotFoundError, UsageError
from .package import publishable
from .packing import Package, PublishOptions
from .signing import alike, holds

if TYPE_CHECKING:  # the Hub's client is slow to import
    from .plan import PublicationPlan


@dataclass(frozen=True)
class Release:
    """What is published, as it was packed and planned."""

    subject: Build | Adapter
    options: PublishOptions
    package: Package
    plan: PublicationPlan


def find_subject(registry: Registry, text: str, *, base: str | None = None) -> tuple[Build | Adapter, Freshness | None]:
    """What `text` names: a domain (the build that it serves, and why that one), an adapter reference, an alias of builds, or an id.

    Raises NotFoundError, and for a domain what `chosen` raises.
    """
    try:
        domain = registry.domains.get(text)
    except (NotFoundError, InvalidReferenceError, UsageError):
        domain = None
    if domain is not None:
        found = chosen(registry, text, base=base)
        assert found.build is not None
        return found.build, found
    if text == SPIRIT or "@" in text:
        try:
            return registry.adapters.resolve(text, base=base, kind=None), None
        except NotFoundError as error:
            try:
                return registry.builds.get(registry.serving.resolve(text, base=base).build), None
            except (NotFoundError, UsageError):
                raise error from None
    try:
        return registry.builds.get(text), None
    except NotFoundError:
        raise NotFoundError(
            f"there is no domain and no build {text!r}",
            hint="`reccocktail domain list` and `reccocktail build list` show them; an adapter is named NAME@v1 or NAME@ALIAS",
        ) from None


@contextmanager
def planned(
    registry: Registry,
    subject: Build | Adapter,
    options: PublishOptions,
    *,
    private: bool = True,
    tag: str | None = None,
    again: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> Iterator[Release]:
    """The release that `send` publishes, while its folder is there; `again` goes only where a repository is.

    Raises what `publishable` and `registry.publishing.plan` do, and HubError where there is none to go to again.
    """
    from . import upload as publishing
    from .plan import UploadOptions

    assert options.repo is not None
    earlier = registry.publications.of_repo(options.repo)
    newest = earlier[0] if earlier else None
    if newest and SIGNATURE in (newest.files or {}) and options.key is None:
        raise UsageError(
            f"{options.repo} is signed, and this publication would not be",
            hint="--sign KEY; to leave the signature out, publish to another repository",
        )
    before = publishing.RemoteHistory(
        newest.revision if newest else None,
        newest is not None and newest.of(subject),
        (newest.files if newest else None) or {},
        publishing.ever_published([each.files for each in earlier]),
    )
    known_signature = before.files.get(SIGNATURE)

    def keeps(theirs: bytes, ours: bytes) -> bool:
        """Whether the Hub's signature is one of ours that still holds, so that it need not be sent anew."""
        if not alike(theirs, ours):
            return False
        return hashlib.sha256(theirs).hexdigest() == known_signature or holds(theirs, package.folder, options.key)

    with publishable(registry, subject, options) as package:
        for note in package.notes:
            notify(f"note: {note}")
        plan = publishing.plan(
            package.folder,
            options.repo,
            UploadOptions(
                package.trailer, private, tag, rebase=options.rebase, replaces=options.replaces, offline=options.offline
            ),
            before=before,
            known=package.known,
            volatile={SIGNATURE: keeps} if options.key else {},
            notify=notify,
        )
        if again and not plan.repo_exists and not options.offline:
            raise HubError(
                plan.unreached or f"{plan.repo} is no longer on the Hub",
                hint=None if plan.unreached else f"reccocktail unpublish {plan.repo}",
            )
        yield Release(subject, options, package, plan)


def describe_plan(release: Release) -> dict[str, Any]:
    """What publishing the release would do, as plain JSON."""
    plan, subject = release.plan, release.subject
    kept = asdict(plan)
    kept.pop("before")
    is_build = isinstance(subject, Build)
    return kept | {
        "kind": plan.kind,
        "uploads": [file.path for file in plan.uploads],
        "upload_bytes": sum(file.bytes for file in plan.uploads),
        "build": subject.id if is_build else None,
        "adapter": None if is_build else subject.ref,
        "dry_run": True,
    }


def agree(release: Release, seen: str) -> None:
    """Raises ConflictError where publishing would change something else than what somebody saw: `seen` is the `effect` of that plan."""
    if seen != release.plan.effect:
        raise ConflictError(
            f"what would be published to {release.plan.repo} is not what was shown",
            hint="look at it again, then publish",
        )


def rehearse(release: Release, *, notify: Callable[[str], None] = lambda text: None) -> None:
    """Fails where `send` would before it sends anything, also where the Hub was not reached; unless it was not to be asked."""
    from . import upload as publishing

    publishing.rehearse(release.plan, release.package.folder, offline=release.options.offline, notify=notify)


def send(registry: Registry, release: Release, *, notify: Callable[[str], None] = lambda text: None) -> Publication:
    """The commit, the tag, and the row, which is written once the Hub has the commit, whatever becomes of the tag.

    Raises what `registry.publishing.publish` does.
    """
    from . import upload as publishing

    kept: dict[str, Any] = {}
    if release.options.license is not None:
        kept["license"] = release.options.license.id
        kept["parts"] = sorted(release.package.parts)
    if release.options.template is not None:
        kept["template"] = True
    files = {file.path: file.sha256 for file in release.plan.files}

    def record(commit: str, tag: str | None) -> Publication:
        return registry.publications.add(release.subject, release.plan.repo, commit, tag, files=files, options=kept)

    commits: list[str] = []
    try:
        done = publishing.publish(
            release.plan,
            release.package.folder,
            message=release.package.message,
            committed=commits.append,
            notify=notify,
        )
    except BaseException:
        if commits and registry.publications.newest_revision(release.plan.repo) != commits[0]:
            record(commits[0], None)
        raise
    if done.tag is None and not done.made:  # what is there may have a tag already
        last = next(iter(registry.publications.of_repo(done.repo)), None)
        if last and last.revision == done.commit and last.of(release.subject) and last.withdrawn_at is None:
            return last
    return record(done.commit, done.tag)


def withdraw(
    registry: Registry, what: str, *, private: bool = False, notify: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Marks a publication by its id, or all of a repository, as withdrawn, and makes the repository private first if asked to.

    Raises NotFoundError, HubError.
    """
    from .upload import make_private

    repo = registry.publications.get(what).repo
    if private:
        make_private(repo, notify=notify)
    rows = registry.publications.withdraw(what)
    return {"repo": repo, "made_private": private, "withdrawn": [row.to_json() for row in rows]}
