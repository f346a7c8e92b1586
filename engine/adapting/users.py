"""Which labelled users may judge a mix: those whose labels no adapter has seen, in two groups that never change places.

FIT (60 %) is what mixes are chosen by, GATE (40 %) what they are judged by at the end. A user's group follows from the user alone, so that
more users, other recipes or another seed never move one from one group to the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...tasks.splits import Example
from ..adaptive import FEWEST_FIT

if TYPE_CHECKING:
    from ...tasks import Question

FIT_SHARE = 0.6


@dataclass(frozen=True)
class Division:
    """Labelled examples, one for each user: those to choose by, those to judge by, and how many were left out as seen."""

    fit: tuple[Example, ...]
    gate: tuple[Example, ...]
    seen: int


@dataclass(frozen=True)
class Labels:
    """Labelled questions, one a user: those to choose by, those to judge by, and the titles of the catalogue where a score needs them.

    `looks` is how often those users had judged before, `seen` how many were left out, `warnings` what is not known of the labels.
    """

    fit: tuple[Question, ...] = ()
    gate: tuple[Question, ...] = ()
    catalogue: tuple[str, ...] = ()
    looks: int = 0
    seen: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def decide(self) -> bool:
        """Whether they are enough to choose by, and there are any to judge by."""
        return enough(len(self.fit), len(self.gate))


def enough(fit: int, gate: int) -> bool:
    return fit >= FEWEST_FIT and gate > 0


def divide(examples: Sequence[Example], seen: Collection[str], limit: int, *, most_fit: int | None = None) -> Division:
    """At most `limit` examples whose users are not among the `seen`, in the order given; 60 % of them to choose by, the others to judge by.

    With `most_fit`, no more than so many choose; as many judge as without. Each group is filled in that order, so a smaller limit gives
    the beginning of what a larger one gives.
    """
    unseen = [example for example in examples if example.user_id not in seen]
    groups: tuple[list[Example], list[Example]] = ([], [])
    choosing = round(limit * FIT_SHARE)
    most = (choosing if most_fit is None else min(choosing, most_fit), limit - choosing)
    for example in unseen:
        group = 0 if is_fit(example.user_id) else 1
        if len(groups[group]) < most[group]:
            groups[group].append(example)
    return Division(tuple(groups[0]), tuple(groups[1]), len(examples) - len(unseen))


def is_fit(user_id: str) -> bool:
    """By the first 8 bytes of the user's SHA-256, as a fraction of all."""
    first = hashlib.sha256(b"fit or gate\0" + user_id.encode("utf-8", "surrogatepass")).digest()[:8]
    return int.from_bytes(first) < FIT_SHARE * 2**64
