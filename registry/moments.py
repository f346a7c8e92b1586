"""Points in time as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time

from .errors import UsageError


def moment(text: str, *, option: str = "--at", of_day: time = time.max) -> datetime:
    """The moment that `text` names, in UTC; a day means its end, or what is given, and today until now. Raises UsageError for other texts, and for the future."""
    now, is_today = datetime.now(UTC), False
    try:
        if not re.match(r"\d{4}-\d{2}-\d{2}", text):
            raise ValueError
        found = datetime.fromisoformat(text)
        if len(text) == len("2026-03-03"):
            found = datetime.combine(found.date(), of_day)
            is_today = found.date() == now.date()
        found = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is not a point in time", hint="write 2026-03-03, 2026-03-03T14:00 or 2026-03-03T14:00+01:00"
        ) from None
    if found > now and not is_today:
        raise UsageError(f"{found.isoformat()} is in the future", hint=f"leave out {option} for the present state")
    return min(found, now)
