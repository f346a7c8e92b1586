"""Publishing to the Hub: what it would change is shown with the card, and sent once somebody has agreed to exactly that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel

from ...publishing.licenses import parse
from ...publishing.names import check_names
from ...publishing.packing import PublishOptions
from ...publishing.release import Release, agree, find_subject, planned, rehearse, send
from ...registry import Adapter, Build, Registry
from ...registry.errors import NotFoundError, RecCocktailError
from ..asks import Ask, Asks
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


@dataclass(frozen=True)
class Outcome:
    """What the Hub was asked for: what would change, why that is refused, or that it has been sent."""

    preview: Preview | None = None
    refused: RecCocktailError | None = None
    is_sent: bool = False


Hub = Asks[Outcome]


@router.get("/publish")
def preview(
    request: Request, registry: Publishing, sent: Annotated[Sent[Wanted], Depends(query_of(Wanted))], done: Done = None
) -> Response:
    """What was published last; of what is named, the form; with a repository, leads to what publishing would change there. Nothing is sent.

    A page elsewhere that leads here gets the form alone: it cannot make the server ask the Hub.
    """
    is_ours = request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    if not (sent.known.what and sent.known.to and is_ours and not done):
        return _page(request, registry, sent, done=done, outcome=Outcome(refused=attempt(sent.read)))
    return _begin(request, registry, sent, lambda ask: _previewed(registry, sent.known, ask))


@router.post("/publish", dependencies=OWN_FORM)
def publish(
    request: Request, registry: Publishing, sent: Annotated[Sent[Wanted], Depends(form_of(Wanted))]
) -> Response:
    """Begins to publish what was seen, as one commit. What has changed since is shown again first."""
    return _begin(request, registry, sent, lambda ask: _sent(registry, sent.known, ask))


@router.get("/publish/{id_}")
def follow(request: Request, registry: Publishing, id_: str) -> Response:
    """How far it is, then what would change, or what was refused; what was sent is in the list of what was published."""
    try:
        ask = _hub(request).get(id_, registry.actor)
    except NotFoundError as error:
        hint = "begin again at /publish: what would change says whether the Hub has it"
        raise NotFoundError("the server does not know any more what it was to ask the Hub", hint=hint) from error
    wanted: Sent[Wanted] = ask.about
    if ask.answer and ask.answer.is_sent:
        return back("/publish", "published", what=wanted.known.what, base=wanted.known.base or None)
    return _page(request, registry, wanted, ask=ask, outcome=ask.answer or Outcome())


def _begin(
    request: Request, registry: Registry, sent: Sent[Wanted], work: Callable[[Ask[Outcome]], Outcome]
) -> Response:
    """The Hub may take long to answer, and longer not to: it is asked in a thread, and the page waits."""
    begun: list[Ask[Outcome]] = []

    def begin() -> None:
        sent.read().subject(registry)
        begun.append(_hub(request).add(registry.actor, sent, lambda ask, bar: work(ask)))

    if refused := attempt(begin):
        return _page(request, registry, sent, outcome=Outcome(refused=refused))
    return RedirectResponse(f"/publish/{begun[0].id}", 303)


def _hub(request: Request) -> Hub:
    return request.app.state.hub


@contextmanager
def _planned(registry: Registry, wanted: Wanted, notify: Callable[[str], None]) -> Iterator[Release]:
    subject = wanted.subject(registry)
    is_private = wanted.visibility == "private"
    with planned(
        registry, subject, wanted.options(), private=is_private, tag=wanted.tag or None, notify=notify
    ) as release:
        yield release


def _sent(registry: Registry, wanted: Wanted, ask: Ask[Outcome]) -> Outcome:
    """Sent, if it is what was seen; also where the Hub is to blame the form stays, so that it can be sent again."""
    ask.stage = "looks at what is there"
    try:
        with _planned(registry, wanted, lambda text: _tell(ask, text)) as release:
            agree(release, wanted.seen)
            ask.stage = f"sends {release.plan.repo} what it lacks"
            send(registry, release, notify=lambda text: _tell(ask, text))
    except RecCocktailError as error:
        found = _previewed(registry, wanted, ask).preview if error.code == "conflict" else None
        return Outcome(found, error)
    return Outcome(is_sent=True)


def _tell(ask: Ask[Outcome], text: str) -> None:
    ask.stage = text


def _previewed(registry: Registry, wanted: Wanted, ask: Ask[Outcome]) -> Outcome:
    """What would be done, and why it would be refused."""
    found, notes = None, list[str]()

    def notify(text: str) -> None:
        notes.append(text)
        _tell(ask, text)

    ask.stage = "looks at what is there"
    try:
        with _planned(registry, wanted, notify) as release:
            found = Preview(release, _files(release), shown_card(release.plan.card), notes)
            rehearse(release, notify=notify)
    except RecCocktailError as error:
        return Outcome(found, error)
    return Outcome(found)


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
    outcome: Outcome, ask: Ask[Outcome] | None = None,
) -> HTMLResponse:  # fmt: skip
    wanted, problems, about = sent.known, Problems(), NOTHING
    with problems.of("what"):
        about = _about(find_subject(registry, wanted.what, base=wanted.base or None)[0]) if wanted.what else NOTHING
    refused = outcome.refused or attempt(problems.expect_none)
    earlier = registry.publications.list(about["domain"], limit=SHOWN)
    if not wanted.to and about["domain"]:
        repos = [
            each.repo
            for each in earlier
            if each.withdrawn_at is None and bool(each.build) == (about["kind"] == "build")
        ]
        wanted = wanted.model_copy(update={"to": repos[0] if repos else ""})
    typed = {name: text for name, text in sent.typed.items() if text}
    before = _hub(request).before(ask) if ask is not None and ask.state == "waiting" else 0
    return show(
        request, "publish.html", done=done, refused=refused, typed=typed, form=wanted, about=about, earlier=earlier,
        preview=outcome.preview, ask=ask, before=before, status=200 if ask else None,
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
