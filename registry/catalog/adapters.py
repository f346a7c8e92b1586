"""Adapters: immutable versions under a domain or `spirit`, and the aliases that move among them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Integer, Select, String, bindparam, cast, func, select, true, tuple_, union_all, update
from sqlalchemy.orm import Session, aliased, contains_eager, joinedload
from sqlalchemy.orm.attributes import set_committed_value

from ..artifacts.allowlist import adapter_files, tokenizer_files
from ..artifacts.facts import AdapterFacts
from ..artifacts.inspect import inspect_adapter
from ..artifacts.tokenizers import brings_own
from ..database.connection import Database
from ..database.tables import AdapterRow, AdapterTagRow, AdapterWordsRow, AliasRow, BaseModelRow, DomainRow, EventRow
from ..digests import canonical_json
from ..errors import ConflictError, InvalidArtifactError, NotFoundError, UsageError
from ..redaction import check_no_secret, redacted_values
from ..store.contract import Store
from ..store.links import cached_repo
from . import events, history
from . import usage as lineage
from .bases import Base, Bases, find_base
from .domains import find_domain
from .events import Event, EventIds
from .filters import MetricBound
from .records import NOT_IN_JSON, Record
from .references import CHAMPION, SPIRIT, Reference, check_name, check_text, did_you_mean
from .usage import Reached

MAX_LABEL = 200  # characters of a tag or of a metric's name
MAX_METRIC = 1e300


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
        metrics: Mapping[str, float] | None = None,
        tags: Iterable[str] = (),
        note: str | None = None,
        context: Mapping[str, Any] | None = None,
        allow_base_mismatch: bool = False,
        allow_partial: bool = False,
        scan: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Adapter:
        """Inspects, stores and numbers an adapter; content that is known already answers with the version it has.

        `created` is which of these it was, `skipped` the files that were left out; `ignored` names what was given of
        `metrics`, `tags` and `note` and is not what the known version has; `notes` says what is peculiar about the adapter.
        What one that is taken with `allow_partial` lacks is kept in its context, under `partial`.
        Raises InvalidArtifactError, NotFoundError for the domain, ConflictError for an archived version, UsageError.
        """
        name = _name(role, domain)
        told = {"tags": [_checked_label("tag", tag) for tag in tags], "note": note, "context": dict(context or {})}
        metrics = _checked_metrics(metrics or {})
        try:
            canonical_json([metrics, told["context"]])
        except (TypeError, ValueError) as error:
            raise UsageError(f"the context must be plain JSON: {error}") from error
        check_text("note", note or "")
        clear = redacted_values(told)
        remarks = tuple(
            f"the {what} {'were' if what == 'tags' else 'was'} kept without what looks like a secret"
            for what, value in clear.items()
            if value != told[what]
        )
        about = {"metrics": metrics, "context": clear["context"]}
        labels = {"tags": [*dict.fromkeys(clear["tags"])], "note": clear["note"]}
        with self._database.reading() as session:
            find_domain(session, name)  # before the bytes are moved

        base_facts, stored = self._bases.facts(base), self._store.local(base.digest)
        facts = inspect_adapter(
            folder,
            base_facts,
            base_names=(base.name, base.source, *([str(stored)] if stored else [])),
            allow_base_mismatch=allow_base_mismatch,
            allow_partial=allow_partial,
            scan=scan,
        )
        if facts.missing:
            about["context"]["partial"] = [*facts.missing]
        folder, linked = Path(folder), cached_repo(Path(folder)) is not None
        own = facts.vocabulary is not None or (
            bool(tokenizer_files(folder)) and brings_own(folder, self._bases.folder(base))
        )
        files, skipped = adapter_files(folder, with_tokenizer=own)  # else the base's says the same
        tree = self._store.add_folder(folder, files=files, allow_links=linked, progress=progress)
        # a trainer may still have been writing: what counts is what was kept
        kept = self._store.local(tree.digest)
        if kept is None or inspect_adapter(kept, base_facts, allow_partial=allow_partial, scan=scan) != facts:
            raise InvalidArtifactError(
                f"{folder} was changed while it was read", hint="add it again once it is written"
            )

        with self._database.writing() as session:
            # the lock lets no one else take the number between looking and writing
            place = find_domain(session, name, lock=True)
            model = find_base(session, base.name)
            here = (AdapterRow.base_id == model.id, AdapterRow.domain_id == place.id)
            same = select(AdapterRow.id).where(*here, AdapterRow.digest == tree.digest).scalar_subquery()
            newest, known_id = session.execute(select(func.max(AdapterRow.version), same).where(*here)).one()
            if known_id is not None:
                known = session.get_one(AdapterRow, known_id)
                if known.archived_at is not None:
                    raise ConflictError(
                        f"{folder} has the content of {_ref(known)}, which is archived; its bytes are in the store",
                        hint=f"reccocktail adapter archive {_ref(known)} --base {base.name} --undo",
                    )
                given = {"metrics": about["metrics"]} | labels
                ignored = tuple(what for what, value in given.items() if value and value != getattr(known, what))
                return replace(_adapter(known), skipped=skipped, ignored=ignored, notes=(*facts.notes, *remarks))
            row = AdapterRow(
                base=model,
                domain=place,
                role=role,
                version=(newest or 0) + 1,
                digest=tree.digest,
                rank=facts.rank,
                alpha=facts.alpha,
                target_modules=[*facts.target_modules],
                tensors=facts.tensors,
                bytes=facts.bytes,
                **about,
                **labels,
            )
            session.add(row)
            session.flush()
            session.add(
                AdapterWordsRow(
                    adapter_id=row.id, words=" ".join([name, labels["note"] or "", *labels["tags"]]).casefold()
                )
            )
            set_committed_value(row, "aliases", [])  # a new version has none, so no query is needed
            added = _adapter(row)
            events.append(
                session,
                "adapter.added",
                added.ref,
                {"base": base.name, "digest": tree.digest},
                EventIds(base_id=model.id, domain_id=place.id, adapter_id=row.id),
            )
            _mark_current_spirit(session, row)
            return replace(added, created=True, skipped=skipped, notes=(*facts.notes, *remarks))

    def resolve(self, ref: str | Reference, *, base: str | None = None, at: datetime | None = None) -> Adapter:
        """The version a reference means now, or meant `at` a moment. A bare name never means an archived one.

        Raises NotFoundError; UsageError where it means versions for several bases and none is given.
        """
        with self._database.reading() as session:
            if at is None:
                return _adapter(find_adapter(session, ref, base))
            past = history.find_at(session, _parsed(ref), base, at)
            return replace(_adapter(past.row), aliases=past.aliases, archived_at=past.archived_at)

    def current(self) -> builtins.list[Adapter]:
        """What each bare name means now, for every base: at most one version per base and domain, in one query."""
        # few versions have many aliases, so these come in the same query
        query = select(AdapterRow).where(AdapterRow.id.in_(_preferred())).options(joinedload(AdapterRow.aliases))
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

        by_name = AdapterRow.id.in_(_preferred().where(DomainRow.name.in_(bare)))
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
            row = _find_locked(session, ref, base)
            if row.archived_at is not None:
                raise ConflictError(f"{_ref(row)} is archived and takes no alias")
            alias = session.get(AliasRow, (row.base_id, row.domain_id, name))
            if alias is None or alias.adapter_id != row.id:
                before = None if alias is None else session.get_one(AdapterRow, alias.adapter_id)
                _append(session, "alias.set" if before is None else "alias.moved", row, name, before=before)
                session.refresh(row, ["aliases"])
                _mark_current_spirit(session, row)
            return _adapter(row)

    def remove_alias(self, ref: str | Reference, *, base: str | None = None) -> Adapter:
        """Takes the alias of `NAME@ALIAS` away; the answer is the version that had it. Raises NotFoundError, UsageError."""
        ref = _parsed(ref)
        if ref.alias is None:
            raise UsageError(f"{str(ref)!r} names no alias", hint="write NAME@ALIAS")
        with self._database.writing() as session:
            row = _find_locked(session, ref, base)
            _append(session, "alias.removed", None, ref.alias, before=row)
            session.refresh(row, ["aliases"])
            _mark_current_spirit(session, row)
            return _adapter(row)

    def archive(self, ref: str | Reference, *, base: str | None = None, force: bool = False) -> Adapter:
        """Takes the version out of use: bare names pass it over. Its bytes, its number and its aliases stay.

        Raises ConflictError for one that is in use (see `uses`), unless `force` is set.
        """
        with self._database.writing() as session:
            row = _find_locked(session, ref, base)
            if row.archived_at is None:
                if not force and (used := lineage.uses(session, row)):
                    raise ConflictError(f"{_ref(row)} is in use: {'; '.join(used)}", hint="use --force to archive it")
                _append(session, "adapter.archived", row)
                session.refresh(row)
                _mark_current_spirit(session, row)
            return _adapter(row)

    def restore(self, ref: str | Reference, *, base: str | None = None) -> Adapter:
        """Takes an archived version into use again."""
        with self._database.writing() as session:
            row = _find_locked(session, ref, base)
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
        ref = _parsed(ref)
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


def find_adapter(session: Session, ref: str | Reference, base: str | None) -> AdapterRow:
    """One query where all is well. Raises NotFoundError, and UsageError for versions of several bases."""
    ref = _parsed(ref)
    suffix = "version" if ref.version is not None else "alias" if ref.alias is not None else None
    given = {"domain": ref.name, "version": ref.version, "alias": ref.alias, "base": base}
    rows = session.scalars(_finding(suffix, base is not None), given).unique().all()
    if not rows:
        raise _not_found(session, ref, base)
    if len(rows) > 1:
        found = " and ".join(sorted(row.base.name for row in rows))
        raise UsageError(f"{str(ref)!r} means versions for several base models: {found}", hint="say --base NAME")
    return rows[0]


@cache
def _finding(suffix: Literal["version", "alias"] | None, with_base: bool) -> Select[AdapterRow]:
    """The query behind a reference, put together once, which takes longer than to run it."""
    domain = DomainRow.name == bindparam("domain")
    query = select(AdapterRow).join(AdapterRow.domain).join(AdapterRow.base).where(domain)
    if suffix == "version":
        query = query.where(AdapterRow.version == bindparam("version"))
    elif suffix == "alias":
        here = (AliasRow.base_id == AdapterRow.base_id) & (AliasRow.domain_id == AdapterRow.domain_id)
        query = query.join(AliasRow, here & (AliasRow.adapter_id == AdapterRow.id))
        query = query.where(AliasRow.name == bindparam("alias"))
    else:
        query = query.where(AdapterRow.id.in_(_preferred().where(domain)))
    if with_base:
        query = query.where(BaseModelRow.name == bindparam("base"))
    return query.options(
        contains_eager(AdapterRow.domain), contains_eager(AdapterRow.base), joinedload(AdapterRow.aliases)
    )


def _preferred() -> Select[int]:
    """The ids that bare names mean: per base and domain the champion, otherwise the newest, of those not archived."""
    version, alias = aliased(AdapterRow), aliased(AliasRow)
    active = (
        version.base_id == BaseModelRow.id,
        version.domain_id == DomainRow.id,
        version.archived_at.is_(None),
    )
    on_champion = (alias.base_id == BaseModelRow.id, alias.domain_id == DomainRow.id, alias.name == CHAMPION)
    champion = select(version.id).join(alias, alias.adapter_id == version.id).where(*active, *on_champion)
    newest = select(version.id).where(*active).order_by(version.version.desc()).limit(1)
    found = (query.correlate(DomainRow, BaseModelRow).scalar_subquery() for query in (champion, newest))
    return select(func.coalesce(*found)).select_from(DomainRow).join(BaseModelRow, true()).correlate(None)


def _not_found(session: Session, ref: Reference, base: str | None) -> NotFoundError:
    domain = find_domain(session, ref.name)
    query = select(AdapterRow.id).where(AdapterRow.domain_id == domain.id)
    if base is not None:
        query = query.where(AdapterRow.base_id == find_base(session, base).id)
    where = "" if base is None else f" for base model {base!r}"
    if session.scalar(query.limit(1)) is None:
        option = "--spirit" if domain.role == SPIRIT else f"--domain {domain.name}"
        return NotFoundError(
            f"{domain.name!r} has no adapter yet{where}",
            hint=f"run `reccocktail adapter add PATH --base {base or 'B'} {option}`",
        )
    return NotFoundError(
        f"there is no {str(ref)!r}{where}{_like(session, ref, query)}",
        hint=f"`reccocktail adapter list --domain {ref.name}`",
    )


def _like(session: Session, ref: Reference, ids: Select[tuple[int]]) -> str:
    """The reference with a known version or alias in the place of one that is much like it."""
    aliases = session.scalars(select(AliasRow.name).where(AliasRow.adapter_id.in_(ids)).distinct())
    versions = session.scalars(ids.with_only_columns(AdapterRow.version).distinct())
    known = [*aliases, *(f"v{number}" for number in versions)]
    return did_you_mean(str(ref).partition("@")[2], known, before=f"{ref.name}@")


def _find_locked(session: Session, ref: str | Reference, base: str | None) -> AdapterRow:
    """The version that the reference means once no one else can move aliases of its domain or archive its versions."""
    ref = _parsed(ref)
    find_domain(session, ref.name, lock=True)
    return find_adapter(session, ref, base)


def _parsed(ref: str | Reference) -> Reference:
    return Reference.parse(ref) if isinstance(ref, str) else ref


def _append(
    session: Session, kind: str, row: AdapterRow | None, alias: str | None = None, *, before: AdapterRow | None = None
) -> EventRow:
    """An event about the version, or about its alias, which was on `before`."""
    place = row or before
    assert place is not None
    detail = {"base": place.base.name}
    if alias is not None:
        detail |= {"from": _ref(before)} if before else {}
        detail |= {"to": _ref(row)} if row else {}
    subject = _ref(place) if alias is None else str(Reference(place.domain.name, alias=alias))
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
    preferred = select(AdapterRow.id).where(*here, AdapterRow.id.in_(_preferred().where(DomainRow.name == SPIRIT)))
    if (current := session.scalar(preferred)) is not None:
        session.execute(update(AdapterRow).where(AdapterRow.id == current).values(is_current=True))


def _checked_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Raises UsageError for a name that cannot be searched for, and for a value that is not a finite number."""
    for name, value in metrics.items():
        check_no_secret("name of a metric", _checked_label("metric", name))
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_METRIC:
            raise UsageError(f"metric {name}: {value!r} is not a finite number")
        if name != name.strip() or any(sign in name for sign in "<>="):
            raise UsageError(f"{name!r} cannot be a metric's name", hint="no <, > or =, and no spaces around it")
    return dict(metrics)


def _checked_label(what: str, text: Any) -> str:
    if not isinstance(text, str) or not text.isprintable() or not text.strip() or len(text) > MAX_LABEL:
        raise UsageError(f"{text!r} cannot be a {what}", hint=f"a {what} is up to {MAX_LABEL} printable characters")
    return text


def _name(role: str, domain: str | None) -> str:
    if role == SPIRIT:
        if domain is not None:
            raise UsageError(f"a spirit belongs to no domain, so not to {domain!r} either", hint="--spirit or --domain")
        return SPIRIT
    if domain is None:
        raise UsageError("an ingredient belongs to a domain", hint="give --domain NAME, or --spirit")
    return check_name("domain", domain)


def _ref(row: AdapterRow) -> str:
    return str(Reference(row.domain.name, version=row.version))


def _adapter(row: AdapterRow) -> Adapter:
    return Adapter(
        ref=_ref(row),
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
