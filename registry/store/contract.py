"""The artifact store: folders of files, addressed by their content. `LocalStore` and `ObjectStore` implement it.

A tree's digest is the SHA-256 of its manifest, the canonical JSON of `{path: {"bytes": n, "sha256": hex}}`. A crash at any
point leaves a tree whole or absent. Storing a damaged folder again repairs it; in an object store, where nobody reads again
what lately arrived, once `verify` or `verify_tree` has named the damage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from .files import Progress
from .pieces import Pieces
from .trees import StoredTree

GRACE = timedelta(hours=24)
WAIT_SECONDS = 60.0  # how long a collection tries to find a moment in which nobody writes


@dataclass(frozen=True)
class Damage:
    """A file that is not what its digest says; `path` is relative to the tree, or the blob's own."""

    digest: str
    path: str
    reason: str


@dataclass(frozen=True)
class GcReport:
    """What a collection removed, or would have: trees by digest, blobs by hex, abandoned staging folders by name."""

    trees: tuple[str, ...]
    blobs: tuple[str, ...]
    staging: tuple[str, ...]
    bytes: int


class Store(ABC):
    """What every store does. Threads and processes may use one store at the same time."""

    url: str
    """Where it is, without anything secret."""

    @abstractmethod
    def initialise(self) -> None:
        """Makes what is missing of the store; harmless when all is there. Raises StoreError."""

    @abstractmethod
    def require(self) -> None:
        """Raises StoreError if there is no store, or it cannot be reached."""

    @abstractmethod
    def probe(self) -> None:
        """Writes something and takes it away again. Raises StoreError if that is not possible."""

    @abstractmethod
    def add_folder(
        self,
        folder: Path | str,
        *,
        files: Iterable[str] | None = None,
        allow_links: bool = False,
        check: Callable[[Path, str], None] | None = None,
        progress: Progress | None = None,
    ) -> StoredTree:
        """Copies `files` (all, if not named) in, reading each once. `progress` receives the bytes of each step.

        `check` gets the folder of the copies, and their digest, before the store takes them over; what it raises keeps them out.
        Raises InvalidArtifactError for names and links that could lead elsewhere, and for files that cannot be read.
        """

    @abstractmethod
    def staging(self, prefix: str, *, work: str | None = None) -> AbstractContextManager[Path]:
        """A new folder for what `adopt` is to take over, removed afterwards unless it was adopted. Raises StoreError.

        Work that is named finds its folder again as a process left it that was killed, unless another
        process has it now or a collection has removed it; then the folder is new.
        """

    @abstractmethod
    def adopt(
        self, staged: Path, *, known: Mapping[str, str] | None = None, progress: Progress | None = None
    ) -> StoredTree:
        """Takes a folder from `staging` over as it is: its files are hashed and moved, not copied.

        `known` are digests by name of files that were written and read back a moment ago, and need not be read once more.
        """

    @abstractmethod
    def pieces(self) -> Pieces:
        """Where what arrives in pieces lies until it is whole and can be added."""

    @abstractmethod
    def link(self, source: Path, target: Path) -> None:
        """Gives the file a second name, or copies it where the file system has no hard links. Raises StoreError."""

    @abstractmethod
    def folder(self, digest: str, *, until: ExitStack | None = None) -> Path:
        """The tree's folder on this machine, fetched and checked where it is not here yet; its files are read-only.

        It stays there until the process ends, or the outermost `using` block of this thread; with `until`, until that closes,
        in whatever thread, and whatever others do who use the tree. Fetched once for all processes of the machine.
        Raises StoreError if the store has no such tree.
        """

    def using(self) -> AbstractContextManager[None]:
        """At the end of this block, what `folder` gave to this thread and what it put in are in use no longer.

        For processes that live long: what is in use stays in the cache whatever its limit. A child that was forked in the
        block continues to use what it had. A store without a cache does nothing.
        """
        return nullcontext()

    @abstractmethod
    def local(self, digest: str) -> Path | None:
        """The tree's folder if it is on this machine; never asks the network. It is not in use: see `folder`."""

    @abstractmethod
    def has(self, digest: str) -> bool:
        """Raises StoreError for what is not a digest, and if the store cannot be reached."""

    @abstractmethod
    def digests(self) -> set[str]:
        """All trees that are there, in one listing: cheaper than asking `has` for many. Raises StoreError."""

    @abstractmethod
    def tree(self, digest: str) -> StoredTree:
        """What the tree's manifest says. Raises StoreError if it is missing or damaged."""

    @abstractmethod
    def verify_tree(self, digest: str) -> None:
        """Reads every byte of one tree again. Raises StoreError naming the first file that is not what it was."""

    @abstractmethod
    def verify(self, *, progress: Progress | None = None) -> list[Damage]:
        """Reads every byte again. `progress` receives the bytes of each file. Raises StoreError."""

    @abstractmethod
    def gc(self, keep: set[str], *, dry_run: bool = False, grace: timedelta = GRACE) -> GcReport:
        """Removes trees that are not in `keep`, blobs that no kept tree needs, and staging folders of dead processes.

        Trees and blobs younger than `grace` stay: their row may be about to be written. Raises StoreError, also when
        others keep writing for WAIT_SECONDS. A dry run changes nothing, and needs no right to.
        """
