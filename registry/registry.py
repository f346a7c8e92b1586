"""The registry as one thing: the database, the store, and the nouns they hold."""

from __future__ import annotations

from types import TracebackType

from sqlalchemy import select

from . import database
from .adapters import Adapters
from .bases import Bases
from .builds import Builds
from .database import Database
from .domains import Domains
from .errors import StoreError
from .events import Events
from .publications import Publications
from .settings import Settings
from .store import Store
from .tables import AdapterRow, BaseModelRow, BuildRow


class Registry:
    """Use it as a context manager, or close it. Threads may share one; processes open their own."""

    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self.settings = settings
        self.store = store
        self._database = database
        self.bases = Bases(database, store)
        self.domains = Domains(database)
        self.adapters = Adapters(database, store, self.bases)
        self.builds = Builds(database, store)
        self.publications = Publications(database)
        self.events = Events(database)

    @classmethod
    def create(cls, settings: Settings, *, actor: str | None = None) -> Registry:
        """Makes the home folder, the tables and the store where they are missing, and opens them."""
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create the home folder {settings.home}: {error.strerror}") from error
        database.upgrade(settings.database_url)
        Store.create(settings.store_url)
        return cls.open(settings, actor=actor)

    @classmethod
    def open(cls, settings: Settings, *, actor: str | None = None) -> Registry:
        """Raises DatabaseError or StoreError, with what to run, if there is no registry or it is not migrated.

        Rows are created in the name of `actor`; without one, of the login name.
        """
        database.require_head(settings.database_url)
        return cls(settings, Database(settings.database_url, actor=actor), Store.open(settings.store_url))

    def digests(self) -> set[str]:
        """Every tree that a row refers to: what `store.gc` must keep."""
        with self._database.reading() as session:
            found = {digest for row in (BaseModelRow, AdapterRow) for digest in session.scalars(select(row.digest))}
            for digest, report in session.execute(select(BuildRow.digest, BuildRow.report)):
                artifact = (report or {}).get("artifact")  # curve and plot of an adaptive build
                found |= {tree for tree in (digest, artifact) if tree}
        return found

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
