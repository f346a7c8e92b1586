"""The entropy objective: the mixture answers the prompts, and its uncertainty is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .entropy import SHORT, Answers, TokenSelection, answer, answer_with_gradient, batches, entropies
from .memory import MemoryModel, activation_bytes
from .mixture import Mixture


@dataclass(frozen=True)
class BatchTokens:
    """Tokens of a batch at most, in a forward pass and in one with gradients."""

    forward: int
    backward: int


class Objective:
    """The mean entropy of a mixture's own answers to prompts, and its gradient by the coefficients."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        mixture: Mixture,
        prompts: Sequence[Sequence[int]],
        counting: TokenSelection,
        sizes: BatchTokens,
        *,
        progress: Callable[[int], None] = lambda prompts: None,
    ) -> None:
        self._model, self._tokenizer, self.mixture = model, tokenizer, mixture
        self._prompts, self._counting, self._progress = prompts, counting, progress
        self._batch_tokens, self._gradient_tokens = sizes.forward, sizes.backward

    def value(self, weights: Tensor, which: Sequence[int]) -> float:
        """Mean entropy over the prompts of those indices; may be NaN where an adapter is broken."""
        total = 0.0
        with torch.no_grad():
            self.mixture.set(weights)
            for batch in self._batches(which, self._batch_tokens):
                total += float(answer(self._model, self._tokenizer, batch, self._counting).entropies.sum())
                self._progress(len(batch))
        return total / len(which)

    def gradient(self, weights: Tensor, which: Sequence[int]) -> tuple[float, Tensor]:
        """The same mean, and its gradient by `weights` [groups, adapters], prompts accumulated a few at a time."""
        leaf = weights.detach().clone().requires_grad_()
        total = 0.0
        for batch in self._batches(which, self._gradient_tokens):
            with torch.enable_grad():
                self.mixture.set(leaf)
                found = answer_with_gradient(self._model, self._tokenizer, batch, self._counting)
                loss = found.sum() / len(which)
                loss.backward()
            total += float(loss.detach())
            self._progress(len(batch))
        assert leaf.grad is not None
        return total, leaf.grad

    def _batches(self, which: Sequence[int], tokens: int) -> Iterator[list[Sequence[int]]]:
        chosen = [self._prompts[index] for index in which]
        for batch in batches(chosen, tokens):
            yield [chosen[index] for index in batch]

    def growth(self, weights: Tensor) -> MemoryModel:
        """What a gradient keeps in memory, by the length of a prompt with its answer."""
        leaf = weights.detach().clone().requires_grad_()
        own = [*self._model.parameters(), *self.mixture.tensors()]
        written = self._counting.length if self._counting.length > SHORT else 0

        def measure(length: int) -> int:
            prompt = list(self._prompts[0][:length]) or [0]
            prompt = (prompt * (1 + length // len(prompt)))[:length]
            with torch.enable_grad():
                self.mixture.set(leaf)
                if not written:
                    asked = [prompt[: length - self._counting.length]]
                    return activation_bytes(
                        lambda: answer_with_gradient(self._model, self._tokenizer, asked, self._counting), own
                    )
                ids = torch.tensor([prompt], device=self.mixture.device)
                counts = torch.ones(1, 1, dtype=torch.bool, device=self.mixture.device)
                answers = Answers(ids, torch.ones_like(ids), counts, torch.zeros(1, device=self.mixture.device))
                return activation_bytes(lambda: entropies(self._model, answers), own)

        vocabulary = self._model.get_output_embeddings().weight
        # Logits of the whole answer and their gradient, and five float32 of the size of those that count.
        each = vocabulary.shape[0] * (
            2 * vocabulary.element_size() * written + 5 * 4 * (written or self._counting.tokens)
        )
        return MemoryModel(measure, each)

    def fitted(self, growth: MemoryModel, free: int | None) -> tuple[int, int, int]:
        """(bytes, tokens, prompts) of the largest batch of a gradient, after batches were made small enough for what is free."""
        while True:
            sizes = [
                (max(len(self._prompts[i]) for i in batch) + self._counting.length, len(batch))
                for batch in batches(self._prompts, self._gradient_tokens)
            ]
            needed, length, prompts = max((growth(length, prompts), length, prompts) for length, prompts in sizes)
            if free is None or needed <= free or prompts == 1:
                return needed, length, prompts
            self._gradient_tokens //= 2
