"""Publications: builds and adapter versions that went to the Hub, and where to."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, joinedload

from ..database.connection import Database
from ..database.tables import AdapterRow, BuildRow, PublicationRow, WithdrawalRow
from ..errors import NotFoundError
from ..redaction import check_no_secret, redacted_values
from . import events
from .adapters import Adapter
from .builds import Build
from .domains import find_domain
from .events import EventIds
from .lookup import find_adapter, ref_of
from .records import NOT_IN_JSON, Record
from .references import Reference

_WHERE_IT_IS = joinedload(PublicationRow.build).load_only(BuildRow.base_id, BuildRow.domain_id)
"""For many publications: nothing is read of what their builds are made of."""

SIGNATURE = "model.sig"  # in a publication's `files` where it was signed


@dataclass(frozen=True)
class Publication(Record):
    """A trip to the Hub of a `build` (its id) or an `adapter` (its reference); `revision` is the commit.

    `files` has the SHA-256 (hex) of each file by its path, `options` what the next publication reuses; both are None
    of what was published before they were kept.
    """

    id: int
    build: str | None
    adapter: str | None
    domain: str  # `spirit` for a spirit
    repo: str
    revision: str
    tag: str | None
    withdrawn_at: datetime | None
    created_at: datetime
    created_by: str
    base: str = field(metadata=NOT_IN_JSON)
    files: Mapping[str, str] | None = field(default=None, metadata=NOT_IN_JSON)
    options: Mapping[str, Any] | None = field(default=None, metadata=NOT_IN_JSON)

    @property
    def subject(self) -> str:
        """What was published, as a person says it."""
        return f"build {self.build}" if self.build else str(self.adapter)

    def describe(self) -> dict[str, Any]:
        """With its files and what the next publication takes over."""
        files = [{"path": path, "sha256": digest} for path, digest in sorted((self.files or {}).items())]
        return self.to_json() | {"files": files, "options": dict(self.options or {})}

    def of(self, subject: Build | Adapter) -> bool:
        """Whether it carries this very build or adapter version."""
        if isinstance(subject, Build):
            return self.build == subject.id
        return (self.adapter, self.base) == (subject.ref, subject.base)


class Publications:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        subject: Build | Adapter,
        repo: str,
        revision: str,
        tag: str | None = None,
        *,
        files: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Publication:
        """Records a commit that the Hub has. The newest row of the repository is answered again if it says all of this."""
        about = {"repo": check_no_secret("repository", repo), "revision": revision, "tag": tag}
        check_no_secret("tag", tag or "")
        with self._database.writing() as session:
            rest = {
                "files": None if files is None else dict(files),
                "options": None if options is None else redacted_values(options),
            }
            row = PublicationRow(**about, **rest)
            if isinstance(subject, Build):
                asked = session.get_one(BuildRow, subject.id)
                # two who publish at once are to come to one row
                find_domain(session, asked.domain.name, lock=True)
                row.build_id = asked.id
                kind, name = "build.published", asked.id
                place = (asked.base_id, asked.domain_id, None)
            else:
                find_domain(session, Reference.parse(subject.ref).name, lock=True)
                version = find_adapter(session, subject.ref, subject.base)
                row.adapter_id = version.id
                kind, name = "adapter.published", subject.ref
                place = (version.base_id, version.domain_id, version.id)
            newest = session.scalar(_of_repo(repo).limit(1))
            if newest is not None and newest.withdrawal is None and _same(newest, row):
                return _publication(newest)
            session.add(row)
            base_id, domain_id, adapter_id = place
            events.append(
                session, kind, name, about, EventIds(base_id=base_id, domain_id=domain_id, adapter_id=adapter_id)
            )
            session.flush()
            session.refresh(row)
            return _publication(row)

    def get(self, id_or_repo: str) -> Publication:
        """By its number, or the newest of a repository. Raises NotFoundError."""
        with self._database.reading() as session:
            return _publication(_find(session, id_or_repo)[0])

    def of_repo(self, repo: str) -> builtins.list[Publication]:
        """All that went to a repository, newest first, withdrawn ones included."""
        with self._database.reading() as session:
            return [_publication(row) for row in session.scalars(_of_repo(repo))]

    def newest_revision(self, repo: str) -> str | None:
        """The commit that was last published to a repository."""
        with self._database.reading() as session:
            row = session.scalar(_of_repo(repo).limit(1))
            return row and row.revision

    def list(
        self,
        domain: str | None = None,
        *,
        build: str | None = None,
        repo: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> builtins.list[Publication]:
        """Newest first, of one build if its whole id is given; `after` is the id that the page before ended with."""
        query = select(PublicationRow).order_by(PublicationRow.id.desc()).limit(limit).options(_WHERE_IT_IS)
        if build is not None:
            query = query.where(PublicationRow.build_id == build)
        if repo is not None:
            query = query.where(PublicationRow.repo == repo)
        with self._database.reading() as session:
            if domain is not None:
                place = find_domain(session, domain).id
                builds = select(BuildRow.id).where(BuildRow.domain_id == place)
                versions = select(AdapterRow.id).where(AdapterRow.domain_id == place)
                query = query.where(or_(PublicationRow.build_id.in_(builds), PublicationRow.adapter_id.in_(versions)))
            if after is not None:
                query = query.where(PublicationRow.id < after)
            return [_publication(row) for row in session.scalars(query)]

    def standing(self, domain: str | None = None) -> builtins.list[Publication]:
        """The newest of every repository that has a build and was not withdrawn, newest first, in one query.

        Where the newest was withdrawn, what was there before it does not stand again: the repository's head is not that.
        """
        newest = select(func.max(PublicationRow.id)).group_by(PublicationRow.repo)
        query = (
            select(PublicationRow)
            .where(PublicationRow.id.in_(newest), PublicationRow.build_id.is_not(None))
            .where(PublicationRow.id.not_in(select(WithdrawalRow.publication_id)))
            .order_by(PublicationRow.id.desc())
            .options(_WHERE_IT_IS)
        )
        with self._database.reading() as session:
            if domain is not None:
                builds = select(BuildRow.id).where(BuildRow.domain_id == find_domain(session, domain).id)
                query = query.where(PublicationRow.build_id.in_(builds))
            return [_publication(row) for row in session.scalars(query)]

    def withdrawn_builds(self) -> frozenset[tuple[str, str]]:
        """(repository, build) where a build was published, for the last time, and withdrawn."""
        newest = select(func.max(PublicationRow.id)).group_by(PublicationRow.repo, PublicationRow.build_id)
        query = (
            select(PublicationRow.repo, PublicationRow.build_id)
            .where(PublicationRow.id.in_(newest))
            .where(PublicationRow.id.in_(select(WithdrawalRow.publication_id)))
        )
        with self._database.reading() as session:
            return frozenset((repo, build) for repo, build in session.execute(query) if build is not None)

    def newest_by_adapter(self, digests: builtins.list[str]) -> dict[str, Publication]:
        """By digest, where these adapter versions were last published, unless that was withdrawn."""
        query = (
            select(AdapterRow.digest, PublicationRow)
            .join(AdapterRow, AdapterRow.id == PublicationRow.adapter_id)
            .where(AdapterRow.digest.in_(digests))
            .where(PublicationRow.id.not_in(select(WithdrawalRow.publication_id)))
            .order_by(PublicationRow.id)
        )
        with self._database.reading() as session:
            return {digest: _publication(row) for digest, row in session.execute(query)}

    def withdraw(self, id_or_repo: str) -> builtins.list[Publication]:
        """Marks one publication by its number, or all of a repository, as withdrawn; those that are already stay as they are.

        The answer has all that were named. Raises NotFoundError.
        """
        with self._database.writing() as session:
            rows = _find(session, id_or_repo)
            for row in rows:
                if row.withdrawal is None:
                    session.add(WithdrawalRow(publication_id=row.id))
                    owner = row.build or row.adapter
                    assert owner is not None
                    about = {"repo": row.repo, "revision": row.revision, "tag": row.tag}
                    name = row.build_id or (row.adapter and ref_of(row.adapter))
                    kind = f"{'build' if row.build_id else 'adapter'}.withdrawn"
                    events.append(
                        session,
                        kind,
                        str(name),
                        about,
                        EventIds(base_id=owner.base_id, domain_id=owner.domain_id, adapter_id=row.adapter_id),
                    )
                    session.flush()
                    session.refresh(row)
            return [_publication(row) for row in rows]


def _find(session: Session, id_or_repo: str) -> list[PublicationRow]:
    hint = "`reccocktail publication list` shows them"
    if id_or_repo.isdecimal() and len(id_or_repo) < 19:
        row = session.get(PublicationRow, int(id_or_repo))
        if row is None:
            raise NotFoundError(f"there is no publication {id_or_repo}", hint=hint)
        return [row]
    rows = [*session.scalars(_of_repo(id_or_repo))]
    if not rows:
        raise NotFoundError(f"nothing was published to {id_or_repo!r} from here", hint=hint)
    return rows


def _of_repo(repo: str) -> Any:
    return select(PublicationRow).where(PublicationRow.repo == repo).order_by(PublicationRow.id.desc())


def _same(one: PublicationRow, other: PublicationRow) -> bool:
    names = ("build_id", "adapter_id", "revision", "tag", "files", "options")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _publication(row: PublicationRow) -> Publication:
    owner = row.build or row.adapter
    assert owner is not None
    return Publication(
        id=row.id,
        build=row.build_id,
        adapter=row.adapter and ref_of(row.adapter),
        domain=owner.domain.name,
        repo=row.repo,
        revision=row.revision,
        tag=row.tag,
        withdrawn_at=row.withdrawal and row.withdrawal.created_at,
        created_at=row.created_at,
        created_by=row.created_by,
        base=owner.base.name,
        files=row.files,
        options=row.options,
    )
