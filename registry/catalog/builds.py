"""Builds: requests for merged checkpoints and item indexes, who works on them, and what came of them.

    queued → running → succeeded | failed        cancel: queued, running → cancelled        retry: failed, cancelled → queued

A failure that may heal puts the build back: running → queued, to be claimed again after a while.

A worker holds a running build by a lease that it renews. Once the lease has run out another may claim the build, and
whatever the first still reports is refused.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import BuildInputRow, BuildLogRow, BuildRow, DomainRow, now
from ..errors import ConflictError, StoreError
from ..redaction import redacted, redacted_values
from ..store.contract import Store
from . import build_requests, events
from .bases import find_base
from .build_lists import CREATED, listed
from .build_queries import (
    adapter_ids,
    find_build,
    find_build_locked,
    held_build,
    is_claimable,
    is_stored,
    is_stored_merge,
    is_unsettled,
    new_id,
    newest_of_domain,
    oldest_claimable,
    reusable,
)
from .build_records import Build, LogLine, Request
from .build_requests import Once
from .domains import find_domain
from .events import EventIds
from .filters import BuildFilter
from .references import MERGE
from .serving import propose
from .worker_signs import WorkerSign, worker_signs

LEASE_SECONDS = 60.0
MAX_ATTEMPTS = 5
LONGEST_LINE = 4_000  # characters of a line of a log
KEYS_AT_ONCE = 5_000  # databases bound the parameters of one statement

_LATEST = (BuildRow.finished_at.desc(), BuildRow.id.desc())


class Builds:
    def __init__(self, database: Database, store: Store, once: Once | None = None) -> None:
        """With `once`, `request` answers what it has answered to that request before."""
        self._database = database
        self._store = store
        self._once = once

    def request(
        self,
        domain: str,
        base: str,
        key: str,
        recipe: Mapping[str, Any],
        inputs: Mapping[str, Any],
        *,
        force: bool = False,
        own_recipe: bool | None = None,
        kind: str = MERGE,
    ) -> Request:
        """A build of that key: the one that is queued, running or succeeded and still stored, otherwise a new one.

        `force` makes a new one although one has succeeded. `own_recipe` is as in `Build`; an experiment that is asked for by what
        has become the domain's own recipe is none any more. `inputs["adapters"]`, a list of objects with `ref` and
        `digest`, becomes the build's lineage.
        """
        with self._database.writing() as session:
            place = find_domain(session, domain, lock=True)  # two equal requests at once make one build
            if (row := build_requests.known(session, self._once)) is not None:
                return Request(self._build(row), created=False)
            if (row := self._standing(session, key, reusable(force))) is not None:
                if own_recipe:
                    row.own_recipe = True
                    session.flush()
                    if row.status == "succeeded":  # going back to what was built before is a proposal too
                        propose(session, row)
                build_requests.note(session, self._once, row)
                return Request(self._build(row), created=False)
            row = BuildRow(
                id=new_id(),
                domain_id=place.id,
                base_id=find_base(session, base).id,
                kind=kind,
                status="queued",
                key=key,
                recipe=dict(recipe),
                inputs=dict(inputs),
                own_recipe=own_recipe,
            )
            about = {"domain": domain, "key": key}
            events.append(
                session, "build.queued", row.id, about, EventIds(base_id=row.base_id, domain_id=row.domain_id)
            )
            session.add(row)
            session.flush()
            for adapter_id in adapter_ids(session, base, inputs):
                session.add(BuildInputRow(build_id=row.id, adapter_id=adapter_id))
            build_requests.note(session, self._once, row)
            return Request(self._build(row), created=True)

    def answered(self) -> Build | None:
        """What this very request was answered with before, if it named itself. Raises ConflictError."""
        with self._database.reading() as session:
            row = build_requests.known(session, self._once)
            return None if row is None else self._build(row)

    def has_reusable_build(self, key: str, *, force: bool = False) -> bool:
        """Whether `request` would answer with a build that is there."""
        with self._database.reading() as session:
            return self._standing(session, key, reusable(force)) is not None

    def claim(self, worker: str, lease_seconds: float = LEASE_SECONDS, build_id: str | None = None) -> Build | None:
        """The oldest build that waits, or whose worker let its lease run out; now `worker`'s. None if there is none.

        A build that has lost MAX_ATTEMPTS workers has failed: it may be what kills them.
        """
        moment = now()
        query = oldest_claimable(moment)
        if build_id is not None:
            query = query.where(BuildRow.id == build_id)
        with self._database.writing() as session:
            row = self._take(session, query, worker, moment, lease_seconds)
            return None if row is None else self._build(row)

    def claim_batch(
        self, worker: str, limit: int, *, num_workers: int = 1, lease_seconds: float = LEASE_SECONDS
    ) -> builtins.list[Build]:
        """The oldest build that waits, with up to `limit - 1` others over the same base, to be made in one pass; none if none waits.

        Of `beside` workers each takes its share of what waits. One that has lost a worker before is taken alone: it may be what
        kills them.
        """
        moment = now()
        with self._database.writing() as session:
            first = self._take(session, oldest_claimable(moment), worker, moment, lease_seconds)
            if first is None:
                return []
            taken = [first]
            if limit > 1 and first.attempts == 1:
                others = (BuildRow.status == "queued", BuildRow.attempts == 0, BuildRow.base_id == first.base_id)
                waiting = 1 + (session.scalar(select(func.count()).select_from(BuildRow).where(*others)) or 0)
                share = min(limit, -(-waiting // max(1, num_workers)))
                query = oldest_claimable(moment).where(*others)
                while len(taken) < share and (row := self._take(session, query, worker, moment, lease_seconds)):
                    taken.append(row)
            return [self._build(row) for row in taken]

    def _take(
        self, session: Session, query: Select[BuildRow], worker: str, moment: datetime, lease_seconds: float
    ) -> BuildRow | None:
        while (row := session.scalar(query)) is not None and row.status == "running" and row.attempts >= MAX_ATTEMPTS:
            lost = {"code": "lost", "message": f"build {row.id} failed: its worker was lost {row.attempts} times"}
            self._move(session, row, "failed", error=lost)
            row.error = lost
            session.flush()
        if row is None:
            return None
        self._move(session, row, "running", worker=worker)
        row.worker, row.lease_until = worker, moment + timedelta(seconds=lease_seconds)
        row.started_at, row.attempts, row.done, row.total = moment, row.attempts + 1, 0, 0
        row.stage = row.error = None
        session.flush()
        return row

    def heartbeat(self, build_id: str, worker: str, *, lease_seconds: float = LEASE_SECONDS) -> None:
        """Renews the lease. Raises ConflictError if the build is not the worker's any more."""
        with self._database.writing() as session:
            held_build(session, build_id, worker).lease_until = now() + timedelta(seconds=lease_seconds)

    def progress(self, build_id: str, worker: str, done: int, total: int, stage: str | None = None) -> None:
        """Raises ConflictError if the build is not the worker's any more."""
        with self._database.writing() as session:
            row = held_build(session, build_id, worker)
            row.done, row.total, row.stage = done, total, stage

    def log(self, build_id: str, worker: str | None, text: str) -> None:
        """Keeps a log line of a build, whichever worker has it."""
        with self._database.writing() as session:
            session.add(BuildLogRow(build_id=build_id, worker=worker, text=redacted(text)[:LONGEST_LINE]))

    def logs(self, build_id: str, *, after: int = 0, limit: int = 1000) -> builtins.list[LogLine]:
        """In the order they were said; `after` is the id of the last one that is known."""
        with self._database.reading() as session:
            own = find_build(session, build_id).id
            query = select(BuildLogRow).where(BuildLogRow.build_id == own, BuildLogRow.id > after)
            rows = session.scalars(query.order_by(BuildLogRow.id).limit(limit))
            return [LogLine(row.id, row.created_at, row.worker, row.text) for row in rows]

    def postpone(self, build_id: str, worker: str, error: Mapping[str, Any] | None, seconds: float) -> Build:
        """Puts a running build back, to be claimed by anybody after so many seconds. Without an error it is no failed attempt.

        A build that has lost or failed MAX_ATTEMPTS times has failed. Raises ConflictError if it is not the worker's any more.
        """
        with self._database.writing() as session:
            row = held_build(session, build_id, worker)
            if error is not None and row.attempts >= MAX_ATTEMPTS:
                self._move(session, row, "failed", error=dict(error))
            else:
                self._move(session, row, "queued", **({"error": dict(error)} if error else {}))
                row.retry_at = now() + timedelta(seconds=seconds)
                row.attempts -= error is None
            row.error = None if error is None else redacted_values(error)
            row.worker = None
            session.flush()
            return self._build(row)

    def succeed(
        self,
        build_id: str,
        worker: str,
        digest: str,
        coefficients: Mapping[str, Any] | None,
        report: Mapping[str, Any] | None,
    ) -> Build:
        """Saying so twice is harmless: the answer to the first time may have been lost.

        A build by its domain's own recipe becomes the domain's candidate, and what it serves where nothing was served before.
        Raises ConflictError if the build is not the worker's any more, StoreError if the result is not stored.
        """
        if not self._store.has(digest):
            raise StoreError(f"the result {digest} of build {build_id} is not in the store")
        with self._database.writing() as session:
            known = find_build_locked(session, build_id)
            if (known.status, known.worker, known.digest) == ("succeeded", worker, digest):
                return self._build(known)
            row = held_build(session, build_id, worker)
            self._move(session, row, "succeeded", digest=digest)
            row.digest = digest
            row.coefficients = dict(coefficients) if coefficients else None
            row.report = None if report is None else dict(report)
            session.flush()
            if row.own_recipe:
                propose(session, row)
            return self._build(row)

    def fail(self, build_id: str, worker: str, error: Mapping[str, Any]) -> Build:
        """Raises ConflictError if the build is not the worker's any more."""
        with self._database.writing() as session:
            row = held_build(session, build_id, worker)
            self._move(session, row, "failed", error=dict(error))
            row.error = redacted_values(error)
            return self._build(row)

    def cancel(self, build_id: str) -> Build:
        """A running build's worker finds out when it next reports. Raises ConflictError for one that has ended."""
        with self._database.writing() as session:
            row = find_build_locked(session, build_id)
            if row.status not in ("queued", "running"):
                raise ConflictError(f"build {row.id} has {row.status} and cannot be cancelled")
            self._move(session, row, "cancelled")
            return self._build(row)

    def retry(self, build_id: str) -> Build:
        """Queues a failed or cancelled build again. Raises ConflictError if its key is being built, or was."""
        with self._database.writing() as session:
            row = find_build_locked(session, build_id)
            if row.status not in ("failed", "cancelled"):
                raise ConflictError(f"build {row.id} is {row.status}; only a failed or cancelled one can be retried")
            if (other := self._standing(session, row.key, ("queued", "running", "succeeded"))) is not None:
                raise ConflictError(f"build {other.id}, which is {other.status}, has the same key as {row.id}")
            self._move(session, row, "queued")
            row.worker = row.error = row.started_at = row.finished_at = None
            row.done = row.total = row.attempts = 0
            return self._build(row)

    def free(self, worker: str, message: str) -> builtins.list[Build]:
        """Puts the running builds of a worker, whom the caller knows to be gone, back into the queue.

        The worker is named in full, or by the token that its name ends with. A build that has lost MAX_ATTEMPTS workers has failed.
        """
        named = or_(BuildRow.worker == worker, BuildRow.worker.endswith(f"/{worker}", autoescape=True))
        query = select(BuildRow).where(BuildRow.status == "running", named)
        freed = []
        with self._database.writing() as session:
            for row in session.scalars(query.with_for_update(of=BuildRow)):
                lost = {"code": "lost", "message": message}
                self._move(session, row, "failed" if row.attempts >= MAX_ATTEMPTS else "queued", error=lost)
                row.error, row.worker = lost, None
                session.flush()
                freed.append(self._build(row))
        return freed

    def waiting(self) -> int:
        """How many builds could be claimed now."""
        with self._database.reading() as session:
            return session.scalar(select(func.count()).select_from(BuildRow).where(is_claimable(now()))) or 0

    def claimable(self, *, limit: int = 1000) -> builtins.list[Build]:
        """Those that could be claimed now, the oldest first."""
        with self._database.reading() as session:
            query = select(BuildRow).where(is_claimable(now())).order_by(BuildRow.id).limit(limit)
            return [self._build(row) for row in session.scalars(query)]

    def workers(self) -> builtins.list[WorkerSign]:
        """Who has builds, and who ended one within a day."""
        with self._database.reading() as session:
            return worker_signs(session, timedelta(seconds=LEASE_SECONDS))

    def counts(self) -> dict[str, int]:
        """How many builds are in each status that any is in."""
        with self._database.reading() as session:
            rows = session.execute(select(BuildRow.status, func.count()).group_by(BuildRow.status))
            return {row.status: row[1] for row in rows}

    def get(self, build_id: str) -> Build:
        """By id, by its beginning or end if that is unique, or by DOMAIN@ALIAS. Raises NotFoundError, UsageError."""
        with self._database.reading() as session:
            return self._build(find_build(session, build_id))

    def list(
        self, wanted: BuildFilter | None = None, *, sort: str = CREATED, limit: int = 50, after: str | None = None
    ) -> builtins.list[Build]:
        """Those that the filter lets through, newest first or by one of SORTS; `after` is the id that the page before ended with."""
        with self._database.reading() as session:
            query = listed(session, wanted or BuildFilter(), sort, after).limit(limit)
            return [self._build(row) for row in session.scalars(query)]

    def newest_of_key(self, key: str) -> Build | None:
        """The one of that key that was asked for last, whatever became of it."""
        with self._database.reading() as session:
            row = session.scalar(select(BuildRow).where(BuildRow.key == key).order_by(BuildRow.id.desc()).limit(1))
            return None if row is None else self._build(row)

    def newest_succeeded(self, domain: str, *, key: str | None = None) -> Build | None:
        """The merge that finished last, of that key if one is given."""
        query = select(BuildRow).where(is_stored_merge()).order_by(*_LATEST).limit(1)
        if key is not None:
            query = query.where(BuildRow.key == key)
        with self._database.reading() as session:
            row = session.scalar(query.where(BuildRow.domain_id == find_domain(session, domain).id))
            return None if row is None else self._build(row)

    def unsettled(self, domain: str | None = None) -> builtins.list[Build]:
        """Queued and running builds, and of each domain its newest of either kind if that failed, oldest first: of all domains, or of one."""
        query = select(BuildRow).where(is_unsettled()).order_by(BuildRow.id)
        with self._database.reading() as session:
            if domain is not None:
                query = query.where(BuildRow.domain_id == find_domain(session, domain).id)
            return [self._build(row) for row in session.scalars(query)]

    def newest_succeeded_by_domain(self, *, own_recipe: bool | None = None) -> dict[str, Build]:
        """What `newest_succeeded` answers for every domain that has one, in one query; with `own_recipe`, where that is so of it."""
        query = select(BuildRow).where(BuildRow.id.in_(select(newest_of_domain()).select_from(DomainRow)))
        if own_recipe is not None:
            query = query.where(BuildRow.own_recipe.is_(own_recipe))
        with self._database.reading() as session:
            return {row.domain.name: self._build(row) for row in session.scalars(query)}

    def succeeded_with_keys(self, keys: Iterable[str]) -> dict[str, Build]:
        """By key, the build of it that finished last, for those keys that have been built."""
        newest = self.ids_succeeded_with_keys(keys)
        builds = self.with_ids(newest.values())
        return {key: builds[id_] for key, id_ in newest.items()}

    def ids_succeeded_with_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """What `succeeded_with_keys` answers, by id."""
        wanted = [*dict.fromkeys(keys)]
        found: dict[str, str] = {}
        with self._database.reading() as session:
            for start in range(0, len(wanted), KEYS_AT_ONCE):
                some = BuildRow.key.in_(wanted[start : start + KEYS_AT_ONCE])
                for key, id_ in session.execute(
                    select(BuildRow.key, BuildRow.id).where(some, is_stored()).order_by(*_LATEST)
                ):
                    found.setdefault(key, id_)
        return found

    def with_result(self, digest: str) -> builtins.list[Build]:
        """The builds whose result has this digest, the newest first."""
        query = select(BuildRow).where(BuildRow.digest == digest).order_by(*_LATEST)
        with self._database.reading() as session:
            return [self._build(row) for row in session.scalars(query)]

    def with_ids(self, ids: Iterable[str]) -> dict[str, Build]:
        """By id, those builds that there are."""
        wanted = [*dict.fromkeys(ids)]
        found: dict[str, Build] = {}
        with self._database.reading() as session:
            for start in range(0, len(wanted), KEYS_AT_ONCE):
                query = select(BuildRow).where(BuildRow.id.in_(wanted[start : start + KEYS_AT_ONCE]))
                found |= {row.id: self._build(row) for row in session.scalars(query)}
        return found

    def _standing(self, session: Session, key: str, statuses: tuple[str, ...]) -> BuildRow | None:
        """The newest build of the key in one of the statuses, passing over results that are not in the store any more."""
        here = (BuildRow.key == key, BuildRow.status.in_(statuses), BuildRow.collected_at.is_(None))
        query = select(BuildRow).where(*here).order_by(BuildRow.id.desc())
        rows = session.scalars(query).all()
        return next((row for row in rows if row.digest is None or self._store.has(row.digest)), None)

    def _move(self, session: Session, row: BuildRow, status: str, **detail: Any) -> None:
        """Changes the status; the caller sets what else comes with it before the row is flushed."""
        about = {"domain": row.domain.name} | redacted_values(detail)
        events.append(session, f"build.{status}", row.id, about, EventIds(base_id=row.base_id, domain_id=row.domain_id))
        row.status = status
        if status != "running":
            row.lease_until = row.stage = None
        if status != "queued":
            row.retry_at = None
        if status not in ("queued", "running"):
            row.finished_at = now()

    def _build(self, row: BuildRow) -> Build:
        return Build(
            id=row.id,
            domain=row.domain.name,
            base=row.base.name,
            kind=row.kind,
            status=row.status,
            key=row.key,
            digest=row.digest,
            recipe=row.recipe,
            coefficients=row.coefficients,
            inputs=row.inputs,
            path=self._store.local(row.digest) if row.digest and row.collected_at is None else None,
            report=row.report,
            error=row.error,
            done=row.done,
            total=row.total,
            attempts=row.attempts,
            worker=row.worker,
            stage=row.stage,
            retry_at=row.retry_at,
            created_at=row.created_at,
            created_by=row.created_by,
            started_at=row.started_at,
            finished_at=row.finished_at,
            own_recipe=row.own_recipe,
            recipe_ref=(row.inputs.get("recipe") or {}).get("ref"),
            collected_at=row.collected_at,
        )
