"""Questions of users that nobody is: made of a domain's catalogue alone, for a domain that has items and no histories.

After MergeRec (arXiv 2601.01753), where each item is a sequence of its own. No history of the data is looked at, so the same catalogue
gives the same questions whoever took what.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from .candidates import fill, wording
from .data import DomainData, Item
from .errors import DataError
from .prompts import OpenQuestion, Template, open_question

if TYPE_CHECKING:
    from .retrieval import Retriever

ALIKE_SHARE = 0.5  # of the candidates; the others are random


def pseudo_questions(
    data: DomainData,
    template: Template,
    *,
    users: int,
    history: int = 1,
    n_negatives: int = 9,
    seed: int = 42,
    with_likeness: bool = False,
) -> list[OpenQuestion]:
    """What comes next for at most `users` pseudo-users, with `n_negatives` + 1 candidates each; nobody knows the answers.

    A pseudo-user has taken an item of the catalogue, no two the same title, and before it the `history` - 1 items most like it, fewer where
    no more have a word in common with it. Half of the candidates are most like that history, the others random, in random order;
    no two of them, and none of the history, read alike. Who is drawn depends on the seed and each item's id alone: fewer are the head of more.
    `with_likeness` adds what the score hybrid needs.

    Raises DataError for a catalogue with too few titles, TaskError when fewer candidates are asked for than the template's answer lists.
    """
    from .retrieval import Retriever  # which needs numpy, as a request for another build does not

    retriever = Retriever(data, taken=())
    found = []
    for item in islice(_drawn(data, seed), users):
        taken = [*reversed(retriever.alike([item], history - 1)), item]
        rng = random.Random(json.dumps([seed, "pseudo-user", item.item_id]))  # noqa: S311
        offered = _offered(data, retriever, taken, n_negatives + 1, rng)
        asked = open_question(template, taken, offered)
        found.append(replace(asked, likeness=retriever.likeness.of(taken, offered)) if with_likeness else asked)
    return found


def _drawn(data: DomainData, seed: int) -> Iterator[Item]:
    """Titled items in an order that depends on the seed and their ids; of several that read alike the first."""

    def rank(item_id: str) -> bytes:
        return hashlib.sha256(json.dumps([seed, item_id]).encode()).digest()

    seen: set[str] = set()
    for item_id in sorted(data.titled, key=rank):
        item = data.items[item_id]
        if (words := wording(item.title)) not in seen:
            seen.add(words)
            yield item


def _offered(
    data: DomainData, retriever: Retriever, taken: Sequence[Item], count: int, rng: random.Random
) -> list[Item]:
    offered = [item.item_id for item in retriever.alike(taken, round(count * ALIKE_SHARE))]
    titles = {wording(item.title) for item in (*taken, *(data.items[item_id] for item_id in offered))}
    fill(offered, count, data, titles, rng)
    if len(offered) < count:
        raise DataError(
            f"{data.name} has only {len(offered)} titles unlike those of a pseudo-user's history, and {count} candidates are asked for",
            hint="set fewer `negatives`",
        )
    rng.shuffle(offered)
    return [data.items[item_id] for item_id in offered]
