"""The one commit of a publication: what is sent is compared first, and a repository made for it goes again where none comes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ..registry.artifacts import hub
from ..registry.artifacts.hub import retried
from ..registry.errors import ConflictError, HubError, RecCocktailError
from ..registry.snapshots import check_commit
from . import repository
from .repository import OF_THE_HUB

if TYPE_CHECKING:
    from .plan import Notify, PublicationPlan

REFUSED = (400, 401, 403, 404, 409, 412, 422)  # answers that the same command would get again


def check_login(api: HfApi, repo: str) -> None:
    """Raises HubError where the Hub does not know the login, or lets it read alone."""
    try:
        who = api.whoami()
    except LocalTokenNotFoundError:
        raise HubError(f"cannot publish to {repo}: there is no login", hint="run `hf auth login`") from None
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise
        return  # asked too often, perhaps: whether it may write is seen when it does
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f"cannot publish to {repo}: the login may only read",
            hint="log in with a token that may write: `hf auth login`",
        )


def check_card(card: str, notify: Notify) -> None:
    """Raises HubError where the Hub would refuse the metadata."""
    try:
        retried(lambda: ModelCard(card).validate(), notify)
    except (ValueError, yaml.YAMLError) as error:
        raise HubError(f"Invalid metadata in README.md: {' '.join(str(error).split())}") from error


def additions(plan: PublicationPlan, folder: Path) -> dict[str, CommitOperationAdd]:
    """What would be sent, by path, read and found to be what was planned. Raises ConflictError."""
    found: dict[str, CommitOperationAdd] = {}
    for file in plan.uploads:
        found[file.path] = CommitOperationAdd(file.path, folder / file.path)
        if found[file.path].upload_info.sha256.hex() != file.sha256:
            raise ConflictError(
                f"{folder / file.path} changed after the publication was planned",
                hint="`reccocktail store verify` lists what is damaged",
            )
    return found


class Made:
    """A repository that this publication makes, until its commit is there."""

    def __init__(self, api: HfApi, plan: PublicationPlan, notify: Notify) -> None:
        self._api, self._repo, self._notify = api, plan.repo, notify
        self._private = plan.private
        self._first: str | None = None
        self.has_commit = False
        self.sent: Sequence[CommitOperationAdd] = ()

    def make(self) -> None:
        def create() -> bool:
            try:
                self._api.create_repo(self._repo, private=self._private)
            except HfHubHTTPError as error:
                if error.response.status_code != 409:
                    raise
                return False  # ours, whose answer was lost, or that of somebody who was quicker
            return True

        if retried(create, self._notify):
            self._first = retried(lambda: hub.info(self._repo), self._notify).sha

    def take_back(self, error: BaseException) -> None:
        """Removes the repository if nothing has come of it. It is kept if it has uploads from which the same command can resume."""
        if self._first is None or self.has_commit:
            return
        if self._has_uploads() and _heals(error):
            self._notify(
                f"{self._repo} was created by this command and has no commit yet, but keeps what was uploaded:"
                " run the same command again to resume, or remove the repository on the Hub"
            )
            return
        try:
            if self._is_untouched():
                self._api.delete_repo(self._repo, missing_ok=True)
                self._notify(f"{self._repo}, which this command had created, was removed")
        except (HTTPError, OSError, RecCocktailError):
            self._notify(
                f"{self._repo} was created by this command, is empty and could not be removed: remove it on the Hub"
            )

    def _has_uploads(self) -> bool:
        return any(getattr(each, "_upload_mode", None) == "lfs" for each in self.sent)  # once the Hub was asked how

    def _is_untouched(self) -> bool:
        refs = self._api.list_repo_refs(self._repo)
        heads = [branch.target_commit for branch in refs.branches]
        there = repository.tree(self._repo, str(self._first))
        return heads == [self._first] and not refs.tags and not there.keys() - set(OF_THE_HUB)


@contextmanager
def taken_back(made: Made) -> Iterator[None]:
    """Where this fails before the commit is there, no empty repository is left."""
    try:
        yield
    except BaseException as error:
        made.take_back(error)
        raise


def _heals(error: BaseException) -> bool:
    """Whether the same command may resume from what was uploaded."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # how the client reports an upload
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        is_full = "storage" in str(error.server_message or "").lower()
        return is_full or error.response.status_code not in REFUSED
    return isinstance(error, HTTPError | OSError | KeyboardInterrupt)


def commit(
    api: HfApi,
    plan: PublicationPlan,
    folder: Path,
    message: str,
    ready: Mapping[str, CommitOperationAdd],
    made: Made,
    notify: Notify,
) -> str:
    """The id of the one that carries the plan out. `ready` is what `additions` gave for it, before the repository was made."""
    wanted = [file.path for file in plan.uploads]
    if not ready.keys() >= set(wanted):  # the repository has changed since
        ready = additions(plan, folder)
    added = [ready[path] for path in wanted]
    deleted = [CommitOperationDelete(path) for path in plan.removed]
    if added:
        made.sent = added
        # An empty .gitignore: without one the Hub would go by the repository's own, and leave files out in silence.
        api.preupload_lfs_files(plan.repo, added, gitignore_content="", free_memory=False)
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
            if (there := _commit_of_ours(plan, folder, notify)) is not None:
                return there
            refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)
            head = retried(lambda: hub.info(plan.repo), notify).sha
            if refused or head != plan.parent:
                raise moved(plan.repo, plan.parent, head) from error
            seconds = hub.back_off(error, attempt)
            if seconds is None or attempt == hub.ATTEMPTS:
                raise
            notify(f"the Hub did not accept the commit; trying again in {seconds:.0f} s")
            time.sleep(seconds)
        else:
            commit = check_commit(plan.repo, done.oid)
            _check_arrived(plan, folder, commit)
            return commit
    raise AssertionError("the last attempt returns or raises")


def _commit_of_ours(plan: PublicationPlan, folder: Path, notify: Notify) -> str | None:
    """The head, if it is the commit that was to be made."""
    head = retried(lambda: hub.info(plan.repo), notify).sha
    if head is None or head == plan.parent or not _has_arrived(plan, folder, head):
        return None
    newest, *older = HfApi().list_repo_commits(plan.repo, revision=head)
    ours = plan.trailer in newest.message.splitlines() and older and older[0].commit_id == plan.parent
    return head if ours else None


def _has_arrived(plan: PublicationPlan, folder: Path, commit: str) -> bool:
    there = repository.tree(plan.repo, commit)
    return all(repository.change(file, folder, there) == "same" for file in plan.files) and not there.keys() & set(
        plan.removed
    )


def _check_arrived(plan: PublicationPlan, folder: Path, commit: str) -> None:
    try:
        arrived = _has_arrived(plan, folder, commit)
    except HubError as error:
        raise HubError(
            f"{plan.repo} accepted commit {commit}, but its files could not be checked: {error}",
            hint="publish again: the commit is recognised",
        ) from error
    if not arrived:
        raise HubError(
            f"{plan.repo} accepted commit {commit}, but its files differ from those that were sent",
            hint="check the commit on the Hub, then publish again",
        )


def tag(api: HfApi, plan: PublicationPlan, commit: str, notify: Notify) -> None:
    """Puts the plan's tag, if it has one, at the commit. Raises ConflictError where it stands elsewhere."""
    if plan.tag is None or commit_of_tag(api, plan, notify) == commit:
        return

    def create() -> None:
        try:
            api.create_tag(plan.repo, tag=str(plan.tag), revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            there = commit_of_tag(api, plan, notify)
            if there != commit:  # otherwise it was made, and only the answer was lost
                raise tag_taken(plan, str(there), f"; the publication itself is commit {commit}") from error

    retried(create, notify)


def commit_of_tag(api: HfApi, plan: PublicationPlan, notify: Notify) -> str | None:
    """Where the plan's tag stands already."""
    tags = retried(lambda: api.list_repo_refs(plan.repo), notify).tags if plan.tag else ()
    return next((tag.target_commit for tag in tags if tag.name == plan.tag), None)


def moved(repo: str, seen: str | None, now: str | None) -> HubError:
    return HubError(
        f"{repo} has moved from commit {seen} to {now} since the publication was planned",
        hint="review the new commits, then publish again; --rebase commits on top of them",
    )


def tag_taken(plan: PublicationPlan, commit: str, note: str = "") -> ConflictError:
    return ConflictError(
        f"tag {plan.tag} of {plan.repo} points to commit {commit} and is not moved{note}", hint="choose another tag"
    )
