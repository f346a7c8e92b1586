"""Links among the files of a model: those of the Hub's cache are followed, no others that lead elsewhere.

`huggingface_hub` keeps `models--ORG--NAME/blobs/…` and, by commit, `models--ORG--NAME/snapshots/COMMIT/…`, whose files are links to blobs
of the same repository: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InvalidArtifactError

COMMIT = re.compile(r"[0-9a-f]{40}")
HINT = (
    "put the file itself there: `cp -rL FOLDER COPY` copies a folder so; only links within the Hub's cache are followed"
)


def cached_repo(folder: Path) -> Path | None:
    """The repository's folder in the Hub's cache, where `folder` is a snapshot there or lies in one; else None."""
    place = folder.resolve()
    for commit in (place, *place.parents):
        repo = commit.parent.parent
        if COMMIT.fullmatch(commit.name) and commit.parent.name == "snapshots" and repo.name.startswith("models--"):
            return repo
    return None


def check_link(folder: Path, path: Path) -> None:
    """Raises InvalidArtifactError where `path`, of a model's `folder`, is a link to anything but the folder's own or its repository's blobs."""
    target = path.resolve()
    if target.is_relative_to(folder.resolve()):
        return
    repo = cached_repo(folder)
    if repo is not None and target.parent == repo / "blobs":
        return
    raise InvalidArtifactError(f"{path}: is a link that leads out of the folder, to {target}", hint=HINT)
