"""Brings a registry to what a file says, object by object: each whole or not at all, and one that fails stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ..artifacts.inspect import expect_sound
from ..artifacts.sources import AdapterSource
from ..catalog.adapters import Adapter
from ..catalog.annotations import Edit
from ..catalog.bases import Base
from ..catalog.domains import Domain
from ..catalog.references import Reference, did_you_mean
from ..catalog.registration import Checks, Labels
from ..errors import ConflictError, NotFoundError, RecCocktailError, UsageError
from ..redaction import redacted
from ..registry import Registry
from .ahead import Ahead, Ready
from .annotating import difference
from .bringing_data import check_and_bring
from .document import AdapterEntry, AliasEntry, BaseEntry, Document, DomainEntry, PolicyEntry, RecipeEntry, WebhookEntry
from .outcomes import Outcome, failure, new
from .policies import bring_policy
from .problems import Place
from .refusals import check_digest, check_version, is_known, nowhere, other_content
from .webhooks import bring_webhook


class FoundBase(Protocol):
    """A model's folder on this machine, and what is recorded of where it came from."""

    @property
    def folder(self) -> Path: ...
    @property
    def source(self) -> str: ...
    @property
    def revision(self) -> str | None: ...


@dataclass(frozen=True)
class Ways:
    """What the registry cannot do by itself: fetch what a source means, and check what trainers, recipes and data are."""

    fetch_base: Callable[[str, str | None], AbstractContextManager[FoundBase]]
    fetch_adapter: Callable[[str, str | None], AdapterSource]
    check_domain: Callable[[str, Mapping[str, str]], object]
    settle_recipe: Callable[[Registry, str, bool], str]
    """(registry, name or file, dry run) → what the domain keeps of it."""
    move_alias: Callable[[Registry, str, str, str], object]
    """(registry, reference, alias, base): through the gate of the domain, if it has one."""
    keep_version: Callable[[Registry, RecipeEntry, bool], KeptVersion]
    """(registry, a recipe's or template's version, dry run) → the version that it is or, in a dry run, would be but for its number."""


@dataclass(frozen=True)
class KeptVersion:
    """`version` is None where none says the same and, in a dry run, none was added; `digest` is the content's."""

    version: int | None
    digest: str
    created: bool = False


@dataclass
class _Planned:
    """Versions of recipes and templates that a dry run would have added: digests by kind and name, and how many were there before."""

    before: dict[tuple[str, str], int] = field(default_factory=dict)
    digests: dict[tuple[str, str], list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Version:
    """A version that is there, or in a dry run would be (then without its row)."""

    number: int
    digest: str | None
    row: Adapter | None = None


@dataclass(frozen=True)
class _LocalBase:
    folder: Path
    source: str
    revision: str | None


def apply(
    registry: Registry,
    document: Document,
    ways: Ways,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Each object's outcome, in the order in which they depend on each other. `progress` gets the entries done, and all.

    Sources are fetched and inspected in a dry run too; nothing is written.
    """
    applying = _Applying(registry, document, ways, dry_run)
    entries = [
        *((entry, applying.base) for entry in document.bases),
        *((entry, applying.recipe) for entry in document.recipes),
        *((entry, applying.domain) for entry in document.domains),
        *((entry, applying.adapter) for entry in document.adapters),
        *((entry, applying.alias) for entry in document.aliases),
        *((entry, applying.policy) for entry in document.policies),
        *((entry, applying.webhook) for entry in document.webhooks),
    ]
    with closing(applying.ahead):
        for done, (entry, bring) in enumerate(entries):
            if progress is not None:
                progress(done, len(entries))
            yield from bring(entry)
    if progress is not None:
        progress(len(entries), len(entries))


class _Applying:
    def __init__(self, registry: Registry, document: Document, ways: Ways, dry_run: bool) -> None:
        self._registry = registry
        self._ways = ways
        self._dry_run = dry_run
        self._bases: dict[str, Base | None] = {row.name: row for row in registry.bases.list()}
        self._domains: dict[str, Domain | None] = {row.name: row for row in registry.domains.list()}
        self._planned = _Planned()
        self._failed: set[tuple[str, str]] = set()  # kind and name of what others need
        self._versions: dict[tuple[str, str], list[_Version]] = {}
        self._on: dict[tuple[str, str, str], int] = {}
        needed = {entry.domain for entry in (*document.adapters, *document.aliases)}
        for row in registry.adapters.versions(needed) if needed else ():
            key = row.base, Reference.parse(row.ref).name
            self._versions.setdefault(key, []).append(_Version(row.version, row.digest, row))
            self._on.update({(*key, alias): row.version for alias in row.aliases})
        self._before = {*self._versions}
        self.ahead = Ahead(document.adapters, self._may_be_stored, self._stored)

    # bases

    def base(self, entry: BaseEntry) -> Iterator[Outcome]:
        outcome = Outcome("base", entry.name, None, "unchanged", entry.place.line)
        try:
            difference(entry.about, None)  # so that nothing is added and then fails
            found = self._brought_base(entry, outcome)
            edit = self._registry.edits.base
            row = self._bases[entry.name]
            yield self._annotated(found, entry.about, row, lambda change: edit(entry.name, change))
        except (RecCocktailError, OSError) as error:
            self._failed.add(("base", entry.name))
            yield failure(outcome, error)

    def _brought_base(self, entry: BaseEntry, outcome: Outcome) -> Outcome:
        known = self._bases.get(entry.name)
        if known is not None and is_known(known, entry):
            return outcome
        if known is not None and entry.digest is not None:
            raise other_content(known, entry.digest)
        with self._base_folder(entry) as found:
            if known is not None or entry.digest is not None:
                digest = self._registry.bases.digest_of(found.folder)
                if known is not None and digest == known.digest:
                    return outcome
                if known is not None:
                    raise other_content(known, digest)
                check_digest(found.folder, digest, entry.digest)
            if self._dry_run:
                self._bases[entry.name] = None
                return replace(outcome, action="created", changes=new(source=found.source, revision=found.revision))
            row = self._registry.bases.add(entry.name, found.folder, source=found.source, revision=found.revision)
        self._bases[entry.name] = row
        changes = new(source=row.source, revision=row.revision, digest=row.digest)
        return replace(outcome, action="created", changes=changes)

    def _annotated(
        self,
        outcome: Outcome,
        about: Mapping[str, Any],
        row: Adapter | Base | Domain | None,
        edit: Callable[[Edit], object],
    ) -> Outcome:
        """The outcome with what is changed of tags, note, description, links and metrics."""
        change, changes = difference(about, row)
        if not changes:
            return outcome
        if not self._dry_run:
            edit(change)
        action = "changed" if outcome.action == "unchanged" else outcome.action
        return replace(outcome, action=action, changes={**outcome.changes, **changes})

    @contextmanager
    def _base_folder(self, entry: BaseEntry) -> Iterator[FoundBase]:
        folder = self._at_hand(entry.files, entry.digest)
        if folder is not None:
            yield _LocalBase(folder, entry.source or str(folder), entry.revision)
        elif entry.source is None:
            raise nowhere(entry.files, entry.digest)
        else:
            with self._ways.fetch_base(entry.source, entry.revision) as found:
                yield found

    def _at_hand(self, files: str | None, digest: str | None) -> Path | None:
        """The bytes without fetching them: in the folder that is named, or in this registry's own store."""
        if files is not None and Path(files).is_dir():
            return Path(files)
        if digest is not None and self._registry.store.has(digest):
            return self._registry.store.folder(digest)
        return None

    # recipes and templates

    def recipe(self, entry: RecipeEntry) -> Iterator[Outcome]:
        outcome = Outcome(entry.kind, entry.name, None, "unchanged", entry.place.line)
        try:
            kept = self._ways.keep_version(self._registry, entry, self._dry_run)
            number, created = (kept.version, kept.created) if kept.version else self._foreseen(entry, kept.digest)
        except (RecCocktailError, OSError) as error:
            yield failure(outcome, error)
            return
        changes = new(digest=kept.digest, file=entry.file) if created else {}
        yield replace(
            outcome, name=f"{entry.name}@v{number}", action="created" if created else "unchanged", changes=changes
        )

    def _foreseen(self, entry: RecipeEntry, digest: str) -> tuple[int, bool]:
        """The number that a dry run gives to content that no version has, and whether it is the first of this file with it."""
        key = entry.kind, entry.name
        if key not in self._planned.before:
            versions = self._registry.recipes if entry.kind == "recipe" else self._registry.templates
            try:
                self._planned.before[key] = len(versions.log(entry.name))
            except NotFoundError:
                self._planned.before[key] = 0
        digests = self._planned.digests.setdefault(key, [])
        created = digest not in digests
        if created:
            digests.append(digest)
        return self._planned.before[key] + digests.index(digest) + 1, created

    def _settled(self, recipe: str) -> str:
        """What a domain keeps of the recipe; in a dry run also of one that the file adds."""
        name, _, version = recipe.partition("@v")
        planned = self._planned.digests.get(("recipe", name), [])
        last = self._planned.before.get(("recipe", name), 0) + len(planned)
        if planned and (not version or (version.isdecimal() and int(version) <= last)):
            return f"{name}@v{version or last}"
        return self._ways.settle_recipe(self._registry, recipe, self._dry_run)

    # domains

    def domain(self, entry: DomainEntry) -> Iterator[Outcome]:
        outcome = Outcome("domain", entry.name, None, "unchanged", entry.place.line)
        known = self._domains.get(entry.name)
        given = entry.given()
        try:
            if "recipe" in given:
                given["recipe"] = self._settled(given["recipe"])
        except (RecCocktailError, OSError) as error:
            if known is None:
                self._failed.add(("domain", entry.name))
            yield failure(outcome, error)
            return
        before = {name: None if known is None else getattr(known, name) for name in given}
        differing = {
            name: value
            for name, value in given.items()
            if before[name] != (redacted(value) if name == "title" else value)
        }
        created = known is None
        try:
            difference(entry.about, None)
            if created or differing:
                check_and_bring(self._registry, entry, differing, self._ways.check_domain, dry_run=self._dry_run)
                if not self._dry_run:
                    known = self._registry.domains.add(entry.name, **differing)
                changes = {name: (before[name], value) for name, value in differing.items()}
                outcome = replace(outcome, action="created" if created else "changed", changes=changes)
            edit = self._registry.edits.domain
            outcome = self._annotated(outcome, entry.about, known, lambda change: edit(entry.name, change))
        except (RecCocktailError, OSError) as error:
            if created:
                self._failed.add(("domain", entry.name))
            yield failure(outcome, error)
            return
        self._domains[entry.name] = known
        yield outcome

    # adapters

    def adapter(self, entry: AdapterEntry) -> Iterator[Outcome]:
        where = entry.source or entry.files or entry.digest or ""
        outcome = Outcome("adapter", f"{entry.domain} from {where}", entry.base, "unchanged", entry.place.line)
        try:
            difference(entry.about, None)
            outcome, version = self._brought_adapter(entry, outcome)
            edit, ref = self._registry.edits.adapter, f"{entry.domain}@v{version.number}"
            outcome = self._annotated(
                outcome, entry.about, version.row, lambda change: edit(ref, change, base=entry.base)
            )
        except (RecCocktailError, OSError) as error:
            yield failure(outcome, error)
            lost = ConflictError(f"the adapter at {entry.place} is not there")
            for alias in entry.aliases:
                yield failure(replace(outcome, kind="alias", name=f"{entry.domain}@{alias}"), lost)
            return
        yield outcome
        for alias in entry.aliases:
            yield self._moved(entry.place, (entry.base, entry.domain, alias), version.number)
        yield from self._archived(entry, version, outcome)

    def _brought_adapter(self, entry: AdapterEntry, outcome: Outcome) -> tuple[Outcome, _Version]:
        self._require("base", entry.base, self._bases)
        if entry.role == "ingredient":
            self._require("domain", entry.domain, self._domains)
        here = self._versions.setdefault((entry.base, entry.domain), [])
        known = _with_digest(here, entry.digest)
        ready = self.ahead.take(entry)
        if known is None:
            ready = ready or self._found(entry, needed=bool(here) or self._dry_run or entry.digest is not None)
            known = _with_digest(here, ready.digest)
            if known is None:
                return self._added(entry, outcome, ready)
        check_version(entry, known.number)
        return replace(outcome, name=f"{entry.domain}@v{known.number}"), known

    def _may_be_stored(self, entry: AdapterEntry) -> bool:
        """Whether it is a folder here, of something that the registry can only lack."""
        place = entry.files or entry.source
        return (
            not self._dry_run
            and (entry.base, entry.domain) not in self._before
            and self._bases.get(entry.base) is not None
            and (entry.role == "spirit" or self._domains.get(entry.domain) is not None)
            and place is not None
            and Path(place).is_dir()
        )

    def _stored(self, entry: AdapterEntry) -> Ready:
        found, base = self._adapter_source(entry), self._bases[entry.base]
        assert base is not None

        def accept(digest: str) -> None:
            check_digest(found.folder, digest, entry.digest)

        stored = self._registry.adapters.store(found.folder, base=base, checks=_checks(entry), accept=accept)
        return Ready(found, stored.digest, stored)

    def _found(self, entry: AdapterEntry, *, needed: bool) -> Ready:
        """Nothing is stored yet. The digest is None where it need not be known, or cannot be: of an adapter whose base a dry run does not have."""
        found, base, checks = self._adapter_source(entry), self._bases[entry.base], _checks(entry)
        if base is None:
            notes = expect_sound(found.folder, allow_partial=checks.allow_partial, scan=checks.scan)
            return Ready(found, notes=notes)
        if not needed:
            return Ready(found)
        digest, notes = self._registry.adapters.foresee(found.folder, base=base, checks=checks)
        check_digest(found.folder, digest, entry.digest)
        return Ready(found, digest, notes=notes)

    def _require(self, kind: Literal["base", "domain"], name: str, known: Mapping[str, Any]) -> None:
        if (kind, name) in self._failed:
            raise NotFoundError(f"{kind} {name!r}, which it needs, failed")
        if name not in known:
            raise NotFoundError(
                f"there is no {kind} {name!r}, neither in the registry nor in the file{did_you_mean(name, known)}"
            )

    def _adapter_source(self, entry: AdapterEntry) -> AdapterSource:
        folder = self._at_hand(entry.files, entry.digest)
        if folder is not None:
            return AdapterSource(folder)
        if entry.source is None:
            raise nowhere(entry.files, entry.digest)
        return self._ways.fetch_adapter(entry.source, entry.revision)

    def _added(self, entry: AdapterEntry, outcome: Outcome, ready: Ready) -> tuple[Outcome, _Version]:
        here = self._versions[entry.base, entry.domain]
        number = max((version.number for version in here), default=0) + 1
        check_version(entry, number)
        labels = Labels(
            entry.about.get("metrics", {}),
            entry.about.get("tags", []),
            entry.about.get("note"),
            context=ready.found.origin if entry.context is None else entry.context,
        )
        if self._dry_run:
            labels.checked()
            remarks, version = ready.notes, _Version(number, ready.digest)
        else:
            base = self._bases[entry.base]
            assert base is not None
            domain = None if entry.role == "spirit" else entry.domain
            row = self._registry.adapters.add(
                ready.stored or ready.found.folder,
                base=base,
                role=entry.role,
                domain=domain,
                labels=labels,
                checks=_checks(entry),
            )
            remarks, version = row.notes, _Version(row.version, row.digest, row)
            if not row.created:  # its content is that of a version with another digest, or another process was first
                check_version(entry, row.version)
                return replace(outcome, name=row.ref, remarks=remarks), version
        here.append(version)
        shown = {name: entry.about.get(name) for name in ("metrics", "tags", "note")}
        about = new(source=entry.source or entry.files, digest=version.digest, **shown)
        name = f"{entry.domain}@v{version.number}"
        return replace(outcome, name=name, action="created", changes=about, remarks=remarks), version

    def _archived(self, entry: AdapterEntry, version: _Version, outcome: Outcome) -> Iterator[Outcome]:
        before = version.row is not None and version.row.archived_at is not None
        if entry.archived is None or entry.archived == before:
            return
        ref = f"{entry.domain}@v{version.number}"
        try:
            if not self._dry_run and entry.archived:
                # one that was made a moment ago is in no use yet
                self._registry.adapters.archive(ref, base=entry.base, force=outcome.action == "created")
            elif not self._dry_run:
                self._registry.adapters.restore(ref, base=entry.base)
        except RecCocktailError as error:
            yield failure(outcome, error)
            return
        yield replace(outcome, action="changed", changes={"archived": (before, entry.archived)}, remarks=())

    # aliases

    def alias(self, entry: AliasEntry) -> Iterator[Outcome]:
        base = entry.base
        try:
            if base is None:
                if len(self._bases) > 1:
                    raise UsageError(
                        f"there are several base models: {', '.join(sorted(self._bases))}",
                        hint=f"write BASE:{entry.domain}@{entry.alias}",
                    )
                base = next(iter(self._bases), None)
            if base is None:
                raise NotFoundError("there is no base model yet")
            self._require("base", base, self._bases)
            here = self._versions.get((base, entry.domain), [])
            if entry.version not in {version.number for version in here}:
                raise NotFoundError(
                    f"there is no {entry.domain}@v{entry.version} for base model {base!r}",
                    hint=f"`reccocktail adapter list --domain {entry.domain}`",
                )
        except RecCocktailError as error:
            name = f"{entry.domain}@{entry.alias}"
            yield failure(Outcome("alias", name, base, "failed", entry.place.line), error)
            return
        yield self._moved(entry.place, (base, entry.domain, entry.alias), entry.version)

    def _moved(self, place: Place, key: tuple[str, str, str], version: int) -> Outcome:
        base, domain, alias = key
        outcome = Outcome("alias", f"{domain}@{alias}", base, "unchanged", place.line)
        before = self._on.get(key)
        if before == version:
            return outcome
        try:
            if not self._dry_run:
                self._ways.move_alias(self._registry, f"{domain}@v{version}", alias, base)
        except RecCocktailError as error:
            return failure(outcome, error)
        self._on[key] = version
        changes = {"version": (before and f"v{before}", f"v{version}")}
        return replace(outcome, action="created" if before is None else "changed", changes=changes)

    # policies and webhooks

    def policy(self, entry: PolicyEntry) -> Iterator[Outcome]:
        yield bring_policy(self._registry, entry, self._is_planned, dry_run=self._dry_run)

    def webhook(self, entry: WebhookEntry) -> Iterator[Outcome]:
        yield bring_webhook(self._registry, entry, self._is_planned, dry_run=self._dry_run)

    def _is_planned(self, domain: str) -> bool:
        """Whether only a dry run would have the domain. Raises NotFoundError."""
        self._require("domain", domain, self._domains)
        return self._domains[domain] is None


def _with_digest(here: list[_Version], digest: str | None) -> _Version | None:
    return next((version for version in here if digest is not None and version.digest == digest), None)


def _checks(entry: AdapterEntry) -> Checks:
    return Checks(entry.allow_base_mismatch, entry.allow_partial, scan=entry.scan)
