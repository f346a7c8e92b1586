"""What people edit of an adapter version, a domain, a base model or a build, beside rows that never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from ..database.tables import AdapterRow, AnnotationRow, BaseModelRow, BuildRow, DomainRow
from ..errors import UsageError
from ..redaction import check_no_secret, redacted_values
from . import events
from .events import EventIds
from .references import check_text, did_you_mean
from .registration import checked_label, checked_metrics

Owner = AdapterRow | DomainRow | BaseModelRow | BuildRow
SCHEMES = ("http", "https", "s3", "gs", "file", "hf", "ssh", "git")


@dataclass(frozen=True)
class Annotation:
    """What holds now. `links` are addresses by name."""

    description: str | None = None
    note: str | None = None
    tags: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Edit:
    """A change. What is None or empty is left as it is; an empty text removes the text that is there.

    `untag`, `unmetric` and `unlink` name what is removed; a metric or link that is given again replaces the one that is there.
    """

    description: str | None = None
    note: str | None = None
    tags: Sequence[str] = ()
    untag: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    unmetric: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    unlink: Sequence[str] = ()

    def checked(self) -> tuple[Edit, tuple[str, ...]]:
        """The same without secrets, and remarks on what was taken out. Raises UsageError."""
        for what, text in (("description", self.description), ("note", self.note)):
            check_text(what, text or "")
        texts = {
            "description": self.description,
            "note": self.note,
            "tags": [checked_label("tag", t) for t in self.tags],
        }
        links = {checked_label("link", name): checked_link(name, url) for name, url in self.links.items()}
        clear = redacted_values(texts)
        remarks = tuple(
            f"the {what} {'were' if what == 'tags' else 'was'} kept without what looks like a secret"
            for what, value in clear.items()
            if value != texts[what]
        )
        return replace(self, **clear, metrics=checked_metrics(self.metrics), links=links), remarks

    def applied(self, before: Annotation, subject: str) -> Annotation:
        """What holds after the change. Raises UsageError for something to remove that is not there."""
        for what, names, there in (
            ("tag", self.untag, before.tags),
            ("metric", self.unmetric, before.metrics),
            ("link", self.unlink, before.links),
        ):
            for name in names:
                if name not in there:
                    near = did_you_mean(name, map(str, there))
                    raise UsageError(f"{subject} has no {what} {name!r}{near}")
        return Annotation(
            description=_text(self.description, before.description),
            note=_text(self.note, before.note),
            tags=tuple(dict.fromkeys(tag for tag in (*before.tags, *self.tags) if tag not in self.untag)),
            metrics=_without(before.metrics, self.unmetric) | dict(self.metrics),
            links=_without(before.links, self.unlink) | dict(self.links),
        )


def checked_link(name: str, url: str) -> str:
    """The address itself, if it is one and has no secret in it; otherwise UsageError."""
    check_no_secret(f"link {name}", check_text(f"link {name}", url))
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.path) or not url.isprintable() or " " in url:
        raise UsageError(
            f"link {name}: {url!r} is not an address",
            hint=f"it begins with one of {', '.join(f'{s}:' for s in SCHEMES)}",
        )
    if parts.username or parts.password:
        raise UsageError(f"link {name}: the address has a user name or a password in it", hint="leave it out")
    return url


def annotation_of(row: Owner) -> Annotation:
    """What was edited, and until then what the row was registered with."""
    kept = row.annotation
    if kept is not None:
        return Annotation(kept.description, kept.note, tuple(kept.tags), kept.metrics, kept.links)
    if isinstance(row, AdapterRow):
        return Annotation(None, row.note, tuple(row.tags), row.metrics)
    return Annotation()


def edit(session: Session, row: Owner, subject: str, change: Edit, detail: Mapping[str, Any] | None = None) -> bool:
    """Carries the checked change out, with its event, in a transaction in which the row is locked; False if it changes nothing."""
    session.refresh(row, ["annotation"])  # another process may have edited it before the lock was had
    before = annotation_of(row)
    after = change.applied(before, subject)
    changed = {
        name: {"from": _plain(value), "to": _plain(getattr(after, name))}
        for name, value in vars(before).items()
        if value != getattr(after, name)
    }
    if not changed:
        return False
    noun, ids, owner = _place(row)
    event = events.append(session, f"{noun}.edited", subject, {**(detail or {}), "changed": changed}, ids)
    kept = row.annotation or AnnotationRow(**owner)
    for name, value in asdict(after).items():
        setattr(kept, name, _plain(value))
    kept.words = search_words(after.note, after.tags, after.description)
    kept.event_id = event.id
    session.add(kept)
    session.flush()
    set_committed_value(row, "annotation", kept)
    return True


def search_words(note: str | None, tags: Sequence[str], description: str | None = None) -> str:
    """What `--search` looks in, after the domain's name."""
    return " " + " ".join([note or "", *map(str, tags), *([description] if description else [])]).casefold()


def _place(row: Owner) -> tuple[str, EventIds, dict[str, Any]]:
    match row:
        case AdapterRow():
            ids = EventIds(base_id=row.base_id, domain_id=row.domain_id, adapter_id=row.id)
            return "adapter", ids, {"adapter_id": row.id}
        case DomainRow():
            return "domain", EventIds(domain_id=row.id), {"domain_id": row.id}
        case BaseModelRow():
            return "base", EventIds(base_id=row.id), {"base_id": row.id}
        case BuildRow():
            return "build", EventIds(base_id=row.base_id, domain_id=row.domain_id), {"build_id": row.id}


def _text(given: str | None, before: str | None) -> str | None:
    return before if given is None else given or None


def _without(there: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in there.items() if name not in names}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
