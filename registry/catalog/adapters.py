"""Adapters: immutable versions under a domain or `spirit`, and the aliases that move among them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Integer, Select, String, cast, func, or_, select, true, tuple_, union_all, update
from sqlalchemy.orm import joinedload

from ..artifacts.allowlist import BUNDLE, adapter_files, files_of_bundle, is_bundle, tokenizer_files
from ..artifacts.bundle_facts import BundleFacts
from ..artifacts.content import content_digest
from ..artifacts.facts import AdapterFacts
from ..artifacts.inspect import inspect_adapter
from ..artifacts.tokenizers import brings_own
from ..database.connection import Database
from ..database.tables import AdapterRow, AdapterTagRow, AdapterWordsRow, AliasRow, BaseModelRow, DomainRow
from ..errors import ConflictError, InvalidArtifactError, RecCocktailError, UsageError
from ..store.contract import Store
from ..store.files import folder_digest
from ..store.links import cached_repo
from . import history
from . import usage as lineage
from .bases import Base, Bases, find_base
from .build_queries import find_build_locked
from .domains import find_domain
from .evaluation_queries import Order, best_first, narrowed, within
from .events import Event
from .expecting import Expected
from .filters import AdapterFilter, MetricBound
from .gates import Passage
from .lookup import find_adapter, find_adapter_locked, held_back, parsed, preferred, ref_of
from .references import LORA, Reference, check_name
from .registration import Checks, Labels, owner_name
from .serving import set_pin
from .stored_adapters import StoredAdapter as StoredAdapter
from .stored_adapters import copied_as_inspected, known_version, new_row
from .trained_on import find_trained_on
from .training import ON, PARTIAL, PERSONALISED
from .usage import Reached
from .versions import (
    Adapter,
    AdapterAlias,
    adapter_of,
    aliases_in,
    append_event,
    detail_of_archiving,
    detail_of_removal,
    insert_version,
    mark_current_spirit,
    set_alias,
    set_aliases,
)


class Adapters:
    def __init__(self, database: Database, store: Store, bases: Bases) -> None:
        self._database = database
        self._store = store
        self._bases = bases

    def add(
        self,
        folder: Path | str | StoredAdapter,
        *,
        base: Base,
        role: Literal["spirit", "ingredient"],
        domain: str | None = None,
        labels: Labels | None = None,
        checks: Checks | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Adapter:
        """Inspects, stores and numbers an adapter; content that is known already answers with the version it has.

        What `store` gave is numbered only. The aliases of `labels` are set in the transaction that writes the version, or finds it.

        `created` is which of these it was, `skipped` the files that were left out; `ignored` names what was given of
        `metrics`, `tags` and `note` and is not what the known version has; `notes` says what is peculiar about the adapter.
        What one that is taken with `allow_partial` lacks is kept in its context, under `partial`; what a bundle says of itself under `bundle`.
        The build whose checkpoint a bi-tuning was trained on is found by its manifest's digest, kept in the context under `on`, and pinned.
        Raises InvalidArtifactError, NotFoundError for the domain, UsageError, and ConflictError for an archived version, or a known one where
        `checks` wants a new one.
        """
        name = owner_name(role, domain)
        labels, remarks = (labels or Labels()).checked()
        with self._database.reading() as session:
            find_domain(session, name)  # before the bytes are moved
        on = None
        if not isinstance(folder, StoredAdapter) and (checks is None or checks.beside is None):
            on = find_trained_on(self._database, self._store, Path(folder), base, name)
        if on is not None:
            labels = replace(labels, context={**labels.context, ON: asdict(on)})
            checks = replace(checks or Checks(), beside=on.digest)
            remarks = (*remarks, f"it was trained on build {on.build}, which is pinned")

        stored = (
            folder
            if isinstance(folder, StoredAdapter)
            else self.store(folder, base=base, checks=checks, progress=progress)
        )
        if stored.facts.missing:
            labels = replace(labels, context={**labels.context, PARTIAL: [*stored.facts.missing]})
        if isinstance(stored.facts, BundleFacts):
            if role == "spirit":
                raise UsageError(f"{stored.folder}: a bundle belongs to a domain", hint="give --domain NAME")
            labels = replace(labels, context={**labels.context, PERSONALISED: stored.facts.lineage})
        older, unread = self._older_contents(stored, base, name)
        remarks = (*remarks, *unread)
        with self._database.writing() as session:
            # the lock lets no one else take the number between looking and writing
            place = find_domain(session, name, lock=True)
            model = find_base(session, base.name)
            here = (AdapterRow.base_id == model.id, AdapterRow.domain_id == place.id)
            for id_, content in older.items():
                session.execute(
                    update(AdapterRow).where(AdapterRow.id == id_, AdapterRow.content.is_(None)).values(content=content)
                )
            alike = or_(AdapterRow.digest == stored.digest, AdapterRow.content == stored.content)
            same = (
                select(AdapterRow.id).where(*here, alike).order_by((AdapterRow.digest != stored.digest), AdapterRow.id)
            )
            newest, known_id = session.execute(
                select(func.max(AdapterRow.version), same.limit(1).scalar_subquery()).where(*here)
            ).one()
            if known_id is not None:
                row = session.get_one(AdapterRow, known_id)
                known = known_version(row, labels, stored.folder, must_be_new=not (checks or Checks()).reuse)
                known = replace(known, aliases=set_aliases(session, row, labels))
                return replace(known, skipped=stored.skipped, notes=(*stored.facts.notes, *remarks))
            if on is not None:
                set_pin(session, find_build_locked(session, on.build))
            row = new_row(stored, labels)
            row.base, row.domain, row.role, row.version = model, place, role, (newest or 0) + 1
            added = insert_version(session, row)
            added = replace(added, aliases=set_aliases(session, row, labels))
            return replace(added, created=True, skipped=stored.skipped, notes=(*stored.facts.notes, *remarks))

    def foresee(self, folder: Path | str, *, base: Base, checks: Checks | None = None) -> tuple[str, tuple[str, ...]]:
        """The digest and the notes that the adapter in `folder` would have: it is inspected as `add` does, and nothing is stored."""
        facts = self._inspected(Path(folder), base, checks or Checks())
        return folder_digest(Path(folder), self._files(Path(folder), base, facts)[0]), facts.notes

    def _older_contents(self, stored: StoredAdapter, base: Base, name: str) -> tuple[dict[int, str], tuple[str, ...]]:
        """The digests of contents of versions from before they were kept, as far as those may equal this one, by id; and what cannot be read."""
        facts, found, unread = stored.facts, dict[int, str](), list[str]()
        same_size = (
            AdapterRow.content.is_(None), AdapterRow.digest != stored.digest, AdapterRow.rank == facts.rank,
            AdapterRow.tensors == facts.tensors, AdapterRow.bytes == facts.bytes,
        )  # fmt: skip
        query = (
            select(AdapterRow.id, AdapterRow.version, AdapterRow.digest).join(AdapterRow.domain).join(AdapterRow.base)
        )
        query = query.where(BaseModelRow.name == base.name, DomainRow.name == name, *same_size)
        with self._database.reading() as session:
            older = session.execute(query).all()
        for id_, version, digest in older:
            try:
                found[id_] = content_digest(self._store.folder(digest))
            except RecCocktailError as error:
                unread.append(
                    f"not compared with {Reference(name, version=version)}, whose files cannot be read: {error}"
                )
        return found, tuple(unread)

    def store(
        self,
        folder: Path | str,
        *,
        base: Base,
        checks: Checks | None = None,
        accept: Callable[[str], object] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> StoredAdapter:
        """The adapter's files in the store, inspected, for `add` to number; several may be stored at once, in threads.

        `accept` gets the digest first; what it raises keeps the files out. Raises InvalidArtifactError.
        """
        folder, checks = Path(folder), checks or Checks()
        facts = self._inspected(folder, base, replace(checks, scan=False))
        files, skipped = self._files(folder, base, facts)
        found: list[tuple[AdapterFacts | BundleFacts, str]] = []

        def check(copy: Path, digest: str) -> None:
            if accept is not None:
                accept(digest)
            # a trainer may still have been writing: what counts is what is kept
            if (read := copied_as_inspected(copy, facts, checks)) is None:
                raise InvalidArtifactError(
                    f"{folder} was changed while it was read", hint="add it again once it is written"
                )
            found.append(read)

        linked = cached_repo(folder) is not None
        tree = self._store.add_folder(folder, files=files, allow_links=linked, check=check, progress=progress)
        return StoredAdapter(folder, tree.digest, found[0][1], found[0][0], skipped)

    def _inspected(self, folder: Path, base: Base, checks: Checks) -> AdapterFacts | BundleFacts:
        if is_bundle(folder):
            from ..artifacts.bundle_inspect import inspect_bundle  # pydantic is slow to import, and most are no bundles

            return inspect_bundle(
                folder, self._bases.facts(base), base_digest=checks.beside or base.digest, scan=checks.scan
            )
        base_stored = self._store.local(base.digest)
        return inspect_adapter(
            folder,
            self._bases.facts(base),
            base_names=(base.name, base.source, *([str(base_stored)] if base_stored else [])),
            allow_base_mismatch=checks.allow_base_mismatch,
            allow_partial=checks.allow_partial,
            scan=checks.scan,
        )

    def _files(
        self, folder: Path, base: Base, facts: AdapterFacts | BundleFacts
    ) -> tuple[Sequence[str], tuple[str, ...]]:
        """The files to keep, and those to leave out."""
        if isinstance(facts, BundleFacts):
            return files_of_bundle(folder, {BUNDLE, *facts.manifest.files})
        own = facts.vocabulary is not None or (
            bool(tokenizer_files(folder)) and brings_own(folder, self._bases.folder(base))
        )
        return adapter_files(folder, with_tokenizer=own)  # else the base's says the same

    def resolve(
        self,
        ref: str | Reference,
        *,
        base: str | None = None,
        at: datetime | None = None,
        kind: str | None = LORA,
    ) -> Adapter:
        """The version a reference means now, or meant `at` a moment. A bare name never means an archived one.

        Only a plain LoRA is an ingredient of anything, so others are for those who ask for their `kind`, or with None for any.
        Raises NotFoundError; WrongKindError of that family; GateError for a bare name of a gated domain without a champion; UsageError
        where it means versions for several bases and none is given.
        """
        with self._database.reading() as session:
            if at is None:
                return adapter_of(find_adapter(session, ref, base, kind))
            past = history.find_at(session, parsed(ref), base, at, kind)
            return replace(adapter_of(past.row), aliases=past.aliases, archived_at=past.archived_at, **vars(past.about))

    def current(self, kind: str = LORA) -> builtins.list[Adapter]:
        """What each bare name means now, for every base: at most one plain LoRA, or other kind, per base and domain, in one query."""
        # few versions have many aliases, so these come in the same query
        query = select(AdapterRow).where(AdapterRow.id.in_(preferred(kind))).options(joinedload(AdapterRow.aliases))
        with self._database.reading() as session:
            return [adapter_of(row) for row in session.scalars(query).unique()]

    def current_and_held_back(self) -> tuple[builtins.list[Adapter], builtins.list[Adapter]]:
        """`current`, and the newest plain LoRAs, per base, of gated domains without a champion in use, whose bare names mean nothing; in one query."""
        is_held = AdapterRow.id.in_(held_back())
        query = select(AdapterRow, is_held).where(AdapterRow.id.in_(preferred()) | is_held).order_by(AdapterRow.id)
        with self._database.reading() as session:
            rows = session.execute(query.options(joinedload(AdapterRow.aliases))).unique().all()
            found = [(adapter_of(row), bool(held)) for row, held in rows]
        return [row for row, held in found if not held], [row for row, held in found if held]

    def versions(self, domains: Iterable[str] | None = None) -> builtins.list[Adapter]:
        """All versions of these domains (`spirit` is one), or of all, oldest first, in one query."""
        query = select(AdapterRow).options(joinedload(AdapterRow.aliases)).order_by(AdapterRow.id)
        if domains is not None:
            query = query.join(AdapterRow.domain).where(DomainRow.name.in_({*domains}))
        with self._database.reading() as session:
            return [adapter_of(row) for row in session.scalars(query).unique()]

    def digests(self, refs: Iterable[Reference], *, base: str) -> dict[Reference, str]:
        """The digests of what the references mean now for one base, in one query.

        What means no version, an archived one, or one that is no plain LoRA, is left out.
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
            return query.where(BaseModelRow.name == base, AdapterRow.archived_at.is_(None), AdapterRow.kind == LORA)

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
        sort: str | None = None,
        limit: int = 50,
        after: str | Reference | None = None,
    ) -> builtins.list[Adapter]:
        """Newest first, archived ones included; `after` is the reference that the page before ended with.

        With `sort`, the largest value of that metric first, of the versions that have it.

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
            if (domain, base, role, wanted.kind, sort) != (None, None, None, None, None) or wanted.metrics:
                ids = ids.join(AdapterRow, AdapterRow.id == id_)
        with self._database.reading() as session:
            if domain is not None:
                ids = ids.where(AdapterRow.domain_id == find_domain(session, domain).id)
            if base is not None:
                ids = ids.where(AdapterRow.base_id == find_base(session, base).id)
            if role is not None:
                ids = ids.where(AdapterRow.role == role)
            if wanted.kind is not None:
                ids = ids.where(AdapterRow.kind == wanted.kind)
            for tag in dict.fromkeys(wanted.tags):
                ids = ids.where(id_.in_(select(AdapterTagRow.adapter_id).where(AdapterTagRow.tag == tag)))
            conditions = within(wanted.metrics)
            ids = narrowed(session, ids, id_, [*wanted.metrics, *([MetricBound(sort)] if sort else [])])
            last = None
            if after is not None:
                named, _, ref = str(after).rpartition(":")
                last = find_adapter(session, ref, named or base).id
            if sort is not None:
                best = best_first(session, ids, id_, Order(sort, conditions, last, limit))
                rows = {row.id: row for row in session.scalars(select(AdapterRow).where(AdapterRow.id.in_(best)))}
                return [adapter_of(rows[each]) for each in best]
            ids = ids.where(*conditions, *(() if last is None else [id_ < last]))
            query = select(AdapterRow).where(AdapterRow.id.in_(ids)).order_by(AdapterRow.id.desc())
            return [adapter_of(row) for row in session.scalars(query)]

    def aliases(self, domain: str, *, base: str | None = None) -> builtins.list[AdapterAlias]:
        """Of a domain's versions, or of spirits, by name and base."""
        with self._database.reading() as session:
            place = find_domain(session, domain).id
            return aliases_in(session, domain, place, None if base is None else find_base(session, base).id)

    def alias(
        self,
        ref: str | Reference,
        name: str,
        *,
        base: str | None = None,
        passage: Passage | None = None,
        expected: Expected | None = None,
    ) -> Adapter:
        """Sets the alias, or moves it here. Raises ConflictError for an archived version, GateError without what the gate asks for.

        PreconditionError where the alias is not where `expected` says any more.
        """
        check_name("alias", name)
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            set_alias(session, row, name, passage, expected)
            return adapter_of(row)

    def remove_alias(
        self,
        ref: str | Reference,
        *,
        base: str | None = None,
        override: str | None = None,
        expected: Expected | None = None,
    ) -> Adapter:
        """Takes the alias of `NAME@ALIAS` away; the answer is the version that had it.

        In a gated domain a bare name means the champion or nothing, so a gate lets it go only with an `override`, the reason in words.
        Raises NotFoundError, UsageError, GateError, PreconditionError.
        """
        ref = parsed(ref)
        if ref.alias is None:
            raise UsageError(f"{str(ref)!r} names no alias", hint="write NAME@ALIAS")
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            if expected is not None:
                alias = session.get(AliasRow, (row.base_id, row.domain_id, ref.alias))
                expected.check(str(ref), alias and alias.event_id)
            more = detail_of_removal(session, row, ref.alias, override)
            append_event(session, "alias.removed", None, ref.alias, before=row, more=more)
            session.refresh(row, ["aliases"])
            mark_current_spirit(session, row)
            return adapter_of(row)

    def archive(
        self, ref: str | Reference, *, base: str | None = None, force: bool = False, override: str | None = None
    ) -> Adapter:
        """Takes the version out of use: bare names pass it over. Its bytes, its number and its aliases stay.

        Raises ConflictError for one that is in use (see `uses`), unless `force` is set; GateError for the champion of a domain with a gate,
        unless there is an `override`, the reason in words.
        """
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            if row.archived_at is None:
                if not force and (used := lineage.uses(session, row)):
                    raise ConflictError(f"{ref_of(row)} is in use: {'; '.join(used)}", hint="use --force to archive it")
                append_event(session, "adapter.archived", row, more=detail_of_archiving(session, row, override))
                session.refresh(row)
                mark_current_spirit(session, row)
            return adapter_of(row)

    def restore(self, ref: str | Reference, *, base: str | None = None) -> Adapter:
        """Takes an archived version into use again."""
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            if row.archived_at is not None:
                append_event(session, "adapter.restored", row)
                session.refresh(row)
                mark_current_spirit(session, row)
            return adapter_of(row)

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

    def inspected(self, adapter: Adapter) -> AdapterFacts | BundleFacts:
        """Of whatever kind, its files read and its values scanned again. Raises StoreError, InvalidArtifactError."""
        base, folder = self._bases.get(adapter.base), self.folder(adapter)
        if adapter.kind != LORA:
            from ..artifacts.bundle_inspect import inspect_bundle

            return inspect_bundle(folder, self._bases.facts(base), base_digest=base.digest)
        return inspect_adapter(folder, self._bases.facts(base), allow_partial=bool(adapter.training.lacking))

    def facts(self, adapter: Adapter) -> AdapterFacts:
        """Of a plain LoRA, read from the stored headers; what it may lack was decided, and its values scanned, when it was added."""
        base = self._bases.facts(self._bases.get(adapter.base))
        return inspect_adapter(self.folder(adapter), base, allow_partial=True, scan=False)
