"""A store in S3 or another object store, with a cache on this machine.

    reccocktail-store.json   says that this is a store
    blobs/sha256/ab/<hex>    every distinct file once
    trees/<hex>.json         the manifest of a tree; written last, so that a tree is whole or absent
    uploads/<key>            pieces of what arrives at a server
    damaged/<hex>            `verify` found the blob damaged: the next `add` of the same bytes uploads them

The cache is a local store, made when it is first needed: reading rows and metadata needs none. What is added is staged and
hashed there, what is fetched is hashed on its way into it.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from ..errors import StoreError
from .bucket import Bucket, ObjectInfo
from .cache import Cache
from .contract import GRACE, WAIT_SECONDS, Damage, GcReport, Store
from .files import Progress, link_file
from .locks import FileLock, StoreLock, shared_if_possible
from .pieces import BucketPieces, Pieces
from .trees import HEX, FileEntry, StoredTree, hex_of, read_manifest, write_manifest

THREADS = 4
_MARKER = "reccocktail-store.json"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ObjectStore(Store):
    """A store under a prefix of a bucket. Without a `lock`, only processes of this machine may collect and write."""

    def __init__(
        self,
        scheme: str,
        rest: str,
        *,
        cache: Path | None = None,
        cache_limit: int = 0,
        lock: StoreLock | None = None,
    ) -> None:
        self._bucket = Bucket(scheme, rest)
        self.url = self._bucket.url
        self._cache = Cache(cache or _default_cache(self.url), cache_limit)
        self._lock = lock or FileLock(self._cache.root / "remote.lock")

    def initialise(self) -> None:
        if self._bucket.info(_MARKER) is None:
            self._bucket.write(_MARKER, b'{"format":1}')

    def require(self) -> None:
        if self._bucket.info(_MARKER) is None:
            raise StoreError(
                f"{self.url} is not an artifact store",
                hint="if the store should be there, check the bucket's name and AWS_ENDPOINT_URL or restore it; "
                "only for a new registry run `reccocktail init`",
            )

    def _made_cache(self) -> Cache:
        """Raises StoreError if it cannot be made. It may be thrown away at any time."""
        if not self._cache.exists():
            self._cache.initialise()
        return self._cache

    def probe(self) -> None:
        self._made_cache().probe()
        key = f"probe-{uuid.uuid4().hex}"
        self._bucket.write(key, b"x")
        self._bucket.delete([key])

    # putting in

    def add_folder(
        self,
        folder: Path | str,
        *,
        files: Iterable[str] | None = None,
        allow_links: bool = False,
        check: Callable[[Path, str], None] | None = None,
        progress: Progress | None = None,
    ) -> StoredTree:
        with self._made_cache().staging("add") as staged:
            entries = self._cache.copy_in(Path(folder), staged, files, allow_links=allow_links, progress=progress)
            if check is not None:
                check(staged, write_manifest(entries)[0].digest)
            return self._publish(staged, entries)

    def staging(self, prefix: str, *, work: str | None = None) -> AbstractContextManager[Path]:
        return self._made_cache().staging(prefix, work=work)

    def adopt(
        self, staged: Path, *, known: Mapping[str, str] | None = None, progress: Progress | None = None
    ) -> StoredTree:
        return self._publish(staged, self._cache.hash_staged(staged, progress, known or {}))

    def pieces(self) -> Pieces:
        return BucketPieces(self._bucket)

    def link(self, source: Path, target: Path) -> None:
        self._cache.link(source, target)

    def _publish(self, staged: Path, entries: Mapping[str, FileEntry]) -> StoredTree:
        tree, manifest = write_manifest(entries)
        files = {entry: staged / name for name, entry in entries.items()}
        damaged = self._marked()
        # younger than half the grace: a collection that started before us leaves it alone, and one without our lock too
        fresh = time.time() - GRACE.total_seconds() / 2
        self._upload(files, lambda entry, info: entry.sha256 not in damaged and info.modified > fresh)
        self._bucket.delete(f"damaged/{entry.sha256}" for entry in files if entry.sha256 in damaged)
        with self._lock.shared():
            self._upload(files, lambda entry, info: True)  # what was collected since; mostly nothing
            self._bucket.write(_tree_key(tree.digest), manifest)
        return self._cache.commit(staged, entries)

    def _upload(self, files: Mapping[FileEntry, Path], is_good: Callable[[FileEntry, ObjectInfo], bool]) -> None:
        def upload(entry: FileEntry) -> None:
            info = self._bucket.info(_blob_key(entry.sha256))
            if info is None or info.size != entry.bytes or not is_good(entry, info):
                self._bucket.upload(_blob_key(entry.sha256), files[entry])

        _in_parallel(upload, files)

    # looking up

    def folder(self, digest: str, *, until: ExitStack | None = None) -> Path:
        if until is not None:
            with self.using():
                folder = self.folder(digest)
                self._cache.hold(digest, until)
            return folder
        cached = self._cache.take(digest)
        if cached is not None:
            return cached
        tree = self._remote_tree(digest)
        cache = self._made_cache()
        with cache.pinned(digest), cache.fetching(digest) as staged:
            if cache.local(digest) is None:  # nobody fetched it while we waited
                self._fetch(tree, staged)
                cache.commit(staged, tree.files)
        return cache.folder(digest)

    def using(self) -> AbstractContextManager[None]:
        return self._cache.using()

    def _fetch(self, tree: StoredTree, staged: Path) -> None:
        """All that the folder lacks: a process that was killed, or whose line was cut, may have left most of it."""
        cache, places = self._cache, dict[FileEntry, list[Path]]()
        for name, entry in tree.files.items():
            places.setdefault(entry, []).append(staged / name)
        first = {entry: same[0] for entry, same in places.items()}
        with cache.translated():
            cache.clear(staged, first.values())
            for place in (place for same in places.values() for place in same):
                place.parent.mkdir(parents=True, exist_ok=True)
        found = dict(zip(first, _in_parallel(lambda entry: cache.find(entry, first[entry]), first), strict=True))
        missing = [entry for entry in first if not found[entry]]
        cache.make_room(first, missing=sum(entry.bytes for entry in missing))
        with cache.translated():
            _in_parallel(lambda entry: self._download(tree.digest, entry, first[entry]), missing)
            for entry, (_, *others) in places.items():
                for other in others:
                    link_file(first[entry], other)

    def _download(self, digest: str, entry: FileEntry, target: Path) -> None:
        key = _blob_key(entry.sha256)
        info = self._bucket.info(key)
        hasher = hashlib.sha256()
        with target.open("xb") as file:
            for chunk in self._bucket.chunks(key, info.size if info else 0):
                hasher.update(chunk)
                file.write(chunk)
            os.fchmod(file.fileno(), 0o444)
        if info is None or FileEntry(hasher.hexdigest(), info.size) != entry:
            target.unlink()
            what = f"its bytes hash to {hasher.hexdigest()}" if info else "is missing"
            raise StoreError(
                f"{self.url}/{key}: {what}; {digest} cannot be fetched",
                hint="run `reccocktail store verify`, then add the same files again to repair it",
            )

    def local(self, digest: str) -> Path | None:
        return self._cache.local(digest)

    def has(self, digest: str) -> bool:
        return self._bucket.info(_tree_key(digest)) is not None

    def digests(self) -> set[str]:
        return set(_trees(self._bucket.find("trees/")))

    def tree(self, digest: str) -> StoredTree:
        if self._cache.local(digest) is not None:
            with suppress(StoreError):
                return self._cache.tree(digest)
        return self._remote_tree(digest)

    def _remote_tree(self, digest: str) -> StoredTree:
        key = _tree_key(digest)
        data = self._bucket.read(key)
        if data is None:
            raise StoreError(f"{self.url} holds nothing under {digest}", hint="run `reccocktail store verify`")
        return read_manifest(data, digest, f"{self.url}/{key}")

    # looking after

    def verify_tree(self, digest: str) -> None:
        files = self._remote_tree(digest).files

        def look(entry: FileEntry) -> str | None:
            info = self._bucket.info(_blob_key(entry.sha256))
            return self._difference(entry.sha256, info) if info else "is missing"

        entries = set(files.values())
        reasons = dict(zip(entries, _in_parallel(look, entries), strict=True))
        self._mark({entry.sha256: reasons[entry] for entry in entries})
        for name, entry in files.items():
            if reasons[entry] is not None:
                raise StoreError(
                    f"{digest}: {name}: {reasons[entry]} (sha256:{entry.sha256})",
                    hint="add the same files again to repair it, or restore the store",
                )
        if self._cache.local(digest) is not None:
            self._cache.discard_damaged(digest)  # the bucket's bytes are sound: they are fetched when they are needed

    def verify(self, *, progress: Progress | None = None) -> list[Damage]:
        """Also clears damaged trees from the cache; they are fetched again when they are needed."""
        self.require()
        trees = _trees(self._bucket.find("trees/"))  # before the blobs: what a listed tree needs is there by then
        blobs = _blobs(self._bucket.find("blobs/"))
        reasons: dict[str, str | None] = {}
        with ThreadPoolExecutor(THREADS) as threads:
            checks = threads.map(lambda item: self._difference(*item), blobs.items())
            for (sha256, info), reason in zip(blobs.items(), checks, strict=True):
                reasons[sha256] = reason
                if progress:
                    progress(info.size)
        self._mark(reasons)
        damages = [Damage(f"sha256:{name}", _blob_key(name), reason) for name, reason in reasons.items() if reason]
        for found in _in_parallel(lambda digest: self._damages(digest, reasons), sorted(trees)):
            damages += found
        self._clear_cache()
        return damages

    def _difference(self, sha256: str, info: ObjectInfo) -> str | None:
        """Why the blob is not the one with that hash, if it is not."""
        key = _blob_key(sha256)
        hasher = hashlib.sha256()
        try:
            for chunk in self._bucket.chunks(key, info.size):
                hasher.update(chunk)
        except StoreError:
            if self._bucket.info(key) is None:  # collected meanwhile
                return None
            raise
        return None if hasher.hexdigest() == sha256 else f"its bytes hash to {hasher.hexdigest()}"

    def _damages(self, digest: str, reasons: Mapping[str, str | None]) -> list[Damage]:
        damages: list[Damage] = []
        try:
            for name, entry in self._remote_tree(digest).files.items():
                reason = reasons.get(entry.sha256, "is missing")
                if reason is not None:
                    damages.append(Damage(digest, name, f"{reason} instead of {entry.sha256}"))
        except StoreError as error:
            damages.append(Damage(digest, "", str(error)))
        return damages if damages and self.has(digest) else []  # unless it was collected meanwhile

    def _marked(self) -> set[str]:
        return {key.removeprefix("damaged/") for key in self._bucket.find("damaged/")}

    def _mark(self, reasons: Mapping[str, str | None]) -> None:
        marked = self._marked()
        wrong = {sha256 for sha256, reason in reasons.items() if reason is not None}
        with suppress(StoreError):  # a user who may only read can still verify
            for sha256 in wrong - marked:
                self._bucket.write(f"damaged/{sha256}", b"")
            self._bucket.delete(f"damaged/{sha256}" for sha256 in (marked & reasons.keys()) - wrong)

    def _clear_cache(self) -> None:
        if not self._cache.exists():
            return
        for digest in {damage.digest for damage in self._cache.verify()} & self._cache.digests():
            self._cache.discard_damaged(digest)

    def gc(self, keep: set[str], *, dry_run: bool = False, grace: timedelta = GRACE) -> GcReport:
        """As for every store; also drops cached trees that the bucket does not have any more."""
        self.require()  # a bucket that is not ours must not look like an empty one
        limit = time.time() - grace.total_seconds()
        # What takes long comes before others have to wait. A writer who has relied on a blob since then has published his
        # tree by the time the lock is ours, or looks again whether the blob is there.
        blobs = _blobs(self._bucket.find("blobs/"))
        read = {tree.digest: tree for tree in _in_parallel(self._tree_or_none, self.digests()) if tree}
        if not dry_run:
            self._made_cache()  # where the lock may be
        lock = shared_if_possible(self._lock) if dry_run else self._lock.exclusive(WAIT_SECONDS)
        with self._cache.translated(), lock:
            trees = _trees(self._bucket.find("trees/"))
            dropped = sorted(digest for digest, info in trees.items() if digest not in keep and info.modified <= limit)
            kept = trees.keys() - set(dropped)
            needed = {entry.sha256 for tree in self._manifests(kept, read) for entry in tree.files.values()}
            waste = sorted(name for name, info in blobs.items() if name not in needed and info.modified <= limit)
            if not dry_run:
                self._bucket.delete(_tree_key(digest) for digest in dropped)  # first: no tree may miss a blob
                self._bucket.delete(_blob_key(name) for name in waste)
                self._bucket.delete(f"damaged/{name}" for name in self._marked() - (blobs.keys() - set(waste)))
                self._bucket.abort_uploads(limit)
        cached = self._cache.gc(set(kept), dry_run=dry_run, grace=grace) if self._cache.exists() else None
        return GcReport(
            trees=tuple(dropped),
            blobs=tuple(waste),
            staging=cached.staging if cached else (),
            bytes=sum(blobs[name].size for name in waste),
        )

    def _tree_or_none(self, digest: str) -> StoredTree | None:
        with suppress(StoreError):
            return self.tree(digest)
        return None

    def _manifests(self, digests: Iterable[str], read: Mapping[str, StoredTree]) -> list[StoredTree]:
        try:
            return _in_parallel(lambda digest: read.get(digest) or self.tree(digest), digests)
        except StoreError as error:
            raise StoreError(
                f"nothing was removed, because it is unknown what a tree needs: {error}",
                hint="run `reccocktail store verify`, and add what is damaged again",
            ) from error


def _tree_key(digest: str) -> str:
    return f"trees/{hex_of(digest)}.json"


def _blob_key(sha256: str) -> str:
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def _trees(objects: Mapping[str, ObjectInfo]) -> dict[str, ObjectInfo]:
    names = {key: key.removeprefix("trees/").removesuffix(".json") for key in objects}
    return {f"sha256:{names[key]}": info for key, info in objects.items() if HEX.fullmatch(names[key])}


def _blobs(objects: Mapping[str, ObjectInfo]) -> dict[str, ObjectInfo]:
    names = {key: key.rpartition("/")[2] for key in objects}
    return {names[key]: info for key, info in objects.items() if HEX.fullmatch(names[key])}


def _in_parallel(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """In a few threads, results in order; the first failure stops what has not begun."""
    with ThreadPoolExecutor(THREADS) as threads:
        futures = [threads.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def _default_cache(url: str) -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "reccocktail" / hashlib.sha256(url.encode()).hexdigest()[:16]
