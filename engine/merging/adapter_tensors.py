"""The tensors of a written adapter: for each entry of its plan, how they are made and how exact they are.

Methods on factors never form a delta; others, and DoRA in a mix, form one dense delta at a time. Each tensor is rounded once
to the file's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry.artifacts.lora import PREFIX, LoraModule, SavedTensor, TokenRows
from ...registry.artifacts.safetensors import TensorInfo
from ..errors import MergeError
from ..methods import Factors
from .adapter_mix import AS_CHECKPOINT, AdapterMix
from .adapter_plan import AdapterPlan, Pair, token_indices, trains_only_bias
from .low_rank import nearest, norm_of_product, row_steps, truncated
from .plan import Change
from .reports import AdapterTensorReport

Made = tuple[list[Tensor], AdapterTensorReport | None]


@dataclass(frozen=True)
class Entry:
    """Tensors that are made together, in the file's order, and what is said about them."""

    infos: tuple[TensorInfo, ...]
    make: Callable[[], Made]


def entries(plan: AdapterPlan) -> Iterator[Entry]:
    """All entries, in the file's order. Raises MergeError for what one adapter cannot hold."""
    mix = plan.mix
    for pair in plan.pairs:
        yield _pair_entry(mix, pair, plan.keeps_dora)
        if plan.biases:
            name = f"{pair.module.name}.bias"
            yield _bias_entry(mix, name, pair, plan.biases.get(name, ()))
    targets = {pair.module.name for pair in plan.pairs}
    for name, used in plan.wholes:
        module, _, parameter = name.rpartition(".")
        in_wrapper = all(trains_only_bias(use) for use in used) and module in targets
        yield _whole_entry(mix, name, PREFIX + (f"{module}.base_layer.{parameter}" if in_wrapper else name), used)
    for name, used in plan.rows:
        yield _rows_entry(mix, name, used)


def _pair_entry(mix: AdapterMix, pair: Pair, keeps_dora: bool) -> Entry:
    module, (out, into) = pair.module, pair.shape
    key_b = pair.key.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")
    infos = [
        mix.info(pair.key, (pair.rank * module.experts, into)),
        mix.info(key_b, (out, pair.rank * module.experts)),
    ]
    if keeps_dora and module.magnitude is not None:
        infos.append(mix.info(module.magnitude.name, module.magnitude.shape))
        return Entry(tuple(infos), lambda: _copied_dora(mix, pair))
    make = _dense_pair if pair.exact_rank is None else _factored_pair
    return Entry(tuple(infos), lambda: make(mix, pair))


def _factored_pair(mix: AdapterMix, pair: Pair) -> tuple[list[Tensor], AdapterTensorReport]:
    """A and B from the parts' factors, expert by expert; no delta is formed."""
    experts = pair.module.experts
    loaded = []
    for use in pair.uses:
        module = use.what
        assert isinstance(module, LoraModule)
        a, b = mix.exact(use.part, module.a), mix.exact(use.part, module.b)
        # PEFT stacks the experts' A, but lets B's columns take turns: [experts, r, in] and [out, r, experts]
        loaded.append((a.reshape(experts, -1, a.shape[1]), b.reshape(b.shape[0], -1, experts), module.scale))
    weights = [mix.weights(pair.uses)[use.part] for use in pair.uses]
    made_a, made_b = [], []
    squares = errors = 0.0
    for expert in range(experts):
        factors = [Factors(a[expert], b[:, :, expert], scale) for a, b, scale in loaded]
        b, a = mix.method(factors, weights)
        norm, cut = norm_of_product(b, a), 0.0
        if pair.exact_rank is not None and pair.rank < pair.exact_rank:
            b, a, cut, norm = truncated(b, a, pair.rank)
        # A goes as it was trained and B carries weight, sign and scale: one rounding, and of B alone
        written_b, written_a = mix.rounded(b), mix.rounded(a)
        off_b, off_a = written_b.double() - b, written_a.double() - a
        # rounding acts within the directions that are kept and the cut lies outside them: they stand at a right angle
        rounding = norm_of_product(torch.cat([off_b, b], 1), torch.cat([written_a.double(), off_a], 0))
        squares, errors = squares + norm * norm, errors + cut * cut + rounding * rounding
        made_a.append(written_a)
        made_b.append(written_b)
    tensors = [torch.cat(made_a), torch.stack(made_b, dim=2).reshape(pair.shape[0], -1)]
    return tensors, _report(pair.module.weight, pair.uses, pair.rank, squares, errors)


def _dense_pair(mix: AdapterMix, pair: Pair) -> tuple[list[Tensor], AdapterTensorReport]:
    """A and B nearest to a dense delta."""
    name = pair.module.weight
    place = mix.place(name, pair.uses)
    delta = mix.combined(place, pair.uses, mix.stored(place.tensor))
    delta = delta.T if pair.module.transposed != place.transposed else delta
    b, a = (mix.rounded(factor) for factor in nearest(delta, pair.rank))
    squares = errors = 0.0
    for start, stop in row_steps(delta):
        exact = delta[start:stop].double()
        squares += float(exact.square().sum())
        errors += float((b[start:stop].double() @ a.double() - exact).square().sum())
    return [a, b], _report(name, pair.uses, pair.rank, squares, errors)


def _copied_dora(mix: AdapterMix, pair: Pair) -> tuple[list[Tensor], AdapterTensorReport]:
    """One DoRA as it is, but for the scale, which goes into B."""
    use, module = pair.uses[0], pair.module
    assert module.magnitude is not None
    a, b = mix.exact(use.part, module.a), mix.exact(use.part, module.b) * module.scale
    magnitude = mix.exact(use.part, module.magnitude)
    tensors = [mix.rounded(tensor) for tensor in (a, b, magnitude)]
    place = mix.place(module.weight, pair.uses)
    old = mix.stored(place.tensor).double()
    old = old.T if module.transposed != place.transposed else old

    def delta(a: Tensor, b: Tensor, magnitude: Tensor) -> Tensor:
        whole = old + b @ a
        return magnitude.reshape(-1, 1) / whole.norm(dim=1, keepdim=True) * whole - old

    exact = delta(a, b, magnitude)
    off = delta(*(tensor.double() for tensor in tensors)) - exact
    return tensors, _report(module.weight, pair.uses, pair.rank, float(exact.square().sum()), float(off.square().sum()))


def _bias_entry(mix: AdapterMix, name: str, pair: Pair, used: tuple[Change, ...]) -> Entry:
    """`lora_B.bias`: Σ w·s·b, or zeros for a module that has none in any part."""
    info = mix.info(f"{PREFIX}{pair.module.name}.lora_B.bias", (pair.shape[0],))
    if used and mix.method.kind == "deltas":
        mix.needs_base(used[0], name, "is a LoRA bias")

    def make() -> Made:
        if not used:
            return [mix.rounded(torch.zeros(pair.shape[0]))], None
        if mix.method.kind == "deltas":
            place = mix.place(name, used)
            exact = mix.combined(place, used, mix.stored(place.tensor)).double()
        else:
            exact = torch.zeros(pair.shape[0], dtype=torch.float64)
            for use in used:
                assert isinstance(use.what, LoraModule)
                assert use.what.bias is not None
                exact += mix.weights(used)[use.part] * use.what.scale * mix.exact(use.part, use.what.bias)
        written = mix.rounded(exact)
        off = written.double() - exact
        return [written], _report(name, used, 0, float(exact.square().sum()), float(off.square().sum()))

    return Entry((info,), make)


def _whole_entry(mix: AdapterMix, name: str, key: str, used: tuple[Change, ...]) -> Entry:
    """A tensor that a part trained whole: W + the combined delta, LoRAs of other parts on it included."""
    saved = [use for use in used if isinstance(use.what, SavedTensor)]
    for use in saved:
        mix.needs_base(use, name, "is saved whole")
    place = mix.place(name, used)
    shape = mix.shape(place.tensor)
    for use in saved:
        assert isinstance(use.what, SavedTensor)
        if use.what.info.shape != shape or place.transposed:
            raise MergeError(
                f"{mix.called(use)}: {name} is {list(use.what.info.shape)}, but the base's {place.tensor} is {list(shape)}",
                hint=AS_CHECKPOINT,
            )

    def make() -> tuple[list[Tensor], AdapterTensorReport]:
        old = mix.stored(place.tensor)
        delta = mix.combined(place, used, old)
        exact = old.double() + delta
        what = used[0].what
        if mix.is_one_alone and len(used) == 1 and isinstance(what, SavedTensor):
            exact = mix.exact(0, what.info)  # itself, and not W + (V - W)
        written = mix.rounded(exact)
        off = written.double() - exact
        squares = float(delta.double().square().sum())
        return [written], _report(name, used, 0, squares, float(off.square().sum()))

    return Entry((mix.info(key, shape),), make)


def _rows_entry(mix: AdapterMix, name: str, used: tuple[Change, ...]) -> Entry:
    """Tokens that were trained: W_i + Σ w (V_i - W_i), for every token of any part."""
    if mix.method.kind == "deltas":
        raise MergeError(
            f"{mix.called(used[0])}: {name} has single tokens trained, which {mix.method.name!r} cannot mix in an adapter",
            hint=AS_CHECKPOINT,
        )
    mix.needs_base(used[0], name, "has single tokens trained")
    place, indices = mix.place(name, used), token_indices(used)
    first = used[0].what
    assert isinstance(first, TokenRows)

    def make() -> tuple[list[Tensor], AdapterTensorReport]:
        old = mix.stored(place.tensor)[indices].double()
        delta = torch.zeros_like(old)
        for use in used:
            assert isinstance(use.what, TokenRows)
            at = [indices.index(index) for index in use.what.indices]
            delta[at] += mix.weights(used)[use.part] * (mix.exact(use.part, use.what.info) - old[at])
        exact = old + delta
        written = mix.rounded(exact)
        off = written.double() - exact
        return [written], _report(name, used, 0, float(delta.square().sum()), float(off.square().sum()))

    return Entry((mix.info(first.info.name, (len(indices), first.info.shape[1])),), make)


def _report(name: str, used: Sequence[Change], rank: int, squares: float, errors: float) -> AdapterTensorReport:
    error = math.sqrt(errors / squares) if squares else 0.0
    return AdapterTensorReport(name, len({use.part for use in used}), rank, math.sqrt(squares), error)
