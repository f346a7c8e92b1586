"""What a bi-tuning recommends: the frozen language model embeds the history once, and the index has the items nearest to it by cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..networks.item_index import ItemIndex
from ..networks.laser import Laser, load_frozen
from ..registry import Adapter, Build, Registry
from ..registry.errors import UsageError
from ..tasks import Catalogue as Titles
from ..tasks import DomainData, Item, title_key
from .building.indexing import Catalogue, index_file, index_freshness
from .domain_data import NO_CATALOGUE, domain_data
from .frozen import Frozen, open_beside
from .recommending import Recommendation, RecommendationRequest, expect_some_items, history_asked


@dataclass(frozen=True)
class Gaps:
    """By how much an index is behind the items of the data: how many it lacks, has with another text, and has that are gone."""

    new: int = 0
    changed: int = 0
    gone: int = 0

    @classmethod
    def of(cls, index: ItemIndex, catalogue: Catalogue) -> Gaps:
        there = dict(zip(index.item_ids, index.texts, strict=True))
        now = {item_id: catalogue.template.item_digest(item) for item_id, item in catalogue.items.items()}
        both = there.keys() & now.keys()
        changed = sum(there[item_id] != now[item_id] for item_id in both)
        return cls(len(now) - len(both), changed, len(there) - len(both))

    def __bool__(self) -> bool:
        return (self.new, self.changed, self.gone) != (0, 0, 0)


@dataclass(frozen=True)
class IndexRecommender:
    """A bi-tuning that is loaded, and answers one history after the other. `build` made its index; None means the one inside the bundle."""

    adapter: Adapter
    build: Build | None
    index: ItemIndex = field(repr=False)
    gaps: Gaps
    data: DomainData = field(repr=False)
    users: Laser = field(repr=False)

    @classmethod
    def open(cls, registry: Registry, row: Adapter, data: DomainData, *, device: str) -> IndexRecommender:
        """Raises InvalidArtifactError for a damaged bundle or index, BaseMismatchError, StoreError, DataError where no item has a title."""
        bundle, standing = open_beside(registry, row), index_freshness(registry, row)
        catalogue = Catalogue.of(data, bundle.template)
        index = ItemIndex.read(index_file(registry, row, standing.build), encoder=bundle.manifest.encoder)
        gaps = Gaps() if standing.state == "fresh" else Gaps.of(index, catalogue)
        folder = Frozen.of(registry, row).folder(registry)
        users = bundle.users(*load_frozen(folder, device, bundle.manifest.dtype))
        return cls(row, standing.build, index, gaps, data, users)

    def best(self, history: Sequence[Item], k: int, *, exclude_seen: bool = False) -> tuple[Recommendation, ...]:
        """The k items with the highest cosine, best first, of those that the data has; without the history's and their like on request.

        Raises EmptyHistoryError, DataError where nothing is left.
        """
        left_out = self._gone
        if exclude_seen:
            seen = {title_key(item.title) for item in history}
            left_out = left_out.union(*(self._alike.get(title, ()) for title in seen))
        found = self.index.search(self.users.encode([history])[0], k, without=left_out)
        expect_some_items(found)
        return tuple(
            Recommendation(rank, each.item_id, self.data.items[each.item_id].title, each.score)
            for rank, each in enumerate(found, start=1)
        )

    @cached_property
    def _gone(self) -> frozenset[str]:
        """Items of the index that the data has no more."""
        return frozenset(item_id for item_id in self.index.item_ids if item_id not in self.data.items)

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        """The items of each title, by what is compared of it."""
        found: dict[str, list[str]] = {}
        for item_id, item in self.data.items.items():
            found.setdefault(title_key(item.title), []).append(item_id)
        return found


@dataclass(frozen=True)
class IndexRecommendations:
    """The answer: the first items, best first, each with its cosine. Items of the history that the catalogue lacks have an empty id."""

    recommender: IndexRecommender
    user: str | None
    history: tuple[Item, ...]
    items: tuple[Recommendation, ...]


def recommend_by_index(
    registry: Registry, row: Adapter, wanted: RecommendationRequest, *, count: int, device: str
) -> IndexRecommendations:
    """The `count` items nearest to a user or a history, by the bi-tuning `row`.

    Raises UsageError for what only builds are asked and for an empty history, NotFoundError for the user, DataError, and what
    `IndexRecommender.open` raises.
    """
    _expect_no_more(row, wanted)
    data = domain_data(registry, wanted.domain, needed=NO_CATALOGUE)
    history = history_asked(data, Titles(data), wanted)
    recommender = IndexRecommender.open(registry, row, data, device=device)
    items = recommender.best(history, count, exclude_seen=wanted.exclude_seen)
    return IndexRecommendations(recommender, wanted.user, tuple(history), items)


def _expect_no_more(row: Adapter, wanted: RecommendationRequest) -> None:
    """Raises UsageError for options that mean nothing to an index."""
    options: dict[str, Any] = {
        "--candidates": wanted.candidates,
        "--retrieve": wanted.retrieve,
        "--compare": wanted.compare,
        "--score": wanted.score,
        "--template": wanted.template,
    }
    if given := [name for name, value in options.items() if value]:
        raise UsageError(
            f"{', '.join(given)}: {row.ref} ranks all items of its index by cosine, in the words that it was trained with",
            hint=f"leave out {' and '.join(given)}; or name a build with --build",
        )
