"""Objects under a prefix of an object store: read, written and listed through fsspec, with failures in our words.

Endpoint and credentials come from where the driver always looks: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, … for S3.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import StoreError

CHUNK = 16 << 20
BATCH = 1000  # S3 deletes no more at once
TIMEOUT = 20  # seconds for an answer of a few bytes, all retries included
_CONNECT_TIMEOUT = 4  # three attempts fit into TIMEOUT

_PACKAGES = {"s3": "reccocktail[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    **dict.fromkeys(("gs", "gcs"), "GOOGLE_APPLICATION_CREDENTIALS"),
    **dict.fromkeys(("abfs", "abfss"), "AZURE_STORAGE_ACCOUNT_NAME and its credentials"),
}
_FULL = ("QuotaExceeded", "StorageQuotaExceeded", "XMinioStorageFull", "InsufficientCapacity")


@dataclass(frozen=True)
class ObjectInfo:
    """Size in bytes, and when the server says it was written, in seconds since 1970."""

    size: int
    modified: float


class Bucket:
    """Keys are relative to the prefix. Threads may share one, and a forked process may continue to use it."""

    def __init__(self, scheme: str, rest: str) -> None:
        """`rest` is `bucket/prefix`. Raises StoreError for a scheme that is not known, and for secrets in the URL."""
        self._scheme = scheme
        self.url = _checked_url(scheme, rest)
        self._opened: tuple[int, Any, str] | None = None

    def _path(self, key: str) -> tuple[Any, str]:
        """The file system, and the key's name in it. Raises StoreError where the driver is not installed."""
        if self._opened is None or self._opened[0] != os.getpid():  # its event loop does not live on in a fork
            from fsspec.core import url_to_fs

            try:
                fs, root = url_to_fs(self.url, **self._options())
            except ImportError:
                raise StoreError(
                    f"{self.url}: the driver for {self._scheme}:// is not installed",
                    hint=f"pip install {_PACKAGES[self._scheme]}",
                ) from None
            if self._scheme == "s3":
                fs.retries = 2  # on top of the driver's own: a server that hangs must not be waited for all day
            self._opened = os.getpid(), fs, root.rstrip("/")
        return self._opened[1], f"{self._opened[2]}/{key}"

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._scheme == "s3":
            retries = {"total_max_attempts": 3, "mode": "standard"}
            config = {"connect_timeout": _CONNECT_TIMEOUT, "read_timeout": 30, "retries": retries}
            options |= {"config_kwargs": config, "max_concurrency": 4}
        return options

    def find(self, prefix: str) -> dict[str, ObjectInfo]:
        """Everything under `prefix`, a folder, by key. Raises StoreError."""
        with self._translated("listed"):
            fs, path = self._path(prefix)
            try:
                found = fs.find(path, detail=True)
            except FileNotFoundError:
                return {}
        return {prefix + name.removeprefix(path): _info(about) for name, about in found.items() if name != path}

    def info(self, key: str) -> ObjectInfo | None:
        """None if there is no such object. Raises StoreError."""
        with self._translated("read"):
            fs, path = self._path(key)
            try:
                about = fs.info(path, timeout=TIMEOUT)
            except FileNotFoundError:
                return None
        return _info(about) if about["type"] == "file" else None

    def read(self, key: str) -> bytes | None:
        """All of a small object, or None if it is not there. Raises StoreError."""
        with self._translated("read"):
            fs, path = self._path(key)
            try:
                return fs.cat_file(path, timeout=TIMEOUT)
            except FileNotFoundError:
                return None

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """The object's bytes in order; the next chunk is on its way while one is worked on. Raises StoreError."""
        starts = range(0, size, CHUNK)
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._range, key, start, min(start + CHUNK, size)) for start in starts[:1]]
            for start in starts:
                chunk = coming.pop().result()
                if start + CHUNK < size:
                    following = start + CHUNK
                    coming.append(ahead.submit(self._range, key, following, min(following + CHUNK, size)))
                yield chunk

    def _range(self, key: str, start: int, end: int) -> bytes:
        with self._translated("read"):
            fs, path = self._path(key)
            return fs.cat_file(path, start=start, end=end)

    def write(self, key: str, data: bytes) -> None:
        """Raises StoreError."""
        with self._translated("written"):
            fs, path = self._path(key)
            fs.pipe_file(path, data, timeout=TIMEOUT)

    def upload(self, key: str, source: Path) -> None:
        """A file of any size, in parts. Raises StoreError."""
        with self._translated("written"):
            fs, path = self._path(key)
            fs.put_file(str(source), path)

    def delete(self, keys: Iterable[str]) -> None:
        """Those that are there. Raises StoreError."""
        with self._translated("deleted"):
            fs, _ = self._path("")
            paths = [self._path(key)[1] for key in keys]
            for first in range(0, len(paths), BATCH):
                batch = paths[first : first + BATCH]
                if self._scheme == "s3":  # s3fs says nothing about what could not be deleted
                    named = [path.split("/", 1) for path in batch]
                    wanted = {"Objects": [{"Key": key} for _, key in named], "Quiet": True}
                    failed = fs.call_s3("delete_objects", Bucket=named[0][0], Delete=wanted).get("Errors")
                    if failed:
                        raise PermissionError(failed[0].get("Code"))
                else:
                    with suppress(FileNotFoundError):
                        fs.rm(batch)

    def abort_uploads(self, before: float) -> None:
        """Gives up what writers that died were uploading to S3: its parts cost money and nobody sees them."""
        if self._scheme != "s3":
            return
        with self._translated("cleaned"):
            fs, path = self._path("")
            bucket, _, prefix = path.partition("/")
            answer = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
            for upload in answer.get("Uploads") or ():
                if upload["Initiated"].timestamp() <= before:
                    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    @contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - every driver has its own
            reason, hint = _explained(error, self._scheme)
            # what drivers say may hold an endpoint with a password: neither the text nor the chain is shown
            raise StoreError(f"{self.url} cannot be {done}: {reason}", hint=hint) from None


def _checked_url(scheme: str, rest: str) -> str:
    if scheme not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES)
        raise StoreError(
            f"a store under {scheme}:// is not supported",
            hint=f"use a local folder, or one of {known} as the store's URL",
        )
    bucket, _, prefix = rest.partition("/")
    account = "@" in bucket and scheme.startswith("abfs") and ":" not in bucket  # container@account is no secret
    if "?" in rest or "#" in rest or ("@" in bucket and not account):
        raise StoreError(
            f"the store's {scheme}:// URL may hold only a bucket and a prefix",
            hint="give endpoint and credentials in the environment, such as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID",
        )
    parts = [part for part in prefix.split("/") if part]
    if not re.fullmatch(r"[\w.@-]+", bucket) or any(part in (".", "..") or not part.isprintable() for part in parts):
        raise StoreError(
            f"the part after {scheme}:// is not a bucket and prefix", hint=f"write {scheme}://BUCKET/PREFIX"
        )
    return "/".join((f"{scheme}://{bucket}", *parts))


def _info(about: dict[str, Any]) -> ObjectInfo:
    for field in ("LastModified", "last_modified", "mtime", "updated"):
        when = about.get(field)
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if isinstance(when, datetime):
            return ObjectInfo(about["size"] or 0, when.timestamp())
    return ObjectInfo(about["size"] or 0, float("inf"))  # of unknown age: never old enough to be collected


def _explained(error: Exception, scheme: str) -> tuple[str, str]:
    response = getattr(error.__cause__ or error, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    name = code if re.fullmatch(r"\w+", code) else type(error).__name__
    if code in _FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"there is no room left ({name})", "free some space, for example by `reccocktail store gc`"
    if isinstance(error, PermissionError) or "Credential" in name:
        return f"access denied ({name})", f"check {_CREDENTIALS[scheme]}, and their permissions on the bucket"
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket or object ({name})", "create the bucket, or correct RECCOCKTAIL_STORE_URL"
    if isinstance(error, ConnectionError | TimeoutError) or re.search("Connect|Timeout|Endpoint|HTTPClient", name):
        return (
            f"the server does not answer ({name})",
            f"check the network{' and AWS_ENDPOINT_URL' * (scheme == 's3')}, then try again",
        )
    return name, "try again; if it fails again, check the server's log"
