"""Adapters: immutable versions under a domain or `spirit`, and the aliases that move among them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Integer, Select, String, cast, func, select, true, tuple_, union_all, update
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.orm.attributes import set_committed_value

from ..artifacts.allowlist import adapter_files, tokenizer_files
from ..artifacts.facts import AdapterFacts
from ..artifacts.inspect import inspect_adapter
from ..artifacts.tokenizers import brings_own
from ..database.connection import Database
from ..database.tables import AdapterRow, AdapterTagRow, AdapterWordsRow, AliasRow, BaseModelRow, DomainRow, EventRow
from ..errors import ConflictError, InvalidArtifactError, UsageError
from ..store.contract import Store
from ..store.links import cached_repo
from . import events, history
from . import usage as lineage
from .bases import Base, Bases, find_base
from .domains import find_domain
from .events import Event, EventIds
from .filters import MetricBound
from .lookup import find_adapter, find_adapter_locked, parsed, preferred, ref_of
from .records import NOT_IN_JSON, Record
from .references import SPIRIT, Reference, check_name
from .registration import Checks, Labels, owner_name
from .training import PARTIAL, TrainingContext
from .usage import Reached


@dataclass(frozen=True)
class Adapter(Record):
    """One version. `ref` is its reference by version; `domain` is None for a spirit; `bytes` counts its tensors."""

    ref: str
    role: str
    domain: str | None
    base: str
    version: int
    digest: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    tensors: int
    bytes: int
    metrics: Mapping[str, float]
    tags: tuple[str, ...]
    note: str | None
    context: Mapping[str, Any]
    aliases: tuple[str, ...]
    archived_at: datetime | None
    created_at: datetime
    created_by: str
    created: bool = field(default=False, metadata=NOT_IN_JSON)
    skipped: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)
    ignored: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)
    notes: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)

    @property
    def training(self) -> TrainingContext:
        """How it came about: its context, as far as that has the known form."""
        return TrainingContext.of(self.context)


@dataclass(frozen=True)
class AdapterFilter:
    """Which adapter versions: every condition has to hold, every tag and every metric bound.

    `text` is looked for in domain, note and tags; case does not matter.
    """

    domain: str | None = None
    base: str | None = None
    role: str | None = None
    tags: Sequence[str] = ()
    metrics: Sequence[MetricBound] = ()
    text: str | None = None


@dataclass(frozen=True)
class _Stored:
    """An adapter whose files are in the store; `skipped` are those that were left out."""

    digest: str
    facts: AdapterFacts
    skipped: tuple[str, ...]


class Adapters:
    def __init__(self, database: Database, store: Store, bases: Bases) -> None:
        self._database = database
        self._store = store
        self._bases = bases

    def add(
        self,
        folder: Path | str,
        *,
        base: Base,
        role: Literal["spirit", "ingredient"],
        domain: str | None = None,
        labels: Labels | None = None,
        checks: Checks | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Adapter:
        """Inspects, stores and numbers an adapter; content that is known already answers with the version it has.

        `created` is which of these it was, `skipped` the files that were left out; `ignored` names what was given of
        `metrics`, `tags` and `note` and is not what the known version has; `notes` says what is peculiar about the adapter.
        What one that is taken with `allow_partial` lacks is kept in its context, under `partial`.
        Raises InvalidArtifactError, NotFoundError for the domain, ConflictError for an archived version, UsageError.
        """
        name = owner_name(role, domain)
        labels, remarks = (labels or Labels()).checked()
        with self._database.reading() as session:
            find_domain(session, name)  # before the bytes are moved

        stored = self._stored(Path(folder), base, checks or Checks(), progress)
        if stored.facts.missing:
            labels = replace(labels, context={**labels.context, PARTIAL: [*stored.facts.missing]})
        with self._database.writing() as session:
            # the lock lets no one else take the number between looking and writing
            place = find_domain(session, name, lock=True)
            model = find_base(session, base.name)
            here = (AdapterRow.base_id == model.id, AdapterRow.domain_id == place.id)
            same = select(AdapterRow.id).where(*here, AdapterRow.digest == stored.digest).scalar_subquery()
            newest, known_id = session.execute(select(func.max(AdapterRow.version), same).where(*here)).one()
            if known_id is not None:
                known = _known(session.get_one(AdapterRow, known_id), labels, folder)
                return replace(known, skipped=stored.skipped, notes=(*stored.facts.notes, *remarks))
            row = _new_row(stored, labels)
            row.base, row.domain, row.role, row.version = model, place, role, (newest or 0) + 1
            added = _insert(session, row)
            return replace(added, created=True, skipped=stored.skipped, notes=(*stored.facts.notes, *remarks))

    def _stored(self, folder: Path, base: Base, checks: Checks, progress: Callable[[int], None] | None) -> _Stored:
        """The adapter's files in the store, inspected there and where they came from. Raises InvalidArtifactError."""
        base_facts, base_stored = self._bases.facts(base), self._store.local(base.digest)
        facts = inspect_adapter(
            folder,
            base_facts,
            base_names=(base.name, base.source, *([str(base_stored)] if base_stored else [])),
            allow_base_mismatch=checks.allow_base_mismatch,
            allow_partial=checks.allow_partial,
            scan=checks.scan,
        )
        own = facts.vocabulary is not None or (
            bool(tokenizer_files(folder)) and brings_own(folder, self._bases.folder(base))
        )
        files, skipped = adapter_files(folder, with_tokenizer=own)  # else the base's says the same
        linked = cached_repo(folder) is not None
        tree = self._store.add_folder(folder, files=files, allow_links=linked, progress=progress)
        # a trainer may still have been writing: what counts is what was kept
        kept = self._store.local(tree.digest)
        if (
            kept is None
            or inspect_adapter(kept, base_facts, allow_partial=checks.allow_partial, scan=checks.scan) != facts
        ):
            raise InvalidArtifactError(
                f"{folder} was changed while it was read", hint="add it again once it is written"
            )
        return _Stored(tree.digest, facts, skipped)

    def resolve(self, ref: str | Reference, *, base: str | None = None, at: datetime | None = None) -> Adapter:
        """The version a reference means now, or meant `at` a moment. A bare name never means an archived one.

        Raises NotFoundError; UsageError where it means versions for several bases and none is given.
        """
        with self._database.reading() as session:
            if at is None:
                return _adapter(find_adapter(session, ref, base))
            past = history.find_at(session, parsed(ref), base, at)
            return replace(_adapter(past.row), aliases=past.aliases, archived_at=past.archived_at)

    def current(self) -> builtins.list[Adapter]:
        """What each bare name means now, for every base: at most one version per base and domain, in one query."""
        # few versions have many aliases, so these come in the same query
        query = select(AdapterRow).where(AdapterRow.id.in_(preferred())).options(joinedload(AdapterRow.aliases))
        with self._database.reading() as session:
            return [_adapter(row) for row in session.scalars(query).unique()]

    def digests(self, refs: Iterable[Reference], *, base: str) -> dict[Reference, str]:
        """The digests of what the references mean now for one base, in one query.

        What means no version, or an archived one, is left out.
        """
        refs = {*refs}
        if not refs:
            return {}
        bare = {ref.name for ref in refs if ref.version is None and ref.alias is None}
        versions = {(ref.name, ref.version) for ref in refs if ref.version is not None}
        aliases = {(ref.name, ref.alias) for ref in refs if ref.alias is not None}

        def active(version: Any = None, alias: Any = None) -> Select[str, int, str, str]:
            suffix = cast(version, Integer), cast(alias, String)  # without types PostgreSQL takes all columns for text
            query = select(DomainRow.name, *suffix, AdapterRow.digest).join(AdapterRow.domain).join(AdapterRow.base)
            return query.where(BaseModelRow.name == base, AdapterRow.archived_at.is_(None))

        by_name = AdapterRow.id.in_(preferred().where(DomainRow.name.in_(bare)))
        by_version = tuple_(DomainRow.name, AdapterRow.version).in_(versions)
        by_alias = tuple_(DomainRow.name, AliasRow.name).in_(aliases)
        query = union_all(
            active().where(by_name),
            active(version=AdapterRow.version).where(by_version),
            active(alias=AliasRow.name).join(AdapterRow.aliases).where(by_alias),
        )
        with self._database.reading() as session:
            rows = session.execute(query)
            return {Reference(name, version, alias): digest for name, version, alias, digest in rows}

    def placed(self) -> set[tuple[str, str]]:
        """The (base, domain) pairs that have versions, archived ones included; `spirit` means the spirits' domain."""
        query = (
            select(BaseModelRow.name, DomainRow.name)
            .join(DomainRow, true())
            .where(
                select(AdapterRow.id)
                .where(AdapterRow.base_id == BaseModelRow.id, AdapterRow.domain_id == DomainRow.id)
                .exists()
            )
        )
        with self._database.reading() as session:
            return {(base, domain) for base, domain in session.execute(query)}

    def list(
        self,
        wanted: AdapterFilter | None = None,
        *,
        limit: int = 50,
        after: str | Reference | None = None,
    ) -> builtins.list[Adapter]:
        """Newest first, archived ones included; `after` is the reference that the page before ended with.

        `after` may be `BASE:REF` where several bases have adapters of the name.
        """
        wanted = wanted or AdapterFilter()
        domain, base, role, text = wanted.domain, wanted.base, wanted.role, wanted.text
        # ids first: the database can stop at a page of them, whatever it thinks of the joins that the rows need
        id_ = AdapterRow.id if text is None else AdapterWordsRow.adapter_id
        ids = select(id_).order_by(id_.desc()).limit(limit)
        if text is not None:
            find = func.strpos if self._database.dialect == "postgresql" else func.instr  # quicker than LIKE
            ids = ids.where(find(AdapterWordsRow.words, text.casefold()) > 0)
            if (domain, base, role) != (None, None, None):
                ids = ids.join(AdapterRow, AdapterRow.id == id_)
        with self._database.reading() as session:
            if domain is not None:
                ids = ids.where(AdapterRow.domain_id == find_domain(session, domain).id)
            if base is not None:
                ids = ids.where(AdapterRow.base_id == find_base(session, base).id)
            if role is not None:
                ids = ids.where(AdapterRow.role == role)
            for tag in dict.fromkeys(wanted.tags):
                ids = ids.where(id_.in_(select(AdapterTagRow.adapter_id).where(AdapterTagRow.tag == tag)))
            for bound in wanted.metrics:
                ids = ids.where(id_.in_(bound.query()))
            if after is not None:
                named, _, ref = str(after).rpartition(":")
                ids = ids.where(id_ < find_adapter(session, ref, named or base).id)
            query = select(AdapterRow).where(AdapterRow.id.in_(ids)).order_by(AdapterRow.id.desc())
            return [_adapter(row) for row in session.scalars(query)]

    def alias(self, ref: str | Reference, name: str, *, base: str | None = None) -> Adapter:
        """Sets the alias, or moves it here from another version. Raises ConflictError for an archived version."""
        check_name("alias", name)
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            if row.archived_at is not None:
                raise ConflictError(f"{ref_of(row)} is archived and takes no alias")
            alias = session.get(AliasRow, (row.base_id, row.domain_id, name))
            if alias is None or alias.adapter_id != row.id:
                before = None if alias is None else session.get_one(AdapterRow, alias.adapter_id)
                _append(session, "alias.set" if before is None else "alias.moved", row, name, before=before)
                session.refresh(row, ["aliases"])
                _mark_current_spirit(session, row)
            return _adapter(row)

    def remove_alias(self, ref: str | Reference, *, base: str | None = None) -> Adapter:
        """Takes the alias of `NAME@ALIAS` away; the answer is the version that had it. Raises NotFoundError, UsageError."""
        ref = parsed(ref)
        if ref.alias is None:
            raise UsageError(f"{str(ref)!r} names no alias", hint="write NAME@ALIAS")
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            _append(session, "alias.removed", None, ref.alias, before=row)
            session.refresh(row, ["aliases"])
            _mark_current_spirit(session, row)
            return _adapter(row)

    def archive(self, ref: str | Reference, *, base: str | None = None, force: bool = False) -> Adapter:
        """Takes the version out of use: bare names pass it over. Its bytes, its number and its aliases stay.

        Raises ConflictError for one that is in use (see `uses`), unless `force` is set.
        """
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            if row.archived_at is None:
                if not force and (used := lineage.uses(session, row)):
                    raise ConflictError(f"{ref_of(row)} is in use: {'; '.join(used)}", hint="use --force to archive it")
                _append(session, "adapter.archived", row)
                session.refresh(row)
                _mark_current_spirit(session, row)
            return _adapter(row)

    def restore(self, ref: str | Reference, *, base: str | None = None) -> Adapter:
        """Takes an archived version into use again."""
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            if row.archived_at is not None:
                _append(session, "adapter.restored", row)
                session.refresh(row)
                _mark_current_spirit(session, row)
            return _adapter(row)

    def uses(self, adapter: Adapter) -> builtins.list[str]:
        """Why archiving it needs `force`: that it is champion, or in a domain's current build or in a published one."""
        with self._database.reading() as session:
            return lineage.uses(session, find_adapter(session, adapter.ref, adapter.base))

    def reached(self, adapter: Adapter, *, limit: int = 20) -> Reached:
        """The builds that the version went into, and the publications of those."""
        with self._database.reading() as session:
            return lineage.reached(session, find_adapter(session, adapter.ref, adapter.base), limit)

    def log(
        self, ref: str | Reference, *, base: str | None = None, limit: int = 50, after: int | None = None
    ) -> builtins.list[Event]:
        """What happened to a version and its aliases, to an alias, or to all versions of a domain; newest first.

        A bare name means the whole domain, NAME@ALIAS wherever the alias was. `after` is the id of the last event of the page before.
        """
        ref = parsed(ref)
        with self._database.reading() as session:
            if ref.version is None and ref.alias is None:
                base_id = None if base is None else find_base(session, base).id
                return history.of_domain(session, find_domain(session, ref.name).id, base_id, limit, after)
            if ref.alias is not None:
                base_id = None if base is None else find_base(session, base).id
                return history.of_alias(session, find_domain(session, ref.name).id, base_id, ref.alias, limit, after)
            return history.of_adapter(session, find_adapter(session, ref, base).id, limit, after)

    def folder(self, adapter: Adapter) -> Path:
        return self._store.folder(adapter.digest)

    def facts(self, adapter: Adapter) -> AdapterFacts:
        """Read from the stored headers; what the adapter may lack was decided, and its values scanned, when it was added."""
        base = self._bases.facts(self._bases.get(adapter.base))
        return inspect_adapter(self.folder(adapter), base, allow_partial=True, scan=False)


def _known(row: AdapterRow, labels: Labels, folder: Path | str) -> Adapter:
    """The version that has the content already, and which of the labels it does not have. Raises ConflictError if it is archived."""
    if row.archived_at is not None:
        raise ConflictError(
            f"{folder} has the content of {ref_of(row)}, which is archived; its bytes are in the store",
            hint=f"reccocktail adapter archive {ref_of(row)} --base {row.base.name} --undo",
        )
    given = {"metrics": labels.metrics, "tags": labels.tags, "note": labels.note}
    return replace(
        _adapter(row), ignored=tuple(what for what, value in given.items() if value and value != getattr(row, what))
    )


def _new_row(stored: _Stored, labels: Labels) -> AdapterRow:
    """Without its place: base, domain, role and version."""
    return AdapterRow(
        digest=stored.digest,
        rank=stored.facts.rank,
        alpha=stored.facts.alpha,
        target_modules=[*stored.facts.target_modules],
        tensors=stored.facts.tensors,
        bytes=stored.facts.bytes,
        metrics=dict(labels.metrics),
        tags=[*labels.tags],
        note=labels.note,
        context=dict(labels.context),
    )


def _insert(session: Session, row: AdapterRow) -> Adapter:
    """Writes the row with its words for searching, and its event."""
    session.add(row)
    session.flush()
    words = " ".join([row.domain.name, row.note or "", *row.tags]).casefold()
    session.add(AdapterWordsRow(adapter_id=row.id, words=words))
    set_committed_value(row, "aliases", [])  # a new version has none, so no query is needed
    added = _adapter(row)
    events.append(
        session,
        "adapter.added",
        added.ref,
        {"base": row.base.name, "digest": row.digest},
        EventIds(base_id=row.base_id, domain_id=row.domain_id, adapter_id=row.id),
    )
    _mark_current_spirit(session, row)
    return added


def _append(
    session: Session, kind: str, row: AdapterRow | None, alias: str | None = None, *, before: AdapterRow | None = None
) -> EventRow:
    """An event about the version, or about its alias, which was on `before`."""
    place = row or before
    assert place is not None
    detail = {"base": place.base.name}
    if alias is not None:
        detail |= {"from": ref_of(before)} if before else {}
        detail |= {"to": ref_of(row)} if row else {}
    subject = ref_of(place) if alias is None else str(Reference(place.domain.name, alias=alias))
    return events.append(
        session,
        kind,
        subject,
        detail,
        EventIds(
            base_id=place.base_id,
            domain_id=place.domain_id,
            adapter_id=row.id if row else None,
            previous_id=before.id if before else None,
            alias=alias,
        ),
    )


def _mark_current_spirit(session: Session, row: AdapterRow) -> None:
    """Keeps the database's word on the current spirit the same as what bare `spirit` means."""
    if row.role != SPIRIT:
        return
    here = (AdapterRow.base_id == row.base_id, AdapterRow.domain_id == row.domain_id)
    session.flush()
    session.execute(update(AdapterRow).where(*here, AdapterRow.is_current).values(is_current=False))
    current = select(AdapterRow.id).where(*here, AdapterRow.id.in_(preferred().where(DomainRow.name == SPIRIT)))
    if (current_id := session.scalar(current)) is not None:
        session.execute(update(AdapterRow).where(AdapterRow.id == current_id).values(is_current=True))


def _adapter(row: AdapterRow) -> Adapter:
    return Adapter(
        ref=ref_of(row),
        role=row.role,
        domain=None if row.role == SPIRIT else row.domain.name,
        base=row.base.name,
        version=row.version,
        digest=row.digest,
        rank=row.rank,
        alpha=row.alpha,
        target_modules=tuple(row.target_modules),
        tensors=row.tensors,
        bytes=row.bytes,
        metrics=row.metrics,
        tags=tuple(row.tags),
        note=row.note,
        context=row.context,
        aliases=tuple(alias.name for alias in row.aliases),
        archived_at=row.archived_at,
        created_at=row.created_at,
        created_by=row.created_by,
    )
