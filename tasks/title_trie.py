"""All titles of a catalogue as token ids, as a trie: which tokens continue some title after a given beginning?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

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
        rows = np.full((len(ordered), int(lengths.max(initial=0))), -1, np.int32)
        for row, title in zip(rows, ordered, strict=True):
            row[: len(title)] = title
        if (rows[np.arange(rows.shape[1]) < lengths[:, None]] < 0).any():
            raise TaskError("a token id of a title is below 0")
        # From where on a title differs from the one before it: there its own nodes begin.
        own = np.ones(rows.shape, bool)
        own[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
        own &= np.arange(rows.shape[1]) < lengths[:, None]
        levels = [own[:, depth] for depth in range(rows.shape[1])]
        self._tokens = np.concatenate([[-1], *(rows[new, depth] for depth, new in enumerate(levels))]).astype(np.int32)
        children = [np.array([levels[0].sum()]) if levels else np.zeros(1, np.int64)]
        for depth, new in enumerate(levels):
            at = np.cumsum(new) - 1  # per title, its node of this level
            below = own[:, depth + 1] if depth + 1 < len(levels) else np.zeros(len(ordered), bool)
            children.append(np.bincount(at[below], minlength=int(new.sum())))
        self._first = np.concatenate([[1], 1 + np.cumsum(np.concatenate(children))]).astype(np.int32)

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
