"""A mixture held factored on a loaded model: y = W x + B(A x), so that coefficients change without touching W."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .deltas import load_factors
from .errors import MergeError
from .methods import METHODS, Factors
from .results import Part


class Mixture:
    """Adapters on a frozen model. Use as a context manager: on leaving, the model is what it was.

    Raises MergeError when a target weight belongs to no module of the loaded model.
    """

    def __init__(self, model: Any, parts: Sequence[Part], method: str) -> None:
        self._method = METHODS[method]
        self._targets: dict[str, list[tuple[int, Factors]]] = {}
        self._current: dict[str, tuple[Tensor, Tensor]] = {}
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        for index, part in enumerate(parts):
            _expect_plain(part)
            for module in part.facts.modules:
                factors = load_factors(part.folder, module)
                on_device = Factors(factors.a.to(self._device), factors.b.to(self._device), factors.scale)
                self._targets.setdefault(module.name, []).append((index, on_device))
        modules = dict(model.named_modules())
        if missing := sorted(self._targets.keys() - modules.keys()):
            raise MergeError(f"the loaded model has no module {missing[0]}, which the adapters target")
        self.set([part.weight for part in parts])
        # Last, since what is refused above must leave no hook behind.
        self._handles = [modules[name].register_forward_hook(self._hook(name)) for name in self._targets]

    def set(self, weights: Sequence[float]) -> None:
        """Mix with these weights, one per adapter."""
        for name, used in self._targets.items():
            b, a = self._method([f for _, f in used], [weights[i] for i, _ in used])
            self._current[name] = (b.to(self._dtype), a.to(self._dtype))

    def _hook(self, name: str) -> Any:
        def add_delta(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            b, a = self._current[name]
            return output + (inputs[0] @ a.T) @ b.T

        return add_delta

    def __enter__(self) -> Mixture:
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()


def _expect_plain(part: Part) -> None:
    """Raises MergeError for what is more than B A on the input of a linear layer, rather than leave it out."""
    more = [tensor.name for tensor in (*part.facts.saved, *part.facts.tokens)]
    more += [
        f"{m.name} ({'DoRA' if m.magnitude else 'a LoRA bias' if m.bias else 'experts'})"
        for m in part.facts.modules
        if m.magnitude or m.bias or m.experts > 1 or m.parameter != "weight"
    ]
    more += [m.name for m in part.facts.modules if m.transposed and not part.facts.config.fan_in_fan_out]
    if more:
        raise MergeError(
            f"{part.folder}: {more[0]} cannot be mixed on a loaded model, where only LoRA on linear layers can",
            hint="give coefficients instead of `adaptive`: merging honours it",
        )


def answer_entropies(model: Any, prompts: Sequence[Sequence[int]], tokens: int, pad: int, stop: int | None) -> Tensor:
    """Mean Shannon entropy (nats, full vocabulary) of the first `tokens` greedy answer tokens, per prompt: [prompts].

    RecCocktail Eq. 8. Prompts are one batch, left-padded so that answers line up; an answer that ends early counts
    up to and including its `stop` token.
    """
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    total = torch.zeros(len(prompts), device=device)
    counted = torch.zeros(len(prompts), device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache = None
    with torch.inference_mode():
        for _ in range(tokens):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            log_p = out.logits[:, -1].float().log_softmax(-1)
            total += torch.where(alive, -(log_p.exp() * log_p).sum(-1), 0.0)
            counted += alive
            ids = log_p.argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            if stop is not None:
                alive &= ids[:, 0] != stop
            if not bool(alive.any()):
                break
    return total / counted
