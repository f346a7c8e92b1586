"""A mixture held factored on a loaded model: y = W x + B(A x), so that coefficients change without touching W."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..coefficients import EVERYWHERE, Granularity, group_of, weight_at
from ..errors import MergeError
from ..merging.deltas import load_factors
from ..merging.plan import Part
from ..methods import METHODS, Factors


class Mixture:
    """Adapters on a frozen model. Use as a context manager: on leaving, the model is what it was.

    `groups` are the names of the coefficients that `granularity` makes: one, or one per layer or per module that an adapter changes.
    Raises MergeError when a target weight belongs to no module of the loaded model.
    """

    def __init__(self, model: Any, parts: Sequence[Part], method: str, *, granularity: Granularity = "model") -> None:
        self._method = METHODS[method]
        self._targets: dict[str, list[tuple[int, Factors]]] = {}
        self._current: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._stacked: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        weight = next(model.parameters())
        self.device, self._dtype = weight.device, weight.dtype
        for index, part in enumerate(parts):
            _expect_plain(part)
            for module in part.facts.modules:
                factors = load_factors(part.folder, module)
                on_device = Factors(factors.a.to(self.device), factors.b.to(self.device), factors.scale)
                self._targets.setdefault(module.name, []).append((index, on_device))
        modules = dict(model.named_modules())
        if missing := sorted(self._targets.keys() - modules.keys()):
            raise MergeError(f"the loaded model has no module {missing[0]}, which the adapters target")
        ordered = [name for name in modules if name in self._targets]  # as the model runs them, near enough
        self._targets = {name: self._targets[name] for name in ordered}
        self.groups = tuple(dict.fromkeys(group_of(name, granularity) for name in ordered)) or (EVERYWHERE,)
        places = {name: number for number, name in enumerate(self.groups)}
        self._group = {name: places[group_of(name, granularity)] for name in ordered}
        for name, used in self._targets.items():
            taking_part = {index for index, _ in used}
            own = [
                weight_at(part.weight, [name], part.folder.name) if index in taking_part else 0.0
                for index, part in enumerate(parts)
            ]
            self._mix(name, used, own)
        # Last, since what is refused above must leave no hook behind.
        self._handles = [modules[name].register_forward_hook(self._hook(name)) for name in self._targets]

    def set(self, weights: Sequence[float] | Tensor) -> None:
        """Mix with these weights: one per adapter, or a tensor [groups, adapters], through which gradients flow."""
        for name, used in self._targets.items():
            self._mix(name, used, weights[self._group[name]] if isinstance(weights, Tensor) else weights)

    def _mix(self, name: str, used: Sequence[tuple[int, Factors]], weights: Any) -> None:
        if self._method.name != "linear":
            b, a = self._method([f for _, f in used], [weights[i] for i, _ in used])
            self._current[name] = (b.to(self._dtype), a.to(self._dtype), None)
            return
        # Σ w·s·B A is B (w ⊙ (s·A x)): the weights act on R numbers, and so does their gradient, while A and B stay as they are.
        if name not in self._stacked:
            b, a = self._method([f for _, f in used], [1.0] * len(used))
            owner = torch.tensor([i for i, f in used for _ in range(f.a.shape[0])], device=self.device)
            self._stacked[name] = (b.to(self._dtype), a.to(self._dtype), owner)
        b, a, owner = self._stacked[name]
        each = weights if isinstance(weights, Tensor) else torch.tensor(weights, device=self.device)
        self._current[name] = (b, a, each[owner])

    def spread(self, group: int) -> list[str]:
        """The modules that have a group's coefficient."""
        return [name for name, own in self._group.items() if own == group]

    def tensors(self) -> list[Tensor]:
        """What the mixture itself holds on the device."""
        factors = [tensor for used in self._targets.values() for _, f in used for tensor in (f.a, f.b)]
        return factors + [tensor for stacked in self._stacked.values() for tensor in stacked]

    def _hook(self, name: str) -> Any:
        def add_delta(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            b, a, weights = self._current[name]
            inner = inputs[0] @ a.T
            if weights is not None:
                inner = (inner * weights).to(inner.dtype)  # weights stay in float32: .501 is not .5
            return output + inner @ b.T

        return add_delta

    def __enter__(self) -> Mixture:
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()


def _expect_plain(part: Part) -> None:
    """Raises MergeError for what is more than B A on the input of a linear layer, rather than leave it out."""
    if head := part.facts.task_head:
        raise MergeError(
            f"{part.folder}: brings the head {head[0].name} for {part.facts.config.task}, so it answers with labels, and neither entropy"
            " nor ranking of words says anything of it",
            hint="give coefficients instead of `adaptive`, for example `--recipe average`",
        )
    more = [tensor.name for tensor in (*part.facts.saved, *part.facts.tokens)]
    more += [
        f"{m.name} ({'DoRA' if m.magnitude else 'a LoRA bias' if m.bias else 'an embedding' if m.embeds else 'experts'})"
        for m in part.facts.modules
        if m.magnitude or m.bias or m.embeds or m.experts > 1 or m.parameter != "weight"
    ]
    more += [m.name for m in part.facts.modules if m.transposed and not part.facts.config.fan_in_fan_out]
    if more:
        raise MergeError(
            f"{part.folder}: {more[0]} cannot be mixed on a loaded model, where only LoRA on linear layers can",
            hint="give coefficients instead of `adaptive`: merging supports it",
        )
