"""One result of a merge: each of its tensors as planned, where its old values lie, and what was found while it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

from ...registry.artifacts.allowlist import INDEX, WEIGHTS
from ...registry.artifacts.facts import BaseFacts, BaseTensor
from ...registry.artifacts.lora import LoraModule, SavedTensor, TokenRows
from ...registry.artifacts.safetensors import TensorInfo, read_header
from ...registry.artifacts.task_heads import is_of_head, without_head
from ..errors import MergeError
from ..methods import METHODS
from .checkpoint import FILE_DTYPES, TORCH_DTYPES, carry_other_files, write_index
from .deltas import AdapterFile
from .loadable import expect_loadable
from .plan import Mix, Target, Use, check_weights, expect_agreement, uses_by_tensor, weights_at
from .reports import MergeReport, TensorReport
from .special_tokens import beyond
from .task_classes import class_for_task, different_heads, notes_of, refuse_use, task_of
from .tied_embeddings import TiedEmbeddings
from .tokenizers import Bringer, Choice, choose

HEAD_BIASES = (
    "lm_head.bias",
    "embed_out.bias",
    "cls.predictions.bias",
    "cls.predictions.decoder.bias",
    "vocab_projector.bias",
)


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
        if not mix.parts:
            raise MergeError("a merge needs at least one adapter")
        check_weights(mix.parts, self.method)
        self.task = task_of(mix.parts)
        self.files = [opened.enter_context(AdapterFile(part.folder)) for part in mix.parts]
        sizes = {part.facts.vocabulary for part in mix.parts if part.facts.vocabulary is not None}
        self.vocabulary = min(sizes, default=None)
        self.shards = self._planned(uses_by_tensor(mix.parts))

    def _planned(self, uses: dict[str, list[Use]]) -> dict[str, list[Target]]:
        base = self.base
        shards: dict[str, list[Target]] = {file: [] for file in sorted({t.file for t in base.tensors.values()})}
        if self.task is not None:
            base = self._for_task(self.task, uses)
        elif base.tied_embeddings and TiedEmbeddings(base, self.mix.parts, self.files).separate(uses):
            self.config["tie_word_embeddings"] = False
            self.notes.append(
                f"{base.head} and {base.embedding} were one tensor and are two now, since an adapter changes them differently"
            )
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

    def _target(self, name: str, source: BaseTensor, uses: tuple[Use, ...]) -> Target:
        info = replace(source.info, name=name)
        if uses and info.dtype not in TORCH_DTYPES:
            raise MergeError(
                f"base tensor {name} is stored as {info.dtype}; only {', '.join(TORCH_DTYPES)} can be merged"
            )
        weights = weights_at(self.mix.parts, uses)
        shape = self._shape(name, info.shape, uses, weights)
        kind = FILE_DTYPES[self.mix.dtype] if self.mix.dtype and info.dtype in TORCH_DTYPES else info.dtype
        layouts = [
            (self.mix.parts[use.part].folder.name, use.what.transposed)
            for use in uses
            if isinstance(use.what, LoraModule) and not use.is_bias
        ]
        expect_agreement(f"fan_in_fan_out of {name}", layouts)
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
            shapes = ", ".join(f"{self.mix.parts[part].folder.name}: {list(s)}" for s, part in resized.items())
            raise MergeError(
                f"the adapters resized {name} differently ({shapes})", hint="mix adapters of one vocabulary"
            )
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


def _is_task_head(what: object) -> TypeGuard[SavedTensor]:
    return isinstance(what, SavedTensor) and what.why == "task_head"
