"""The streaming merge: every target weight W' = round(W + Σ w·(what each adapter makes of W - W)), all else copied.

A block of rows per thread is in memory at a time, so memory is bounded by the adapters and the blocks, not by the model;
only methods that look at whole deltas (TIES and the like) hold a whole matrix. Deltas are formed and added in float32 and
rounded once to the output dtype. Shard layout, file names and tensor order of the base are kept. Several mixes over one
base are made in one pass over it.

A shard goes: plan (which tensor gets which deltas) → jobs on a pool (read, add, write) → sync and note. While one shard is
synced, the next is computed.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.lora import LoraModule
from ...registry.artifacts.safetensors import read_header
from ...registry.digests import file_digest
from ...tasks.torch_threads import one_torch_thread
from ..errors import InsufficientResourcesError
from .blocks import BLOCK_BYTES, BufferPool, Countdown, ShardScheduler
from .checkpoint import Shard, StoredFile, copy_range, read_into, torch_dtype
from .plan import Mix, Target, matrix
from .reports import MergeReport, TensorReport
from .result import Result
from .tensor_writer import Tally, TensorWriter
from .term_writer import write_terms

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
        with one_torch_thread():
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
            scheduler = ShardScheduler(pool)
            stored: dict[str, StoredFile] = {}
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
                            stored[name] = StoredFile(header, os.open(header.path, os.O_RDONLY))
                            opened.callback(os.close, stored[name].fd)
                    begun.append((writing, self._submit(scheduler, file, writing, stored)))
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
        self, scheduler: ShardScheduler, file: str, writing: list[tuple[Result, Shard]], stored: dict[str, StoredFile]
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
                    jobs.append(scheduler.submit(file, self._mixed, result, target, shard, source))
                elif not target.uses and same:  # a tensor that is cut keeps its first rows
                    jobs.append(scheduler.submit(file, self._copied, result, target, shard, source))
                else:
                    together.append(TensorWriter(result, target, shard, self._device))
            if together:
                jobs += [scheduler.submit(file, *job) for job in self._pouring(together, stored)]
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

    def _copied(self, result: Result, target: Target, shard: Shard, source: StoredFile) -> list:
        """Carry over a tensor that no adapter touches, byte for byte."""
        start, size = source.header.data_start + target.source.info.start, target.info.nbytes
        position = shard.position(target.info.name)
        for at in range(0, size, CHUNK_BYTES):
            count = min(CHUNK_BYTES, size - at)
            copy_range(source.fd, start + at, count, shard.fd, position + at)
            self._read(target, count)
        return [(result, None, 1)]

    def _pouring(self, pours: list[TensorWriter], stored: dict[str, StoredFile]) -> Iterator[tuple]:
        """The jobs for one tensor of the base that flows into one or more results."""
        info = pours[0].target.source.info
        source = stored[pours[0].target.source.file]
        rows, columns = matrix(info)
        row_bytes = columns * torch_dtype(info).itemsize
        most = CUDA_BLOCK_BYTES if self._device.type == "cuda" else BLOCK_BYTES
        step = max(1, most // max(1, row_bytes))
        per_job = max(1, CHUNK_BYTES // (step * max(1, row_bytes))) * step
        shares = [(start, min(start + per_job, rows)) for start in range(0, rows, per_job)] or [(0, 0)]
        left = Countdown(len(shares))
        for share in shares:
            yield self._pour, pours, source, share, step, left

    def _pour(
        self, pours: list[TensorWriter], source: StoredFile, share: tuple[int, int], step: int, left: Countdown
    ) -> list:
        """Rows [start, stop) of one tensor, a block at a time: read once, given to every result."""
        info, buffers = pours[0].target.source.info, self._buffers()
        columns = matrix(info)[1]
        start, row_bytes = source.header.data_start + info.start, columns * torch_dtype(info).itemsize
        tallies = [Tally() for _ in pours]
        for row in range(*share, step):
            count = min(step, share[1] - row)
            raw = buffers.block("raw", count, columns, torch_dtype(info))
            read_into(source.fd, raw.bytes, start + row * row_bytes)
            for pour, tally in zip(pours, tallies, strict=True):
                pour.write_block(raw, row, tally, buffers)
            self._read(pours[0].target, raw.bytes.nbytes)
        for pour, tally in zip(pours, tallies, strict=True):
            pour.tallies[share[0]] = tally
        return [pour.done() for pour in pours] if left.last() else []

    def _buffers(self) -> BufferPool:
        """This thread's own."""
        if not hasattr(self._threads_own, "buffers"):
            self._threads_own.buffers = BufferPool(pinned=self._device.type == "cuda")
        return self._threads_own.buffers

    def _mixed(self, result: Result, target: Target, shard: Shard, source: StoredFile) -> list:
        """A tensor whose deltas are more than one product."""
        report = write_terms(result, target, shard, source)
        self._read(target, target.source.info.nbytes)
        return [(result, report, 0 if target.uses else 1)]


def _finish(result: Result, shard: Shard, reports: list[TensorReport], copied: int) -> None:
    """A shard whose tensors are written goes to the disk, and then it is noted as done."""
    os.fsync(shard.fd)
    shard.close()
    if result.mix.journal:
        note = {"tensors": [asdict(report) for report in reports], "copied": copied}
        result.mix.journal.note(shard.path.name, note)
