"""The kinds of events that a webhook is told of, and the registry's own events behind each."""

from __future__ import annotations

from collections.abc import Iterable

from ..catalog.references import did_you_mean
from ..errors import UsageError

KINDS: dict[str, tuple[str, ...]] = {
    "adapter.added": ("adapter.added",),
    "alias.moved": ("alias.set", "alias.moved", "alias.removed", "build.aliased", "build.unaliased"),
    "build.succeeded": ("build.succeeded",),
    "build.failed": ("build.failed",),
    "domain.stale": ("domain.stale",),
    "publication.made": ("adapter.published", "build.published"),
}
"""The trigger `events_wake_webhooks` has the same table; a test compares them."""

TEST = "test"  # the kind of what `webhook test` sends


def checked_kinds(given: Iterable[str]) -> list[str]:
    """Each once, in our order; all where none is given. Raises UsageError."""
    wanted = set(given)
    for kind in sorted(wanted - KINDS.keys()):
        near = did_you_mean(kind, KINDS)
        raise UsageError(f"webhooks have no events of the kind {kind!r}{near}", hint=f"kinds are {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in wanted or not wanted]
