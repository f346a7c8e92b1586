"""Publications: builds that went to the Hub, and where to."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from . import events
from .builds import Build
from .database import Database
from .domains import find_domain
from .records import Record
from .tables import BuildRow, PublicationRow


@dataclass(frozen=True)
class Publication(Record):
    """A build's trip to the Hub: `build` is its id, `revision` the commit."""

    id: int
    build: str
    domain: str
    repo: str
    revision: str
    tag: str | None
    created_at: datetime
    created_by: str


class Publications:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, build: Build, repo: str, revision: str, tag: str | None = None) -> Publication:
        with self._database.writing() as session:
            row = PublicationRow(build_id=build.id, repo=repo, revision=revision, tag=tag)
            session.add(row)
            asked = session.get_one(BuildRow, build.id)
            about = {"repo": repo, "revision": revision, "tag": tag}
            events.append(session, "build.published", build.id, about, base_id=asked.base_id, domain_id=asked.domain_id)
            session.flush()
            return _publication(row)

    def list(
        self, domain: str | None = None, *, build: str | None = None, limit: int = 50, after: int | None = None
    ) -> builtins.list[Publication]:
        """Newest first, of one build if its whole id is given; `after` is the id that the page before ended with."""
        query = select(PublicationRow).order_by(PublicationRow.id.desc()).limit(limit)
        if build is not None:
            query = query.where(PublicationRow.build_id == build)
        with self._database.reading() as session:
            if domain is not None:
                query = query.join(BuildRow, BuildRow.id == PublicationRow.build_id)
                query = query.where(BuildRow.domain_id == find_domain(session, domain).id)
            if after is not None:
                query = query.where(PublicationRow.id < after)
            return [_publication(row) for row in session.scalars(query)]

    def newest_by_domain(self) -> dict[str, Publication]:
        """The newest of every domain that has one, in one query."""
        newest = (
            select(func.max(PublicationRow.id))
            .join(BuildRow, BuildRow.id == PublicationRow.build_id)
            .group_by(BuildRow.domain_id)
        )
        query = select(PublicationRow).where(PublicationRow.id.in_(newest))
        with self._database.reading() as session:
            return {row.build.domain.name: _publication(row) for row in session.scalars(query)}


def _publication(row: PublicationRow) -> Publication:
    return Publication(
        id=row.id,
        build=row.build_id,
        domain=row.build.domain.name,
        repo=row.repo,
        revision=row.revision,
        tag=row.tag,
        created_at=row.created_at,
        created_by=row.created_by,
    )
