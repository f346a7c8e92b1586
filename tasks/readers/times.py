"""Times: numbers in one unit or several, and dates in words. Their order decides every split, so nothing here is guessed."""

from __future__ import annotations

import math
import re
from array import array
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .lines import UnreadableError

UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
ONE_UNIT = (
    f"if all numbers are in one unit, say which in dataset.yaml (`time_unit: {UNITS[0]}`, or {', '.join(UNITS[1:])});"
    " else write all in one"
)
Unit = Literal["seconds", "milliseconds", "microseconds", "nanoseconds"]
DateOrder = Literal["iso", "dmy", "mdy"]

# Seconds since 1970. A number from 1990 to 2099 in one unit is before 1971 or after 2500 in every other.
YEAR_1900, YEAR_1969, YEAR_1971, YEAR_1990, YEAR_2100 = (
    datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (1900, 1969, 1971, 1990, 2100)
)
DATE_DIGITS = (19000101000000, 21001231235959)  # 20240531180000; without the time of day, digits are small numbers

EXACT = 2**53  # a double holds every integer up to here
FINER = re.compile(r":\d\d[.,]\d{6}\d*[1-9]")  # Python's dates would cut it, and the order with it
NAMED_ZONE = re.compile(r"\s*(?:UTC|GMT)$")
OFFSET = re.compile(r"(?<=\d)\s+(?P<offset>[+-]\d\d(?::?\d\d)?)$")
YEAR_FIRST = re.compile(r"(?P<y>\d{4})(?P<s>[-/.])(?P<m>\d{1,2})(?P=s)(?P<d>\d{1,2})(?!\d)(?P<rest>.*)", re.DOTALL)
YEAR_LAST = re.compile(r"(?P<a>\d{1,2})(?P<s>[-/.])(?P<b>\d{1,2})(?P=s)(?P<y>\d{4}|\d\d)(?!\d)(?P<rest>.*)", re.DOTALL)
CLOCK = re.compile(
    r"[T,\s]\s*(?P<h>\d{1,2}):(?P<min>\d\d)(?P<sec>:\d\d(?:[.,]\d+)?)?\s*(?:(?P<half>[AaPp])\.?[Mm]\.?)?(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?"
)


class MixedTimesError(ValueError):
    """Times of one column are in units that cannot be distinguished. `value` is one of those that do not fit."""

    def __init__(self, value: float, message: str) -> None:
        super().__init__(message)
        self.value = value


@dataclass
class Clock:
    """Reads times as the numbers that order them; `dated` counts those that were dates, and so are in seconds."""

    dates: DateOrder = "iso"
    unit: Unit | None = None  # of all numbers, so that units need not be distinguished
    dated: int = 0

    def moment(self, value: Any) -> int | float:
        """A number as it is, exact; a date as seconds since 1970 (or in `unit`), in UTC unless it names its offset."""
        if value.__class__ is int:
            return value
        try:
            return int(value) if isinstance(value, str) else _finite(value)
        except ValueError:
            return self._unusual(value)

    def point(self, value: Any) -> int | float:
        """A point in time that a typed column holds, in seconds, or missing."""
        return self._seconds(value) if isinstance(value, int | float) else self.moment(value)

    def _unusual(self, value: Any) -> int | float:
        if isinstance(value, str):
            with suppress(ValueError):
                return _finite(float(value))
            if FINER.search(value):
                raise ValueError(f"timestamp is finer than microseconds: {excerpt(value)}; write it as a number")
            if (found := date(value, self.dates)) is not None:
                return self._seconds(found.timestamp())
        raise ValueError(f"timestamp must be a number or a date such as 2024-05-31 18:00:00, found {excerpt(value)}")

    def _seconds(self, seconds: float) -> int | float:
        self.dated += 1
        return _finite(seconds if self.unit is None else seconds * 1000.0 ** UNITS.index(self.unit))


def date(text: str, order: DateOrder) -> datetime | None:
    """The date that a text says, or None. Raises UnreadableError for one whose day and month only a setting can distinguish."""
    text, offset = _without_offset(text.strip())
    with suppress(ValueError):
        return _with_offset(datetime.fromisoformat(text), offset)
    if match := YEAR_FIRST.fullmatch(text):
        day = f"{match['y']}-{int(match['m']):02d}-{int(match['d']):02d}"
    elif match := YEAR_LAST.fullmatch(text):
        day = _year_last(text, match, order)
    else:
        return None
    with suppress(ValueError):
        return _with_offset(datetime.fromisoformat(day + _time_of_day(match["rest"])), offset)
    return None


def _without_offset(text: str) -> tuple[str, str]:
    """The text without "UTC", and without an offset that a blank sets apart; and the offset, or nothing."""
    utc = NAMED_ZONE.search(text)
    text = text[: utc.start()] if utc else text
    if apart := OFFSET.search(text):
        return text[: apart.start()], apart["offset"]
    return text, "+00:00" if utc else ""


def _year_last(text: str, match: re.Match[str], order: DateOrder) -> str:
    if order == "iso":
        raise UnreadableError(
            f"timestamp is a date that begins with day or month, found {excerpt(text)}",
            "say which in dataset.yaml: `dates: dmy` (31.05.2024) or `dates: mdy` (05/31/2024)",
        )
    day, month = (match["a"], match["b"]) if order == "dmy" else (match["b"], match["a"])
    year = match["y"] if len(match["y"]) == 4 else f"{'19' if match['y'] >= '69' else '20'}{match['y']}"
    if int(month) > 12 or int(day) > 31:
        raise UnreadableError(
            f"timestamp is no date with `dates: {order}`, found {excerpt(text)}",
            f"correct `dates` in dataset.yaml; all dates of a data set are written alike, and these may be {'mdy' if order == 'dmy' else 'dmy'}",
        )
    return f"{year}-{int(month):02d}-{int(day):02d}"


def _time_of_day(rest: str) -> str:
    """What follows the day, as ISO 8601 has it. Raises ValueError for what is no time."""
    if not rest.strip():
        return ""
    match = CLOCK.fullmatch(rest)
    if match is None:
        raise ValueError(f"{rest!r} is no time of day")
    hour = int(match["h"])
    if match["half"]:
        if not 1 <= hour <= 12:
            raise ValueError(f"{rest!r} is no time of day")
        hour = hour % 12 + 12 * (match["half"] in "Pp")
    return f"T{hour:02d}:{match['min']}{match['sec'] or ''}{match['zone'] or ''}"


def _with_offset(found: datetime, offset: str) -> datetime:
    """In UTC where neither the date nor what followed it names an offset."""
    zone = datetime.fromisoformat(f"2000-01-01T00:00{offset or '+00:00'}").tzinfo
    if found.tzinfo is None:
        return found.replace(tzinfo=zone)
    if offset and found.utcoffset() != zone.utcoffset(None):  # type: ignore[union-attr]
        raise ValueError("two offsets that contradict each other")
    return found


def excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _finite(number: Any) -> int | float:
    """Whole numbers as integers, so that 978300760.0 and 978300760 are the same moment."""
    if not isinstance(number, float) or not math.isfinite(number):
        raise ValueError(f"{number!r} is no finite number")
    return int(number) if number.is_integer() else number


# Which unit numbers are in --------------------------------------------------------------------------------------------


def unit_of(time: float) -> str | None:
    """The unit in which this number is a time from 1990 to 2099, if there is one."""
    return next((unit for power, unit in enumerate(UNITS) if _within(time, power, YEAR_1990, YEAR_2100)), None)


def factors(times: NDArray[Any], dated: int = 0) -> tuple[NDArray[np.int64] | None, dict[str, int]]:
    """By what each time has to be multiplied so that all are in the finest of their units, and how many are in each.

    None, and no counts, where all are in one unit or in none that is known. `dated` of them were dates. Each number is
    judged by itself: from 1990 to 2099 only one unit fits. Raises MixedTimesError where a number fits in no unit, or in
    another than the rest and the years are unlikely.
    """
    if not len(times) or dated >= len(times):
        return None, {}
    low, high = float(times.min()), float(times.max())
    if unit_of(low) is not None and unit_of(low) == unit_of(high):
        return None, {}
    powers = np.full(len(times), -1, dtype=np.int8)
    for power in range(len(UNITS)):
        powers[_within(times, power, YEAR_1990, YEAR_2100)] = power
    counts = {unit: int(np.count_nonzero(powers == power)) for power, unit in enumerate(UNITS)}
    counts = {unit: count for unit, count in counts.items() if count}
    others = times[powers < 0]
    if not counts:
        _expect_one_kind(times)
    elif len(counts) == 1:
        _expect_unit(others, next(iter(counts)))
    elif len(others):
        raise _mixed(others, counts)
    if len(counts) < 2:
        return None, {}
    return np.power(1000, powers.max() - powers.astype(np.int64)), counts


def _within(times: Any, power: int, start: float, end: float) -> Any:
    return (times >= start * 1000**power) & (times < end * 1000**power)


def _expect_unit(others: NDArray[Any], unit: str) -> None:
    """Numbers beside those of a unit may be dates of other years in it, but not close to 1970, where every small number is."""
    power = UNITS.index(unit)
    fits = _within(others, power, YEAR_1900, YEAR_1969) | _within(others, power, YEAR_1971, YEAR_1990)
    if not fits.all():
        raise _mixed(others[~fits], {unit: -1})


def _expect_one_kind(times: NDArray[Any]) -> None:
    """Numbers of no known unit, as counters and dates in digits are: refused if two kinds of them stand side by side."""
    kinds = [_within(times, power, YEAR_1971, YEAR_1990) for power in range(len(UNITS))]
    kinds.append((times >= DATE_DIGITS[0]) & (times <= DATE_DIGITS[1]))
    found = [kind for kind in kinds if kind.any()]
    if len(found) > 1 or (found and found[0] is kinds[-1] and not kinds[-1].all()):
        raise _mixed(times[~found[-1]], {})


def _mixed(others: NDArray[Any], counts: dict[str, int]) -> MixedTimesError:
    value = others[0].item()
    units = " and ".join(counts) or "another unit"
    return MixedTimesError(
        value,
        f"timestamp {value} is beside times in {units}, and in none of these a likely date ({len(others):,} such)",
    )


def in_unit(time: float, unit: str) -> float:
    """A time from 1990 to 2099 in a unit that is as fine as its own or finer."""
    own = unit_of(time)
    by = 1 if own is None else 1000 ** (UNITS.index(unit) - UNITS.index(own))
    return time if by == 1 else time * by if isinstance(time, int) else round(time * by, 3)


def scaled(times: array, by: NDArray[np.int64]) -> array:
    """The times in one unit. Raises ValueError where a double would not hold them exactly."""
    product = np.asarray(times) * by
    if times.typecode == "d":
        if float(np.abs(product).max()) > EXACT:
            raise ValueError("some timestamps have a fraction, and others are too large to have one")
        product = np.where(by > 1, np.round(product, 3), product)  # what a second's fraction lost as a double
    result = array(times.typecode)
    result.frombytes(product.astype(times.typecode).tobytes())
    return result
