"""What `huggingface_hub` keeps of a repository at one commit: found in its cache, and compared byte by byte with what the Hub lists.

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A blob is named by what the Hub calls it: the SHA-256 of a file
in Git LFS, the git blob id of any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import RepoFile, constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from .digests import file_digest, git_blob_id
from .errors import HubError
from .store.atomic import write_whole
from .store.links import COMMIT

_GIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)
_THREADS = 4


@dataclass(frozen=True)
class Expected:
    """What a file has to be: hex SHA-256 or git blob id, and its bytes where they are known."""

    digest: str
    bytes: int | None = None

    def difference(self, path: Path) -> str | None:
        """Why the file is another one, if it is. Raises OSError."""
        size = path.stat().st_size
        if self.bytes is not None and size != self.bytes:
            return f"it has {size} bytes and not {self.bytes}"
        found = file_digest(path).removeprefix("sha256:") if len(self.digest) == 64 else git_blob_id(path)
        return None if found == self.digest else f"its digest is {found} and not {self.digest}"


def expected(file: RepoFile) -> Expected:
    """By the Hub's listing. Raises HubError where what it lists is no digest."""
    found = Expected(file.blob_id, file.size) if file.lfs is None else Expected(file.lfs.sha256, file.lfs.size)
    if not (_GIT if file.lfs is None else _SHA256).fullmatch(found.digest):
        raise HubError(f"the Hub lists {file.path!a:.200} with {found.digest!a:.80}, which is not a digest")
    return found


def check_commit(repo: str, commit: str | None) -> str:
    """The commit. Raises HubError for what is none: it goes into paths and rows."""
    if commit is None or not COMMIT.fullmatch(commit):
        raise HubError(f"the Hub names {commit!a:.80} as a commit of {repo}, which is not 40 hexadecimal digits")
    return commit


def cached_snapshot(repo: str, revision: str | None) -> tuple[Path, str] | None:
    """The folder in the cache and its commit; None where it is not there. Raises HFValidationError for the repository's name."""
    validate_repo_id(repo)
    revision = revision or constants.DEFAULT_REVISION
    place = Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")
    commit = revision
    if not COMMIT.fullmatch(revision):
        if not _is_plain(revision):
            return None
        try:
            commit = (place / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    folder = place / "snapshots" / check_commit(repo, commit)
    return (folder, commit) if folder.is_dir() else None


def remember(folder: Path, revision: str | None, commit: str) -> None:
    """The cache then knows offline what the branch or tag is, as it does of what other programs fetch."""
    revision = revision or constants.DEFAULT_REVISION
    if _is_plain(revision) and not COMMIT.fullmatch(revision):
        with suppress(OSError):
            write_whole(folder.parents[1] / "refs" / revision, commit)


def _is_plain(revision: str) -> bool:
    return _REVISION.fullmatch(revision) is not None and not {".", ".."} & {*revision.split("/")}


def named_by_blobs(folder: Path, names: Iterable[str]) -> dict[str, Expected]:
    """What files of a snapshot have to be, as far as the names of their blobs say it."""
    blobs = {name: (folder / name).resolve().name for name in names if (folder / name).is_symlink()}
    return {name: Expected(blob) for name, blob in blobs.items() if _SHA256.fullmatch(blob) or _GIT.fullmatch(blob)}


def check_bytes(folder: Path, files: Mapping[str, Expected], repo: str) -> None:
    """Raises HubError naming the first file that is not what it has to be."""

    def difference(name: str) -> str | None:
        try:
            return files[name].difference(folder / name)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(zip(files, threads.map(difference, files), strict=True))
    for name, what in found:
        if what is not None:
            raise HubError(
                f"{repo}: {name} is not what the Hub lists: {what}",
                hint=f"remove {(folder / name).resolve()} and run the same command again to download it",
            )
