"""Which build a domain serves, and the other aliases and pins of builds; every move is an event.

An alias of builds belongs to a base model and a domain, as one of adapters does. What a domain serves is the build that has
its serving alias, `production` unless the domain names another.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session, joinedload

from ..database.connection import Database
from ..database.tables import (
    PROMOTIONS,
    BaseModelRow,
    BuildAliasRow,
    BuildPinRow,
    BuildRow,
    DomainRow,
    EventRow,
    ServingPolicyRow,
)
from ..errors import ConflictError, UsageError
from . import events
from .bases import find_base
from .build_queries import find_build, find_build_alias, find_build_locked
from .collecting import request_options, result_is_gone
from .domains import find_domain
from .events import ALIASINGS, Event, EventIds, event_of
from .expecting import Expected
from .gates import Passage, detail_of_override, detail_of_promotion, is_gated
from .records import NOT_IN_JSON, Record
from .references import Reference, check_name

PRODUCTION = "production"
CANDIDATE = "candidate"


@dataclass(frozen=True)
class ServingPolicy(Record):
    """`alias` is the one that a domain serves; `promote` is `manual`, or `automatic`: what succeeds by its own recipe is served."""

    domain: str
    alias: str = PRODUCTION
    promote: str = "manual"


@dataclass(frozen=True)
class BuildAlias(Record):
    """An alias of builds: which build has it, since when, and who put it there."""

    domain: str
    base: str
    alias: str
    build: str
    since: datetime
    by: str
    event: int = field(default=0, metadata=NOT_IN_JSON)


@dataclass(frozen=True)
class Move(Record):
    """What happened to an alias: `build` has it from `at` on, or nothing; `previous` had it before. `why` is what was said.

    Where the domain had a gate, `gate` is its version, and `evaluation` what passed it, or `override` why it was passed by.
    """

    event: int
    at: datetime
    by: str
    domain: str
    base: str
    alias: str
    build: str | None
    previous: str | None
    rollback: bool
    why: str | None
    gate: int | None
    evaluation: int | None
    override: str | None


class Serving:
    def __init__(self, database: Database) -> None:
        self._database = database

    def policy(self, domain: str) -> ServingPolicy:
        with self._database.reading() as session:
            return _policy(session, find_domain(session, domain))

    def policies(self) -> dict[str, ServingPolicy]:
        """Of those domains that have one of their own."""
        query = select(DomainRow.name, ServingPolicyRow).join(DomainRow, DomainRow.id == ServingPolicyRow.domain_id)
        with self._database.reading() as session:
            return {name: ServingPolicy(name, row.alias, row.promote) for name, row in session.execute(query)}

    def set_policy(
        self, domain: str, *, alias: str | None = None, promote: str | None = None, override: str | None = None
    ) -> ServingPolicy:
        """Changes what is given. Another alias is served from then on as it is: where no build has it, nothing is served.

        Raises GateError where the domain has a gate and that changes which build is served, unless there is an `override`.
        """
        if alias is not None and check_name("alias", alias) == CANDIDATE:
            raise UsageError("candidate is what is proposed, and cannot be what is served")
        if promote is not None and promote not in PROMOTIONS:
            raise UsageError(f"{promote!r} is no way to promote", hint=f"one of {', '.join(PROMOTIONS)}")
        with self._database.writing() as session:
            place = find_domain(session, domain, lock=True)
            before = _policy(session, place)
            after = ServingPolicy(domain, alias or before.alias, promote or before.promote)
            if after != before:
                old, new = before.to_json(), after.to_json()
                changed = {f"served.{key}": value for key, value in new.items() if old[key] != value}
                changed |= {"from": {key: value for key, value in old.items() if new[key] != value}}
                if after.alias != before.alias and _is_on_builds(session, place.id, before.alias, after.alias):
                    why = f"{domain} has a gate, and would serve its builds {after.alias} instead of {before.alias}"
                    command = f"reccocktail build policy {domain} --alias {after.alias}"
                    changed |= detail_of_override(session, place.id, why, override, command=command)
                events.append(session, "domain.changed", domain, changed, EventIds(domain_id=place.id))
                row = session.get(ServingPolicyRow, place.id)
                if row is None:
                    session.add(ServingPolicyRow(domain_id=place.id, alias=after.alias, promote=after.promote))
                else:
                    row.alias, row.promote = after.alias, after.promote
            return after

    def aliases(self, domain: str | None = None) -> builtins.list[BuildAlias]:
        """Of all domains or of one, by domain, base and name."""
        query = select(BuildAliasRow)
        with self._database.reading() as session:
            if domain is not None:
                query = query.where(BuildAliasRow.domain_id == find_domain(session, domain).id)
            found = [_alias(row) for row in session.scalars(query)]
        return sorted(found, key=lambda each: (each.domain, each.base, each.alias))

    def resolve(self, text: str, *, base: str | None = None) -> BuildAlias:
        """The build of `DOMAIN@ALIAS`. Raises NotFoundError; UsageError where several base models have it."""
        with self._database.reading() as session:
            return _alias(find_build_alias(session, text, base))

    def digests(self, refs: Iterable[Reference], *, base: str) -> dict[Reference, str]:
        """The digests of the results of the builds that have these aliases now for one base, in one query, or none without references."""
        wanted = {(ref.name, ref.alias) for ref in refs}
        if not wanted:
            return {}
        query = (
            select(DomainRow.name, BuildAliasRow.name, BuildRow.digest)
            .join(BuildRow, BuildRow.id == BuildAliasRow.build_id)
            .join(DomainRow, DomainRow.id == BuildAliasRow.domain_id)
            .join(BaseModelRow, BaseModelRow.id == BuildAliasRow.base_id)
            .where(BaseModelRow.name == base, tuple_(DomainRow.name, BuildAliasRow.name).in_(wanted))
        )
        with self._database.reading() as session:
            rows = session.execute(query)
            return {Reference(name, alias=alias): digest for name, alias, digest in rows if digest is not None}

    def served(self, domain: str) -> builtins.list[BuildAlias]:
        """What a domain serves, at most one for each base model; the one that was moved last comes first."""
        with self._database.reading() as session:
            place = find_domain(session, domain)
            return _newest_first(session, BuildAliasRow.domain_id == place.id)

    def served_by_domain(self) -> dict[str, builtins.list[BuildAlias]]:
        """The same of all domains that serve anything, in one query."""
        found: dict[str, builtins.list[BuildAlias]] = {}
        with self._database.reading() as session:
            for alias in _newest_first(session):
                found.setdefault(alias.domain, []).append(alias)
        return found

    def alias(
        self,
        build: str,
        name: str,
        *,
        base: str | None = None,
        why: str | None = None,
        expected: Expected | None = None,
    ) -> BuildAlias:
        """Puts the alias on a build, or moves it there. Raises ConflictError for a build that has not succeeded, PreconditionError."""
        check_name("alias", name)
        with self._database.writing() as session:
            row = find_build_locked(session, _id(session, build, base))
            _expect(session, row, name, expected)
            put(session, row, name, why=why)
            return _alias(_standing(session, row, name))

    def promote(
        self,
        build: str,
        *,
        base: str | None = None,
        why: str | None = None,
        rollback: bool = False,
        passage: Passage | None = None,
        expected: Expected | None = None,
    ) -> BuildAlias:
        """Makes the build what its domain serves. Raises ConflictError for one that has not succeeded, GateError without what the gate asks for.

        PreconditionError where the domain does not serve what `expected` says any more.
        """
        with self._database.writing() as session:
            row = find_build_locked(session, _id(session, build, base))
            name = _policy(session, row.domain).alias
            _expect(session, row, name, expected)
            put(session, row, name, why=why, rollback=rollback, passage=passage)
            return _alias(_standing(session, row, name))

    def remove(
        self,
        text: str,
        *,
        base: str | None = None,
        override: str | None = None,
        expected: Expected | None = None,
    ) -> BuildAlias:
        """Takes `DOMAIN@ALIAS` away from the build that has it, which is the answer.

        What a domain with a gate serves goes only with an `override`, the reason in words. Raises GateError, PreconditionError.
        """
        with self._database.writing() as session:
            ref = Reference.parse(text)
            find_domain(session, ref.name, lock=True)
            row = find_build_alias(session, text, base)
            if expected is not None:
                expected.check(text, row.event_id)
            gone, more = _alias(row), {}
            if row.name == _policy(session, row.build.domain).alias:
                why = f"{ref.name} has a gate, and would serve nothing"
                command = f"reccocktail build alias {text} --remove"
                more = detail_of_override(session, row.domain_id, why, override, command=command)
            elif override is not None:
                raise UsageError(f"{text} is not what {ref.name} serves: it has no gate, and --override is for one")
            events.append(session, "build.unaliased", row.build_id, _about(row.build, row.name) | more, _ids(row.build))
            return gone

    def pin(self, build: str, *, base: str | None = None, undo: bool = False) -> str:
        """Keeps the files of a succeeded build, or ends that; the answer is its id. Raises ConflictError for other builds."""
        with self._database.writing() as session:
            return set_pin(session, find_build_locked(session, _id(session, build, base)), undo=undo)

    def pinned(self) -> frozenset[str]:
        with self._database.reading() as session:
            return frozenset(session.scalars(select(BuildPinRow.build_id)))

    def marks(self, builds: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """By id, the aliases of those builds that have any, with `pinned` at the end of those that are; two queries."""
        wanted = [*builds]
        found: dict[str, tuple[str, ...]] = {}
        aliases = select(BuildAliasRow.build_id, BuildAliasRow.name).where(BuildAliasRow.build_id.in_(wanted))
        pins = select(BuildPinRow.build_id).where(BuildPinRow.build_id.in_(wanted))
        with self._database.reading() as session:
            for build, name in session.execute(aliases.order_by(BuildAliasRow.name)):
                found[build] = (*found.get(build, ()), name)
            for build in session.scalars(pins):
                found[build] = (*found.get(build, ()), "pinned")
        return found

    def history(
        self,
        domain: str,
        *,
        alias: str | None = None,
        base: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> builtins.list[Move]:
        """Where the aliases of a domain's builds were put, newest first; `after` is the event of the last of the page before."""
        with self._database.reading() as session:
            place = find_domain(session, domain)
            query = _moves(place.id, alias).order_by(EventRow.id.desc()).limit(limit)
            if base is not None:
                query = query.where(EventRow.base_id == find_base(session, base).id)
            if after is not None:
                query = query.where(EventRow.id < after)
            return [_move(event_of(row), place.name) for row in session.scalars(query)]

    def served_at(self, moment: datetime, domain: str | None = None) -> builtins.list[Move]:
        """The moves that decided what was served at a moment, by domain and base.

        What a domain serves is read from its serving alias of today.
        """
        serving = func.coalesce(ServingPolicyRow.alias, PRODUCTION)
        newest = (
            select(func.max(EventRow.id))
            .outerjoin(ServingPolicyRow, ServingPolicyRow.domain_id == EventRow.domain_id)
            .where(EventRow.kind.in_(ALIASINGS), EventRow.created_at <= moment, _named(serving))
            .group_by(EventRow.domain_id, EventRow.base_id)
        )
        with self._database.reading() as session:
            if domain is not None:
                newest = newest.where(EventRow.domain_id == find_domain(session, domain).id)
            query = select(EventRow, DomainRow.name).join(DomainRow, DomainRow.id == EventRow.domain_id)
            found = [_move(event_of(row), name) for row, name in session.execute(query.where(EventRow.id.in_(newest)))]
        return sorted((each for each in found if each.build), key=lambda each: (each.domain, each.base))

    def before(self, domain: str, base: str) -> str:
        """What was served before the build that is served now was promoted, passing over rollbacks. Raises ConflictError."""
        with self._database.reading() as session:
            place = find_domain(session, domain)
            name = _policy(session, place).alias
            query = _moves(place.id, name).where(EventRow.base_id == find_base(session, base).id)
            moves = [_move(event_of(row), place.name) for row in session.scalars(query.order_by(EventRow.id.desc()))]
        if not moves or moves[0].build is None:
            raise ConflictError(f"domain {domain!r} serves no build, so there is none to go back from")
        now = moves[0].build
        put_there = next((m for m in moves if m.build == now and not m.rollback), moves[-1])
        earlier = next((m.build for m in moves if m.event < put_there.event and m.build not in (None, now)), None)
        if earlier is None:
            later = (
                "; what was served after it was rolled back" if any(m.build not in (None, now) for m in moves) else ""
            )
            raise ConflictError(
                f"no build of {domain!r} was served before {now}{later}",
                hint=f"reccocktail rollback {domain} --to BUILD; `reccocktail build history {domain}`",
            )
        return earlier


def propose(session: Session, row: BuildRow) -> None:
    """To be called when a build by its domain's own recipe has succeeded, with the domain locked.

    It becomes the candidate; and what is served where nothing was, or where the domain promotes by itself.
    """
    policy = _policy(session, row.domain)
    put(session, row, CANDIDATE)
    if is_gated(session, row.domain_id):  # nothing passes a gate by itself
        return
    served = session.get(BuildAliasRow, (row.base_id, row.domain_id, policy.alias))
    if served is None and not _was_served(session, row, policy.alias):
        put(session, row, policy.alias, why="the first build of its domain by the domain's own recipe")
    elif policy.promote == "automatic":
        put(session, row, policy.alias, why="the domain promotes automatically")


def put(
    session: Session,
    row: BuildRow,
    name: str,
    *,
    why: str | None = None,
    rollback: bool = False,
    passage: Passage | None = None,
) -> None:
    """Moves the alias to the build, unless it is there; the domain is locked. Raises ConflictError unless the build has succeeded."""
    if row.status != "succeeded":
        raise ConflictError(
            f"build {row.id} is {row.status} and cannot be called {row.domain.name}@{name}: it has no result",
            hint=f"reccocktail build show {row.id}",
        )
    _refuse_collected(row)
    before = session.get(BuildAliasRow, (row.base_id, row.domain_id, name), populate_existing=True)
    if before is not None and before.build_id == row.id:
        return
    extra: dict[str, Any] = {} if before is None else {"from": before.build_id}
    extra |= ({"why": why} if why else {}) | ({"rollback": True} if rollback else {})
    again = rollback and _was_served(session, row, name, build=row.id)  # what passed once may be served again
    if name == _policy(session, row.domain).alias and not again:
        extra |= detail_of_promotion(session, row.domain_id, before and before.build_id, passage)
    events.append(session, "build.aliased", row.id, _about(row, name) | extra, _ids(row))


def set_pin(session: Session, row: BuildRow, *, undo: bool = False) -> str:
    """Of a build that is locked; the answer is its id. Raises ConflictError for one that has no files."""
    if row.status != "succeeded":
        raise ConflictError(f"build {row.id} is {row.status}; only one that has succeeded has files to keep")
    _refuse_collected(row)
    pinned = session.get(BuildPinRow, row.id) is not None
    if pinned == undo:
        events.append(session, "build.unpinned" if undo else "build.pinned", row.id, _about(row), _ids(row))
    return row.id


def _refuse_collected(row: BuildRow) -> None:
    if row.collected_at is not None:
        raise result_is_gone(row.id, row.domain.name, request_options(row.inputs), row.collected_at)


def _was_served(session: Session, row: BuildRow, name: str, *, build: str | None = None) -> bool:
    """Whether the alias was on a build before, on any or on this one: what was taken out of service by hand is not put back by a build."""
    query = _moves(row.domain_id, name).where(EventRow.base_id == row.base_id)
    if build is not None:
        query = query.where(EventRow.kind == "build.aliased", EventRow.subject == build)
    return session.scalar(query.limit(1)) is not None


def _is_on_builds(session: Session, domain_id: int, *names: str) -> bool:
    here = (BuildAliasRow.domain_id == domain_id, BuildAliasRow.name.in_(names))
    return session.scalar(select(BuildAliasRow.build_id).where(*here).limit(1)) is not None


def _moves(domain_id: int, alias: str | None) -> Any:
    query = select(EventRow).where(EventRow.domain_id == domain_id, EventRow.kind.in_(ALIASINGS))
    return query if alias is None else query.where(_named(alias))


def _named(alias: Any) -> Any:
    return EventRow.detail["alias"].as_string() == alias


def _newest_first(session: Session, *here: Any) -> builtins.list[BuildAlias]:
    """Serving aliases, the one that was moved last first."""
    query = (
        select(BuildAliasRow)
        .outerjoin(ServingPolicyRow, ServingPolicyRow.domain_id == BuildAliasRow.domain_id)
        .where(BuildAliasRow.name == func.coalesce(ServingPolicyRow.alias, PRODUCTION), *here)
        .order_by(BuildAliasRow.event_id.desc())
        .options(
            joinedload(BuildAliasRow.build).load_only(BuildRow.base_id, BuildRow.domain_id),
            joinedload(BuildAliasRow.event).load_only(EventRow.created_at, EventRow.created_by),
        )
    )
    return [_alias(row) for row in session.scalars(query)]


def _standing(session: Session, build: BuildRow, name: str) -> BuildAliasRow:
    key = (build.base_id, build.domain_id, name)
    return session.get_one(BuildAliasRow, key, populate_existing=True)


def _expect(session: Session, build: BuildRow, name: str, expected: Expected | None) -> None:
    if expected is not None:
        alias = session.get(BuildAliasRow, (build.base_id, build.domain_id, name), populate_existing=True)
        expected.check(f"{build.domain.name}@{name}", alias and alias.event_id)


def _id(session: Session, text: str, base: str | None) -> str:
    return find_build(session, text, base=base).id


def _policy(session: Session, place: DomainRow) -> ServingPolicy:
    row = session.get(ServingPolicyRow, place.id)
    return ServingPolicy(place.name) if row is None else ServingPolicy(place.name, row.alias, row.promote)


def _about(row: BuildRow, alias: str | None = None) -> dict[str, Any]:
    return {"domain": row.domain.name, "base": row.base.name} | ({"alias": alias} if alias else {})


def _ids(row: BuildRow) -> EventIds:
    return EventIds(base_id=row.base_id, domain_id=row.domain_id)


def _alias(row: BuildAliasRow) -> BuildAlias:
    build = row.build
    return BuildAlias(
        build.domain.name, build.base.name, row.name, build.id, row.event.created_at, row.event.created_by, row.event.id
    )


def _move(event: Event, domain: str) -> Move:
    """`domain` is its name of today: it may have had another then."""
    about = event.detail
    has_it = event.kind == "build.aliased"
    return Move(
        event=event.id,
        at=event.created_at,
        by=event.created_by,
        domain=domain,
        base=about["base"],
        alias=about["alias"],
        build=event.subject if has_it else None,
        previous=about.get("from") if has_it else event.subject,
        rollback=bool(about.get("rollback")),
        why=about.get("why"),
        gate=about.get("gate"),
        evaluation=about.get("evaluation"),
        override=about.get("override"),
    )
