"""A slider over days: from the first of what happened to today, which is as it is now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta


@dataclass(frozen=True)
class Slider:
    """`days` is the last value, from 0 at `first`; `marks` are the values at which something happened."""

    first: date
    days: int
    marks: tuple[int, ...]

    def day(self, value: int) -> str:
        """As `--at` takes it."""
        return (self.first + timedelta(days=min(value, self.days))).isoformat()

    def value(self, at: str) -> int:
        """Of a day or moment as text; the last for what is none of its days."""
        try:
            return max(0, min(self.days, (date.fromisoformat(at[:10]) - self.first).days))
        except ValueError:
            return self.days


def slider_of(moments: Iterable[datetime]) -> Slider | None:
    """None where all of it happened today: there is no day to look back to."""
    days = sorted({each.astimezone(UTC).date() for each in moments})
    today = datetime.now(UTC).date()
    if not days or days[0] >= today:
        return None
    marks = tuple((each - days[0]).days for each in days if each <= today)
    return Slider(days[0], (today - days[0]).days, marks)
