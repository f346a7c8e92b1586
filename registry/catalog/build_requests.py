"""Requests for builds that name themselves: the same request, sent again because its answer was lost, makes no second build."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from ..database.tables import BuildRequestRow, BuildRow
from ..errors import ConflictError, UsageError

LONGEST_KEY = 200  # characters


@dataclass(frozen=True)
class Once:
    """`key` is what `actor` calls the request, `digest` what is asked for."""

    actor: str
    key: str
    digest: str

    def checked(self) -> Once:
        """Raises UsageError for a key that is no short, printable text."""
        if not self.key.strip() or not self.key.isprintable() or len(self.key) > LONGEST_KEY:
            raise UsageError(f"an idempotency key has 1 to {LONGEST_KEY} printable characters")
        return self


def known(session: Session, once: Once | None) -> BuildRow | None:
    """The build that the request was answered with before. Raises ConflictError where the key was another request's."""
    row = None if once is None else session.get(BuildRequestRow, (once.actor, once.key))
    if once is None or row is None:
        return None
    if row.digest != once.digest:
        raise ConflictError(
            f"the idempotency key {once.key!r} was used for another request, on {row.created_at:%Y-%m-%d}",
            hint="use a new key for each request",
        )
    return session.get_one(BuildRow, row.build_id)


def note(session: Session, once: Once | None, build: BuildRow) -> None:
    """In the transaction that answers the request."""
    if once is not None:
        session.add(BuildRequestRow(actor=once.actor, key=once.key, digest=once.digest, build_id=build.id))
        session.flush()
