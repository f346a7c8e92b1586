"""All titles of a catalogue as token ids, as a trie: which tokens continue some title after a given beginning?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from .errors import TaskError

Tokens = NDArray[np.int32]


class TitleTrie:
    """A trie over token ids in two arrays, eight bytes a node.

    Give each title the tokens that close it, so that no title is the beginning of another and the closing token is
    among what may follow. Equal titles count once. Nodes are numbered level by level, those of one level in the order of
    their titles: the children of a node then follow each other, sorted by token, and one offset per node finds them.
    """

    def __init__(self, titles: Iterable[Sequence[int]]) -> None:
        ordered = sorted({tuple(title) for title in titles})
        self._titles = len(ordered)
        lengths = np.fromiter(map(len, ordered), np.int64, len(ordered))
        tokens = np.fromiter(chain.from_iterable(ordered), np.int32, int(lengths.sum()))
        if (tokens < 0).any():
            raise TaskError("a token id of a title is below 0")
        starts = np.cumsum(lengths) - lengths
        shared = _shared(tokens, starts, lengths)
        # A title has nodes of its own from where on it differs from the one before it.
        own = lengths - shared
        title = np.repeat(np.arange(len(ordered)), own)
        depth = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own - shared, own)
        by_level = np.argsort(depth, kind="stable")
        title, depth = title[by_level], depth[by_level]
        self._tokens = np.concatenate([np.array([-1], np.int32), tokens[starts[title] + depth]])
        # The node above is the last of the level before whose title does not come later.
        place = depth * len(ordered) + title
        parents = np.where(depth > 0, np.searchsorted(place, place - len(ordered), side="right"), 0)
        counts = np.bincount(parents, minlength=len(self._tokens))
        self._first = (1 + np.concatenate([[0], np.cumsum(counts)])).astype(np.int32)

    def __len__(self) -> int:
        """How many distinct titles there are."""
        return self._titles

    @property
    def nodes(self) -> int:
        return len(self._tokens)

    def allowed(self, prefix: Sequence[int] = ()) -> Tokens:
        """The ids of the tokens that continue some title after `prefix`, sorted; none if no title begins so, or it is a whole one."""
        node = 0
        for token in prefix:
            child = self._child(node, token)
            if child is None:
                return self._tokens[:0]
            node = child
        return self._below(node)

    def continuations(self, tokens: Sequence[int]) -> list[Tokens]:
        """For each of the tokens, the sorted ids that might have stood in its place. Raises TaskError if no title begins so."""
        node, found = 0, []
        for place, token in enumerate(tokens):
            found.append(self._below(node))
            child = self._child(node, token)
            if child is None:
                raise TaskError(f"no title of the catalogue has the token {token} at place {place} of {list(tokens)}")
            node = child
        return found

    def _below(self, node: int) -> Tokens:
        return self._tokens[self._first[node] : self._first[node + 1]]

    def _child(self, node: int, token: int) -> int | None:
        begin, end = int(self._first[node]), int(self._first[node + 1])
        found = bisect_left(self._tokens, token, begin, end)
        return found if found < end and self._tokens[found] == token else None


def _shared(tokens: Tokens, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many tokens each title has in common with the one before, found for all of them a token at a time.

    No table of titles times the longest of them is made: shops have titles of thousands of tokens.
    """
    shared = np.zeros(len(lengths), np.int64)
    alike, depth = np.arange(1, len(lengths)), 0
    while len(alike):
        alike = alike[np.minimum(lengths[alike], lengths[alike - 1]) > depth]
        alike = alike[tokens[starts[alike] + depth] == tokens[starts[alike - 1] + depth]]
        depth += 1
        shared[alike] = depth
    return shared
