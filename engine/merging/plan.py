"""What a merge is to make: each tensor of a result, where its old values lie, and what of which adapter changes it.

Nothing is computed here. A plan follows from headers alone, so what cannot be merged is refused before a byte is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeGuard

from ...registry.artifacts.allowlist import INDEX, WEIGHTS
from ...registry.artifacts.facts import AdapterFacts, BaseFacts, BaseTensor
from ...registry.artifacts.lora import LoraModule, SavedTensor, TokenRows
from ...registry.artifacts.safetensors import TensorInfo, read_header
from ...registry.artifacts.task_heads import is_of_head, without_head
from ...registry.artifacts.tensor_names import Place
from ..coefficients import Weight, expect_finite, mean, module_of, weight_at
from ..errors import MergeError
from ..methods import METHODS, Method
from ..recipes import DType
from .checkpoint import FILE_DTYPES, TORCH_DTYPES, carry_other_files, write_index
from .deltas import AdapterFile
from .journal import Journal
from .loadable import expect_loadable
from .special_tokens import beyond
from .task_classes import class_for_task, different_heads, notes_of, refuse_use, task_of
from .tokenizers import Bringer, Choice, choose

HEAD_BIASES = (
    "lm_head.bias",
    "embed_out.bias",
    "cls.predictions.bias",
    "cls.predictions.decoder.bias",
    "vocab_projector.bias",
)


@dataclass(frozen=True)
class Part:
    """One adapter of a mix: where it lies, what it holds, its weight, and what it is called where that is not its folder's name."""

    folder: Path
    facts: AdapterFacts
    weight: Weight
    label: str | None = None

    @property
    def called(self) -> str:
        return self.label or self.folder.name


@dataclass(frozen=True)
class Mix:
    """One result to be made: adapters, how they are combined, and the folder that it is written into."""

    parts: Sequence[Part]
    out: Path
    method: str = "linear"
    options: Mapping[str, object] = field(default_factory=dict)
    dtype: DType | None = None
    journal: Journal | None = None


@dataclass(frozen=True)
class TensorReport:
    """What became of one target weight. Norms are Frobenius norms; `lost` is |W' - (W + Δ)| / |Δ|, the share of the
    delta that rounding to the output dtype swallowed; `changed` is the share of weights that differ from the base;
    `rank` is 0 where the delta is of full rank."""

    name: str
    adapters: int
    rank: int
    delta_norm: float
    lost: float
    changed: float


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, per target weight, and which files of the base were carried or left out.

    `notes` are what a reader of the result should know, such as a head that is no longer tied. `digests` are the SHA-256 of
    the weight files. `tokenizer` says whose it is where it is not the base's. `seconds` per stage: while `merge` lasts, all shards but the last are synced too.
    """

    tensors: tuple[TensorReport, ...]
    copied_tensors: int
    carried: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    resumed_shards: int = 0
    tokenizer: str | None = None

    def summary(self) -> dict:
        """The figures that a person reads first; medians over the target weights."""
        lost = sorted(t.lost for t in self.tensors)
        changed = sorted(t.changed for t in self.tensors)
        return {
            "merged_tensors": len(self.tensors),
            "copied_tensors": self.copied_tensors,
            "median_lost_to_rounding": round(lost[len(lost) // 2], 4) if lost else 0.0,
            "worst_lost_to_rounding": round(lost[-1], 4) if lost else 0.0,
            "median_changed": round(changed[len(changed) // 2], 4) if changed else 0.0,
            "left_out": list(self.left_out),
            "notes": list(self.notes),
            "resumed_shards": self.resumed_shards,
        } | ({"tokenizer": self.tokenizer} if self.tokenizer else {})


@dataclass(frozen=True)
class Use:
    """Something of one adapter that changes a tensor."""

    part: int
    what: LoraModule | SavedTensor | TokenRows
    place: Place
    is_bias: bool = False


@dataclass(frozen=True)
class Target:
    """A tensor of the result: `info` as written, `source` where its old values are, `uses` what changes it.

    `weights` are what every part of the mix counts for here, in the parts' order.
    """

    info: TensorInfo
    source: BaseTensor
    uses: tuple[Use, ...]
    weights: tuple[float, ...]

    @property
    def rows(self) -> int:
        return matrix(self.info)[0]


def matrix(info: TensorInfo) -> tuple[int, int]:
    """A tensor looked at as a matrix: a vector is one row, experts lie one below the other."""
    columns = info.shape[-1] if info.shape else 1
    return (info.elements // columns if columns and len(info.shape) > 1 else 1), columns


class Result:
    """One mix as planned: the tensors of each file, the changes to config.json, and what was found while it was made."""

    def __init__(self, base: BaseFacts, mix: Mix, opened: ExitStack) -> None:
        self.base, self.mix = base, mix
        self.method = METHODS[mix.method]
        self.config: dict[str, object] = {"dtype": mix.dtype} if mix.dtype else {}
        self.tokenizer = Choice()
        self.notes = [f"{part.folder.name}: {note}" for part in mix.parts for note in part.facts.notes]
        self.tensors: list[TensorReport] = []
        self.copied = self.resumed = 0
        self.digests: dict[str, str] = {}
        _check_parts(mix, self.method)
        self.task = task_of(mix.parts)
        self.files = [opened.enter_context(AdapterFile(part.folder)) for part in mix.parts]
        sizes = {part.facts.vocabulary for part in mix.parts if part.facts.vocabulary is not None}
        self.vocabulary = min(sizes, default=None)
        self.shards = self._planned(_uses(mix.parts))

    def _planned(self, uses: dict[str, list[Use]]) -> dict[str, list[Target]]:
        base = self.base
        shards: dict[str, list[Target]] = {file: [] for file in sorted({t.file for t in base.tensors.values()})}
        if self.task is not None:
            base = self._for_task(self.task, uses)
        elif base.tied_embeddings:
            self._untie(uses)
        for name, tensor in base.tensors.items():
            shards[tensor.file].append(self._target(name, tensor, tuple(uses.pop(name, ()))))
        for targets in shards.values():
            targets.sort(key=lambda target: target.source.info.start)
        self._expect_all_biases_to_grow(shards)
        for name, used in uses.items():
            file, source = self._source(name, used, list(shards)[-1])
            shards[file].append(self._target(name, source, tuple(used)))
        return shards

    def _source(self, name: str, uses: Sequence[Use], last: str) -> tuple[str, BaseTensor]:
        """For a tensor that the base does not have: the file that it goes into, and where its old values are.

        An untied head has them in the embedding. The head of a task has none, and takes the place of the language model's.
        """
        base, what = self.base, uses[0].what if uses else None
        if not _is_task_head(what):
            assert base.embedding is not None
            return last, base.tensors[base.embedding]
        stored = base.tensors.get(base.head or "")
        file = stored.file if stored else last
        kind = base.dtype if base.dtype in TORCH_DTYPES else what.info.dtype
        return file, BaseTensor(file, TensorInfo(name, kind, (0, *what.info.shape[1:]), 0, 0))

    def _for_task(self, task: str, uses: Mapping[str, Sequence[Use]]) -> BaseFacts:
        """The base as the result's class has it, and what config.json says of that class. Raises MergeError."""
        for name in (name for name in uses if is_of_head(name, self.base)):
            raise refuse_use(name, self.base, task, self.mix.parts[uses[name][0].part].folder)
        heads = {name: used[0].what.info.shape for name, used in uses.items() if _is_task_head(used[0].what)}
        self.config |= class_for_task(self.base, task, heads)
        return without_head(self.base)

    def _expect_all_biases_to_grow(self, shards: Mapping[str, Sequence[Target]]) -> None:
        """With a longer vocabulary the head's bias must grow too, under each of its names, or no model loads the result."""
        grown = {t.source.info.shape[0] for targets in shards.values() for t in targets if _grows(t)}
        for target in (target for targets in shards.values() for target in targets if not _grows(target)):
            if target.info.name in HEAD_BIASES and target.info.shape[0] in grown:
                raise MergeError(
                    f"the adapters resize the vocabulary, but bring no longer {target.info.name}",
                    hint="resize the base itself, save it, and train on that",
                )

    def _untie(self, uses: dict[str, list[Use]]) -> None:
        """Head and embedding share one tensor. Where only one of them changes, the result holds two."""
        base, head, embedding = self.base, self.base.head, self.base.embedding
        if embedding is None:
            return
        alike = self._trained_as_one(uses.get(embedding, []), uses.get(head, []) if head else [])
        trained = [u for u in uses.get(embedding, []) if _breaks_tie(u) and u.part not in alike]
        of_head = [u for u in uses.get(head, []) if _breaks_tie(u) and u.part not in alike] if head else []
        if not trained and not of_head:
            if head and head in uses:
                uses[head] = [use for use in uses[head] if use.part not in alike]
                if not uses[head]:
                    del uses[head]
            if head and head not in base.tensors:
                self._expect_copies(uses.pop(head, []), uses.get(embedding, []))
            elif head and head in base.tensors and embedding in uses and head not in uses:
                uses[head] = list(uses[embedding])  # tokens: a stored copy of the tied weight follows it
            return
        what = (trained or of_head)[0]
        folder = self.mix.parts[what.part].folder
        if base.encoder_decoder or head is None:
            why = (
                "an encoder-decoder model scales its target only when they are tied"
                if head
                else f"it is not known what the head of {base.architecture} would be called"
            )
            raise MergeError(
                f"{folder}: {what.what.name} changes an embedding or a head that share one tensor, and {why}",
                hint="save the base with tie_word_embeddings=False and a head of its own",
            )
        own = {use.part for use in uses.setdefault(head, [])}
        uses[head] += [  # PEFT does not write a tied head's tokens down a second time
            replace(use, place=Place(head))
            for use in uses.get(embedding, [])
            if use.part not in own and (isinstance(use.what, TokenRows) or use.part in alike)
        ]
        self.config["tie_word_embeddings"] = False
        self.notes.append(
            f"{head} and {embedding} were one tensor and are two now, since an adapter changes them differently"
        )

    def _trained_as_one(self, of_embedding: Sequence[Use], of_head: Sequence[Use]) -> set[int]:
        """The parts that were trained with `ensure_weight_tying`, and whose head is what their embedding is."""
        return {
            index
            for index, part in enumerate(self.mix.parts)
            if part.facts.config.ensure_weight_tying
            and all(
                any(use.part == twin.part and self._same(use, twin) for twin in of_embedding)
                for use in of_head
                if use.part == index
            )
            and any(use.part == index for use in of_embedding)
        }

    def _expect_copies(self, of_head: list[Use], of_embedding: list[Use]) -> None:
        """PEFT saves a tied tensor under both its names. The two are one here, which they must agree on."""
        for use in of_head:
            twin = next((u for u in of_embedding if u.part == use.part and type(u.what) is type(use.what)), None)
            if twin is None or not self._same(use, twin):
                raise MergeError(
                    f"{self.mix.parts[use.part].folder}: {use.what.name} shares its tensor with the embedding in the base,"
                    " but was saved with other values",
                    hint="train it as modules_to_save, which makes it a tensor of its own",
                )

    def _same(self, one: Use, other: Use) -> bool:
        file = self.files[one.part]
        if isinstance(one.what, LoraModule) and isinstance(other.what, LoraModule):
            # one of a head, the other of an embedding: PEFT ties A to the transpose of B, and B to that of A
            (a, b), (a_other, b_other) = file.factors(one.what), file.factors(other.what)
            return (
                one.what.embeds != other.what.embeds
                and one.what.scale == other.what.scale
                and a.shape == b_other.T.shape
                and bool((a == b_other.T).all())
                and b.shape == a_other.T.shape
                and bool((b == a_other.T).all())
            )
        if isinstance(one.what, LoraModule) or isinstance(other.what, LoraModule):
            return False
        if (
            isinstance(one.what, TokenRows)
            and isinstance(other.what, TokenRows)
            and one.what.indices != other.what.indices
        ):
            return False
        return file.holds_the_same(one.what.info, other.what.info)

    def _target(self, name: str, source: BaseTensor, uses: tuple[Use, ...]) -> Target:
        info = replace(source.info, name=name)
        if uses and info.dtype not in TORCH_DTYPES:
            raise MergeError(
                f"base tensor {name} is stored as {info.dtype}; only {', '.join(TORCH_DTYPES)} can be merged"
            )
        weights = weights_at(self.mix.parts, uses)
        shape = self._shape(name, info.shape, uses, weights)
        kind = FILE_DTYPES[self.mix.dtype] if self.mix.dtype and info.dtype in TORCH_DTYPES else info.dtype
        turned = {u.what.transposed for u in uses if isinstance(u.what, LoraModule) and not u.is_bias}
        if len(turned) > 1:
            said = ", ".join(
                f"{self.mix.parts[u.part].folder.name}: {u.what.transposed}"
                for u in uses
                if isinstance(u.what, LoraModule)
            )
            raise MergeError(f"the adapters disagree about fan_in_fan_out of {name} ({said})")
        size = math.prod(shape) * TORCH_DTYPES[kind].itemsize if kind in TORCH_DTYPES else info.nbytes
        return Target(replace(info, shape=shape, dtype=kind, start=0, end=size), source, uses, weights)

    def _shape(
        self, name: str, shape: tuple[int, ...], uses: tuple[Use, ...], weights: Sequence[float]
    ) -> tuple[int, ...]:
        """The base's shape, or another one where adapters saved an embedding with more rows or fewer."""
        resized = {
            u.what.info.shape: u.part for u in uses if isinstance(u.what, SavedTensor) and u.what.info.shape != shape
        }
        if not resized:
            return self._cut(name, shape, uses)
        is_head = _is_task_head(uses[0].what)
        if len(resized) > 1 and is_head:
            raise different_heads(name, {shape: self.mix.parts[part].called for shape, part in resized.items()})
        if len(resized) > 1:
            said = ", ".join(f"{self.mix.parts[part].folder.name}: {list(s)}" for s, part in resized.items())
            raise MergeError(f"the adapters resized {name} differently ({said})", hint="mix adapters of one vocabulary")
        ((wanted, _),) = resized.items()
        with_rows = [u.part for u in uses if isinstance(u.what, SavedTensor) and u.what.info.shape == wanted]
        if sum(weights[index] for index in with_rows) == 0:
            raise MergeError(f"the new rows of {name} would be averaged with weights that sum to zero")
        if is_head:
            return wanted
        self._expect_tokens(name, uses, wanted[0])
        self.config["vocab_size"] = wanted[0]
        note = f"the vocabulary was resized from {shape[0]} to {wanted[0]} tokens"
        if note not in self.notes:
            self.notes.append(note)
        return wanted

    def choose_tokenizer(self, base_folder: Path) -> None:
        """Raises MergeError where the adapters' tokenizers contradict each other."""
        rows = {
            target.info.name: target.info.shape[0]
            for targets in self.shards.values()
            for target in targets
            if target.info.shape
        }
        before = self.base.tensors.get(self.base.input_embedding or "")
        longest = before.info.shape[0] if before else 0
        bringers = [
            Bringer(part.called, part.folder, grown=(part.facts.vocabulary or 0) > longest)
            for part in self.mix.parts
            if not isinstance(part.weight, float | int) or part.weight
        ]
        self.tokenizer = choose(base_folder, bringers, rows.get(self.base.input_embedding or ""))
        self.notes += self.tokenizer.notes

    def expect_loadable(self, base_folder: Path) -> None:
        """Raises MergeError for names and shapes that transformers would not load."""
        shapes = {target.info.name: target.info.shape for targets in self.shards.values() for target in targets}
        if isinstance(rows := self.config.get("vocab_size"), int):
            changes, notes = beyond(base_folder, rows)
            self.config |= changes
            self.notes += notes
        if self.task is not None:
            self.notes += notes_of(base_folder, self.config)
        if note := expect_loadable(base_folder, self.base, shapes, self.config):
            self.notes.append(note)

    def _cut(self, name: str, shape: tuple[int, ...], uses: tuple[Use, ...]) -> tuple[int, ...]:
        """An embedding or a head that no adapter saved, where the vocabulary has become smaller: its first rows."""
        if name not in (self.base.input_embedding, self.base.head) or self.vocabulary is None:
            return shape
        rows = min(shape[0], self.vocabulary)
        self._expect_tokens(name, uses, rows)
        return (rows, *shape[1:])

    def _expect_tokens(self, name: str, uses: tuple[Use, ...], rows: int) -> None:
        for use in uses:
            if isinstance(use.what, TokenRows) and max(use.what.indices, default=0) >= rows:
                raise MergeError(
                    f"{self.mix.parts[use.part].folder.name} has trained token {max(use.what.indices)} of {name}, which"
                    f" another adapter of the mix cuts to {rows} tokens",
                    hint="mix adapters of one vocabulary",
                )

    def bytes_to_write(self) -> int:
        """Of all weight files that no earlier run has finished."""
        noted = self.mix.journal.finished if self.mix.journal else lambda file: None
        return sum(t.info.nbytes for file, targets in self.shards.items() if noted(file) is None for t in targets)

    def finished(self, file: str) -> bool:
        """Take a shard's report from the notes of an earlier run, if it is among them."""
        noted = self.mix.journal.finished(file) if self.mix.journal else None
        if noted is None:
            return False
        self.tensors += [TensorReport(**tensor) for tensor in noted["tensors"]]
        self.copied += noted["copied"]
        self.resumed += 1
        return True

    def carry(self, base_folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The files beside the weights, and the index."""
        infos = {file: [target.info for target in targets] for file, targets in self.shards.items()}
        carried, left_out = carry_other_files(
            base_folder, self.base, self.mix.out, config=self.config, tokenizer=self.tokenizer.files
        )
        if WEIGHTS not in infos:
            write_index(base_folder / INDEX, self.mix.out / INDEX, infos, changed=bool(self.config))
            carried = tuple(sorted((*carried, INDEX)))
        return carried, left_out

    def verify(self) -> None:
        """Read back what was written: every tensor is there, in its file, with its shape and dtype."""
        for file, targets in self.shards.items():
            written = read_header(self.mix.out / file).tensors
            for info in (target.info for target in targets):
                found = written.get(info.name)
                if found is None or (found.shape, found.dtype) != (info.shape, info.dtype):
                    raise MergeError(
                        f"the written file {file} does not hold {info.name} as {info.dtype} {list(info.shape)}"
                    )

    def report(self, carried: tuple[str, ...], left_out: tuple[str, ...], seconds: Mapping[str, float]) -> MergeReport:
        tensors = tuple(sorted(self.tensors, key=lambda report: report.name))
        rounded = {stage: round(value, 3) for stage, value in seconds.items()}
        return MergeReport(
            tensors,
            self.copied,
            carried,
            left_out,
            tuple(self.notes),
            self.digests,
            rounded,
            self.resumed,
            self.tokenizer.label,
        )


def _grows(target: Target) -> bool:
    return target.info.shape != target.source.info.shape


def _check_parts(mix: Mix, method: Method) -> None:
    if not mix.parts:
        raise MergeError("a merge needs at least one adapter")
    check_weights(mix.parts, method)


def check_weights(parts: Sequence[Part], method: Method) -> None:
    """Raises MergeError, RecipeError for weights that are no numbers or that the method does not take."""
    for part in parts:
        expect_finite(part.weight, str(part.folder))
    if method.kind != "factors" and (uneven := [p for p in parts if isinstance(p.weight, Mapping)]):
        raise MergeError(
            f"method {method.name!r} takes one weight per adapter, and {uneven[0].folder.name} has one per module",
            hint="methods linear and factor take weights per module",
        )
    method.check([mean(part.weight) for part in parts])


class Changes(Protocol):
    """Something of one part of a mix."""

    @property
    def part(self) -> int: ...

    @property
    def what(self) -> LoraModule | SavedTensor | TokenRows: ...


def weights_at(parts: Sequence[Part], uses: Sequence[Changes]) -> tuple[float, ...]:
    """What every part counts for in a tensor that `uses` change. Raises MergeError where that is not one number."""
    return tuple(
        weight_at(part.weight, [module_of(use.what) for use in uses if use.part == index], part.folder.name)
        for index, part in enumerate(parts)
    )


def _uses(parts: Sequence[Part]) -> dict[str, list[Use]]:
    """What changes which tensor. Every adapter tensor is in exactly one of the facts: inspection refuses all others."""
    uses: dict[str, list[Use]] = {}

    def add(use: Use) -> None:
        uses.setdefault(use.place.tensor, []).append(use)

    for index, part in enumerate(parts):
        for module in part.facts.modules:
            for place in module.places:
                add(Use(index, module, place))
            if module.bias is not None:
                assert module.bias_place is not None
                add(Use(index, module, module.bias_place, is_bias=True))
        for tensor in part.facts.saved:
            add(Use(index, tensor, tensor.place or Place(tensor.name)))
        for rows in part.facts.tokens:
            add(Use(index, rows, rows.place))
    return uses


def _is_task_head(what: object) -> TypeGuard[SavedTensor]:
    return isinstance(what, SavedTensor) and what.why == "task_head"


def _breaks_tie(use: Use) -> bool:
    """Trained tokens change head and embedding alike, and so do copies that PEFT saves of a resized vocabulary."""
    if isinstance(use.what, SavedTensor):
        return use.what.why != "embedding"
    return not isinstance(use.what, TokenRows)
