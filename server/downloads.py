"""Files of the store: what a tree holds, one of its files, in ranges, and all of them as an archive."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from ..registry import Registry
from ..registry.errors import NotFoundError, StoreError

PIECE = 2**20  # bytes of an archive that are read at once


def listed(registry: Registry, digest: str) -> dict[str, Any]:
    """The files of a tree with size and SHA-256."""
    tree = registry.store.tree(digest)
    files = [{"path": path, "bytes": each.bytes, "sha256": each.sha256} for path, each in sorted(tree.files.items())]
    return {"digest": digest, "bytes": tree.bytes, "files": files}


def sent(request: Request, registry: Registry, digest: str, path: str) -> Response:
    """One file, or the ranges of it that are asked for. Its tag is its SHA-256. Raises NotFoundError for a path that the tree lacks."""
    entry = registry.store.tree(digest).files.get(path)
    if entry is None:
        raise NotFoundError(f"there is no file {path!r} in {digest}", hint="the address without it lists the files")
    headers = {"ETag": f'"{entry.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    name = path.rpartition("/")[2]
    where = registry.store.folder(digest) / path
    # never shown as a page: what people upload is not ours
    return FileResponse(where, headers=headers, media_type="application/octet-stream", filename=name)


def archived(registry: Registry, digest: str, name: str) -> Response:
    """All files as a tar, in a folder of that name. It is made while it is sent; what was cut off is asked for again, or by files."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name)
    files = registry.store.tree(digest).files
    heads = {path: _head(f"{name}/{path}", each.bytes) for path, each in sorted(files.items())}
    padding = {path: -each.bytes % tarfile.BLOCKSIZE for path, each in files.items()}
    size = sum(len(heads[path]) + each.bytes + padding[path] for path, each in files.items()) + len(_END)
    folder = registry.store.folder(digest)

    def pieces() -> Iterator[bytes]:
        for path, head in heads.items():
            yield head
            yield from _read(folder / path, files[path].bytes)
            yield bytes(padding[path])
        yield _END

    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{name}.tar"'}
    return StreamingResponse(pieces(), media_type="application/x-tar", headers=headers)


_END = bytes(2 * tarfile.BLOCKSIZE)


def _head(path: str, size: int) -> bytes:
    """The same for the same file, whenever and by whomever it was stored."""
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)


def _read(path: Path, size: int) -> Iterator[bytes]:
    """Raises StoreError for a file of another length, which ends the answer before its length."""
    with path.open("rb") as file:
        for start in range(0, size, PIECE):
            piece = file.read(min(PIECE, size - start))
            if len(piece) != min(PIECE, size - start):
                raise StoreError(f"{path} is shorter than it was", hint="reccocktail store verify")
            yield piece
