"""The registry as one thing: the database, the store, and the nouns they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from .catalog import collecting
from .catalog.adapters import Adapters
from .catalog.bases import Bases
from .catalog.build_records import Build
from .catalog.build_requests import Once
from .catalog.builds import Builds
from .catalog.domains import Domains
from .catalog.editing import Edits
from .catalog.evaluations import Evaluations
from .catalog.events import Events
from .catalog.gates import Gates
from .catalog.publications import Publications
from .catalog.recipes import Recipes
from .catalog.references import Reference
from .catalog.serving import Serving
from .catalog.staleness import Staleness
from .catalog.tokens import Tokens
from .closing import Closing
from .database.connection import Database, make_private
from .database.migrate import require_head, upgrade
from .database.tables import AdapterRow, BaseModelRow, BuildRow, DomainRow, EvaluationRow
from .errors import ConflictError, StoreError
from .ownership import private_folder
from .settings import Settings, is_remote
from .store import create_store, open_store
from .store.contract import GRACE, GcReport, Store
from .store.trees import is_tree
from .webhooks.hooks import Webhooks
from .webhooks.outbox import Outbox


@dataclass(frozen=True)
class Missing:
    """A tree that the database refers to and the store does not have; `what` is, say, `base tiny` or `adapter beauty@v3`."""

    what: str
    digest: str


class Registry(Closing):
    """Use it as a context manager, or close it. Threads may share one; processes open their own."""

    def __init__(self, settings: Settings, database: Database, store: Store, *, once: Once | None = None) -> None:
        self.settings = settings
        self.store = store
        self._database = database
        self.bases = Bases(database, store)
        self.domains = Domains(database)
        self.adapters = Adapters(database, store, self.bases)
        self.builds = Builds(database, store, once)
        self.serving = Serving(database)
        self.publications = Publications(database)
        self.evaluations = Evaluations(database)
        self.gates = Gates(database)
        self.events = Events(database)
        self.recipes = Recipes(database, "recipe")
        self.templates = Recipes(database, "template")
        self.edits = Edits(database)
        self.tokens = Tokens(database)
        self.staleness = Staleness(database)
        self.webhooks = Webhooks(database)
        self.outbox = Outbox(database)

    @classmethod
    def create(cls, settings: Settings, *, actor: str | None = None, notes: list[str] | None = None) -> Registry:
        """Makes the home folder, the tables and the store where they are missing, and opens them.

        `notes` gets what an upgrade of the tables reports.
        """
        try:
            if settings.store_shared:
                settings.home.mkdir(parents=True, exist_ok=True)
            else:
                private_folder(settings.home)
        except OSError as error:
            raise StoreError(f"cannot create the home folder {settings.home}: {error.strerror}") from error
        # first: where it is refused, nothing else is made
        if settings.store_folder is not None and not settings.store_shared:
            with suppress(OSError):  # reported when the store is created
                private_folder(settings.store_folder)
        create_store(settings.store_url, cache=settings.cache, cache_limit=settings.cache_limit)
        if is_remote(settings.store_url):
            settings.own_folder("cache")
        if not settings.store_shared:
            make_private(settings.database_url)
        upgrade(settings.database_url, notes=notes)
        return cls.open(settings, actor=actor)

    @classmethod
    def open(cls, settings: Settings, *, actor: str | None = None) -> Registry:
        """Raises DatabaseError or StoreError, with what to run, if there is no registry or it is not migrated.

        Rows are created in the name of `actor`; without one, of the login name.
        """
        require_head(settings.database_url)
        opened = Database(settings.database_url, actor=actor)
        # a local store's lock is a file in it; what machines share over a network they lock in the database
        lock = opened.store_lock() if is_remote(settings.store_url) else None
        try:
            if is_remote(settings.store_url):
                settings.own_folder("cache")
            store = open_store(settings.store_url, cache=settings.cache, cache_limit=settings.cache_limit, lock=lock)
            return cls(settings, opened, store)
        except BaseException:
            opened.close()
            raise

    @property
    def actor(self) -> str:
        """In whose name rows are created."""
        return self._database.actor

    def acting_as(self, actor: str, *, once: Once | None = None) -> Registry:
        """The same registry, with the same connections, for somebody else: a server's caller. It is closed by closing this one.

        `once` names the request for a build that is made with it.
        """
        return Registry(self.settings, self._database.acting_as(actor), self.store, once=once)

    def data_folder(self, data: str) -> Path:
        """Where a domain's data lie on this machine: a folder's path as it is, and a tree of the store, fetched if need be. Raises StoreError."""
        return self.store.folder(data) if is_tree(data) else Path(data)

    def digests(self, *, without: Collection[str] = ()) -> set[str]:
        """Every tree that a row refers to: what `store.gc` must keep. `without` the results of these builds."""
        return {digest for _, digest in self._references(without)}

    def collect_builds(self, before: datetime, *, dry_run: bool = False, force: bool = False) -> list[Build]:
        """Gives up the results of builds that succeeded before the moment and that nobody needs, see `collecting.unneeded`.

        Their rows stay, and whatever would need the files is refused; `collect` then removes these. Raises ConflictError as that does.
        """
        self._kept(force, ())
        ids = collecting.collect(self._database, before, dry_run=dry_run)
        rows = self.builds.with_ids(ids)
        return [rows[id_] for id_ in ids]

    def collect(
        self,
        *,
        dry_run: bool = False,
        grace: timedelta = GRACE,
        force: bool = False,
        without: Collection[str] = (),
    ) -> GcReport:
        """Removes from the store what no row refers to, as `Store.gc` does; in a dry run as if the results of builds had been given up.

        Raises ConflictError, unless `force` is set, if no row refers to anything the store has: then it is more likely the
        wrong database, or one that was just made anew, than a store full of waste.
        """
        return self.store.gc(self._kept(force, without if dry_run else ()), dry_run=dry_run, grace=grace)

    def _kept(self, force: bool, without: Collection[str]) -> set[str]:
        keep, there = self.digests(without=without), self.store.digests()
        if there and not there & keep and not force:
            raise ConflictError(
                f"the database refers to none of the {len(there)} folders in the store: is it the right one?",
                hint="restore the database, or say --force to empty the store",
            )
        return keep

    def missing(self) -> list[Missing]:
        """What rows refer to and the store does not have."""
        there = self.store.digests()
        return [Missing(what, digest) for what, digest in self._references() if digest not in there]

    def _references(self, without: Collection[str] = ()) -> Iterator[tuple[str, str]]:
        present = BaseModelRow.removed_at.is_(None)
        with self._database.reading() as session:
            for name, digest in session.execute(select(BaseModelRow.name, BaseModelRow.digest).where(present)):
                yield f"base {name}", digest
            domains = select(DomainRow.name, DomainRow.data).where(DomainRow.removed_at.is_(None))
            for name, data in session.execute(domains):
                if data is not None and is_tree(data):
                    yield f"data of domain {name}", data
            adapters = select(DomainRow.name, AdapterRow.version, AdapterRow.digest).join(AdapterRow.domain)
            for name, version, digest in session.execute(adapters):
                yield f"adapter {Reference(name, version=version)}", digest
            builds = select(BuildRow.id, BuildRow.digest, BuildRow.report, BuildRow.inputs, BuildRow.collected_at)
            for build_id, result, report, inputs, collected_at in session.execute(builds):
                digest = None if collected_at is not None or build_id in without else result
                artifact = (report or {}).get("artifact")  # curve and plot of an adaptive build
                asked = [inputs[name].get("digest") for name in ("prompts", "catalogue") if name in inputs]
                yield from ((f"build {build_id}", tree) for tree in (digest, artifact, *asked) if tree)
            for id_, ranks in session.execute(select(EvaluationRow.id, EvaluationRow.ranks)):
                yield f"evaluation {id_}", ranks

    def close(self) -> None:
        self._database.close()
