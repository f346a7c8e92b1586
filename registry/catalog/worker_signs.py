"""Workers by the signs of life that they leave: leases of builds that they have, and builds that they ended. One that is idle leaves none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from ..database.tables import BuildRow, now

RECENT = timedelta(days=1)
MOST = 20


@dataclass(frozen=True)
class WorkerSign:
    """What is known of a worker: the ids of builds that it has, when it last gave a sign, and until when its lease holds; None: it has no build."""

    name: str
    seen_at: datetime
    builds: tuple[str, ...] = ()
    lease_until: datetime | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it has a build and renews its lease; of one without a build nobody knows."""
        return self.lease_until is not None and self.lease_until >= now()


def worker_signs(session: Session, lease: timedelta) -> list[WorkerSign]:
    """Those that have builds, then those that ended one within a day, each the newest sign first."""
    busy = sorted(_busy(session, lease), key=lambda sign: sign.seen_at, reverse=True)
    names = {sign.name for sign in busy}
    return [*busy, *(sign for sign in _done(session) if sign.name not in names)]


def _busy(session: Session, lease: timedelta) -> Iterator[WorkerSign]:
    query = select(BuildRow.worker, BuildRow.id, BuildRow.lease_until).where(BuildRow.status == "running")
    held: dict[str, list[tuple[str, Any]]] = {}
    for worker, build, until in session.execute(query.order_by(BuildRow.id)):
        held.setdefault(str(worker), []).append((build, until))  # what runs has a worker
    for worker, builds in held.items():
        until = max(each for _, each in builds)
        yield WorkerSign(worker, until - lease, tuple(build for build, _ in builds), until)


def _done(session: Session) -> Iterator[WorkerSign]:
    ended = func.max(BuildRow.finished_at)
    # of one that was cancelled, and of one whose worker was lost, not the worker said so
    told = or_(
        BuildRow.status == "succeeded", and_(BuildRow.status == "failed", BuildRow.error["code"].as_string() != "lost")
    )
    of_workers = (BuildRow.worker.is_not(None), told)
    query = select(BuildRow.worker, ended).where(*of_workers, BuildRow.finished_at >= now() - RECENT)
    for worker, at in session.execute(query.group_by(BuildRow.worker).order_by(ended.desc()).limit(MOST)):
        if worker is not None and at is not None:
            yield WorkerSign(worker, at)
