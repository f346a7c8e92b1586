"""Texts that follow the same beginning, several in a row of a batch, so that what some of them begin with alike is read once.

A row is a tree of tokens: each token sees the shared beginning and those of its own text before it, and stands at the position that it has
there. A causal model gives the states that it gives each text alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tasks.answer_tree import AnswerTree, packed

PACK_TOKENS = (
    256  # of texts that share a row: longer ones attend to more that the mask hides, shorter ones have less in common
)
SUFFIX, END = -1, -2  # in the place of tokens: a trained row, and the end of a text, which no model reads


@dataclass(frozen=True)
class TextPack:
    """A row: the `places` of its texts among all, and their tokens as a tree."""

    places: tuple[int, ...]
    tree: AnswerTree

    def __len__(self) -> int:
        """How many tokens a model reads."""
        return len(self.tree)

    @property
    def tokens(self) -> list[int]:
        """What a model reads."""
        return [self.tree.tokens[node] for node in self.tree.inner]

    @property
    def columns(self) -> list[list[int]]:
        """Of each text, where in the row its tokens are."""
        return [[self.tree.predicted_at[node] - 1 for node in path[1:]] for path in self.tree.paths]


@dataclass(frozen=True)
class PackedBatch:
    """[rows, width] tokens and their positions; [rows, width, before + width] what each sees. Padding stands to the right, and no text sees it."""

    tokens: Tensor
    positions: Tensor
    sees: Tensor

    @classmethod
    def of(cls, packs: Sequence[TextPack], before: int) -> PackedBatch:
        """Behind `before` tokens that all see."""
        width = max(map(len, packs))
        tokens = torch.zeros(len(packs), width, dtype=torch.long)
        positions = torch.zeros_like(tokens)
        sees = torch.zeros(len(packs), width, before + width, dtype=torch.bool)
        sees[..., :before] = True
        for row, pack in enumerate(packs):
            own, (tree, depth) = len(pack), pack.tree.layout()
            tokens[row, :own] = torch.tensor(pack.tokens)
            positions[row, :own] = before + torch.from_numpy(depth)
            sees[row, :own, before : before + own] = torch.from_numpy(tree)
        return cls(tokens, positions, sees)


def text_packs(texts: Sequence[Sequence[int]]) -> list[TextPack]:
    """All texts in rows of about PACK_TOKENS, those that begin alike together; no text is empty."""
    ended = [[*text, END] for text in texts]
    return [TextPack(tuple(some), AnswerTree([ended[place] for place in some])) for some in packed(ended, PACK_TOKENS)]
