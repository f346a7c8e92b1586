"""Publishing to the Hub: what it would change is shown with the card, and sent once somebody has agreed to exactly that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from ...publishing.licenses import parse
from ...publishing.names import check_names
from ...publishing.packing import PublishOptions
from ...publishing.release import Release, agree, find_subject, planned, rehearse, send
from ...registry import Adapter, Build, Registry
from ...registry.errors import RecCocktailError
from ..identity import Publishing
from .acting import OWN_FORM, Done, ShortText, attempt, back, show
from .cards import ShownCard, shown_card
from .forms import Problems, Sent, form_of, query_of

router = APIRouter()
SHOWN = 20
NOTHING: dict[str, Any] = {"title": "", "home": "", "domain": None, "kind": ""}


class Wanted(BaseModel):
    """What the form says. `what` is a domain, a build or NAME@vN; `seen` the digest of the plan that somebody agreed to."""

    what: ShortText = ""
    base: ShortText = ""
    to: ShortText = ""
    license: ShortText = ""
    tag: ShortText = ""
    visibility: Literal["private", "public"] = "private"
    rebase: ShortText = ""
    replace: ShortText = ""
    strip_users: ShortText = ""
    seen: ShortText = ""

    def fields(self) -> dict[str, str]:
        """What the form that agrees sends again."""
        return self.model_dump(exclude={"seen"})

    def subject(self, registry: Registry) -> Build | Adapter:
        """What is meant, once every field can be meant so. Raises FormError."""
        problems = Problems()
        with problems.of("to"):
            check_names(self.to)
        with problems.of("tag"):
            check_names("any/name", self.tag or None)
        with problems.of("license"):
            self.options()
        with problems.of("what"):
            found, _ = find_subject(registry, self.what, base=self.base or None)
        problems.expect_none()
        return found

    def options(self) -> PublishOptions:
        """Raises UsageError."""
        return PublishOptions(
            self.to,
            parse(self.license) if self.license else None,
            rebase=bool(self.rebase),
            replaces=bool(self.replace),
            strip_users=bool(self.strip_users),
        )


@dataclass(frozen=True)
class ShownFile:
    """A file of the repository after and before: `new`, `changed`, `same`, `removed` or `kept`; `loss` says what somebody loses."""

    path: str
    change: str
    bytes: int | None = None
    loss: str | None = None


@dataclass(frozen=True)
class Preview:
    """What agreeing would do; `sent` is False where the Hub has all of it already."""

    release: Release
    files: list[ShownFile]
    card: ShownCard
    notes: list[str]


@router.get("/publish")
def preview(
    request: Request, registry: Publishing, sent: Annotated[Sent[Wanted], Depends(query_of(Wanted))], done: Done = None
) -> HTMLResponse:
    """What was published last; of what is named, the form; with a repository, what publishing would change there. Nothing is sent.

    A page elsewhere that leads here gets the form alone: it cannot make the server ask the Hub.
    """
    found, refused, wanted = None, attempt(sent.read), sent.known
    is_ours = request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    if wanted.what and wanted.to and is_ours and not refused:
        found, refused = _previewed(registry, wanted)
    return _page(request, registry, sent, done=done, preview=found, refused=refused)


@router.post("/publish", dependencies=OWN_FORM)
def publish(
    request: Request, registry: Publishing, sent: Annotated[Sent[Wanted], Depends(form_of(Wanted))]
) -> Response:
    """Publishes what was seen, as one commit. What has changed since is shown again first."""
    wanted = sent.known
    try:
        with _planned(registry, sent.read(), []) as release:
            agree(release, wanted.seen)
            send(registry, release)
    except RecCocktailError as error:  # also where the Hub is to blame: the form stays, so that it can be sent again
        found = _previewed(registry, wanted)[0] if error.code == "conflict" else None
        return _page(request, registry, sent, preview=found, refused=error)
    return back("/publish", "published", what=wanted.what, base=wanted.base or None)


@contextmanager
def _planned(registry: Registry, wanted: Wanted, notes: list[str]) -> Iterator[Release]:
    subject = wanted.subject(registry)
    is_private = wanted.visibility == "private"
    with planned(
        registry, subject, wanted.options(), private=is_private, tag=wanted.tag or None, notify=notes.append
    ) as release:
        yield release


def _previewed(registry: Registry, wanted: Wanted) -> tuple[Preview | None, RecCocktailError | None]:
    """What would be done, and why it would be refused."""
    found, notes = None, list[str]()
    try:
        with _planned(registry, wanted, notes) as release:
            found = Preview(release, _files(release), shown_card(release.plan.card), notes)
            rehearse(release, notify=notes.append)
    except RecCocktailError as error:
        return found, error
    return found, None


def _files(release: Release) -> list[ShownFile]:
    """Every file that is there before or after, by its path."""
    plan = release.plan
    found = [
        ShownFile(each.path, each.change or "not compared", each.bytes,
                  "replaces a file that RecCocktail did not publish" if each.path in plan.replaced else None)
        for each in plan.files
    ]  # fmt: skip
    found += [ShownFile(path, "removed", loss=_loss(path in plan.foreign)) for path in plan.removed]
    found += [ShownFile(path, "kept") for path in plan.kept]
    return sorted(found, key=lambda each: each.path)


def _loss(is_foreign: bool) -> str:
    return "RecCocktail did not publish it" if is_foreign else "not part of this publication"


def _page(
    request: Request, registry: Registry, sent: Sent[Wanted], *, done: str | None = None,
    preview: Preview | None = None, refused: RecCocktailError | None = None,
) -> HTMLResponse:  # fmt: skip
    wanted, problems, about = sent.known, Problems(), NOTHING
    with problems.of("what"):
        about = _about(find_subject(registry, wanted.what, base=wanted.base or None)[0]) if wanted.what else NOTHING
    refused = refused or attempt(problems.expect_none)
    earlier = registry.publications.list(about["domain"], limit=SHOWN)
    if not wanted.to and about["domain"]:
        repos = [
            each.repo
            for each in earlier
            if each.withdrawn_at is None and bool(each.build) == (about["kind"] == "build")
        ]
        wanted = wanted.model_copy(update={"to": repos[0] if repos else ""})
    typed = {name: text for name, text in sent.typed.items() if text}
    return show(
        request, "publish.html", done=done, refused=refused, typed=typed, form=wanted, about=about, earlier=earlier,
        preview=preview,
    )  # fmt: skip


def _about(subject: Build | Adapter) -> dict[str, Any]:
    if isinstance(subject, Build):
        return {
            "title": f"build {subject.id}",
            "home": f"/builds/{subject.id}",
            "domain": subject.domain,
            "kind": "build",
        }
    home = f"/adapters/{subject.ref}?base={subject.base}"
    return {"title": subject.ref, "home": home, "domain": subject.domain or subject.role, "kind": subject.kind}
