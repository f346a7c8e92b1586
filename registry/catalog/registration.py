"""What is given when an adapter is registered: the labels that its row keeps, and how strictly its files are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..digests import canonical_json
from ..errors import UsageError
from ..redaction import check_no_secret, redacted_values
from .references import SPIRIT, check_name, check_text

MAX_LABEL = 200  # characters of a tag or of a metric's name
MAX_METRIC = 1e300


@dataclass(frozen=True)
class Labels:
    """What a row says of its adapter beside what its files say, and the aliases that are put on it.

    `context` is plain JSON: how the adapter came about.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Sequence[str] = ()
    note: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()

    def checked(self) -> tuple[Labels, tuple[str, ...]]:
        """The same in plain types, each tag once and without secrets, and remarks on what was left out. Raises UsageError."""
        metrics, context = checked_metrics(self.metrics), dict(self.context)
        given = {"tags": [checked_label("tag", tag) for tag in self.tags], "note": self.note, "context": context}
        try:
            canonical_json([metrics, context])
        except (TypeError, ValueError) as error:
            raise UsageError(f"the context must be plain JSON: {error}") from error
        check_text("note", self.note or "")
        clear = redacted_values(given)
        remarks = tuple(
            f"the {what} {'were' if what == 'tags' else 'was'} kept without what looks like a secret"
            for what, value in clear.items()
            if value != given[what]
        )
        aliases = [check_name("alias", name) for name in dict.fromkeys(self.aliases)]
        return Labels(metrics, [*dict.fromkeys(clear["tags"])], clear["note"], clear["context"], aliases), remarks


@dataclass(frozen=True)
class Checks:
    """How strictly an adapter's files are checked: by default all must be there, be finite, and name the base.

    `reuse`: whether content that is registered already is answered with its version, or refused. `beside` is the digest of the checkpoint
    that a bundle was trained on, where that is not the base model.
    """

    allow_base_mismatch: bool = False
    allow_partial: bool = False
    scan: bool = True
    reuse: bool = True
    beside: str | None = None


def checked_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Raises UsageError for a name that cannot be searched for, and for a value that is not a finite number."""
    for name, value in metrics.items():
        check_no_secret("name of a metric", checked_label("metric", name))
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_METRIC:
            raise UsageError(f"metric {name}: {value!r} is not a finite number")
        if name != name.strip() or any(sign in name for sign in "<>="):
            raise UsageError(f"{name!r} cannot be a metric's name", hint="no <, > or =, and no spaces around it")
    return dict(metrics)


def checked_label(what: str, text: Any) -> str:
    if not isinstance(text, str) or not text.isprintable() or not text.strip() or len(text) > MAX_LABEL:
        raise UsageError(f"{text!r} cannot be a {what}", hint=f"a {what} is up to {MAX_LABEL} printable characters")
    return text


def owner_name(role: str, domain: str | None) -> str:
    """The name under which its versions are numbered: the domain's, or `spirit`. Raises UsageError."""
    if role == SPIRIT:
        if domain is not None:
            raise UsageError(f"a spirit belongs to no domain, so not to {domain!r} either", hint="--spirit or --domain")
        return SPIRIT
    if domain is None:
        raise UsageError("an ingredient belongs to a domain", hint="give --domain NAME, or --spirit")
    return check_name("domain", domain)
