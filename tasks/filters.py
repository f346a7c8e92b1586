"""Leaving out what is too rare or too badly rated to learn from."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, compress

import numpy as np
from numpy.typing import NDArray

from .data import ALIGNED, DomainData, History
from .errors import DataError


def core_mask(users: NDArray[np.integer], items: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Which interactions are in the k-core: the largest part in which every user and every item has at least `k` of them.

    `users` and `items` number them, from 0, per interaction. Each pass leaves out what has too few, until nothing has.
    """
    kept = np.ones(len(users), dtype=bool)
    while True:
        of_user, of_item = np.bincount(users[kept], minlength=1), np.bincount(items[kept], minlength=1)
        rich = np.flatnonzero(kept)
        rich = rich[(of_user[users[rich]] >= k) & (of_item[items[rich]] >= k)]
        if len(rich) == np.count_nonzero(kept):
            return kept
        kept[:] = False
        kept[rich] = True


def k_core(data: DomainData, k: int) -> DomainData:
    """The data's users and items with at least `k` interactions with each other, repeats counted; all others are left out."""
    numbers = {item_id: number for number, item_id in enumerate(data.items)}
    lengths = [len(history.items) for history in data.sequences]
    users = np.repeat(np.arange(len(lengths)), lengths)
    taken = (numbers[item_id] for history in data.sequences for item_id in history.items)
    kept = _kept(data, core_mask(users, np.fromiter(taken, np.int64, len(users)), k))
    named = {item_id for history in kept.sequences for item_id in history.items}
    return _with(kept, (item for item_id, item in kept.items.items() if item_id in named), kept.sequences)


def at_least_rated(data: DomainData, least: float) -> DomainData:
    """The data without the interactions rated below `least`, and without users who then have none. Items stay."""
    for history in data.sequences:
        if history.items and not history.fields.get("ratings"):
            raise DataError(
                f"{data.name}: user {history.user_id!r} has no ratings, and min_rating asks for {least:g} at least",
                hint="leave min_rating out of dataset.yaml, or give every history ratings",
            )
    ratings = chain.from_iterable(history.fields["ratings"] for history in data.sequences if history.items)
    mask = np.fromiter((rating is not None and rating >= least for rating in ratings), bool)
    return _kept(replace(data, origin=replace(data.origin, min_rating=least)), mask)


def _kept(data: DomainData, mask: NDArray[np.bool_]) -> DomainData:
    """The data with the interactions that the mask, one value per interaction in the data's order, lets stay."""
    histories, start = [], 0
    for history in data.sequences:
        stays = mask[start : start + len(history.items)]
        start += len(history.items)
        if stays.all() and history.items:
            histories.append(history)
        elif stays.any():
            aligned = {name: _stay(history.fields[name], stays) for name in ALIGNED if history.fields.get(name)}
            items = tuple(compress(history.items, stays))
            histories.append(History(history.user_id, items, {**history.fields, **aligned}))
    dropped = data.origin.dropped + len(mask) - int(np.count_nonzero(mask))
    return _with(replace(data, origin=replace(data.origin, dropped=dropped)), data.items.values(), histories)


def _with(data: DomainData, items: Iterable, histories: Iterable[History]) -> DomainData:
    return DomainData.of(data.name, items, histories, origin=data.origin)


def _stay(values: Sequence, stays: NDArray[np.bool_]) -> Sequence:
    left = compress(values, stays)
    return array(values.typecode, left) if isinstance(values, array) else list(left)
