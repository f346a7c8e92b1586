"""Blocks of a tensor and the buffers and threads that carry them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .checkpoint import bytes_of

BLOCK_BYTES = 640 << 10  # of the base, per step: measured; with what is made of it, it about fits a core's cache


class Block:
    """Some rows of a tensor, and the same memory as others want to see it."""

    def __init__(self, memory: Tensor, rows: int, columns: int, dtype: torch.dtype) -> None:
        self.flat = memory[: rows * columns * dtype.itemsize].view(dtype)
        self.tensor = self.flat.view(rows, columns)
        self.bytes = bytes_of(self.flat)
        # Values are compared on their bits, which numpy does several times faster than torch on floats.
        kind = {torch.bool: np.bool_, torch.float32: np.uint32, torch.float64: np.uint64}.get(dtype, np.uint16)
        self.bits = np.frombuffer(self.bytes, kind)


class BufferPool:
    """Memory of one thread that is used again and again, since allocating it anew costs more than what is done in it.

    So do the many small objects through which a block is looked at: while the interpreter makes them, other threads wait.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._memory: dict[str, Tensor] = {}
        self._blocks: dict[tuple[str, int, int, torch.dtype], Block] = {}

    def block(self, name: str, rows: int, columns: int, dtype: torch.dtype, holding: Tensor | None = None) -> Block:
        """The block of this name, in another shape perhaps than it had before; its values are those of `holding`, or any."""
        block = self._blocks.get((name, rows, columns, dtype))
        if block is None:
            size = rows * columns * dtype.itemsize
            if name not in self._memory or self._memory[name].numel() < size:
                self._memory[name] = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
                self._blocks = {key: kept for key, kept in self._blocks.items() if key[0] != name}
            block = self._blocks[name, rows, columns, dtype] = Block(self._memory[name], rows, columns, dtype)
        if holding is not None:
            block.tensor.copy_(holding)
        return block


class ShardScheduler:
    """Jobs of several shards at once. A free thread takes one of the shard that fewest threads are busy with, since a file
    system lets only one at a time write into a file."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[tuple[Future, Callable[..., list], tuple]]] = {}
        self._busy: Counter[str] = Counter()

    def submit(self, lane: str, job: Callable[..., list], *arguments: object) -> Future:
        future: Future = Future()
        with self._lock:
            self._waiting.setdefault(lane, deque()).append((future, job, arguments))
        self._pool.submit(self._one)
        return future

    def _one(self) -> None:
        with self._lock:
            lane = min((lane for lane, jobs in self._waiting.items() if jobs), key=lambda lane: self._busy[lane])
            future, job, arguments = self._waiting[lane].popleft()
            self._busy[lane] += 1
        try:
            future.set_result(job(*arguments))
        except BaseException as error:  # noqa: BLE001  the caller that asks for the result gets it
            future.set_exception(error)
        finally:
            with self._lock:
                self._busy[lane] -= 1


class Countdown:
    """Informs the last of several jobs that it is the last."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()

    def last(self) -> bool:
        with self._lock:
            self._count -= 1
            return self._count == 0
