"""Lists by pages: `limit` and `after`, the cursor that the page before ended with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query

from ..registry.errors import UsageError

LIMIT, MOST = 50, 1000
Row = TypeVar("Row")


@dataclass(frozen=True)
class Paging:
    """`after` is what `next` of the page before said."""

    limit: int
    after: str | None

    @property
    def after_number(self) -> int | None:
        """Of lists whose cursors are numbers. Raises UsageError."""
        if self.after is None:
            return None
        if not self.after.isascii() or not self.after.isdigit() or len(self.after) > 18:
            raise UsageError(
                f"{self.after!r} is no cursor of this list", hint="take what `next` of the page before says"
            )
        return int(self.after)

    def page(
        self, rows: Sequence[Row], key: Callable[[Row], object], shown: Callable[[Sequence[Row]], list[Any]]
    ) -> dict[str, Any]:
        """Of one row more than the page has, if there is one, which says that there is a next page."""
        here = rows[: self.limit]
        return {"items": shown(here), "next": str(key(here[-1])) if len(rows) > self.limit else None}


def _paging(
    limit: Annotated[int, Query(ge=1, le=MOST)] = LIMIT, after: Annotated[str | None, Query(max_length=200)] = None
) -> Paging:
    return Paging(limit, after)


Page = Annotated[Paging, Depends(_paging)]
