"""A mix written as one adapter that PEFT loads: exact by concatenation, or cut to a rank by SVD with the error reported.

PEFT's scaling is 1 for every module of the result (`lora_alpha` is the rank), so the factors alone say what the delta is,
also to readers that know no `rank_pattern`. Each thread works on one tensor at a time, which is rounded once to the file's
dtype. Methods on factors never form a delta; others, and DoRA in a mix, form one dense delta at a time.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.inspect import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ...registry.artifacts.lora import PREFIX, LoraModule, SavedTensor, TokenRows
from ...registry.artifacts.safetensors import Header, TensorInfo, read_header
from ...registry.artifacts.tensor_names import Place
from ...registry.strict_json import read_object
from ..errors import MergeError
from ..methods import METHODS, Factors
from .blocks import one_torch_thread_each
from .checkpoint import FILE_DTYPES, TORCH_DTYPES, Shard, bytes_of, read_into, torch_dtype, write_from
from .deltas import AdapterFile
from .low_rank import _norm_of_product, _steps, nearest, truncated
from .peft_names import rank_patterns, target_modules
from .plan import Mix, check_weights, weights_at

AS_CHECKPOINT = "write a checkpoint instead (--format checkpoint)"


@dataclass(frozen=True)
class AdapterTensorReport:
    """One tensor's delta as written. Norms are Frobenius norms; `relative_error` is |written - exact| / |exact|, and holds
    what the rank cut off and what rounding to the file's dtype took; `rank` is 0 for a tensor that is written whole."""

    name: str
    adapters: int
    rank: int
    delta_norm: float
    relative_error: float


@dataclass(frozen=True)
class AdapterReport:
    """What was written, per tensor of the model that the adapter changes; `bytes` counts the file's tensors."""

    tensors: tuple[AdapterTensorReport, ...]
    bytes: int
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, object]:
        """The figures that a person reads first."""
        worst = max(self.tensors, key=lambda tensor: tensor.relative_error)
        return {
            "tensors": len(self.tensors),
            "bytes": self.bytes,
            "largest_rank": max(tensor.rank for tensor in self.tensors),
            "median_relative_error": float(f"{statistics.median(t.relative_error for t in self.tensors):.4g}"),
            "worst_relative_error": float(f"{worst.relative_error:.4g}"),
            "worst_tensor": worst.name,
            "notes": list(self.notes),
        }


def write_adapter(
    base: BaseFacts,
    mix: Mix,
    *,
    rank: int | None = None,
    base_folder: Path | None = None,
    threads: int | None = None,
) -> AdapterReport:
    """Write `adapter_config.json` and `adapter_model.safetensors` into the folder `mix.out`, which has neither.

    `rank` None keeps every delta exactly; a number bounds the rank of each. `mix.dtype` None is float32. `base_folder` is needed
    for what depends on the base's weights: DoRA, tensors and tokens that were trained whole, methods on dense deltas. The folder
    is left half-written when something fails: give a staging folder. Raises MergeError for what one adapter cannot hold, RecipeError.
    """
    with ExitStack() as opened:
        plan = _Plan(_Mix(base, mix, rank, base_folder, opened))
        reports: list[AdapterTensorReport] = []
        made = opened.enter_context(closing(_made(plan.entries, threads or min(8, os.cpu_count() or 1))))
        with Shard(mix.out / ADAPTER_WEIGHTS, [info for entry in plan.entries for info in entry.infos]) as file:
            for entry, (tensors, report) in made:
                for info, tensor in zip(entry.infos, tensors, strict=True):
                    assert tuple(tensor.shape) == info.shape, info.name
                    if not bool(tensor.isfinite().all()):
                        raise MergeError(
                            f"{info.name} does not stay finite in {mix.dtype or 'float32'}",
                            hint="check the weights of the mix, or choose bfloat16 or float32",
                        )
                    write_from(file.fd, bytes_of(tensor.contiguous()), file.position(info.name))
                if report is not None:
                    reports.append(report)
            os.fsync(file.fd)
        _write_config(mix.out / ADAPTER_CONFIG, plan.config())
    notes = tuple(f"{part.folder.name}: {note}" for part in mix.parts for note in part.facts.notes)
    return AdapterReport(tuple(reports), sum(info.nbytes for info in file.tensors.values()), notes)


# The mix, open for reading


@dataclass(frozen=True)
class _Use:
    """Something of one adapter that changes a parameter."""

    part: int
    what: LoraModule | SavedTensor | TokenRows
    is_bias: bool = False


class _Mix:
    """The adapters of a mix, how they are combined, and the base where its weights are needed."""

    def __init__(
        self,
        base: BaseFacts,
        mix: Mix,
        rank: int | None,
        base_folder: Path | None,
        opened: ExitStack,
    ) -> None:
        parts = mix.parts
        if not parts:
            raise MergeError("a mix needs at least one adapter")
        if rank is not None and rank < 1:
            raise MergeError(f"rank {rank} leaves nothing of the adapters", hint="give a rank of 1 or more")
        self.base, self.parts, self.rank, self.options = base, parts, rank, mix.options
        self.base_folder = base_folder
        self.method = METHODS[mix.method]
        check_weights(parts, self.method)
        self.dtype = FILE_DTYPES[mix.dtype or "float32"]
        grown = next((part for part in parts if part.facts.vocabulary is not None), None)
        if grown:
            raise MergeError(
                f"{grown.folder.name} changes the vocabulary to {grown.facts.vocabulary} tokens, which needs the resized base",
                hint=AS_CHECKPOINT,
            )
        self.files = [opened.enter_context(AdapterFile(part.folder)) for part in parts]
        self.configs = [read_object(part.folder / ADAPTER_CONFIG) for part in parts]

    def info(self, name: str, shape: Sequence[int]) -> TensorInfo:
        """A tensor of the file to be; where it lies follows from those before it."""
        return TensorInfo(name, self.dtype, tuple(shape), 0, 0)

    def weights(self, uses: Sequence[_Use]) -> tuple[float, ...]:
        """What every part counts for where these change something."""
        return weights_at(self.parts, uses)

    @property
    def is_one_alone(self) -> bool:
        """Whether one adapter is to stay what it is."""
        if len(self.parts) != 1 or self.method.kind != "factors":
            return False
        weight = self.parts[0].weight
        return all(w == 1.0 for w in weight.values()) if isinstance(weight, Mapping) else weight == 1.0

    def rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(TORCH_DTYPES[self.dtype])

    def called(self, use: _Use) -> str:
        return self.parts[use.part].folder.name

    def exact(self, part: int, info: TensorInfo) -> Tensor:
        """A tensor of an adapter, in float64."""
        return _tensor(self.files[part].header, info).double()

    def stored(self, name: str) -> Tensor:
        """A tensor of the base, in float32; for a head that is tied and not stored, the embedding."""
        assert self.base_folder is not None
        tensor = self.base.tensors[self._stored_as(name)]
        return _tensor(read_header(self.base_folder / tensor.file), tensor.info).float()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.tensors[self._stored_as(name)].info.shape

    def _stored_as(self, name: str) -> str:
        if name in self.base.tensors:
            return name
        if self.base.embedding is None:
            raise MergeError(f"the base has no tensor {name}")
        return self.base.embedding

    def needs_base(self, use: _Use, name: str, what: str) -> None:
        if self.base_folder is None:
            raise MergeError(
                f"{self.called(use)}: {name} {what}, and mixing that takes the base's weights",
                hint="give the base's folder, too",
            )

    def place(self, name: str, uses: Sequence[_Use]) -> Place:
        """The one whole tensor of the base that holds a parameter. Raises MergeError if it is spread over several."""
        found = [place for use in uses for place in _places(use)]
        place = found[0] if found else Place(name)
        if any(other != place for other in found) or (place.expert, place.rows, place.index) != (None, None, None):
            raise MergeError(
                f"{name} is no tensor of its own in the base's checkpoint, and so its delta cannot become part of an adapter",
                hint=AS_CHECKPOINT,
            )
        return place

    def combined(self, place: Place, uses: Sequence[_Use], old: Tensor) -> Tensor:
        """The dense delta of a whole stored tensor, float32, of its shape."""
        matrix = old.reshape(-1, old.shape[-1]) if old.dim() > 1 else old.reshape(1, -1)
        deltas: list[Tensor | None] = [None] * len(self.parts)
        for use in uses:
            delta = self._delta(use, place, matrix).reshape(old.shape)
            before = deltas[use.part]
            deltas[use.part] = delta if before is None else before + delta
        return self.method.combine(place.tensor, old, deltas, self.weights(uses), self.options)

    def _delta(self, use: _Use, place: Place, old: Tensor) -> Tensor:
        file, what = self.files[use.part], use.what
        if isinstance(what, SavedTensor):
            return file.saved(what, old.shape[1]).delta(old, 0)
        if isinstance(what, TokenRows):
            return file.tokens(what, old.shape[0]).delta(old, 0)
        if use.is_bias:
            return file.shift(what, old.shape[1]).delta(old, 0)
        if what.magnitude is not None:
            return file.decomposed(what, place, {old.shape[0]}, lambda start, stop: old[start:stop]).delta(old, 0)
        return file.low_rank(what, place, {old.shape[0]}).delta(old, 0)


def _tensor(header: Header, info: TensorInfo) -> Tensor:
    """A whole tensor of a file, in its own dtype."""
    flat = torch.empty(info.elements, dtype=torch_dtype(info))
    with header.path.open("rb") as file:
        read_into(file.fileno(), bytes_of(flat), header.data_start + info.start)
    return flat.reshape(info.shape)


def _places(use: _Use) -> tuple[Place, ...]:
    if isinstance(use.what, LoraModule) and not use.is_bias:
        return use.what.places
    place = use.what.bias_place if isinstance(use.what, LoraModule) else use.what.place
    return () if place is None else (place,)


# What is written: entries of one or more tensors of the file


_Made = tuple[list[Tensor], AdapterTensorReport | None]


@dataclass(frozen=True)
class _Entry:
    """Tensors that are made together, in the file's order, and what is said about them."""

    infos: tuple[TensorInfo, ...]
    make: Callable[[], _Made]


@dataclass(frozen=True)
class _Pair:
    """One target of the written adapter: B and A, and the modules of the parts that go into them."""

    uses: tuple[_Use, ...]
    key: str
    rank: int
    exact_rank: int | None
    is_parameter: bool

    @property
    def module(self) -> LoraModule:
        assert isinstance(self.uses[0].what, LoraModule)
        return self.uses[0].what

    @property
    def matched(self) -> str:
        """The name that PEFT looks up in its patterns."""
        return self.module.weight if self.is_parameter else self.module.name

    @property
    def is_embedding(self) -> bool:
        return self.module.embeds

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the delta B A."""
        return self.module.b.shape[0], self.module.a.shape[1]


class _Plan:
    """Every parameter that a part changes, and what it becomes. Nothing of the parts is left over."""

    def __init__(self, mix: _Mix) -> None:
        self.mix = mix
        uses = _uses(mix)
        self.pairs: list[_Pair] = []
        self.wholes: list[tuple[str, tuple[_Use, ...]]] = []
        self.biases: dict[str, tuple[_Use, ...]] = {}
        self.rows: list[tuple[str, tuple[_Use, ...]]] = []
        low_rank: dict[str, tuple[_Use, ...]] = {}
        for name, used in sorted(uses.items()):
            if any(isinstance(use.what, SavedTensor) for use in used):
                self.wholes.append((name, used))
            elif all(isinstance(use.what, TokenRows) for use in used):
                self.rows.append((name, used))
            elif any(isinstance(use.what, TokenRows) for use in used):
                raise MergeError(
                    f"{name} has single tokens trained and a LoRA beside them, and no adapter can hold both",
                    hint=AS_CHECKPOINT,
                )
            elif used[0].is_bias:
                self.biases[name] = used
            else:
                low_rank[name] = used
        self.keeps_dora = self._keeps_dora(low_rank)
        nested = _nested(low_rank, mix)
        self.pairs = [self._pair(name, used, nested.get(name)) for name, used in low_rank.items()]
        if not self.pairs:
            raise MergeError(
                "every tensor that the adapters change is saved whole by one of them, so no LoRA is left to write",
                hint=AS_CHECKPOINT,
            )
        self._check_biases()
        self.entries = list(self._entries())

    def _keeps_dora(self, low_rank: Mapping[str, tuple[_Use, ...]]) -> bool:
        """One adapter as it is keeps its magnitudes; any mix of DoRA is of full rank."""
        modules = [use.what for used in low_rank.values() for use in used if isinstance(use.what, LoraModule)]
        return (
            self.mix.is_one_alone
            and any(module.magnitude for module in modules)
            and (self.mix.rank is None or max(module.rank for module in modules) <= self.mix.rank)
        )

    def _pair(self, name: str, used: tuple[_Use, ...], nested: str | None) -> _Pair:
        mix = self.mix
        modules = [use.what for use in used if isinstance(use.what, LoraModule)]
        first = modules[0]
        layouts = [(m.b.shape[0], m.a.shape[1], m.transposed, m.experts) for m in modules]
        if len(set(layouts)) > 1:
            said = "; ".join(f"{mix.called(use)}: {layout}" for use, layout in zip(used, layouts, strict=True))
            raise MergeError(f"the adapters disagree about {name} (out, in, fan_in_fan_out, experts: {said})")
        most = min(first.b.shape[0], first.a.shape[1])
        key = nested or f"{PREFIX}{first.name}" + first.a.name[first.a.name.rindex(".lora_") :]
        is_parameter = nested is not None
        dora = next((use for use in used if isinstance(use.what, LoraModule) and use.what.magnitude), None)
        if mix.method.kind == "deltas" or (dora and not self.keeps_dora):
            why = f"holds DoRA in {mix.called(dora)}" if dora else f"is mixed by {mix.method.name!r}"
            if mix.rank is None:
                raise MergeError(
                    f"{name} {why}, whose delta has full rank", hint=f"give a rank to cut it to, or {AS_CHECKPOINT}"
                )
            if first.experts > 1:
                raise MergeError(f"{name} {why}, which an adapter cannot hold for experts", hint=AS_CHECKPOINT)
            mix.needs_base(used[0], name, why)
            mix.place(name, used)
            return _Pair(used, key, min(mix.rank, most), None, is_parameter)
        if dora:
            mix.needs_base(used[0], name, "is a DoRA")
        exact = first.rank if mix.method.name == "factor" else sum(module.rank for module in modules)
        # a rank beyond what the matrix can have would be padding
        rank = exact if mix.rank is None or exact <= mix.rank else min(mix.rank, most)
        return _Pair(used, key, rank, exact, is_parameter)

    def _check_biases(self) -> None:
        """`lora_bias` is one switch for the whole adapter: where a part has it, each module needs a bias to add to."""
        if not self.biases:
            return
        for pair in self.pairs:
            bias = f"{pair.module.name}.bias"
            if (
                pair.is_parameter
                or pair.is_embedding
                or (bias not in self.biases and bias not in self.mix.base.tensors)
            ):
                use = next(iter(self.biases.values()))[0]
                raise MergeError(
                    f"{self.mix.called(use)} has lora_bias, which would apply to {pair.module.weight} too, and that has no bias",
                    hint=AS_CHECKPOINT,
                )

    def _entries(self) -> Iterator[_Entry]:
        mix = self.mix
        for pair in self.pairs:
            yield _pair_entry(mix, pair, self.keeps_dora)
            if self.biases:
                name = f"{pair.module.name}.bias"
                yield _bias_entry(mix, name, pair, self.biases.get(name, ()))
        targets = {pair.module.name for pair in self.pairs}
        for name, used in self.wholes:
            module, _, parameter = name.rpartition(".")
            in_wrapper = all(_is_bias(use) for use in used) and module in targets
            yield _whole_entry(mix, name, PREFIX + (f"{module}.base_layer.{parameter}" if in_wrapper else name), used)
        for name, used in self.rows:
            yield _rows_entry(mix, name, used)

    def config(self) -> dict[str, object]:
        """`adapter_config.json`: the fields of PEFT 0.21's LoraConfig that say something here; others have their defaults."""
        ranks = {pair.matched: pair.rank for pair in self.pairs}
        # ties go to the larger, so that the order of modules does not decide
        common = max(Counter(ranks.values()).items(), key=lambda item: item[::-1], default=(1, 0))[0]
        patterns = rank_patterns(ranks, common)
        targets = {pair.module.name for pair in self.pairs if not pair.is_parameter}
        biases = [name for name, used in self.wholes if all(_is_bias(use) for use in used)]
        of_others = [name for name in biases if name.rpartition(".")[0] not in targets]
        rows = {name.rpartition(".")[0]: list(_indices(used)) for name, used in self.rows}
        return {
            "peft_type": "LORA",
            "task_type": self._agreed("task_type"),
            "base_model_name_or_path": self._agreed("base_model_name_or_path"),
            "revision": self._agreed("revision"),
            "inference_mode": True,
            "r": common,
            "lora_alpha": common,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "use_rslora": False,
            "use_dora": self.keeps_dora,
            "lora_bias": bool(self.biases),
            "bias": "none" if not biases else "all" if of_others else "lora_only",
            "lora_dropout": 0.0,
            "init_lora_weights": True,
            "fan_in_fan_out": any(p.module.transposed for p in self.pairs if not p.is_embedding and not p.is_parameter),
            "modules_to_save": self._modules_to_save() or None,
            "target_modules": target_modules(targets, self.mix.base.tensors) if targets else [],
            "target_parameters": sorted(p.module.weight for p in self.pairs if p.is_parameter) or None,
            "trainable_token_indices": rows or None,
        }

    def _agreed(self, field: str) -> object:
        """What all parts say; where they differ nothing is said."""
        said = [config.get(field) for config in self.mix.configs]
        return said[0] if all(value == said[0] for value in said) else None

    def _modules_to_save(self) -> list[str]:
        modules = {n.rpartition(".")[0] for n, used in self.wholes if not all(_is_bias(use) for use in used)}
        given = {name for config in self.mix.configs for name in config.get("modules_to_save") or ()}
        # a part may have saved a module with others inside it, which PEFT wants named as it was
        around = {name for name in given if any(m.endswith(name) or f"{name}." in f"{m}." for m in modules)}
        return sorted(around | {m for m in modules if not any(m.endswith(n) or f"{n}." in f"{m}." for n in around)})


def _is_bias(use: _Use) -> bool:
    """Whether a part trained a bias and nothing else of the module (`bias`, `lora_bias`)."""
    return use.what.why == "bias" if isinstance(use.what, SavedTensor) else use.is_bias


def _indices(used: Sequence[_Use]) -> list[int]:
    return sorted({index for use in used if isinstance(use.what, TokenRows) for index in use.what.indices})


def _uses(mix: _Mix) -> dict[str, tuple[_Use, ...]]:
    """What changes which parameter of the model."""
    found: dict[str, list[_Use]] = {}
    for index, part in enumerate(mix.parts):
        for module in part.facts.modules:
            found.setdefault(module.weight, []).append(_Use(index, module))
            if module.bias is not None:
                found.setdefault(f"{module.name}.bias", []).append(_Use(index, module, is_bias=True))
        for saved in part.facts.saved:
            use = _Use(index, saved)
            if saved.why != "embedding" or not _is_the_bases(mix, use, saved):
                found.setdefault(saved.name, []).append(use)
        for rows in part.facts.tokens:
            found.setdefault(rows.name, []).append(_Use(index, rows))
    return {name: tuple(uses) for name, uses in found.items()}


def _is_the_bases(mix: _Mix, use: _Use, saved: SavedTensor) -> bool:
    """Whether an embedding that PEFT saved along is the base's own, which need not be written. Refuses what is not."""
    mix.needs_base(use, saved.name, "is saved beside the LoRA")
    place = mix.place(saved.name, [use])
    old = mix.stored(place.tensor)
    if old.shape == saved.info.shape and torch.equal(old, mix.files[use.part].tensor(saved.info)):
        return True
    if old.shape != saved.info.shape or mix.base.tied_embeddings:
        what = "was resized" if old.shape != saved.info.shape else "was changed and is tied to the head"
        raise MergeError(f"{mix.called(use)}: {saved.name} {what}, which an adapter cannot hold", hint=AS_CHECKPOINT)
    return False


def _nested(low_rank: Mapping[str, tuple[_Use, ...]], mix: _Mix) -> dict[str, str]:
    """{weight: key of its A} for what PEFT targets as parameters rather than modules.

    Several parameters of one module lie in each other in the file, in the order that the module has them; an adapter that has
    all of them determines that order. Raises MergeError if none has.
    """
    targets: dict[str, dict[int, dict[str, str]]] = {}
    for name, used in low_rank.items():
        for use in used:
            module = use.what
            assert isinstance(module, LoraModule)
            if module.parameter != "weight" or module.experts > 1 or _is_named(name, mix.configs[use.part]):
                targets.setdefault(module.name, {}).setdefault(use.part, {})[name] = module.a.name
    keys: dict[str, str] = {}
    for module, by_part in targets.items():
        together = {name for names in by_part.values() for name in names}
        complete = next((names for names in by_part.values() if names.keys() == together), None)
        if complete is None:
            raise MergeError(
                f"the adapters target different parameters of {module} ({', '.join(sorted(together))}), and none has them all",
                hint=AS_CHECKPOINT,
            )
        keys |= complete
    return keys


def _is_named(weight: str, config: Mapping[str, object]) -> bool:
    named = config.get("target_parameters") or ()
    return isinstance(named, list) and any(f".{weight}".endswith(f".{name}") for name in named)


# Making the tensors


def _made(entries: Sequence[_Entry], threads: int) -> Generator[tuple[_Entry, _Made]]:
    """Each entry and what it is, in order; so many are made side by side, and no more are held.

    Each is made by one thread alone, since how many share in a factorisation shows in its last bits.
    """
    waiting: deque[tuple[_Entry, Future[_Made]]] = deque()
    with one_torch_thread_each(), ThreadPoolExecutor(threads) as pool:
        try:
            for entry in entries:
                waiting.append((entry, pool.submit(entry.make)))
                if len(waiting) == threads:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _pair_entry(mix: _Mix, pair: _Pair, keeps_dora: bool) -> _Entry:
    module, (out, into) = pair.module, pair.shape
    key_b = pair.key.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")
    infos = [
        mix.info(pair.key, (pair.rank * module.experts, into)),
        mix.info(key_b, (out, pair.rank * module.experts)),
    ]
    if keeps_dora and module.magnitude is not None:
        infos.append(mix.info(module.magnitude.name, module.magnitude.shape))
        return _Entry(tuple(infos), lambda: _copied_dora(mix, pair))
    make = _dense_pair if pair.exact_rank is None else _factored_pair
    return _Entry(tuple(infos), lambda: make(mix, pair))


def _factored_pair(mix: _Mix, pair: _Pair) -> tuple[list[Tensor], AdapterTensorReport]:
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
        norm, cut = _norm_of_product(b, a), 0.0
        if pair.exact_rank is not None and pair.rank < pair.exact_rank:
            b, a, cut, norm = truncated(b, a, pair.rank)
        # A goes as it was trained and B carries weight, sign and scale: one rounding, and of B alone
        written_b, written_a = mix.rounded(b), mix.rounded(a)
        off_b, off_a = written_b.double() - b, written_a.double() - a
        # rounding acts within the directions that are kept and the cut lies outside them: they stand at a right angle
        rounding = _norm_of_product(torch.cat([off_b, b], 1), torch.cat([written_a.double(), off_a], 0))
        squares, errors = squares + norm * norm, errors + cut * cut + rounding * rounding
        made_a.append(written_a)
        made_b.append(written_b)
    tensors = [torch.cat(made_a), torch.stack(made_b, dim=2).reshape(pair.shape[0], -1)]
    return tensors, _report(pair.module.weight, pair.uses, pair.rank, squares, errors)


def _dense_pair(mix: _Mix, pair: _Pair) -> tuple[list[Tensor], AdapterTensorReport]:
    """A and B nearest to a dense delta."""
    name = pair.module.weight
    place = mix.place(name, pair.uses)
    delta = mix.combined(place, pair.uses, mix.stored(place.tensor))
    delta = delta.T if pair.module.transposed != place.transposed else delta
    b, a = (mix.rounded(factor) for factor in nearest(delta, pair.rank))
    squares = errors = 0.0
    for start, stop in _steps(delta):
        exact = delta[start:stop].double()
        squares += float(exact.square().sum())
        errors += float((b[start:stop].double() @ a.double() - exact).square().sum())
    return [a, b], _report(name, pair.uses, pair.rank, squares, errors)


def _copied_dora(mix: _Mix, pair: _Pair) -> tuple[list[Tensor], AdapterTensorReport]:
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


def _bias_entry(mix: _Mix, name: str, pair: _Pair, used: tuple[_Use, ...]) -> _Entry:
    """`lora_B.bias`: Σ w·s·b, or zeros for a module that has none in any part."""
    info = mix.info(f"{PREFIX}{pair.module.name}.lora_B.bias", (pair.shape[0],))
    if used and mix.method.kind == "deltas":
        mix.needs_base(used[0], name, "is a LoRA bias")

    def make() -> _Made:
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

    return _Entry((info,), make)


def _whole_entry(mix: _Mix, name: str, key: str, used: tuple[_Use, ...]) -> _Entry:
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

    return _Entry((mix.info(key, shape),), make)


def _rows_entry(mix: _Mix, name: str, used: tuple[_Use, ...]) -> _Entry:
    """Tokens that were trained: W_i + Σ w (V_i - W_i), for every token of any part."""
    if mix.method.kind == "deltas":
        raise MergeError(
            f"{mix.called(used[0])}: {name} has single tokens trained, which {mix.method.name!r} cannot mix in an adapter",
            hint=AS_CHECKPOINT,
        )
    mix.needs_base(used[0], name, "has single tokens trained")
    place, indices = mix.place(name, used), _indices(used)
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

    return _Entry((mix.info(first.info.name, (len(indices), first.info.shape[1])),), make)


def _report(name: str, used: Sequence[_Use], rank: int, squares: float, errors: float) -> AdapterTensorReport:
    error = math.sqrt(errors / squares) if squares else 0.0
    return AdapterTensorReport(name, len({use.part for use in used}), rank, math.sqrt(squares), error)


# Arithmetic


# Names


def _write_config(path: Path, config: Mapping[str, object]) -> None:
    with path.open("xb") as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
