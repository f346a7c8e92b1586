"""Adapters: immutable versions under a domain or `spirit`, and the aliases that move among them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from . import events
from .bases import Base, Bases, find_base
from .database import Database
from .digests import canonical_json
from .domains import find_domain
from .errors import ConflictError, InvalidArtifactError, NotFoundError, UsageError
from .inspect import PICKLES, TOKENIZER_FILES, AdapterFacts, inspect_adapter, matches
from .records import NOT_IN_JSON, Record
from .references import SPIRIT, Reference, check_name, check_text
from .store import Store
from .tables import AdapterRow, AliasRow, DomainRow, now

CHAMPION = "champion"

# a trainer's own state, which lies beside many adapters and is none of ours
TRAINER_STATE = ("training_args.bin", "optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json")


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
        allow_links: bool = False,
        scan: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Adapter:
        """Inspects, stores and numbers an adapter; content that is known already answers with the version it has.

        `created` and `skipped` tell which it was, and which files were left out; `ignored` names what was given of
        `metrics`, `tags` and `note` and is not what the known version has.
        Raises InvalidArtifactError, NotFoundError for the domain, ConflictError for an archived version, UsageError.
        """
        name = _name(role, domain)
        about = {"metrics": dict(metrics or {}), "context": dict(context or {})}
        labels = {"tags": [*dict.fromkeys(tags)], "note": note}
        try:
            canonical_json(about)
        except (TypeError, ValueError) as error:
            raise UsageError(f"metrics and context must be finite numbers and plain JSON: {error}") from error
        for text in (*labels["tags"], note or ""):
            check_text("tag or note", text)
        with self._database.reading() as session:
            find_domain(session, name)  # before the bytes are moved

        facts = inspect_adapter(
            folder,
            self._bases.facts(base),
            base_names=(base.name, base.source, str(self._bases.folder(base))),
            allow_base_mismatch=allow_base_mismatch,
            allow_links=allow_links,
            scan=scan,
        )
        files, skipped = _chosen(Path(folder))
        tree = self._store.add_folder(folder, files=files, allow_links=allow_links, progress=progress)

        with self._database.writing() as session:
            # the lock lets no one else take the number between looking and writing
            place = find_domain(session, name, lock=True)
            base_id = find_base(session, base.name).id
            here = (AdapterRow.base_id == base_id, AdapterRow.domain_id == place.id)
            known = session.scalar(select(AdapterRow).where(*here, AdapterRow.digest == tree.digest))
            if known is not None:
                if known.archived_at is not None:
                    raise ConflictError(f"{folder} has the content of {_ref(known)}, which is archived")
                given = {"metrics": about["metrics"]} | labels
                ignored = tuple(what for what, value in given.items() if value and value != getattr(known, what))
                return replace(_adapter(known), skipped=skipped, ignored=ignored)
            newest = session.scalar(select(func.max(AdapterRow.version)).where(*here)) or 0
            row = AdapterRow(
                base_id=base_id,
                domain_id=place.id,
                role=role,
                version=newest + 1,
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
            added = _adapter(row)
            events.append(session, "adapter.added", added.ref, base=base.name, digest=tree.digest)
            _mark_current_spirit(session, row)
            return replace(added, created=True, skipped=skipped)

    def resolve(self, ref: str | Reference, *, base: str | None = None) -> Adapter:
        """The version a reference means now. A bare name never means an archived one.

        Raises NotFoundError; UsageError where several bases have adapters of that name and none is given.
        """
        with self._database.reading() as session:
            return _adapter(find_adapter(session, ref, base))

    def list(
        self,
        *,
        domain: str | None = None,
        base: str | None = None,
        role: str | None = None,
        limit: int = 50,
        after: str | Reference | None = None,
    ) -> builtins.list[Adapter]:
        """Newest first, archived ones included; `after` is the reference that the page before ended with."""
        query = select(AdapterRow).order_by(AdapterRow.id.desc()).limit(limit)
        with self._database.reading() as session:
            if domain is not None:
                query = query.where(AdapterRow.domain_id == find_domain(session, domain).id)
            if base is not None:
                query = query.where(AdapterRow.base_id == find_base(session, base).id)
            if role is not None:
                query = query.where(AdapterRow.role == role)
            if after is not None:
                query = query.where(AdapterRow.id < find_adapter(session, after, base).id)
            return [_adapter(row) for row in session.scalars(query)]

    def alias(self, ref: str | Reference, name: str, *, base: str | None = None) -> Adapter:
        """Sets the alias, or moves it here from another version. Raises ConflictError for an archived version."""
        check_name("alias", name)
        with self._database.writing() as session:
            row = find_adapter(session, ref, base)
            if row.archived_at is not None:
                raise ConflictError(f"{_ref(row)} is archived and takes no alias")
            place = {"base_id": row.base_id, "domain_id": row.domain_id, "name": name}
            alias = session.get(AliasRow, place)
            if alias is None:
                session.add(AliasRow(**place, adapter_id=row.id))
                events.append(session, "alias.set", f"{row.domain.name}@{name}", base=row.base.name, to=_ref(row))
            elif alias.adapter_id != row.id:
                before = session.get_one(AdapterRow, alias.adapter_id)
                alias.adapter_id = row.id
                detail = {"base": row.base.name, "from": _ref(before), "to": _ref(row)}
                events.append(session, "alias.moved", f"{row.domain.name}@{name}", **detail)
            session.flush()
            session.refresh(row, ["aliases"])
            _mark_current_spirit(session, row)
            return _adapter(row)

    def archive(self, ref: str | Reference, *, base: str | None = None) -> Adapter:
        """Takes the version out of use: bare names pass it over. Its bytes and its number stay."""
        with self._database.writing() as session:
            row = find_adapter(session, ref, base)
            if row.archived_at is None:
                row.archived_at = now()
                row.is_current = False
                events.append(session, "adapter.archived", _ref(row), base=row.base.name)
                _mark_current_spirit(session, row)
            return _adapter(row)

    def folder(self, adapter: Adapter) -> Path:
        return self._store.folder(adapter.digest)

    def facts(self, adapter: Adapter) -> AdapterFacts:
        """Read from the stored headers; values were scanned when the adapter was added."""
        base = self._bases.facts(self._bases.get(adapter.base))
        return inspect_adapter(self.folder(adapter), base, scan=False)


def find_adapter(session: Session, ref: str | Reference, base: str | None) -> AdapterRow:
    ref = Reference.parse(ref) if isinstance(ref, str) else ref
    domain = find_domain(session, ref.name)
    here = (AdapterRow.base_id == _base_id(session, domain, base), AdapterRow.domain_id == domain.id)
    row = _version(session, ref, here) if ref.version or ref.alias else _preferred(session, here)
    if row is None:
        where = "" if base is None else f" for base model {base!r}"
        raise NotFoundError(f"there is no {str(ref)!r}{where}", hint=f"`reccocktail adapter list --domain {ref.name}`")
    return row


def _version(session: Session, ref: Reference, here: tuple[Any, ...]) -> AdapterRow | None:
    query = select(AdapterRow).where(*here)
    if ref.alias is None:
        return session.scalar(query.where(AdapterRow.version == ref.version))
    return session.scalar(query.join(AliasRow, AliasRow.adapter_id == AdapterRow.id).where(AliasRow.name == ref.alias))


def _preferred(session: Session, here: tuple[Any, ...]) -> AdapterRow | None:
    """What a bare name means: the champion, otherwise the newest, of those that are not archived."""
    champion = (AliasRow.adapter_id == AdapterRow.id) & (AliasRow.name == CHAMPION)
    return session.scalar(
        select(AdapterRow)
        .outerjoin(AliasRow, champion)
        .where(*here, AdapterRow.archived_at.is_(None))
        .order_by(AliasRow.name.is_(None), AdapterRow.version.desc())
        .limit(1)
    )


def _base_id(session: Session, domain: DomainRow, base: str | None) -> int:
    if base is not None:
        return find_base(session, base).id
    ids = session.scalars(select(AdapterRow.base_id).where(AdapterRow.domain_id == domain.id).distinct()).all()
    if not ids:
        option = "--spirit" if domain.role == SPIRIT else f"--domain {domain.name}"
        raise NotFoundError(
            f"{domain.name!r} has no adapter yet", hint=f"run `reccocktail adapter add PATH --base B {option}`"
        )
    if len(ids) > 1:
        raise UsageError(f"{domain.name!r} has adapters for {len(ids)} base models", hint="say which with --base NAME")
    return ids[0]


def _mark_current_spirit(session: Session, row: AdapterRow) -> None:
    """Keeps the database's word on the current spirit the same as what bare `spirit` means."""
    if row.role != SPIRIT:
        return
    here = (AdapterRow.base_id == row.base_id, AdapterRow.domain_id == row.domain_id)
    session.flush()
    session.execute(update(AdapterRow).where(*here, AdapterRow.is_current).values(is_current=False))
    if (preferred := _preferred(session, here)) is not None:
        session.execute(update(AdapterRow).where(AdapterRow.id == preferred.id).values(is_current=True))


def _name(role: str, domain: str | None) -> str:
    if role == SPIRIT:
        if domain is not None:
            raise UsageError(f"a spirit belongs to no domain, so not to {domain!r} either", hint="--spirit or --domain")
        return SPIRIT
    if domain is None:
        raise UsageError("an ingredient belongs to a domain", hint="say --domain NAME, or --spirit")
    return check_name("domain", domain)


def _chosen(folder: Path) -> tuple[builtins.list[str], tuple[str, ...]]:
    chosen, skipped = [], []
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_dir() or name.startswith(".") or matches(name, (*TRAINER_STATE, *TOKENIZER_FILES)):
            skipped.append(name)
        elif matches(name, PICKLES):
            raise InvalidArtifactError(f"{path}: is a pickle, which can run code when it is opened", hint="remove it")
        else:
            chosen.append(name)
    return chosen, tuple(skipped)


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
