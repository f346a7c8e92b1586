"""Publishing a folder to the Hub: what would change is planned, then sent as one commit on top of the head that was seen, and tagged.

What the repository has already is not sent again. Whatever happens on the way, the repository is at the old commit or at the
new one, and the same command resumes from there: a commit of ours is known by the last lines of its description.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, RepoFile
from huggingface_hub.utils import disable_progress_bars

from ..registry.artifacts import hub
from ..registry.artifacts.hub import LOADED, HubUnreachableError, explained, retried
from ..registry.digests import file_digest
from ..registry.errors import ConflictError, InvalidArtifactError
from . import commits, repository
from .names import check_names
from .plan import Notify, PublicationPlan, Published, RemoteHistory, UploadOptions
from .repository import NAMES, OF_THE_HUB, PlannedFile

CARD = "README.md"


def plan(
    folder: Path,
    repo: str,
    options: UploadOptions,
    *,
    before: RemoteHistory | None = None,
    known: Mapping[str, str] | None = None,
    volatile: Mapping[str, Callable[[bytes, bytes], bool]] | None = None,
    notify: Notify = lambda text: None,
) -> PublicationPlan:
    """What publishing `folder` as ORG/NAME would change, after what this registry has published there `before`.

    `known` gives the SHA-256 (hex) of files that need not be read for theirs. `volatile` reports by path whether the Hub's bytes and ours
    say the same in other bytes, such as two signatures of one content. An unreachable Hub is part of the answer, not an error.
    Raises UsageError, InvalidArtifactError, ConflictError (the repository is public and should not be; it holds another kind of
    thing, unless `replaces` is set; somebody else has committed, unless that or `rebase` is) and HubError (a token that the
    Hub refuses).
    """
    check_names(repo, options.tag)
    files = _files(folder, known or {})
    found = PublicationPlan(
        repo=repo,
        private=options.private,
        tag=options.tag,
        trailer=options.trailer,
        files=files,
        bytes=sum(file.bytes for file in files),
        card=(folder / CARD).read_text(encoding="utf-8"),
        parent=None,
        repo_exists=None,
        rebase=options.rebase,
        replaces=options.replaces,
        before=before or RemoteHistory(),
    )
    if options.offline:
        return replace(found, unreached="not checked: this was a dry run without the Hub")
    try:
        with hub.timeouts_and_redaction():
            info = hub.existing(repo, notify)
            if info is None:
                fresh = tuple(replace(file, change="new") for file in files)
                return replace(found, files=fresh, repo_exists=False)
            return _compared(found, folder, info, volatile or {}, notify)
    except HubUnreachableError as error:
        return replace(found, unreached=f"Hub not reached: {error}")


def rehearse(plan: PublicationPlan, folder: Path, *, offline: bool = False, notify: Notify = lambda text: None) -> None:
    """Fails where `publish` would before it sends anything: the same checks. `offline` leaves out those that ask the Hub.

    Raises what `publish` raises, HubUnreachableError where the plan was made without an answer of the Hub.
    """
    _check_unchanged(plan, folder)
    if offline:
        return
    if plan.repo_exists is None:
        raise HubUnreachableError(
            f"the dry run could not ask the Hub about {plan.repo}, so it is not known whether publishing would succeed;"
            f" {plan.unreached}",
            hint="check the network, HF_ENDPOINT and HF_HUB_OFFLINE; --offline shows files and card without asking the Hub",
        )
    with hub.timeouts_and_redaction(), explained("publish to", plan.repo):
        _ready(HfApi(), plan, folder, notify)


def publish(
    plan: PublicationPlan,
    folder: Path,
    *,
    message: str,
    committed: Callable[[str], object] = lambda commit: None,
    notify: Notify = lambda text: None,
) -> Published:
    """Carries out a plan: the repository if it is missing, one commit on top of the head seen, then the tag.

    `committed` receives the commit once the Hub has it, before the tag is set. A repository that was made for a commit that never
    came is removed again. Raises HubError (also where the head has moved since the plan) and ConflictError (the folder has
    changed, the repository is public, the tag is taken).
    """
    _check_unchanged(plan, folder)
    if not sys.stderr.isatty():
        disable_progress_bars()  # the upload's bar does not look for a terminal itself
    api = HfApi()
    with hub.timeouts_and_redaction(), explained("publish to", plan.repo):
        if plan.repo_exists is None:
            info = hub.existing(plan.repo, notify)
            plan = replace(plan, repo_exists=False) if info is None else _compared(plan, folder, info, {}, notify)
        ready = _ready(api, plan, folder, notify)
        made = commits.Made(api, plan, notify)
        with commits.taken_back(made):
            if not plan.repo_exists:
                made.make()
                # One that we published to and that was deleted since has nothing of ours any more.
                plan = replace(plan, before=RemoteHistory())
                plan = _compared(plan, folder, retried(lambda: hub.info(plan.repo), notify), {}, notify)
            if plan.commit is None:
                commit, is_new = _sent(api, plan, folder, message, ready, made, notify), True
            else:
                commit, is_new = plan.commit, False
            made.has_commit = True
            committed(commit)
        commits.tag(api, plan, commit, notify)
    return Published(plan.repo, commit, plan.tag, made=is_new)


def _ready(api: HfApi, plan: PublicationPlan, folder: Path, notify: Notify) -> dict[str, CommitOperationAdd]:
    """All that can be found wrong before anything is sent is; what is to be sent. Raises HubError, ConflictError."""
    tagged = commits.commit_of_tag(api, plan, notify) if plan.repo_exists else None
    if tagged and tagged != plan.commit:
        raise commits.tag_taken(plan, tagged)
    if plan.commit is not None and (tagged or plan.tag is None):
        return {}  # nothing is left to be written
    commits.check_login(api, plan.repo)
    if plan.commit is not None:
        return {}
    commits.check_card(plan.card, notify)
    return commits.additions(plan, folder)


def _sent(
    api: HfApi,
    plan: PublicationPlan,
    folder: Path,
    message: str,
    ready: Mapping[str, CommitOperationAdd],
    made: commits.Made,
    notify: Notify,
) -> str:
    """The commit that has all of the plan, made on top of the head seen."""
    info = retried(lambda: hub.info(plan.repo), notify)
    # Looked at again: it may have been made public meanwhile.
    _check_visibility(info, plan.private)
    if tagged := commits.commit_of_tag(api, plan, notify):
        raise commits.tag_taken(plan, tagged)
    if info.sha != plan.parent:
        if not plan.rebase:
            raise commits.moved(plan.repo, plan.parent, info.sha)
        plan = _compared(plan, folder, info, {}, notify)
        if plan.commit is not None:
            return plan.commit
    return commits.commit(api, plan, folder, message, ready, made, notify)


def make_private(repo: str, *, notify: Notify = lambda text: None) -> None:
    """Raises HubError."""
    with hub.timeouts_and_redaction(), explained("make private", repo):
        retried(lambda: HfApi().update_repo_settings(repo, private=True), notify)


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


def _check_unchanged(plan: PublicationPlan, folder: Path) -> None:
    if [(f.path, f.bytes) for f in _listed(folder)] != [(f.path, f.bytes) for f in plan.files]:
        raise ConflictError(f"{folder} has changed since the publication was planned", hint="plan it again")


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
    notify: Notify,
) -> PublicationPlan:
    """The plan against the repository as it is now. Raises ConflictError where it may not be carried out."""
    assert info.sha is not None
    _check_visibility(info, plan.private)
    there = repository.tree(plan.repo, info.sha)
    files = tuple(replace(file, change=repository.change(file, folder, there)) for file in plan.files)
    for path, alike in volatile.items():
        if any(file.path == path and file.change == "changed" for file in files):
            theirs = repository.read(plan.repo, path, info.sha)
            if alike(theirs, (folder / path).read_bytes()):
                (folder / path).write_bytes(theirs)
                kept = PlannedFile(path, len(theirs), hashlib.sha256(theirs).hexdigest(), "same")
                files = tuple(kept if file.path == path else file for file in files)
    wanted = {file.path for file in files}
    ours = _ours(plan, info.sha, there, {file.path for file in files if file.change == "same"})
    strangers = tuple(sorted(there.keys() - ours - wanted - set(OF_THE_HUB)))
    others = repository.kinds([path for path in there if path not in wanted])
    found = replace(
        plan,
        private=bool(info.private),
        files=files,
        parent=info.sha,
        repo_exists=True,
        removed=tuple(sorted((ours - wanted) & there.keys() | set(strangers if plan.replaces else ()))),
        foreign=strangers if plan.replaces else (),
        kept=() if plan.replaces else strangers,
        replaced=tuple(file.path for file in files if file.change == "changed" and file.path not in ours),
        held=next((kind for kind in others if kind != plan.kind), None),
    )
    if not found.uploads and not found.removed:
        # The newest row's commit, if it is that of these very bytes: one that was made after it may have no row.
        as_before = plan.before.same and plan.before.files == {file.path: file.sha256 for file in files}
        at = plan.before.revision if as_before else None
        return replace(found, commit=at or info.sha, replaced=())
    if plan.replaces:
        return found
    if found.held is not None:
        raise ConflictError(
            f"{plan.repo} holds {NAMES[found.held]} ({others[found.held]}), and this is {NAMES[plan.kind]}",
            hint="choose another repository; --replace removes its files first",
        )
    if not plan.rebase:
        _check_owner(found, info.sha, notify)
    weights = [path for path in found.kept if is_loaded(path) and ("safetensors" in path)]
    if weights:
        raise ConflictError(
            f"{plan.repo} has weights that are not part of this publication and that RecCocktail did not publish: {', '.join(weights)};"
            " a serving engine would load them as well",
            hint="choose another repository; --replace removes its files first",
        )
    return found


def _ours(plan: PublicationPlan, head: str, there: Mapping[str, RepoFile], same: Collection[str]) -> set[str]:
    """The paths of the repository that have bytes of a publication of ours: whatever else has come to a path is somebody's work."""
    known = plan.before.files.keys() if head == plan.before.revision else ()
    return {
        path
        for path in plan.before.ever.keys() & there.keys()
        if path in same or path in known or repository.sha256(plan.repo, there[path], head) in plan.before.ever[path]
    }


def _check_owner(plan: PublicationPlan, head: str, notify: Notify) -> None:
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
    trailer = next((line for line in lines if line.startswith(("RecCocktail-Build: ", "RecCocktail-Adapter: "))), None)
    if plan.before.revision is None:
        message = f"{plan.repo} is at commit {head} with files that RecCocktail did not publish"
        message += f", and that would be replaced: {', '.join(plan.replaced)}"
    else:
        message = (
            f"{plan.repo} has a commit by someone else: it is at commit {head} ({newest.title!r:.80}),"
            f" and our last publication is commit {plan.before.revision}"
        )
    hint = "review the new commits; --rebase commits on top of them"
    if trailer:
        message += f"; its message is {trailer!r}"
        what = trailer.removeprefix("RecCocktail-").split()[:2]  # a publication that was cut off, perhaps
        hint = (
            f"if it is of this registry, publish {' '.join(what).replace(':', '').lower():.80} again first; else {hint}"
        )
    raise ConflictError(message, hint=hint)


def _check_visibility(info: ModelInfo, private: bool) -> None:
    if private and not info.private:
        raise ConflictError(
            f"{info.id} is public on the Hub, and the publication was to be private",
            hint="choose another name, make the repository private, or say --public",
        )


def ever_published(publications: Collection[Mapping[str, str] | None]) -> dict[str, frozenset[str]]:
    """By path, the SHA-256 (hex) of whatever these publications have put there."""
    found: dict[str, set[str]] = {}
    for files in publications:
        for path, digest in (files or {}).items():
            found.setdefault(path, set()).add(digest)
    return {path: frozenset(digests) for path, digests in found.items()}
