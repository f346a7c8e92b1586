"""Several answers to one prompt as a tree of tokens: what they have in common at their beginnings is read once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class AnswerTree:
    """The tokens of answers, each beginning that some share being one node; a node comes after the one above it.

    A model reads the `inner` nodes alone: the last token of an answer predicts nothing.
    """

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.above: list[int] = []  # of each node; -1: the end of the prompt
        self.paths: list[list[int]] = []  # of each answer, its nodes in order
        places: dict[tuple[int, int], int] = {}
        for answer in answers:
            node, path = -1, []
            for token in answer:
                if (node, token) not in places:
                    places[node, token] = len(self.tokens)
                    self.tokens.append(token)
                    self.above.append(node)
                node = places[node, token]
                path.append(node)
            self.paths.append(path)
        self.inner = sorted({node for node in self.above if node >= 0})
        column = {node: place for place, node in enumerate((-1, *self.inner))}
        self.predicted_at = [column[node] for node in self.above]
        """Per node, which logits are of it: 0 for those after the prompt, then those after each of the inner nodes."""

    def __len__(self) -> int:
        """How many tokens a model reads."""
        return len(self.inner)

    def layout(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """[inner, inner] which sees which, itself among them; and [inner] how many tokens of its answer are before each."""
        sees, depth = np.eye(len(self.inner), dtype=bool), np.zeros(len(self.inner), np.int64)
        for place, node in enumerate(self.inner):
            above = self.predicted_at[node] - 1
            if above >= 0:
                sees[place] |= sees[above]
                depth[place] = depth[above] + 1
        return sees, depth


def packed(answers: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Which answers share a tree of at most `most` nodes (or have one alone), those that begin alike together."""
    order = sorted(range(len(answers)), key=lambda place: list(answers[place]))
    trees: list[list[int]] = []
    nodes, before = 0, None
    for place in order:
        new = len(answers[place]) - (_in_common(answers[before], answers[place]) if before is not None else 0)
        if before is None or nodes + new > most:
            trees.append([])
            nodes, new = 0, len(answers[place])
        trees[-1].append(place)
        nodes, before = nodes + new, place
    return trees


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens they begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def common_beginning(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with alike, their last one left out."""
    first, last = min(prompts), max(prompts)
    return max(0, min(_in_common(first, last), *(len(prompt) - 1 for prompt in prompts)))
