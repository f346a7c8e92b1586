"""What a caller has seen of an alias, which has to be so still when it is moved."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PreconditionError


@dataclass(frozen=True)
class Expected:
    """`event` is the id of the event that put the alias where it is; None: nothing has it."""

    event: int | None

    def check(self, name: str, event: int | None) -> None:
        """In the transaction that moves the alias. Raises PreconditionError."""
        if event != self.event:
            now = "nothing has it" if event is None else f"event {event} moved it"
            was = "nothing had it" if self.event is None else f"event {self.event} had put it there"
            raise PreconditionError(
                f"{name} was moved meanwhile: {now}, and {was} when it was looked at", hint="look at it again"
            )
