"""The plan of a publication: what a repository holds, what will be sent, replaced and removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch

from ..registry.digests import digest_of_json
from .repository import ADAPTER, Kind, PlannedFile

Notify = Callable[[str], None]


@dataclass(frozen=True)
class RemoteHistory:
    """What this registry has published to the repository: the newest commit, and every file that was ever ours there."""

    revision: str | None = None
    same: bool = False  # whether the newest commit carries the very thing that is to be published
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 (hex) by path, of the newest commit
    ever: Mapping[str, frozenset[str]] = field(default_factory=dict)  # the same, of all commits


@dataclass(frozen=True)
class UploadOptions:
    """How a folder is published. `trailer` names what it is; `offline` asks nothing of the Hub.

    With `rebase` it goes on top of what somebody else has committed; with `replaces` all that is there makes room.
    """

    trailer: str
    private: bool = True
    tag: str | None = None
    rebase: bool = False
    replaces: bool = False
    offline: bool = False


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
    removed: tuple[str, ...] = ()  # no longer wanted: ours, from before; with `replaces`, other people's too
    foreign: tuple[str, ...] = ()  # of those that are removed, other people's
    kept: tuple[str, ...] = ()  # other people's
    replaced: tuple[str, ...] = ()  # other people's, that files of ours take the place of
    held: Kind | None = None  # what is there, if it is of another kind
    rebase: bool = False
    replaces: bool = False  # all that is there makes room
    before: RemoteHistory = field(default_factory=RemoteHistory)
    unreached: str | None = None  # "Hub not reached: …"

    @property
    def uploads(self) -> tuple[PlannedFile, ...]:
        return tuple(file for file in self.files if file.change != "same")

    @property
    def kind(self) -> Kind:
        """Of what is published."""
        return "adapter" if any(fnmatch(file.path, name) for file in self.files for name in ADAPTER) else "model"

    @property
    def digest(self) -> str:
        """Of the paths and contents that are published."""
        return digest_of_json({file.path: file.sha256 for file in self.files})

    @property
    def effect(self) -> str:
        """A digest of all that carrying it out would change, for somebody who agrees to that alone."""
        files = {file.path: [file.sha256, file.change] for file in self.files}
        place = [self.repo, self.repo_exists, self.private, self.tag, self.parent, self.commit]
        return digest_of_json([place, files, self.removed, self.replaced, self.kept])


@dataclass(frozen=True)
class Published:
    repo: str
    commit: str
    tag: str | None
    made: bool  # False: the Hub had it already
