"""The Hugging Face Hub: bases and adapters are fetched at one commit, publications go out as one commit.

Login, endpoint, cache and offline mode are `huggingface_hub`'s own (`hf auth login`, `HF_ENDPOINT`, `HF_HOME`,
`HF_HUB_OFFLINE`), and so are the progress bars, on stderr and on a terminal alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from httpx2 import HTTPError, TransportError
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_cached_repo_tree,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from .errors import ConflictError, HubError, InvalidArtifactError, RecCocktailError, UsageError

_LOADED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*")
_ALLOW = {
    "base": [*_LOADED, "*.md", "LICEN[CS]E*", "NOTICE*"],
    "adapter": ["adapter_config.json", "*.safetensors", "README.md"],
}
# Weights in subfolders and `consolidated*` are copies of the same model for other programs; an adapter's subfolders
# are its training checkpoints.
_IGNORE = {"base": ["*/*.safetensors", "consolidated*"], "adapter": ["*/*"]}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
_SECRET = re.compile(r"hf_\w+|eyJ[\w.-]{20,}|bearer\s+\S+", re.IGNORECASE)


class HubUnreachableError(HubError):
    """No answer came from the Hub: no network, or offline mode."""


@dataclass(frozen=True)
class Snapshot:
    """A repository of the Hub at one commit, as a local folder inside `huggingface_hub`'s cache."""

    folder: Path
    repo_id: str
    commit: str


@dataclass(frozen=True)
class PlannedFile:
    path: str  # relative to the folder, with slashes
    bytes: int


@dataclass(frozen=True)
class PublicationPlan:
    """What `publish` would do, as far as the Hub could be asked."""

    repo: str
    private: bool
    tag: str | None
    files: tuple[PlannedFile, ...]
    bytes: int
    card: str
    parent: str | None  # the head seen, which the commit will follow; None where there is no repository yet
    repo_exists: bool | None  # None: the Hub was not reached
    removed: tuple[str, ...] = ()  # weights, configuration and tokenizer of what was there before
    unreached: str | None = None  # "Hub not reached: …"


@dataclass(frozen=True)
class Published:
    repo: str
    commit: str
    tag: str | None


def fetch(repo_id: str, *, revision: str | None = None, kind: Literal["base", "adapter"]) -> Snapshot:
    """The files of a base or adapter at the commit that `revision` (branch, tag, commit; None: `main`) is now.

    A full commit hash whose files are in the cache needs no network. Raises HubError, and InvalidArtifactError where
    the repository has no safetensors; pickles are never downloaded.
    """
    with _explained("fetch", repo_id, revision):
        commit = revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else _info(repo_id, revision).sha
        assert commit is not None
        folder = Path(
            snapshot_download(repo_id, revision=commit, allow_patterns=_ALLOW[kind], ignore_patterns=_IGNORE[kind])
        )
        # Reads the listing that the download left behind; without one the cached folder may be a part only.
        files = [file.path for file in get_cached_repo_tree(repo_id, revision=commit)]
    if not any(folder.glob("*.safetensors")):
        pickles = ", ".join(name for name in files if Path(name).suffix in _PICKLES)
        raise InvalidArtifactError(
            f"{repo_id} at {commit} has no safetensors" + (f", only pickled weights: {pickles}" if pickles else ""),
            hint="convert the weights to safetensors, or name a revision that has them",
        )
    return Snapshot(folder, repo_id, commit)


def plan(
    folder: Path, repo: str, *, private: bool = True, tag: str | None = None, offline: bool = False
) -> PublicationPlan:
    """What publishing `folder` as ORG/NAME would upload; `offline` asks nothing of the Hub.

    An unreachable Hub is part of the answer, not an error. Raises UsageError, InvalidArtifactError, ConflictError
    (the repository is public and should not be) and HubError (a token that the Hub refuses).
    """
    _check_names(repo, tag)
    files = _files(folder)
    info, unreached = None, "Hub not reached: not asked" if offline else None
    try:
        info = None if offline else _existing(repo)
    except HubUnreachableError as error:
        unreached = f"Hub not reached: {error}"
    if info:
        _check_visibility(info, private)
    return PublicationPlan(
        repo=repo,
        private=bool(info.private) if info else private,
        tag=tag,
        files=files,
        bytes=sum(file.bytes for file in files),
        card=(folder / "README.md").read_text(encoding="utf-8"),
        parent=info.sha if info else None,
        repo_exists=None if unreached else info is not None,
        removed=_left_over(info, files) if info else (),
        unreached=unreached,
    )


def publish(plan: PublicationPlan, folder: Path, *, message: str) -> Published:
    """Carries out a plan: the repository if it is missing, one commit on top of the head seen, then the tag.

    Content that is there already makes no new commit. Raises HubError (also where the head has moved since the plan)
    and ConflictError (the folder has changed, the repository is public, the tag is taken).
    """
    if _files(folder) != plan.files:
        raise ConflictError(f"{folder} has changed since the publication was planned", hint="plan it again")
    if not sys.stderr.isatty():
        disable_progress_bars()  # the upload's bar does not look for a terminal itself
    api = HfApi()
    with _explained("publish to", plan.repo):
        if not plan.repo_exists:
            api.create_repo(plan.repo, private=plan.private, exist_ok=True)
        info = _info(plan.repo)
        parent = plan.parent or info.sha
        if info.sha != parent:
            raise _moved(plan.repo, parent, info.sha)
        # Looked at again: it may have been made meanwhile, and `exist_ok` changes no visibility.
        _check_visibility(info, plan.private)
        tagged = _commit_of_tag(api, plan)
        if tagged and tagged != parent:
            raise _tag_taken(plan, tagged)
        commit = _commit(api, plan, folder, info, message)
        if tagged and tagged != commit:
            raise _tag_taken(plan, tagged, f"; the publication itself is commit {commit}")
        if plan.tag and not tagged:
            api.create_tag(plan.repo, tag=plan.tag, revision=commit)
    return Published(plan.repo, commit, plan.tag)


def _commit(api: HfApi, plan: PublicationPlan, folder: Path, info: ModelInfo, message: str) -> str:
    added = [CommitOperationAdd(file.path, folder / file.path) for file in plan.files]
    deleted = [CommitOperationDelete(path) for path in _left_over(info, plan.files)]
    try:
        return api.create_commit(plan.repo, [*deleted, *added], commit_message=message, parent_commit=info.sha).oid
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
        raise _moved(plan.repo, info.sha, _info(plan.repo).sha) from error


def _files(folder: Path) -> tuple[PlannedFile, ...]:
    """Every file below the folder, in the order of their paths. A link could carry anything of this machine out."""
    if not (folder / "README.md").is_file():
        raise InvalidArtifactError(f"{folder} has no README.md, so it is not a build's result")
    paths = sorted(folder.rglob("*"))
    for path in paths:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidArtifactError(f"{path} is a link or a special file; only plain files are published")
    return tuple(PlannedFile(p.relative_to(folder).as_posix(), p.stat().st_size) for p in paths if p.is_file())


def _left_over(info: ModelInfo, files: Sequence[PlannedFile]) -> tuple[str, ...]:
    """What lies in the repository and a loader would take for a part of this checkpoint: an old shard, a template."""
    there = {sibling.rfilename for sibling in info.siblings or () if "/" not in sibling.rfilename}
    loaded = {name for name in there if any(fnmatch(name, pattern) for pattern in _LOADED)}
    return tuple(sorted(loaded - {file.path for file in files}))


def _existing(repo: str) -> ModelInfo | None:
    with _explained("look at", repo):
        try:
            return _info(repo)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None


def _info(repo: str, revision: str | None = None) -> ModelInfo:
    return HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _commit_of_tag(api: HfApi, plan: PublicationPlan) -> str | None:
    tags = api.list_repo_refs(plan.repo).tags if plan.tag else ()
    return next((tag.target_commit for tag in tags if tag.name == plan.tag), None)


def _check_names(repo: str, tag: str | None) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(str(error)) from error
    if "/" not in repo:
        raise UsageError(f"{repo!r} is not ORG/NAME", hint=f"name the organisation or user too: ORG/{repo}")
    if tag is not None and not re.fullmatch(r"\w[\w.+-]*", tag, re.ASCII):
        raise UsageError(f"{tag!r} is no tag", hint="use letters, digits, '.', '_', '-' and '+', such as v1.2")


def _check_visibility(info: ModelInfo, private: bool) -> None:
    if private and not info.private:
        raise ConflictError(
            f"{info.id} is public on the Hub, and the publication was to be private",
            hint="choose another name, make the repository private, or ask for a public publication",
        )


def _moved(repo: str, seen: str | None, now: str | None) -> HubError:
    return HubError(
        f"{repo} has moved from commit {seen} to {now} since the publication was planned",
        hint="look at what came in, then publish again",
    )


def _tag_taken(plan: PublicationPlan, commit: str, note: str = "") -> ConflictError:
    return ConflictError(
        f"tag {plan.tag} of {plan.repo} stands at commit {commit} and is not moved{note}", hint="choose another tag"
    )


@contextmanager
def _explained(doing: str, repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns every failure of the client into one of ours."""
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError, CachedRepoTreeNotFoundError) as error:
        wrapped = isinstance(error, LocalEntryNotFoundError | RuntimeError)
        cause = error.__cause__ if wrapped and error.__cause__ else error
        raise _explanation(f"cannot {doing} {repo}", repo, revision, cause) from error


def _explanation(what: str, repo: str, revision: str | None, error: BaseException) -> RecCocktailError:
    endpoint = constants.ENDPOINT.rpartition("@")[2]  # without the password that a URL may carry
    match error:
        case HFValidationError():
            return UsageError(f"{what}: {_line(error)}")
        case OfflineModeIsEnabled():
            return HubUnreachableError(f"{what}: offline mode is on", hint="unset HF_HUB_OFFLINE")
        case TransportError():
            return HubUnreachableError(
                f"{what}: no answer from {endpoint} ({type(error).__name__})", hint="check the network and HF_ENDPOINT"
            )
        case GatedRepoError():
            return HubError(
                f"{what}: access is gated", hint=f"ask for access at {endpoint}/{repo}, then run `hf auth login`"
            )
        case RepositoryNotFoundError():
            return HubError(
                f"{what}: the Hub shows no such model", hint="check the name; if it is private, run `hf auth login`"
            )
        case RevisionNotFoundError():
            return HubError(f"{what}: it has no revision {revision!r}", hint="name a branch, a tag or a commit")
        case HfHubHTTPError() if error.response.status_code == 401:
            return HubError(f"{what}: the Hub does not accept the login", hint="run `hf auth login`")
        case HfHubHTTPError() if error.response.status_code == 403:
            return HubError(
                f"{what}: the login may not do that", hint="log in with a token that may write: `hf auth login`"
            )
        case HfHubHTTPError():
            answer = _line(error.server_message or error)
            return HubError(f"{what}: the Hub answered {error.response.status_code}: {answer}", hint="try again later")
        case _:
            return HubError(f"{what}: {_line(error)}")


def _line(text: object) -> str:
    """The text on one line, without anything that looks like a token."""
    return _SECRET.sub("[secret]", " ".join(str(text).split()))
