"""Removing from a local store what nothing needs: trees that are not kept, blobs of no tree, abandoned staging folders."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

from ..errors import StoreError
from .contract import GRACE, WAIT_SECONDS, GcReport
from .files import sync_all
from .layout import StoreFolder, lock_of
from .locks import abandoned, shared_if_possible
from .room import FULL
from .trees import HEX


class CollectableFolder(StoreFolder):
    """A store's folder that can be rid of what nothing needs."""

    def gc(self, keep: set[str], *, dry_run: bool = False, grace: timedelta = GRACE) -> GcReport:
        staging = self._collect_staging(time.time() - grace.total_seconds(), dry_run)
        if dry_run:
            with self.translated("read"), shared_if_possible(self._lock):
                return self._waste(keep, grace, staging)[0]
        # trees are only renamed while others wait; their files are deleted when `aside` is
        with self.translated(), self._aside("gc") as aside, self._lock.exclusive(WAIT_SECONDS):
            report, trees, blobs = self._waste(keep, grace, staging)
            for tree in trees:  # whole or absent, even if the removal is cut short
                tree.rename(aside / tree.name)
            sync_all([self._trees])  # no tree may come back after a power failure without its manifest
            for blob in blobs:
                blob.unlink()
            if aside == self._staging:
                for tree in trees:
                    shutil.rmtree(aside / tree.name, ignore_errors=True)
        return report

    @contextmanager
    def _aside(self, prefix: str) -> Iterator[Path]:
        """A folder for what is to be removed: `staging` itself where the disk has no room for another one."""
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self.staging(prefix))
            except StoreError as error:
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in FULL:
                    raise
                folder = self._staging
            yield folder

    def _waste(
        self, keep: set[str], grace: timedelta, staging: tuple[str, ...]
    ) -> tuple[GcReport, list[Path], list[Path]]:
        """What a collection reports, and the trees and blobs that it removes."""
        limit = time.time() - grace.total_seconds()
        trees = [path for path in sorted(self._trees.iterdir()) if HEX.fullmatch(path.name)]
        dropped = [tree for tree in trees if f"sha256:{tree.name}" not in keep and self._is_old(tree, limit)]
        needed = self._needed(set(trees) - set(dropped))
        blobs = [blob for blob in self._blobs.glob("*/*") if is_waste(blob, needed, limit)]
        report = GcReport(
            trees=tuple(f"sha256:{tree.name}" for tree in dropped),
            blobs=tuple(sorted(blob.name for blob in blobs)),
            staging=staging,
            bytes=sum(size_of(blob) for blob in blobs),
        )
        return report, dropped, blobs

    def _is_old(self, tree: Path, limit: float) -> bool:
        try:
            if tree.lstat().st_mtime > limit:
                return False
        except FileNotFoundError:  # another one drops or repairs it
            return False
        try:  # a user who may not touch another one's tree touches its manifest
            return self._blob(tree.name).lstat().st_mtime <= limit
        except FileNotFoundError:
            return True

    def _needed(self, trees: Iterable[Path]) -> set[str]:
        needed: set[str] = set()
        for tree in trees:
            try:
                files = self.tree(f"sha256:{tree.name}").files
            except StoreError as error:
                if not os.path.lexists(tree):
                    continue
                raise StoreError(
                    f"nothing was removed, because it is unknown what a tree needs: {error}",
                    hint="run `reccocktail store verify`, and add what is damaged again",
                ) from error
            needed |= {tree.name, *(entry.sha256 for entry in files.values())}
        return needed

    def _collect_staging(self, limit: float, dry_run: bool) -> tuple[str, ...]:
        collected: list[str] = []
        with self.translated():
            for name in sorted({path.name.removesuffix(".lock") for path in self._staging.iterdir()}):
                folder = self._staging / name
                lock = lock_of(folder)
                with suppress(FileNotFoundError):  # its owner has just finished
                    # a version without locks may still be at work in what it made lately
                    lease = abandoned(lock) if lock.exists() else nullcontext(folder.stat().st_mtime <= limit)
                    with lease as free:
                        if free and folder.exists():
                            collected.append(name)
                        if free and not dry_run:
                            shutil.rmtree(folder, ignore_errors=True)
                            lock.unlink(missing_ok=True)
        return tuple(collected)


def is_waste(blob: Path, needed: set[str], limit: float) -> bool:
    if blob.name.startswith("."):  # a copy that was cut short: nobody is committing now
        return True
    status = blob.lstat()
    if stat.S_ISDIR(status.st_mode):  # not of our making: `verify` names it
        return False
    return blob.name not in needed and status.st_mtime <= limit


def size_of(path: Path) -> int:
    """In bytes; 0 if it has gone."""
    with suppress(FileNotFoundError):
        return path.lstat().st_size
    return 0
