"""The streaming merge: every target weight W' = round(W + Σ w·(what each adapter makes of W - W)), all else copied.

A block of rows per thread is in memory at a time, so memory is bounded by the adapters and the blocks, not by the model;
only methods that look at whole deltas (TIES and the like) hold a whole matrix. Deltas are formed and added in float32 and
rounded once to the output dtype. Shard layout, file names and tensor order of the base are kept. Several mixes over one
base are made in one pass over it.

A shard goes: plan (which tensor gets which deltas) → jobs on a pool (read, add, write) → sync and note. While one shard is
synced, the next is computed.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.lora import LoraModule, SavedTensor, TokenRows
from ...registry.artifacts.safetensors import Header, TensorInfo, read_header
from ...registry.digests import file_digest
from ..errors import InsufficientResourcesError, MergeError
from ..methods import Factors
from .blocks import Block, BufferPool, ShardScheduler, _Countdown, one_torch_thread_each
from .checkpoint import Shard, bytes_of, copy_range, read_into, torch_dtype, write_from
from .deltas import LowRank, Saved, Term, apply_terms, slabs
from .plan import MergeReport, Mix, Result, Target, TensorReport, Use, matrix

BLOCK_BYTES = 640 << 10  # of the base, per step: measured; with what is made of it, it about fits a core's cache
CUDA_BLOCK_BYTES = 32 << 20  # large enough that starting a kernel costs nothing
OPEN_SHARDS = 2  # besides the newest one: enough for its jobs to be taken while an older one is handed over
CHUNK_BYTES = 64 << 20  # of one tensor, per job, so that one embedding does not keep one thread busy alone


Progress = Callable[[int], None]


def merge_all(
    base_folder: Path,
    base: BaseFacts,
    mixes: Sequence[Mix],
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress = lambda n: None,
) -> list[MergeReport]:
    """Write the merged checkpoint of each mix into its folder, in one pass over the base: each block of it is read once.

    `progress` is called with the bytes read, as they are read. A folder is left half-written when something fails: give a staging
    folder. Raises MergeError, RecipeError.
    """
    started = time.perf_counter()
    with ExitStack() as opened:
        results = [Result(base, mix, opened) for mix in mixes]
        for result in results:
            result.choose_tokenizer(base_folder)
            result.expect_loadable(base_folder)
        _expect_space(results)
        clock = {"plan": time.perf_counter() - started}
        with one_torch_thread_each():
            _Run(base_folder, base, results, device, threads or min(8, os.cpu_count() or 1), progress).make(clock)
    reports = []
    for result in results:
        carried, left_out = result.carry(base_folder)
        result.verify()
        if result.mix.journal:
            result.mix.journal.close()
        reports.append(result.report(carried, left_out, clock))
    return reports


def _expect_space(results: Sequence[Result]) -> None:
    """Raises InsufficientResourcesError where the disk is too small for what is still to be written, before anything is."""
    needed: dict[int, int] = {}
    for result in results:
        device = result.mix.out.stat().st_dev
        needed[device] = needed.get(device, 0) + result.bytes_to_write()
        disk = shutil.disk_usage(result.mix.out)
        free = disk.free
        if needed[device] > free:
            raise InsufficientResourcesError(
                f"{result.mix.out.parent}: the weights to be written take {needed[device] / 1e6:,.1f} MB, but"
                f" {free / 1e6:,.1f} MB are free: no space left on device",
                hint="free some, or write to another disk",
                retryable=needed[device] < disk.total,
            )


# Running: shards one after the other, the tensors of a shard side by side


@dataclass
class _Stored:
    """A file of the base, open for reading."""

    header: Header
    fd: int


@dataclass
class _Tally:
    """What a job found out about the rows it made."""

    delta_squares: float = 0.0
    lost_squares: float = 0.0
    changed: int = 0


class _Run:
    def __init__(
        self,
        base_folder: Path,
        base: BaseFacts,
        results: Sequence[Result],
        device: str,
        threads: int,
        progress: Progress,
    ) -> None:
        self._folder, self._base, self._results = base_folder, base, results
        self._device, self._threads, self._progress = torch.device(device), threads, progress
        self._threads_own = threading.local()
        self._counting = threading.Lock()
        self._unread = {tensor.info.name: tensor.info.nbytes for tensor in base.tensors.values()}

    def make(self, clock: dict[str, float]) -> None:
        """All shards of all results. `clock` is given the seconds of each stage."""
        started = time.perf_counter()
        # Pools are left before the shards are closed: a thread still writing would write into whatever file is given the
        # closed one's number next.
        with (
            ExitStack() as opened,
            ThreadPoolExecutor(1) as finishing,
            ThreadPoolExecutor(self._threads) as pool,
        ):
            lanes = ShardScheduler(pool)
            stored: dict[str, _Stored] = {}
            begun: deque[tuple[list[tuple[Result, Shard]], list[Future]]] = deque()
            finished: list[Future] = []
            try:
                for file in self._results[0].shards:
                    writing = [
                        (
                            result,
                            opened.enter_context(Shard(result.mix.out / file, [o.info for o in result.shards[file]])),
                        )
                        for result in self._results
                        if not result.finished(file)
                    ]
                    if len(writing) < len(self._results) and not writing:
                        self._progress(sum(t.info.nbytes for t in self._base.tensors.values() if t.file == file))
                        continue
                    for name in {target.source.file for result, _ in writing for target in result.shards[file]}:
                        if name not in stored:
                            header = read_header(self._folder / name)
                            stored[name] = _Stored(header, os.open(header.path, os.O_RDONLY))
                            opened.callback(os.close, stored[name].fd)
                    begun.append((writing, self._submit(lanes, file, writing, stored)))
                    if len(begun) > OPEN_SHARDS:
                        finished += self._hand_over(*begun.popleft(), finishing)
                while begun:
                    finished += self._hand_over(*begun.popleft(), finishing)
                clock["merge"] = time.perf_counter() - started
                # The processor has nothing else to do while the disk takes the last shard.
                digests = [
                    (result, file, pool.submit(file_digest, result.mix.out / file))
                    for result in self._results
                    for file in result.shards
                ]
                for result, file, digest in digests:
                    result.digests[file] = digest.result()
                for job in finished:
                    job.result()
                clock["sync and digest"] = time.perf_counter() - started - clock["merge"]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                finishing.shutdown(wait=True, cancel_futures=True)
                raise

    def _submit(
        self, lanes: ShardScheduler, file: str, writing: list[tuple[Result, Shard]], stored: dict[str, _Stored]
    ) -> list[Future]:
        """One job or more per tensor; a job gives back (result, its report or None for a copy)."""
        jobs = []
        by_name: dict[str, list[tuple[Result, Target, Shard]]] = {}  # not all results have the same tensors
        for result, shard in writing:
            for target in result.shards[file]:
                by_name.setdefault(target.info.name, []).append((result, target, shard))
        for name, tensor in self._base.tensors.items():
            if tensor.file == file and name not in by_name:  # a head that no result keeps
                self._progress(tensor.info.nbytes)
        for wanted in by_name.values():
            together: list[TensorWriter] = []
            for result, target, shard in wanted:
                source = stored[target.source.file]
                cut = target.info.shape != target.source.info.shape
                same = target.info.dtype == target.source.info.dtype
                if (target.uses and not self._is_plain(result, target)) or (cut and not same):
                    jobs.append(lanes.submit(file, self._mixed, result, target, shard, source))
                elif not target.uses and same:  # a tensor that is cut keeps its first rows
                    jobs.append(lanes.submit(file, self._copied, result, target, shard, source))
                else:
                    together.append(TensorWriter(result, target, shard, self._device))
            if together:
                jobs += [lanes.submit(file, *job) for job in self._pouring(together, stored)]
        return jobs

    def _hand_over(
        self,
        writing: list[tuple[Result, Shard]],
        jobs: list[Future],
        finishing: ThreadPoolExecutor,
    ) -> list[Future]:
        """Wait for a shard's tensors, then let it be synced and noted while the next one is computed."""
        found: dict[int, tuple[list[TensorReport], int]] = {id(result): ([], 0) for result, _ in writing}
        for job in jobs:
            for result, report, copied in job.result():
                reports, count = found[id(result)]
                found[id(result)] = (reports + ([report] if report else []), count + copied)
        for result, _ in writing:
            reports, count = found[id(result)]
            result.tensors += reports
            result.copied += count
        return [finishing.submit(_finish, result, shard, *found[id(result)]) for result, shard in writing]

    def _read(self, target: Target, count: int) -> None:
        """Progress counts the base's bytes once, whichever results they are read for, and also where an untied head reads the
        embedding's again."""
        with self._counting:
            left = self._unread.get(target.source.info.name, 0)  # a head of a task's own has nothing to read
            count = min(count, left)
            self._unread[target.source.info.name] = left - count
        if count:
            self._progress(count)

    def _is_plain(self, result: Result, target: Target) -> bool:
        """Whether the delta of the whole tensor is one product of two thin matrices."""
        return (
            result.method.kind == "factors"
            and target.info.shape == target.source.info.shape
            and len(target.info.shape) == 2
            and all(
                isinstance(u.what, LoraModule) and not u.is_bias and u.what.magnitude is None and u.place.index is None
                for u in target.uses
            )
        )

    def _copied(self, result: Result, target: Target, shard: Shard, source: _Stored) -> list:
        """Carry over a tensor that no adapter touches, byte for byte."""
        start, size = source.header.data_start + target.source.info.start, target.info.nbytes
        position = shard.position(target.info.name)
        for at in range(0, size, CHUNK_BYTES):
            count = min(CHUNK_BYTES, size - at)
            copy_range(source.fd, start + at, count, shard.fd, position + at)
            self._read(target, count)
        return [(result, None, 1)]

    def _pouring(self, pours: list[TensorWriter], stored: dict[str, _Stored]) -> Iterator[tuple]:
        """The jobs for one tensor of the base that flows into one or more results."""
        info = pours[0].target.source.info
        source = stored[pours[0].target.source.file]
        rows, columns = matrix(info)
        row_bytes = columns * torch_dtype(info).itemsize
        most = CUDA_BLOCK_BYTES if self._device.type == "cuda" else BLOCK_BYTES
        step = max(1, most // max(1, row_bytes))
        per_job = max(1, CHUNK_BYTES // (step * max(1, row_bytes))) * step
        shares = [(start, min(start + per_job, rows)) for start in range(0, rows, per_job)] or [(0, 0)]
        left = _Countdown(len(shares))
        for share in shares:
            yield self._pour, pours, source, share, step, left

    def _pour(
        self, pours: list[TensorWriter], source: _Stored, share: tuple[int, int], step: int, left: _Countdown
    ) -> list:
        """Rows [start, stop) of one tensor, a block at a time: read once, given to every result."""
        info, desk = pours[0].target.source.info, self._desk()
        columns = matrix(info)[1]
        start, row_bytes = source.header.data_start + info.start, columns * torch_dtype(info).itemsize
        tallies = [_Tally() for _ in pours]
        for row in range(*share, step):
            count = min(step, share[1] - row)
            raw = desk.block("raw", count, columns, torch_dtype(info))
            read_into(source.fd, raw.bytes, start + row * row_bytes)
            for pour, tally in zip(pours, tallies, strict=True):
                pour.write_block(raw, row, tally, desk)
            self._read(pours[0].target, raw.bytes.nbytes)
        for pour, tally in zip(pours, tallies, strict=True):
            pour.tallies[share[0]] = tally
        return [pour.done() for pour in pours] if left.last() else []

    def _desk(self) -> BufferPool:
        """This thread's own."""
        if not hasattr(self._threads_own, "desk"):
            self._threads_own.desk = BufferPool(pinned=self._device.type == "cuda")
        return self._threads_own.desk

    def _mixed(self, result: Result, target: Target, shard: Shard, source: _Stored) -> list:
        """A tensor whose deltas are more than one product: term by term, slab by slab."""
        info = target.source.info
        old_rows, columns = matrix(info)
        rows = target.rows
        if target.info.shape != info.shape and len(info.shape) == 1:  # a bias that grows is a column that gets longer
            old_rows, rows, columns = info.elements, target.info.elements, 1
        itemsize = torch_dtype(info).itemsize

        def old(start: int, stop: int) -> Tensor:
            raw = torch.empty((max(0, min(stop, old_rows) - start), columns), dtype=torch_dtype(info))
            read_into(source.fd, bytes_of(raw), source.header.data_start + info.start + start * columns * itemsize)
            return raw.float()

        terms = [(use.part, self._term(result, use, target, (rows, old_rows, columns), old)) for use in target.uses]
        tally = _Tally()
        position, width = shard.position(target.info.name), torch_dtype(target.info).itemsize
        step = max(1, BLOCK_BYTES // max(1, columns * 4))
        for start, stop in slabs([term for _, term in terms], rows, old_rows):
            covering = [(part, term) for part, term in terms if term.start <= start and stop <= term.stop]
            step_here = step if result.method.kind == "factors" else max(1, stop - start)
            for row in range(start, stop, step_here):
                end = min(row + step_here, stop)
                if row >= old_rows:
                    before = torch.zeros(end - row, columns)
                    exact = _averaged(target, covering, before, row)
                else:
                    before = old(row, end)
                    exact = _combined(result, target, start, covering, before, row)
                after = exact.to(torch_dtype(target.info))
                rounded = after.float()
                if not bool(torch.isfinite(rounded).all()):
                    raise _overflow(target.info)
                tally.delta_squares += float((exact - before).double().square().sum())
                tally.lost_squares += float((rounded - exact).double().square().sum())
                tally.changed += int((rounded != before).sum())
                write_from(shard.fd, bytes_of(after.contiguous()), position + row * columns * width)
        self._read(target, info.nbytes)
        ranks = [term.factors.a.shape[0] for _, term in terms if isinstance(term, LowRank)]
        rank = max(ranks, default=0) if len(ranks) == len(terms) and result.method.kind == "factors" else 0
        return [(result, _report(target, rank, tally) if target.uses else None, 0 if target.uses else 1)]

    def _term(
        self, result: Result, use: Use, target: Target, size: tuple[int, int, int], old: Callable[[int, int], Tensor]
    ) -> Term:
        file, (rows, old_rows, columns) = result.files[use.part], size
        if isinstance(use.what, SavedTensor):
            return file.saved(use.what, columns)
        if isinstance(use.what, TokenRows):
            return file.tokens(use.what, rows)
        if use.is_bias:
            return file.shift(use.what, columns)
        if use.what.magnitude is None:
            return file.low_rank(use.what, use.place, {rows, old_rows})
        saved = [u.what for u in target.uses if u.part == use.part and isinstance(u.what, SavedTensor)]
        if saved:  # the norm is that of what the same adapter saved
            own = file.saved(saved[0], columns)
            return file.decomposed(use.what, use.place, {rows}, lambda start, stop: own.rows(start, stop - start))
        return file.decomposed(use.what, use.place, {old_rows}, old)


class TensorWriter:
    """One result's share of a tensor that is read once: its delta, or nothing but another dtype."""

    def __init__(self, result: Result, target: Target, shard: Shard, device: torch.device) -> None:
        self.result, self.target = result, target
        self.tallies: dict[int, _Tally] = {}
        self._shard, self._device = shard, device
        self._position = shard.position(target.info.name)
        self._kind = torch_dtype(target.info)
        self._lock = threading.Lock()
        self._factors: tuple[Tensor, Tensor] | None = None

    def _loaded(self) -> tuple[Tensor, Tensor]:
        """(left [rows, R], right [R, columns]): their product is the combined delta. The first job to ask reads them."""
        with self._lock:
            if self._factors is None:
                terms = [
                    (use.part, self.result.files[use.part].low_rank(use.what, use.place, {self.target.rows}).factors)
                    for use in self.target.uses
                    if isinstance(use.what, LoraModule)
                ]
                left, right = self.result.method(
                    [factors for _, factors in terms], [self.target.weights[part] for part, _ in terms]
                )
                self._squares = _squared_norm(left, right)
                self._spread = math.sqrt(self._squares / max(1, self.target.info.elements))
                self._factors = left.to(self._device).contiguous(), right.to(self._device).contiguous()
            return self._factors

    def write_block(self, raw: Block, row: int, tally: _Tally, desk: BufferPool) -> None:
        """Add the delta to the block that begins at `row`, round it once and write it."""
        rows, columns = raw.tensor.shape
        position = self._position + row * columns * self._kind.itemsize
        new = desk.block("new", rows, columns, self._kind)
        if not self.target.uses:
            new.tensor.copy_(raw.tensor)
            if not bool(torch.isfinite(new.tensor).all()):
                raise _overflow(self.target.info)
            write_from(self._shard.fd, new.bytes, position)
            return
        left, right = self._loaded()
        left = left[row : row + rows]
        if self._device.type != "cpu":
            self._add_on_device(raw, left, right, tally, new)
        elif self._kind == torch.float32 or self._is_faint(raw):
            self._add_and_compare(raw, left, right, tally, new)
        else:
            self._add(raw, left, right, tally, new, desk)
        if raw.tensor.dtype != self._kind:
            raw = desk.block("old", rows, columns, self._kind, raw.tensor)
        differing = desk.block("differing", rows, columns, torch.bool)
        tally.changed += int(np.count_nonzero(np.not_equal(raw.bits, new.bits, out=differing.bits)))
        write_from(self._shard.fd, new.bytes, position)

    def _add(self, raw: Block, left: Tensor, right: Tensor, tally: _Tally, new: Block, desk: BufferPool) -> None:
        size = len(raw.tensor), raw.tensor.shape[1]
        exact = desk.block("exact", *size, torch.float32, raw.tensor)
        exact.tensor.addmm_(left, right)
        new.tensor.copy_(exact.tensor)
        error = desk.block("error", *size, torch.float32, new.tensor)
        error.flat.sub_(exact.flat)
        lost = float(torch.dot(error.flat, error.flat))
        if not math.isfinite(lost):  # an infinity or NaN anywhere shows here, or the squares of huge weights
            if not bool(torch.isfinite(new.tensor).all()):
                raise _overflow(self.target.info)
            lost = float(error.flat.double().square().sum())
        tally.lost_squares += lost

    def _is_faint(self, raw: Block) -> bool:
        """Whether the delta is so small beside the weights that float32's own rounding would show in what was lost."""
        first = raw.tensor[0].float()
        return self._spread * math.sqrt(max(1, first.numel())) < 2**-16 * math.sqrt(float(torch.dot(first, first)))

    def _add_and_compare(self, raw: Block, left: Tensor, right: Tensor, tally: _Tally, new: Block) -> None:
        """The same sum; what was lost is measured against W and Δ apart, which also sees what float32 swallowed."""
        old = raw.tensor.float()
        change = left @ right
        new.tensor.copy_(torch.addmm(old, left, right))
        if not bool(torch.isfinite(new.tensor).all()):
            raise _overflow(self.target.info)
        tally.lost_squares += float((new.tensor.float() - old - change).double().square().sum())

    def _add_on_device(self, raw: Block, left: Tensor, right: Tensor, tally: _Tally, new: Block) -> None:
        """The same on CUDA, on the current thread's stream, from and to pinned memory."""
        with torch.cuda.stream(_stream(self._device)):
            old = raw.tensor.to(self._device, non_blocking=True).float()
            exact = torch.addmm(old, left, right)
            rounded = exact.to(self._kind)
            lost = (
                (rounded.float() - (exact if self._kind != torch.float32 else old + left @ right))
                .double()
                .square()
                .sum()
            )
            finite = torch.isfinite(rounded).all()
            new.tensor.copy_(rounded, non_blocking=True)
            tally.lost_squares += float(lost)  # waits for the stream, and so for `new`
            if not bool(finite):
                raise _overflow(self.target.info)

    def done(self) -> tuple[Result, TensorReport | None, int]:
        """The report, once all rows are written."""
        if not self.target.uses:
            return self.result, None, 1
        _, right = self._loaded()
        total = _Tally(delta_squares=self._squares)
        for _, tally in sorted(self.tallies.items()):
            total.lost_squares += tally.lost_squares
            total.changed += tally.changed
        self._factors = None
        return self.result, _report(self.target, right.shape[0], total), 0


def _finish(result: Result, shard: Shard, reports: list[TensorReport], copied: int) -> None:
    """A shard whose tensors are written goes to the disk, and then it is noted as done."""
    os.fsync(shard.fd)
    shard.close()
    if result.mix.journal:
        note = {"tensors": [asdict(report) for report in reports], "copied": copied}
        result.mix.journal.note(shard.path.name, note)


# Arithmetic on a block


def _combined(
    result: Result, target: Target, slab: int, terms: list[tuple[int, Term]], old: Tensor, row: int
) -> Tensor:
    """W + the combined delta of a block, in float32."""
    of_part, weights = _by_part(terms), target.weights
    if not of_part:
        return old
    if len(of_part) == 1:
        ((part, alone),) = of_part.items()
        if weights[part] == 1 and result.method.name == "linear":
            return apply_terms(alone, old, row)  # to the last bit, where W + (V - W) would be V but for rounding
    if result.method.kind == "deltas":
        deltas = [apply_terms(of_part[p], old, row) - old if p in of_part else None for p in range(len(weights))]
        where = target.info.name if slab == 0 else f"{target.info.name}[{slab}:]"
        return old + result.method.combine(where, old, deltas, weights, result.mix.options)
    thin = [(part, t[0]) for part, t in of_part.items() if len(t) == 1 and isinstance(t[0], LowRank)]
    whole = [(part, t[0]) for part, t in of_part.items() if len(t) == 1 and isinstance(t[0], Saved)]
    new = old * (1 - sum(weights[part] for part, _ in whole)) if whole else old.clone()
    for part, term in whole:
        new += weights[part] * term.rows(row, old.shape[0])
    if thin:
        cut = [
            Factors(t.factors.a, t.factors.b[row - t.start : row - t.start + old.shape[0]], t.factors.scale)
            for _, t in thin
        ]
        left, right = result.method(cut, [weights[part] for part, _ in thin])
        new.addmm_(left, right)
    for part, several in of_part.items():
        if len(several) > 1 or not isinstance(several[0], (LowRank, Saved)):
            new += weights[part] * (apply_terms(several, old, row) - old)
    return new


def _averaged(target: Target, terms: list[tuple[int, Term]], old: Tensor, row: int) -> Tensor:
    """Rows that the base does not have: the weighted average of what the adapters that bring them make of them."""
    bring = {part: t for part, t in _by_part(terms).items() if any(isinstance(term, Saved) for term in t)}
    total = sum(target.weights[part] for part in bring)
    new = torch.zeros_like(old)
    for part, several in bring.items():
        new += (target.weights[part] / total) * apply_terms(several, old, row)
    return new


def _by_part(terms: list[tuple[int, Term]]) -> dict[int, list[Term]]:
    of_part: dict[int, list[Term]] = {}
    for part, term in terms:
        of_part.setdefault(part, []).append(term)
    return of_part


def _squared_norm(left: Tensor, right: Tensor) -> float:
    """|left right|² from the Gram matrices of the factors, without the product: tr(LᵀL · R Rᵀ)."""
    left, right = left.double(), right.double()
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def _report(target: Target, rank: int, tally: _Tally) -> TensorReport:
    if tally.delta_squares and not tally.changed:
        lost = 1.0  # below the resolution even of float32, in which what was lost is measured
    else:
        lost = math.sqrt(tally.lost_squares / tally.delta_squares) if tally.delta_squares else 0.0
    return TensorReport(
        name=target.info.name,
        adapters=len({use.part for use in target.uses}),
        rank=rank,
        delta_norm=math.sqrt(tally.delta_squares),
        lost=lost,
        changed=tally.changed / max(1, target.info.elements),
    )


def _overflow(info: TensorInfo) -> MergeError:
    return MergeError(
        f"{info.name} does not stay finite in {info.dtype}",
        hint="check the base and the weights, or choose a wider dtype",
    )


_streams = threading.local()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of this thread's own, so that one thread's copies overlap with another's arithmetic."""
    if not hasattr(_streams, "stream"):
        _streams.stream = torch.cuda.Stream(device)
    return _streams.stream
