"""Which trees of a cache are in use: each by a lock on a file, shared by those who read it.

The file's modification time is when the tree was last given out. A lock ends with its process; a forked child shares the locks
that it was born with, and keeps them until both have let them go.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .locks import held_if_free, is_named, locked_handle

_table = threading.Lock()
# a child forked while another thread has it would wait for ever
os.register_at_fork(before=_table.acquire, after_in_parent=_table.release, after_in_child=_table.release)


@dataclass
class _Pin:
    handle: int
    users: int  # blocks, holds, and one for what is in use until the process ends


class Pins:
    """Threads may share it. Nothing here is waited for but whoever is just taking the tree away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pins: dict[str, _Pin] = {}
        self._until_the_end: set[str] = set()
        self._blocks = threading.local()

    @contextmanager
    def block(self) -> Iterator[bool]:
        """Ends what this thread pins within; says whether it is the outermost one, which it has to be for that."""
        if self._block() is not None:
            yield False
            return
        self._blocks.names = names = set[str]()
        try:
            yield True
        finally:
            self._blocks.names = None
            for name in names:
                self.let_go(name)

    @contextmanager
    def pinned(self, name: str) -> Iterator[None]:
        """From now on, also when the block ends, but not when it fails. Raises OSError."""
        with self.held(name):  # by each for itself: another thread that pins it too may fail
            yield
            self._use(name)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Until the block ends nobody takes it away; it is not given out for that. Raises OSError."""
        self.hold(name)
        try:
            yield
        finally:
            self.let_go(name)

    def hold(self, name: str) -> None:
        """One use more, which `let_go` ends, in whatever thread, and no block; it is not given out for that. Raises OSError."""
        while True:
            with _table:
                pin = self._pins.get(name)
                if pin and is_named(pin.handle, self._folder / name):
                    pin.users += 1
                    return
            self._folder.mkdir(exist_ok=True)
            handle = locked_handle(self._folder / name, fcntl.LOCK_SH)
            with _table:
                pin = self._pins.setdefault(name, _Pin(handle, 0))
                if pin.handle != handle:  # another thread was as quick, or the cache was thrown away with its locks
                    os.close(pin.handle)
                    pin.handle = handle

    def let_go(self, name: str) -> None:
        """Ends one hold; others who use the tree have it still."""
        with _table:
            pin = self._pins[name]
            pin.users -= 1
            if not pin.users:
                del self._pins[name]
                os.close(pin.handle)  # not unlocked: a forked child may continue reading

    def last_use(self, name: str) -> int | None:
        """In nanoseconds since 1970; None if it never was in use."""
        try:
            return (self._folder / name).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    @contextmanager
    def free(self, name: str) -> Iterator[bool]:
        """Whether nobody uses it; then nobody can before the block ends, and no trace of its use is left. Raises OSError."""
        self._folder.mkdir(exist_ok=True)
        with held_if_free(self._folder / name) as free:
            yield free
            if free:
                (self._folder / name).unlink(missing_ok=True)

    def names(self) -> set[str]:
        """All that are or were in use."""
        return {path.name for path in self._folder.iterdir()} if self._folder.exists() else set()

    def _block(self) -> set[str] | None:
        return getattr(self._blocks, "names", None)

    def _scope(self) -> set[str]:
        block = self._block()
        return self._until_the_end if block is None else block

    def _use(self, name: str) -> None:
        with _table:
            pin = self._pins[name]
            pin.users += name not in self._scope()
            self._scope().add(name)
            self._touch(pin.handle)

    def _touch(self, handle: int) -> None:
        now = time.time_ns()
        with suppress(OSError):  # another user's: it is held all the same
            os.utime(handle, ns=(now, now))  # the file system's own clock is coarse
