"""Who may change a store: writers together, a collection alone, and one owner for each staging folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from ..errors import StoreError

POLL = 0.01  # seconds; writers hold the lock for milliseconds


class StoreLock(Protocol):
    """What keeps a collection and the writers apart. Both must work between processes and between threads.

    A lock ends with its process. `exclusive` tries again and again and never queues: writers must not wait for a collection
    that itself waits for a slow writer. It raises StoreError, with a hint, when it had no luck for `wait_seconds`.
    """

    def shared(self) -> AbstractContextManager[None]: ...

    def exclusive(self, wait_seconds: float) -> AbstractContextManager[None]: ...


class FileLock:
    """A StoreLock on a file, which must be on a file system that all who use the store share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def shared(self) -> Iterator[None]:
        with _released(_opened(self._path)) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    @contextmanager
    def exclusive(self, wait_seconds: float) -> Iterator[None]:
        with _released(_opened(self._path)) as handle:
            until = time.monotonic() + wait_seconds
            while not try_lock(handle):
                if time.monotonic() >= until:
                    raise StoreError(
                        f"{self._path}: others have kept writing to the store for {wait_seconds:g} seconds",
                        hint="try again when fewer write, or look for a writer that hangs",
                    )
                time.sleep(POLL)
            yield


@contextmanager
def shared_if_possible(lock: StoreLock) -> Iterator[None]:
    """For those who only read and may not be allowed to open the lock's file, let alone to make it."""
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(lock.shared())
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Makes the file and locks it, however long another process has it: until it is done, or dead. Raises OSError."""
    with _released(locked_handle(path, fcntl.LOCK_EX)):
        yield


def locked_handle(path: Path, how: int) -> int:
    """Makes the file, waits for the lock and has it until every copy of the handle is closed. Raises OSError."""
    while True:
        handle = _opened(path)
        try:
            fcntl.flock(handle, how)
            if is_named(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it: no process looks for a lock under a removed name


def is_named(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Makes the file and locks it as `held` does, or says False because somebody else has it. Raises OSError."""
    with _released(_opened(path)) as handle:
        free = False
        # one that a collection removed before it was locked here is nobody's: another name will do
        with suppress(FileNotFoundError):
            free = try_lock(handle) and os.path.samestat(os.fstat(handle), path.stat())
        yield free


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody holds the file; then it is held here, so that nobody comes in between. Raises FileNotFoundError."""
    with _released(os.open(path, os.O_RDONLY)) as handle:
        free = False
        with suppress(FileNotFoundError):  # what was locked may have lost its name meanwhile, or given it to another
            free = try_lock(handle) and os.path.samestat(os.fstat(handle), path.stat())
        yield free


@contextmanager
def _released(handle: int) -> Iterator[int]:
    """Unlocks and closes the file at the end: to close it is not enough while a child forked meanwhile has it open too."""
    owner = os.getpid()
    try:
        yield handle
    finally:
        if os.getpid() == owner:  # a child that leaves the block must not take its parent's lock away
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _opened(path: Path) -> int:
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            if not path.exists():
                raise
        with suppress(FileNotFoundError):  # its owner removed it just now
            return os.open(path, os.O_RDONLY)  # someone else's store, which we may only read


def try_lock(handle: int) -> bool:
    """Takes the file for this process alone if nobody has it; never waits."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
