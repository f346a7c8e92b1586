"""Bringing the registry to what a file says, and publishing to the Hub."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from ...engine.declared_versions import ways_of
from ...engine.documents import describe_choice
from ...publishing.licenses import parse
from ...publishing.names import check_names
from ...publishing.packing import PublishOptions
from ...publishing.release import describe_plan, find_subject, planned, rehearse, send, withdraw
from ...registry.declared.applying import apply as apply_document
from ...registry.declared.document import parse_document
from ...registry.declared.outcomes import described
from ...registry.errors import UsageError
from ...trainers.domains import DomainCheck
from ..identity import Administering, Publishing
from ..models import OutcomeCounts, WithdrawalModel
from .aliases import DryRun
from .declaring import Raw, raw_body, router

routes = router("operating")
ShortText = Annotated[str, Field(max_length=200)]


class Publication(BaseModel):
    """`what` is a domain, a build or NAME@vN; `to` is ORG/NAME. The server's own login at the Hub is used.

    `offline` belongs to a dry run, and asks nothing of the Hub.
    """

    model_config = ConfigDict(extra="forbid")
    what: ShortText
    to: ShortText
    base: ShortText | None = None
    private: bool = True
    tag: ShortText | None = None
    license: ShortText | None = None
    rebase: bool = False
    replace: bool = False
    strip_users: bool = False
    offline: bool = False


class Withdrawal(BaseModel):
    """With `make_private` the repository is made private on the Hub first, by the server's own login."""

    model_config = ConfigDict(extra="forbid")
    make_private: bool = False


@routes.post("/apply", response_model=OutcomeCounts, openapi_extra=raw_body("application/yaml", "application/json"))
def apply(registry: Administering, document: Raw, dry_run: DryRun = False) -> Any:
    """Brings the registry to what the document says, YAML or JSON; relative paths are of the server's home.

    An object that fails is reported in `objects`, and the others are applied.
    """
    suffix = ".json" if document.lstrip().startswith(b"{") else ".yaml"
    parsed = parse_document(document, name="sent", folder=registry.settings.home, suffix=suffix)
    ways = ways_of(DomainCheck(registry.data_folder), say=lambda line: None)
    return described([*apply_document(registry, parsed, ways, dry_run=dry_run)], dry_run)


@routes.post("/publications")
def publish(registry: Publishing, wanted: Publication, dry_run: DryRun = False) -> dict[str, Any]:
    """Publishes as one commit; with `dry_run` says what that would change, and sends nothing."""
    check_names(wanted.to, wanted.tag)
    license_ = parse(wanted.license) if wanted.license else None
    if wanted.offline and not dry_run:
        raise UsageError("offline asks nothing of the Hub, so it cannot publish", hint="dry_run=true")
    options = PublishOptions(
        wanted.to,
        license_,
        rebase=wanted.rebase,
        replaces=wanted.replace,
        strip_users=wanted.strip_users,
        offline=wanted.offline,
    )
    subject, found = find_subject(registry, wanted.what, base=wanted.base)
    choice = describe_choice(found) if found else {}
    with planned(registry, subject, options, private=wanted.private, tag=wanted.tag) as release:
        if dry_run:
            rehearse(release)
            return describe_plan(release) | choice
        return send(registry, release).to_json() | choice


@routes.post("/publications/{what:path}:withdraw", response_model=WithdrawalModel)
def withdraw_publications(
    registry: Publishing, what: Annotated[str, Path(max_length=200)], how: Withdrawal | None = None
) -> Any:
    """Marks one publication by its id, or all of a repository, as withdrawn. Nothing is deleted, here or on the Hub."""
    return withdraw(registry, what, private=(how or Withdrawal()).make_private)
