"""The order in which processes write to a SQLite database: first come, first served.

SQLite's own waiters sleep longer and longer and look again, so that a process that has just written, and is awake, goes before
them. Here each takes a ticket: a byte of the file `<database>-queue`, locked until it has SQLite's write lock. A process that
dies loses its locks, so it leaves nothing behind. The file is only about the order. Where it cannot be used, or a process in it
does not move, writers fall back on SQLite's lock alone, which is what keeps them apart in any case.
"""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
import stat
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UnavailableError
from ..ownership import FILE
from ..signals import raise_waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIES = 0.0005, 0.0015  # seconds between two looks at SQLite's lock, for the one whose turn it is
TRIES_ALONE = 0.005, 0.015  # and for those who stand in no line, who may be many
QUEUE_SHARE = 0.5  # of the whole wait: after that, a process in the queue is assumed to have stopped
SUFFIX = "-queue"
# the file: the last ticket's number, and from byte 16 on the tickets, which are never written
_NUMBER, _TICKETS = 8, 16
_SHM_WRITE_LOCK = 120  # https://www.sqlite.org/walformat.html#locks: WAL_WRITE_LOCK

# a process has one lock on a byte, whichever thread took it, and loses all when it closes the file once
_threads: dict[Path, threading.Lock] = {}
os.register_at_fork(after_in_child=_threads.clear)


def begin_writing(connection: sqlite3.Connection, seconds: float, url: str) -> None:
    """BEGIN IMMEDIATE once all who came before have written. Raises UnavailableError after so long, sqlite3.Error."""
    began = time.monotonic()
    _, _, file = connection.execute("PRAGMA database_list").fetchone()
    (timeout,) = connection.execute("PRAGMA busy_timeout").fetchone()
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        with _turn(Path(file), seconds * QUEUE_SHARE) as waits:
            while not _begun(connection):
                if time.monotonic() - began >= seconds:
                    (now,) = connection.execute("PRAGMA data_version").fetchone()
                    raise _gave_up(Path(file), url, seconds, others_wrote=now != version)
                raise_waiting()
                time.sleep(random.uniform(*waits))  # noqa: S311 - nothing secret
    finally:
        connection.execute(f"PRAGMA busy_timeout = {timeout}")


def _begun(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


@contextmanager
def _turn(database: Path, seconds: float) -> Iterator[tuple[float, float]]:
    """Waits for this thread's turn. Yields the shortest and the longest time between two looks at the database's lock."""
    until = time.monotonic() + seconds
    mutex = _threads.setdefault(database, threading.Lock())
    if not mutex.acquire(timeout=seconds):
        yield TRIES_ALONE
        return
    try:
        with _Ticket.taken(database.with_name(f"{database.name}{SUFFIX}"), until) as ticket:
            yield TRIES if ticket and ticket.comes_up(until) else TRIES_ALONE
    finally:
        mutex.release()


class _Ticket:
    """A place in the queue: the byte `number` of the open file is locked by this process."""

    def __init__(self, handle: int, number: int) -> None:
        self._handle = handle
        self._number = number
        self._waiting: threading.Thread | None = None
        self._closing = threading.Lock()

    @classmethod
    @contextmanager
    def taken(cls, path: Path, until: float) -> Iterator[_Ticket | None]:
        """The next one, held in the block; None where the file cannot be written or locked."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, FILE)
        except OSError:
            yield None
            return
        number = None
        try:
            with suppress(OSError):
                _share_as(path.with_name(path.name.removesuffix(SUFFIX)), handle)
                number = _next_number(handle, until)
        finally:
            if number is None:
                os.close(handle)
        if number is None:
            yield None
            return
        ticket = cls(handle, number)
        try:
            yield ticket
        finally:
            ticket.give_back()

    def give_back(self) -> None:
        with self._closing:
            if self._waiting:  # it is in the middle of a call with this handle, and closes it when that ends
                self._waiting = None
                fcntl.lockf(self._handle, fcntl.LOCK_UN)
            else:
                os.close(self._handle)  # which gives every lock back

    def comes_up(self, until: float) -> bool:
        """Waits until all earlier tickets are given back; False if some are not by then."""
        if self._is_first(fcntl.LOCK_NB):
            return True
        came = threading.Event()
        # such a lock is waited for without end, or not at all; a thread can be left behind
        self._waiting = threading.Thread(target=self._wait, args=(came,), name="write-queue", daemon=True)
        self._waiting.start()
        return came.wait(max(until - time.monotonic(), 0))

    def _wait(self, came: threading.Event) -> None:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_SH, 1, self._number - 1)  # so each turn wakes one process, not all
            if self._is_first(0):
                came.set()
        except OSError:  # the turn does not come, and the writer does without
            pass
        finally:
            with self._closing:
                if self._waiting:
                    self._waiting = None
                else:
                    os.close(self._handle)

    def _is_first(self, flags: int) -> bool:
        if self._number == _TICKETS:
            return True
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_SH | flags, self._number - _TICKETS, _TICKETS)
        except OSError:
            return False
        return True


def _share_as(database: Path, handle: int) -> None:
    """Gives the queue's file the modes of the database, as SQLite does with its log. Raises OSError."""
    mode = stat.S_IMODE(database.stat().st_mode)
    found = os.fstat(handle)
    if stat.S_IMODE(found.st_mode) != mode and found.st_uid == os.geteuid():
        os.fchmod(handle, mode)


def _next_number(handle: int, until: float) -> int | None:
    """Locks the byte after the last one that was given out. Raises OSError."""
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            break
        except (BlockingIOError, PermissionError):  # for an instant, unless its owner was stopped right there
            if time.monotonic() >= until:
                return None
            time.sleep(TRIES[0])
    try:
        last = int.from_bytes(os.pread(handle, _NUMBER, 0), "little")
        number = max(last + 1, _TICKETS) % (1 << 62)
        os.pwrite(handle, number.to_bytes(_NUMBER, "little"), 0)
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    finally:
        fcntl.lockf(handle, fcntl.LOCK_UN, 1, 0)
    return number


def _gave_up(database: Path, url: str, seconds: float, *, others_wrote: bool) -> UnavailableError:
    holder = _holder(database)
    who = "another process" if holder is None else _named(holder)
    if others_wrote:
        return UnavailableError(
            f"{url}: waited {seconds:g} seconds to write, while others wrote; now {who} holds the write lock",
            hint="try again when fewer write; for many writers use PostgreSQL (docs/operations.md)",
        )
    if holder is None:
        way_out = "look for a command or a program that keeps a transaction open, and end it"
    elif holder == os.getpid():
        way_out = "finish the other transaction first"
    else:
        way_out = (
            f"wait for process {holder}, or end it if it hangs (`ps -p {holder}`): what it has not committed is undone"
        )
    return UnavailableError(
        f"{url}: waited {seconds:g} seconds to write; {who} holds the write lock, and nothing was committed meanwhile",
        hint=way_out,
    )


def _holder(database: Path) -> int | None:
    """The process that holds the write lock, where the system reports it (Linux, same PID namespace)."""
    # never by opening the file: to close it again would take SQLite's own locks away from this process
    with suppress(OSError, ValueError):
        inode = database.with_name(f"{database.name}-shm").stat().st_ino
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            words = line.split()  # 1: POSIX ADVISORY WRITE process device:inode first last; waiting ones have an arrow
            if words[1:4:2] == ["POSIX", "WRITE"] and words[5].endswith(f":{inode}"):
                last = float("inf") if words[7] == "EOF" else int(words[7])
                if int(words[6]) <= _SHM_WRITE_LOCK <= last:
                    return int(words[4]) or None  # 0: of another namespace
    return None


def _named(process: int) -> str:
    if process == os.getpid():
        return "another transaction of this process"
    name = ""
    with suppress(OSError):
        name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return f"process {process}" + (f" ({name})" if name.isprintable() and name else "")
