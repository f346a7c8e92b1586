"""Which adapters and builds a list is of: their names, people, times, and bounds on metrics such as `NDCG@3>=0.4`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, true

from ..errors import UsageError

if TYPE_CHECKING:
    from .versions import Adapter

_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}


@dataclass(frozen=True)
class MetricBound:
    """A metric's name, one of `>= <= > < =`, and the number it is held against; or the name alone: any number will do."""

    name: str
    sign: str | None = None
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> MetricBound:
        """Reads `NDCG@3>=0.4`, or `NDCG@3` for adapters that have the metric at all. Raises UsageError."""
        match = re.fullmatch(r"([^<>=]+)(?:(>=|<=|>|<|=)([^<>=]+))?", text)
        if not match or not match[1].strip():
            raise UsageError(f"{text!r} is not a bound on a metric", hint="write NAME>=NUMBER; also <=, >, < and =")
        name, sign, number = match[1].strip(), match[2], match[3]
        if sign is None:
            return cls(name)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"{text!r}: {number!r} is not a number")
        return cls(name, sign, value)

    def holds(self, column: Any) -> ColumnElement[bool]:
        """The condition on a column of values of the metric."""
        return true() if self.sign is None else _SIGNS[self.sign](column, self.value)


@dataclass(frozen=True)
class AdapterFilter:
    """Which adapter versions: every condition has to hold, every tag and every metric bound.

    `text` is looked for in domain, note and tags; case does not matter.
    """

    domain: str | None = None
    base: str | None = None
    role: str | None = None
    kind: str | None = None
    tags: Sequence[str] = ()
    metrics: Sequence[MetricBound] = ()
    text: str | None = None


@dataclass(frozen=True)
class BuildFilter:
    """Which builds: every condition has to hold.

    `recipe` is the name that a build's recipe had, with its version or without; `requester` who asked for it, `since` from when on.
    """

    domain: str | None = None
    status: str | None = None
    recipe: str | None = None
    requester: str | None = None
    since: datetime | None = None
    adapter: Adapter | None = None
    kind: str | None = None
