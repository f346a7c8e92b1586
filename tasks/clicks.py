"""Click prediction: rated interactions as likes and dislikes, split by time, each with what its user rated before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .data import ALIGNED, DomainData, History, Item
from .errors import DataError, NoNegativesError, NoRatingsError, OneClassError

SplitBy = Literal["time", "user"]
ClickPart = Literal["train", "validation", "test"]
PARTS: tuple[ClickPart, ...] = ("train", "validation", "test")
TIES = "item_id"  # what is rated at one time is in the order of item ids; part of the digest, as is the next
TENTHS = (8, 9)  # of the rows, where validation and test begin


class ClickOptions(BaseModel):
    """How ratings become clicks. A rating of `threshold` or more is positive.

    `by`: `time` gives the oldest eight tenths of all rows to training, the next tenth to validation, the newest to testing (the paper's);
    `user` does so with each user's own rows, of which each part has one at least where there are three. Rows with fewer than
    `min_history` rated items before them are dropped first; histories run across the parts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=4, allow_inf_nan=False)
    by: SplitBy = "time"
    min_history: int = Field(default=5, ge=1)

    @property
    def digest(self) -> str:
        return digest_of(["clicks", self.model_dump(), TIES, TENTHS])


@dataclass(frozen=True, slots=True)
class RatedItem:
    """An item and what a user gave it; `time` is in the data's own unit, None where there are no times."""

    item_id: str
    rating: float
    time: float | None = None


@dataclass(frozen=True, slots=True)
class ClickUser:
    """A user, what is known of them (`profile`, plain values), and all that they rated, oldest first."""

    user_id: str
    profile: Mapping[str, Any] = field(default_factory=dict, hash=False)
    rated: tuple[RatedItem, ...] = ()


@dataclass(frozen=True, slots=True)
class ClickRow:
    """Will the user like the item? `position` is how many of the user's rated items came before; `label` is None where nobody knows.

    Rows of one user share the user, so that a million of them cost what a million numbers cost.
    """

    user: ClickUser = field(repr=False)
    item_id: str
    position: int
    label: bool | None = None
    time: float | None = None

    @classmethod
    def at(cls, user: ClickUser, position: int, threshold: float) -> ClickRow:
        """What the user rated at this place, from 0."""
        rated = user.rated[position]
        return cls(user, rated.item_id, position, rated.rating >= threshold, rated.time)

    @classmethod
    def candidate(cls, user: ClickUser, item_id: str) -> ClickRow:
        """An item that the user may be offered now, after all that they rated."""
        return cls(user, item_id, len(user.rated))

    @property
    def user_id(self) -> str:
        return self.user.user_id

    @property
    def profile(self) -> Mapping[str, Any]:
        return self.user.profile

    @property
    def history(self) -> tuple[RatedItem, ...]:
        """What the user rated before, oldest first."""
        return self.user.rated[: self.position]


@dataclass(frozen=True)
class ClickData:
    """A domain's rows in three parts, each oldest first (by user id, then oldest first, where `by` is `user`).

    `digest` is of the domain's data and the options: equal ones have equal rows.
    """

    name: str
    options: ClickOptions
    data_digest: str
    items: Mapping[str, Item] = field(repr=False)
    users: Mapping[str, ClickUser] = field(repr=False)
    train: tuple[ClickRow, ...] = field(repr=False)
    validation: tuple[ClickRow, ...] = field(repr=False)
    test: tuple[ClickRow, ...] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        return digest_of([self.data_digest, self.options.digest])

    def part(self, name: ClickPart) -> tuple[ClickRow, ...]:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def click_data(data: DomainData, options: ClickOptions = ClickOptions()) -> ClickData:  # noqa: B008  immutable
    """The domain's rated interactions with titled items as labelled rows.

    Raises NoRatingsError without ratings, NoNegativesError where a `min_rating` left only positives, OneClassError where training or
    test rows are all alike or none, and DataError for a split by time without times.
    """
    users = {history.user_id: click_user(data, history) for history in data.sequences}
    _expect_both_classes(data, options, users)
    rows = [row for user in users.values() for row in _rows(user, options)]
    parts = _by_time(data, rows) if options.by == "time" else _by_user(rows)
    _expect_both_in_parts(data, parts)
    return ClickData(data.name, options, data.digest, data.items, users, *parts)


def click_user(data: DomainData, history: History) -> ClickUser:
    """The user of a history, with titled and rated items alone; equal times are in the order of item ids."""
    ratings, times = (history.fields.get(name) or [None] * len(history.items) for name in ("ratings", "timestamps"))
    rated = [
        RatedItem(item_id, float(rating), time)
        for item_id, rating, time in zip(history.items, ratings, times, strict=True)
        if rating is not None and data.items[item_id].title
    ]
    if history.fields.get("timestamps"):
        rated.sort(key=lambda each: (each.time, each.item_id))
    plain = {
        name: value
        for name, value in history.fields.items()
        if name not in ALIGNED and isinstance(value, str | int | float)
    }
    return ClickUser(history.user_id, plain, tuple(rated))


def _rows(user: ClickUser, options: ClickOptions) -> Iterator[ClickRow]:
    return (ClickRow.at(user, position, options.threshold) for position in range(options.min_history, len(user.rated)))


def _by_time(data: DomainData, rows: list[ClickRow]) -> list[tuple[ClickRow, ...]]:
    if any(row.time is None for row in rows):
        raise DataError(
            f"{data.name} has no timestamps for some users, and the rows are to be split by time",
            hint="split them by user, or name the column of times in dataset.yaml",
        )
    return _cut(sorted(rows, key=lambda row: (row.time, row.item_id, row.user_id, row.position)), least=0)


def _by_user(rows: Iterable[ClickRow]) -> list[tuple[ClickRow, ...]]:
    own: dict[str, list[ClickRow]] = {}
    for row in rows:
        own.setdefault(row.user_id, []).append(row)
    cuts = [_cut(each, least=1 if len(each) >= 3 else 0) for each in own.values()]
    return [tuple(row for cut in cuts for row in cut[number]) for number in range(len(PARTS))]


def _cut(rows: Sequence[ClickRow], *, least: int) -> list[tuple[ClickRow, ...]]:
    """Eight tenths, a tenth and a tenth of the rows in their order; the latter two rounded down, to `least` each at least."""
    tenth = max(len(rows) * (10 - TENTHS[1]) // 10, least)
    validation, test = len(rows) - 2 * tenth, len(rows) - tenth
    return [tuple(rows[:validation]), tuple(rows[validation:test]), tuple(rows[test:])]


def _expect_both_classes(data: DomainData, options: ClickOptions, users: Mapping[str, ClickUser]) -> None:
    labels = {rated.rating >= options.threshold for user in users.values() for rated in user.rated}
    least = data.origin.min_rating
    if not labels:
        raise NoRatingsError(
            f"{data.name} has no rated interaction, and clicks are ratings of {options.threshold:g} or more",
            hint="name the column of ratings in dataset.yaml, or choose a domain with ratings",
        )
    if labels == {True} and least is not None:
        raise NoNegativesError(
            f"the min_rating of {least:g} left {data.name} no rating below {options.threshold:g}, so there is no negative",
            hint="leave min_rating out of dataset.yaml and add the domain again, or set a higher threshold",
        )
    if len(labels) < 2:
        raise OneClassError(
            f"all ratings of {data.name} are {'' if labels == {True} else 'below '}{options.threshold:g}"
            f"{' or more' if labels == {True} else ''}, so there is only one class",
            hint="set another threshold",
        )


def _expect_both_in_parts(data: DomainData, parts: Sequence[Sequence[ClickRow]]) -> None:
    for name, rows in zip(PARTS, parts, strict=True):
        positives = sum(row.label is True for row in rows)
        if name != "validation" and not 0 < positives < len(rows):
            raise OneClassError(
                f"the {name} part of {data.name} has {positives} positives among {len(rows)} rows; both classes are needed",
                hint="more data, another threshold, or the other split",
            )


def digest_of(content: object) -> str:
    """SHA-256 of the content as JSON."""
    return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}"
