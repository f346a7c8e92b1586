"""Files of the store: what a tree holds, and one of its files, in ranges."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, Response

from ..registry import Registry
from ..registry.errors import NotFoundError


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
