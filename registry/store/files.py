"""Files on disk: copied and hashed in one reading, made durable, given second names."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from ..errors import ConflictError, InvalidArtifactError
from .links import cached_repo
from .locks import abandoned
from .room import FULL, room_in
from .trees import FileEntry, checked_files, write_manifest

CHUNK = 1 << 20  # two of them fit into a core's cache, which is faster than larger ones
THREAD_WORTH = 256 << 10  # what takes longer to hash than a thread takes to start
WRITEBACK = 16 << 20
SYNC_THREADS = 4

Progress = Callable[[int], None]


def copy_file(source: Path, target: Path, progress: Progress | None = None, *, follow: bool = True) -> FileEntry:
    """Copies into a new read-only file, which is not yet durable: call `sync_all`. What is hashed is what is written.

    Raises InvalidArtifactError when the source cannot be read, OSError when the target cannot be written.
    """
    try:
        read = open_regular(source, follow=follow)
    except OSError as error:
        raise InvalidArtifactError(f"{source}: cannot be read: {error.strerror}") from error
    with read, FileIO(target, "xb") as write:
        entry = _copy(source, read, write, min(CHUNK, os.fstat(read.fileno()).st_size + 1), progress)
        os.fchmod(write.fileno(), 0o444)
    return entry


def _copy(source: Path, read: FileIO, write: FileIO, step: int, progress: Progress | None) -> FileEntry:
    hasher, size, begun = hashlib.sha256(), 0, 0
    buffers = memoryview(bytearray(step)), memoryview(bytearray(step))
    hashing: Future[None] | None = None
    with ThreadPoolExecutor(1) as thread:  # a chunk is hashed while it is written and the next one is read
        while True:
            buffer = buffers[0]
            try:
                count = read.readinto(buffer)
            except OSError as error:
                raise InvalidArtifactError(f"{source}: cannot be read: {error.strerror}") from error
            if hashing:
                hashing.result()
            if not count:
                return FileEntry(hasher.hexdigest(), size)
            chunk = buffer[:count]
            if count < THREAD_WORTH:
                hasher.update(chunk)
                hashing = None
            else:
                hashing = thread.submit(hasher.update, chunk)
            _write_all(write, chunk)
            size += count
            if size - begun >= WRITEBACK and hasattr(os, "posix_fadvise"):
                # Linux starts to write out what it is asked to forget, so the later fsync finds little to do
                os.posix_fadvise(write.fileno(), begun, size - begun, os.POSIX_FADV_DONTNEED)
                begun = size
            buffers = buffers[1], buffers[0]
            if progress:
                progress(count)


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def open_regular(path: Path, *, follow: bool = False) -> FileIO:
    """A regular file, to be read. Raises OSError, also for pipes, which are not waited for, and links unless `follow`."""
    # whatever the path was when someone last looked: something else may have taken its place
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise OSError(errno.EINVAL, "it is not a regular file", str(path)) from error
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return FileIO(handle, "rb")
    os.close(handle)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def hash_file(path: Path, progress: Progress | None = None) -> FileEntry:
    """Raises OSError, also for what is not a regular file."""
    with open_regular(path) as file:
        entry = FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())
    if progress:
        progress(entry.bytes)
    return entry


def folder_digest(folder: Path, names: Iterable[str]) -> str:
    """The digest that `Store.add_folder` would give these files. Raises InvalidArtifactError."""
    linked = cached_repo(folder) is not None
    entries: dict[str, FileEntry] = {}
    for name, path in checked_files(folder, sorted(set(names)), allow_links=linked):
        try:
            # what is checked may be a link into the Hub's cache
            entries[name] = hash_file(path.resolve() if linked else path)
        except OSError as error:
            raise InvalidArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    return write_manifest(entries)[0].digest


def sync_all(paths: Iterable[Path]) -> None:
    """Makes files, or the names in folders, durable: one of them at least. Raises OSError.

    They go side by side, because most file systems then write their journal once for all.
    """
    first, *others = paths
    with ThreadPoolExecutor(SYNC_THREADS) as threads:  # starts no more of them than there are others
        syncing = threads.map(_sync, others)
        _sync(first)
        list(syncing)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(folder: Path) -> bool:
    """Whether the folder's file system takes no new file, or nothing into it. False where it refuses for another reason."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".room-") as file:
            file.write(b"0" * 65536)  # what SQLite keeps beside a database, at least
    except OSError as error:
        return error.errno in FULL
    return False


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A name near `target` for a folder that is made in the block; at its end the folder is durable, and is `target`.

    It is gone if the block fails; what a killed process left near `target` goes too.
    Raises ConflictError if `target` is there by then, OSError.
    """
    with room_in(target.parent), own_folder(target.parent) as own:
        staged = own / own.name
        yield staged
        sync_all([Path(place, name) for place, _, names in os.walk(staged) for name in [*names, ""]])
        try:
            staged.rename(target)
        except OSError as error:
            if not os.path.lexists(target):
                raise
            raise ConflictError(
                f"{target} was created by another process meanwhile", hint="name a new folder"
            ) from error
        sync_all([target.parent])


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder, locked for as long as this process works in it, and gone afterwards.

    Those that killed processes left in `parent` go before. Raises OSError.
    """
    _clear_abandoned(parent)
    while True:
        own = parent / f".{uuid.uuid4().hex}.part"  # unique, even if another process makes the same folder
        own.mkdir()
        handle = os.open(own, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks: nobody takes it for abandoned there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if own.exists():  # and was not cleared away before it was locked
            break
        os.close(handle)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(handle)


def _clear_abandoned(parent: Path) -> None:
    for folder in parent.glob(".*.part"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.part", folder.name) and not folder.is_symlink():
            with suppress(OSError), abandoned(folder) as free:  # another one cleared it, or it is not ours to remove
                if free:
                    shutil.rmtree(folder, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """A copy with the modes that new files get here, whatever the source's are. Raises OSError."""
    for place, _, names in os.walk(source):
        there = target / Path(place).relative_to(source)
        there.mkdir()
        for name in names:
            shutil.copyfile(Path(place, name), there / name)


def link_file(source: Path, target: Path) -> None:
    """A second name for the file, or a durable copy where there can be no hard link.

    Raises OSError: FileExistsError, and FileNotFoundError also when the source goes meanwhile.
    """
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # other file systems, too many links, or a kernel that protects others' files
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        half = target.with_name(f".{uuid.uuid4().hex}")
        try:
            _copy_own(source, half)
            sync_all([half])
            half.rename(target)
        finally:
            with suppress(FileNotFoundError):
                half.unlink()


def _copy_own(source: Path, target: Path) -> None:
    """As `copy_file`, for what is our own: no artifact of anybody's is invalid when it cannot be read."""
    try:
        copy_file(source, target)
    except InvalidArtifactError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise
