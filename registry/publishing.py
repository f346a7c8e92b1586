"""Publishing a folder to the Hub: what would change is planned, then sent as one commit on top of the head that was seen, and tagged.

What the repository has already is not sent again. Whatever happens on the way, the repository is at the old commit or at the
new one, and doing the same again goes on from there: a commit of ours is known by the last lines of its description.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, RepoFile
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from . import hub
from .digests import digest_of_json, file_digest
from .errors import ConflictError, HubError, InvalidArtifactError, UsageError
from .hub import LOADED, HubUnreachableError, explained, retried

Tell = Callable[[str], None]
Change = Literal["new", "changed", "same"]
OF_THE_HUB = (".gitattributes", ".gitignore")
CARD = "README.md"


@dataclass(frozen=True)
class PlannedFile:
    path: str  # relative to the folder, with slashes
    bytes: int
    sha256: str  # hex
    change: Change | None = None  # against the repository; None where the Hub was not asked


@dataclass(frozen=True)
class Before:
    """What this registry has published to the repository: the newest commit, and every file that was ever ours there."""

    revision: str | None = None
    same: bool = False  # whether the newest commit carries the very thing that is to be published
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 (hex) by path, of the newest commit
    ever: Mapping[str, frozenset[str]] = field(default_factory=dict)  # the same, of all commits


@dataclass(frozen=True)
class PublicationPlan:
    """What `publish` would do, as far as the Hub could be asked."""

    repo: str
    private: bool
    tag: str | None
    trailer: str  # names what is published; a commit that has it is ours
    files: tuple[PlannedFile, ...]
    bytes: int
    card: str
    parent: str | None  # the head seen, which the commit will follow; None where there is no repository yet
    repo_exists: bool | None  # None: the Hub was not reached
    commit: str | None = None  # the commit that has all of this already
    removed: tuple[str, ...] = ()  # ours, from before, and no longer wanted
    kept: tuple[str, ...] = ()  # other people's
    replaced: tuple[str, ...] = ()  # other people's, that files of ours take the place of
    rebase: bool = False
    before: Before = field(default_factory=Before)
    unreached: str | None = None  # "Hub not reached: …"

    @property
    def uploads(self) -> tuple[PlannedFile, ...]:
        return tuple(file for file in self.files if file.change != "same")

    @property
    def digest(self) -> str:
        """Of the paths and contents that are published."""
        return digest_of_json({file.path: file.sha256 for file in self.files})


@dataclass(frozen=True)
class Published:
    repo: str
    commit: str
    tag: str | None
    made: bool  # False: the Hub had it already


def plan(
    folder: Path,
    repo: str,
    *,
    trailer: str,
    private: bool = True,
    tag: str | None = None,
    before: Before | None = None,
    rebase: bool = False,
    known: Mapping[str, str] | None = None,
    volatile: Mapping[str, Callable[[bytes, bytes], bool]] | None = None,
    offline: bool = False,
    tell: Tell = lambda text: None,
) -> PublicationPlan:
    """What publishing `folder` as ORG/NAME would change; `offline` asks nothing of the Hub.

    `known` gives the SHA-256 (hex) of files that need not be read for theirs. `volatile` tells by path whether the Hub's bytes and ours
    say the same in other bytes, such as two signatures of one content. An unreachable Hub is part of the answer, not an error.
    Raises UsageError, InvalidArtifactError, ConflictError (the repository is public and should not be; somebody else has
    committed, unless `rebase` is set) and HubError (a token that the Hub refuses).
    """
    check_names(repo, tag)
    files = _files(folder, known or {})
    found = PublicationPlan(
        repo=repo,
        private=private,
        tag=tag,
        trailer=trailer,
        files=files,
        bytes=sum(file.bytes for file in files),
        card=(folder / CARD).read_text(encoding="utf-8"),
        parent=None,
        repo_exists=None,
        rebase=rebase,
        before=before or Before(),
    )
    if offline:
        return replace(found, unreached="Hub not reached: not asked")
    try:
        with hub.patient_and_discreet():
            info = hub.existing(repo, tell)
            if info is None:
                fresh = tuple(replace(file, change="new") for file in files)
                return replace(found, files=fresh, repo_exists=False)
            return _compared(found, folder, info, volatile or {}, tell)
    except HubUnreachableError as error:
        return replace(found, unreached=f"Hub not reached: {error}")


def publish(
    plan: PublicationPlan,
    folder: Path,
    *,
    message: str,
    committed: Callable[[str], object] = lambda commit: None,
    tell: Tell = lambda text: None,
) -> Published:
    """Carries out a plan: the repository if it is missing, one commit on top of the head seen, then the tag.

    `committed` is told the commit once the Hub has it, before the tag is set. Raises HubError (also where the head has moved
    since the plan) and ConflictError (the folder has changed, the repository is public, the tag is taken).
    """
    if [(f.path, f.bytes) for f in _listed(folder)] != [(f.path, f.bytes) for f in plan.files]:
        raise ConflictError(f"{folder} has changed since the publication was planned", hint="plan it again")
    if not sys.stderr.isatty():
        disable_progress_bars()  # the upload's bar does not look for a terminal itself
    api = HfApi()
    with hub.patient_and_discreet(), explained("publish to", plan.repo):
        if plan.repo_exists is None:
            info = hub.existing(plan.repo, tell)
            if info is not None:
                plan = _compared(plan, folder, info, {}, tell)
        if not plan.repo_exists:
            retried(lambda: api.create_repo(plan.repo, private=plan.private, exist_ok=True), tell)
            # One that we published to and that was deleted since has nothing of ours any more.
            plan = replace(plan, before=Before())
            plan = _compared(plan, folder, retried(lambda: hub.info(plan.repo), tell), {}, tell)
        if plan.commit is not None:
            tagged = _commit_of_tag(api, plan, tell)
            if tagged and tagged != plan.commit:
                raise _tag_taken(plan, tagged)
            committed(plan.commit)
            _tag(api, plan, plan.commit, tagged, tell)
            return Published(plan.repo, plan.commit, plan.tag, made=False)
        info = retried(lambda: hub.info(plan.repo), tell)
        # Looked at again: it may have been made public meanwhile.
        _check_visibility(info, plan.private)
        tagged = _commit_of_tag(api, plan, tell)
        if tagged:
            raise _tag_taken(plan, tagged)
        if info.sha != plan.parent:
            if not plan.rebase:
                raise _moved(plan.repo, plan.parent, info.sha)
            plan = _compared(plan, folder, info, {}, tell)
        commit = plan.commit or _commit(api, plan, folder, message, tell)
        committed(commit)
        _tag(api, plan, commit, None, tell)
    return Published(plan.repo, commit, plan.tag, made=True)


def make_private(repo: str, *, tell: Tell = lambda text: None) -> None:
    """Raises HubError."""
    with hub.patient_and_discreet(), explained("make private", repo):
        retried(lambda: HfApi().update_repo_settings(repo, private=True), tell)


def check_names(repo: str, tag: str | None = None) -> None:
    """Raises UsageError for what is not ORG/NAME, and for a tag that git would not take."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(str(error)) from error
    if "/" not in repo:
        raise UsageError(f"{repo!r} is not ORG/NAME", hint=f"name the organisation or user too: ORG/{repo}")
    if tag is not None and not re.fullmatch(r"\w[\w.+-]*", tag, re.ASCII):
        raise UsageError(f"{tag!r} is no tag", hint="use letters, digits, '.', '_', '-' and '+', such as v1.2")


def is_loaded(path: str) -> bool:
    """Whether a loader would take a file of that name for a part of the model."""
    return "/" not in path and any(fnmatch(path, pattern) for pattern in LOADED)


# planning


def _listed(folder: Path) -> list[PlannedFile]:
    """Every file below the folder, in the order of their paths, not yet read. A link could carry anything of this machine out."""
    if not (folder / CARD).is_file():
        raise InvalidArtifactError(f"{folder} has no {CARD}, so it is not a build's result")
    paths = sorted(folder.rglob("*"))
    for path in paths:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidArtifactError(f"{path} is a link or a special file; only plain files are published")
    return [PlannedFile(p.relative_to(folder).as_posix(), p.stat().st_size, "") for p in paths if p.is_file()]


def _files(folder: Path, known: Mapping[str, str]) -> tuple[PlannedFile, ...]:
    return tuple(
        replace(file, sha256=known.get(file.path) or file_digest(folder / file.path).removeprefix("sha256:"))
        for file in _listed(folder)
    )


def _compared(
    plan: PublicationPlan,
    folder: Path,
    info: ModelInfo,
    volatile: Mapping[str, Callable[[bytes, bytes], bool]],
    tell: Tell,
) -> PublicationPlan:
    """The plan against the repository as it is now. Raises ConflictError where it may not be carried out."""
    assert info.sha is not None
    _check_visibility(info, plan.private)
    there = _tree(plan.repo, info.sha)
    files = tuple(replace(file, change=_change(file, folder, there)) for file in plan.files)
    for path, alike in volatile.items():
        if any(file.path == path and file.change == "changed" for file in files):
            theirs = _read(plan.repo, path, info.sha)
            if alike(theirs, (folder / path).read_bytes()):
                (folder / path).write_bytes(theirs)
                kept = PlannedFile(path, len(theirs), hashlib.sha256(theirs).hexdigest(), "same")
                files = tuple(kept if file.path == path else file for file in files)
    wanted = {file.path for file in files}
    ours = _ours(plan, info.sha, there, {file.path for file in files if file.change == "same"})
    strangers = there.keys() - ours - wanted - set(OF_THE_HUB)
    found = replace(
        plan,
        private=bool(info.private),
        files=files,
        parent=info.sha,
        repo_exists=True,
        removed=tuple(sorted((ours - wanted) & there.keys())),
        kept=tuple(sorted(strangers)),
        replaced=tuple(file.path for file in files if file.change == "changed" and file.path not in ours),
    )
    if not found.uploads and not found.removed:
        # The newest row's commit, if it is that of these very bytes: one that was made after it may have no row.
        as_before = plan.before.same and plan.before.files == {file.path: file.sha256 for file in files}
        at = plan.before.revision if as_before else None
        return replace(found, commit=at or info.sha, replaced=())
    if not plan.rebase:
        _check_owner(found, info.sha, tell)
    weights = [path for path in found.kept if is_loaded(path) and ("safetensors" in path)]
    if weights:
        raise ConflictError(
            f"{plan.repo} has weights that this does not have and no publication of ours put there: {', '.join(weights)};"
            " a serving engine would load them as well",
            hint="remove them on the Hub, or choose another repository",
        )
    return found


def _ours(plan: PublicationPlan, head: str, there: Mapping[str, RepoFile], same: Collection[str]) -> set[str]:
    """The paths of the repository that have bytes of a publication of ours: whatever else has come to a path is somebody's work."""
    ours = plan.before.ever.keys() & there.keys()
    if head == plan.before.revision:
        return ours
    return {path for path in ours if path in same or _sha256(plan.repo, there[path], head) in plan.before.ever[path]}


def _sha256(repo: str, file: RepoFile, commit: str) -> str:
    return file.lfs.sha256 if file.lfs is not None else hashlib.sha256(_read(repo, file.path, commit)).hexdigest()


def _check_owner(plan: PublicationPlan, head: str, tell: Tell) -> None:
    """Raises ConflictError where somebody else has been at work in the repository."""
    if head == plan.before.revision:
        return
    if plan.before.revision is None and not plan.replaced:
        return
    with explained("look at", plan.repo):
        newest = HfApi().list_repo_commits(plan.repo, revision=head)[0]
    lines = f"{newest.title}\n{newest.message}".splitlines()
    if plan.trailer in lines:  # a publication of the same that was cut off before its row was written
        return
    said = next((line for line in lines if line.startswith(("RecCocktail-Build: ", "RecCocktail-Adapter: "))), None)
    if plan.before.revision is None:
        message = f"{plan.repo} is at commit {head} with files that no publication of ours put there"
        message += f", and that would be replaced: {', '.join(plan.replaced)}"
    else:
        message = (
            f"somebody else has committed to {plan.repo}: it is at commit {head} ({newest.title!r:.80}),"
            f" and our last publication is commit {plan.before.revision}"
        )
    hint = "look at what came in; --rebase goes on top of it"
    if said:
        message += f"; that commit says of itself {said!r}"
        what = said.removeprefix("RecCocktail-").split()[:2]  # a publication that was cut off, perhaps
        hint = (
            f"if it is of this registry, publish {' '.join(what).replace(':', '').lower():.80} again first; else {hint}"
        )
    raise ConflictError(message, hint=hint)


def _change(file: PlannedFile, folder: Path, there: Mapping[str, RepoFile]) -> Change:
    if (remote := there.get(file.path)) is None:
        return "new"
    if remote.lfs is not None:
        same = remote.lfs.sha256 == file.sha256
    else:
        same = remote.size == file.bytes and remote.blob_id == _git_hash(folder / file.path)
    return "same" if same else "changed"


def _git_hash(path: Path) -> str:
    with path.open("rb") as handle:
        hashed = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while piece := handle.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()


def _tree(repo: str, commit: str) -> dict[str, RepoFile]:
    with explained("look at", repo):
        entries = HfApi().list_repo_tree(repo, revision=commit, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _read(repo: str, path: str, commit: str) -> bytes:
    with explained("look at", repo):
        return Path(HfApi().hf_hub_download(repo, path, revision=commit)).read_bytes()


def _check_visibility(info: ModelInfo, private: bool) -> None:
    if private and not info.private:
        raise ConflictError(
            f"{info.id} is public on the Hub, and the publication was to be private",
            hint="choose another name, make the repository private, or say --public",
        )


# sending


def _commit(api: HfApi, plan: PublicationPlan, folder: Path, message: str, tell: Tell) -> str:
    added = [CommitOperationAdd(file.path, folder / file.path) for file in plan.uploads]
    deleted = [CommitOperationDelete(path) for path in plan.removed]
    if added:
        # An empty .gitignore: without one the Hub would go by the repository's own, and leave files out in silence.
        api.preupload_lfs_files(plan.repo, added, gitignore_content="", free_memory=False)
    wanted = {file.path: file.sha256 for file in plan.files}
    for operation in added:
        if operation.upload_info.sha256.hex() != wanted[operation.path_in_repo]:
            raise ConflictError(
                f"{folder / operation.path_in_repo} is not what it was when the publication was planned",
                hint="`reccocktail store verify` tells what is damaged",
            )
    for attempt in range(1, hub.ATTEMPTS + 1):
        try:
            done = api.create_commit(
                plan.repo,
                [*deleted, *added],
                commit_message=message,
                commit_description=f"{plan.trailer}\nRecCocktail-Content: {plan.digest}",
                parent_commit=plan.parent,
            )
        except (HTTPError, OSError) as error:
            # With or without an answer, the commit may have been made.
            if (made := _commit_of_ours(plan, folder, tell)) is not None:
                return made
            refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)
            head = retried(lambda: hub.info(plan.repo), tell).sha
            if refused or head != plan.parent:
                raise _moved(plan.repo, plan.parent, head) from error
            seconds = hub.back_off(error, attempt)
            if seconds is None or attempt == hub.ATTEMPTS:
                raise
            tell(f"the Hub did not take the commit; trying again in {seconds:.0f} s")
            time.sleep(seconds)
        else:
            _check_arrived(plan, folder, done.oid)
            return done.oid
    raise AssertionError("the last attempt returns or raises")


def _commit_of_ours(plan: PublicationPlan, folder: Path, tell: Tell) -> str | None:
    """The head, if it is the commit that was to be made."""
    head = retried(lambda: hub.info(plan.repo), tell).sha
    if head is None or head == plan.parent or not _has_arrived(plan, folder, head):
        return None
    newest, *older = HfApi().list_repo_commits(plan.repo, revision=head)
    ours = plan.trailer in newest.message.splitlines() and older and older[0].commit_id == plan.parent
    return head if ours else None


def _has_arrived(plan: PublicationPlan, folder: Path, commit: str) -> bool:
    there = _tree(plan.repo, commit)
    return all(_change(file, folder, there) == "same" for file in plan.files) and not there.keys() & set(plan.removed)


def _check_arrived(plan: PublicationPlan, folder: Path, commit: str) -> None:
    try:
        arrived = _has_arrived(plan, folder, commit)
    except HubError as error:
        raise HubError(
            f"{plan.repo} took commit {commit}, but whether all of it has arrived could not be looked at: {error}",
            hint="publish again: the commit is recognised",
        ) from error
    if not arrived:
        raise HubError(
            f"{plan.repo} took commit {commit}, but its files are not those that were sent",
            hint="look at the commit on the Hub, then publish again",
        )


def _tag(api: HfApi, plan: PublicationPlan, commit: str, tagged: str | None, tell: Tell) -> None:
    if plan.tag is None or tagged == commit:
        return

    def create() -> None:
        try:
            api.create_tag(plan.repo, tag=str(plan.tag), revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            there = _commit_of_tag(api, plan, tell)
            if there != commit:  # otherwise it was made, and only the answer was lost
                raise _tag_taken(plan, str(there), f"; the publication itself is commit {commit}") from error

    retried(create, tell)


def _commit_of_tag(api: HfApi, plan: PublicationPlan, tell: Tell) -> str | None:
    tags = retried(lambda: api.list_repo_refs(plan.repo), tell).tags if plan.tag else ()
    return next((tag.target_commit for tag in tags if tag.name == plan.tag), None)


def _moved(repo: str, seen: str | None, now: str | None) -> HubError:
    return HubError(
        f"{repo} has moved from commit {seen} to {now} since the publication was planned",
        hint="look at what came in, then publish again; --rebase goes on top of it",
    )


def _tag_taken(plan: PublicationPlan, commit: str, note: str = "") -> ConflictError:
    return ConflictError(
        f"tag {plan.tag} of {plan.repo} stands at commit {commit} and is not moved{note}", hint="choose another tag"
    )


def ever_published(publications: Collection[Mapping[str, str] | None]) -> dict[str, frozenset[str]]:
    """By path, the SHA-256 (hex) of whatever these publications have put there."""
    found: dict[str, set[str]] = {}
    for files in publications:
        for path, digest in (files or {}).items():
            found.setdefault(path, set()).add(digest)
    return {path: frozenset(digests) for path, digests in found.items()}
