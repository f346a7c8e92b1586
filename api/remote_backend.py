"""What the command asks for, answered by a server: the same methods as `backend.LocalBackend`, the same records and errors."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..registry.closing import Closing
from ..registry.errors import ConflictError, LocalOnlyError, RecCocktailError
from .backend import facts_of, say_origin
from .connection import Connection, files_in, given
from .orders import Located, NewAdapter, NewBase, NewDomain, Say, Storing, unsaid
from .remote_nouns import (
    RemoteAdapters,
    RemoteBases,
    RemoteBuilds,
    RemoteDomains,
    RemoteEdits,
    RemoteEvaluations,
    RemoteGates,
    RemotePublications,
    RemoteRecipes,
    RemoteServing,
    RemoteTemplates,
    adapter_of,
    build_of,
)
from .remote_webhooks import RemoteOutbox, RemoteWebhooks

if TYPE_CHECKING:
    from ..engine.building.asking import BuildOrder, Due
    from ..engine.building.completion import Reports
    from ..engine.queries import AdapterQuery, BuildQuery, EvaluationQuery, EventQuery
    from ..registry import Adapter, Base, Build, Domain, Event, Request
    from ..registry.catalog.evaluations import EvaluationRecord
    from ..registry.catalog.recipes import RecipeVersion
    from ..registry.catalog.serving import BuildAlias
    from ..tasks import DataFacts

OPEN = ("queued", "running")
CHOICE = ("state", "reasons", "why", "served", "ready", "trial")  # as `describe_choice`
MOST_OF_A_SYSTEM = 11  # evaluations beside other things, one more than is shown
POLL_SECONDS = 1.0


class RemoteBackend(Closing):
    """A server, asked in the name of one token."""

    def __init__(self, url: str, token: str | None = None, say: Say = unsaid) -> None:
        """Raises UsageError, as `Connection`."""
        self._server = server = Connection(url, token, say)
        self.bases, self.domains, self.adapters = RemoteBases(server), RemoteDomains(server), RemoteAdapters(server)
        self.builds, self.serving, self.edits = RemoteBuilds(server), RemoteServing(server), RemoteEdits(server)
        self.evaluations, self.publications = RemoteEvaluations(server), RemotePublications(server)
        self.webhooks, self.outbox = RemoteWebhooks(server), RemoteOutbox(server)
        self.recipes, self.templates = RemoteRecipes(server), RemoteTemplates(server)
        self.gates = RemoteGates(server)

    def close(self) -> None:
        self._server.close()

    def patient(self) -> AbstractContextManager[None]:
        """While a build is watched, a server that restarts is asked again for ten minutes."""
        return self._server.patient()

    # base models and domains

    def add_base(self, new: NewBase, *, storing: Storing, say: Say = unsaid) -> Base:
        """A folder of this machine, or what is in a package of it, is sent; a repository of the Hub is fetched by the server."""
        from ..registry.artifacts.allowlist import base_files
        from ..registry.artifacts.checkpoints import checkpoint, is_on_hub
        from ..registry.artifacts.inspect import inspect_base

        if is_on_hub(new.source):
            return self.bases.added({"name": new.name, "source": new.source, "revision": new.revision})
        with checkpoint(new.source, new.revision, say=say) as found:
            names, skipped = base_files(found.folder, inspect_base(found.folder).files)
            with storing() as bar:
                upload = self._server.upload(found.folder, [*names], bar.add)
            row = self.bases.added({"name": new.name, "source": found.source, "upload": upload})
            return replace(row, skipped=skipped)

    def describe_base(self, name: str) -> dict[str, Any]:
        """Its files are on the server, and not on this machine."""
        return self.bases.get(name).to_json() | {"path": None}

    def add_domain(self, new: NewDomain, *, say: Say = unsaid) -> tuple[Domain, DataFacts | None]:
        """The data are read here first, and sent."""
        data, found = facts_of(new)
        upload = None
        if data is not None:
            paths = sorted(path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file())
            upload = self._server.upload(data, paths)
        recipe = new.recipe and self._settled(new.recipe, say)
        about = {"name": new.name, "title": new.title, "trainer": new.trainer, "recipe": recipe, "upload": upload}
        return self.domains.added(about), found

    def _settled(self, text: str, say: Say) -> str:
        """The recipe's name, once a file is added under its own."""
        from ..engine.recipe_book import is_file_name, name_of
        from ..engine.recipes import SHIPPED

        if text in SHIPPED or not is_file_name(text):
            return text
        path = Path(text).expanduser()
        added = self.add_recipe(name_of(path), path, say=say)
        say(f"{path} was {'read in' if added.created else 'read in before'} as recipe {added.ref}")
        return added.ref

    def data_facts(self, row: Domain) -> DataFacts | None:
        """Raises TaskError for data that cannot be read there."""
        from ..tasks import DataFacts, TaskError

        try:
            found = None if row.data is None else self._server.get(f"/domains/{quote(row.name)}/facts")
        except RecCocktailError as error:
            if error.code not in ("task", "data"):
                raise
            raise TaskError(str(error), hint=error.hint) from error
        return found and DataFacts(**found)

    # adapters

    def add_adapter(self, new: NewAdapter, *, storing: Storing, say: Say = unsaid) -> Adapter:
        """A folder of this machine is sent; a repository of the Hub is fetched by the server."""
        from ..registry.artifacts.checkpoints import is_on_hub
        from ..registry.artifacts.sources import find_adapter_source

        self.bases.get(new.base)
        if new.domain is not None:
            self.domains.get(new.domain)  # before anything is sent
        about = _adapter_document(new)
        if is_on_hub(new.source):
            return self.adapters.added(about | {"source": new.source, "revision": new.revision})
        found = find_adapter_source(new.source, revision=new.revision)
        say_origin(found.origin, found.unchecked, say)
        with storing() as bar:
            upload = self._server.upload(found.folder, files_in(found.folder), bar.add)
        return self.adapters.added(about | {"upload": upload, "context": {**new.made, **found.origin}})

    def list_adapters(
        self, query: AdapterQuery, *, limit: int, after: str | None = None
    ) -> list[tuple[Adapter, dict[str, Any]]]:
        found = self._server.listed("/adapters", limit=limit, after=after, **asdict(query))
        return [(adapter_of(each), each) for each in found]

    def show_adapter(
        self, ref: str, *, base: str | None = None, at: datetime | None = None
    ) -> tuple[Adapter, dict[str, Any]]:
        moment = None if at is None else at.isoformat()
        found = self._server.get(f"/adapters/{quote(ref)}", base=base, at=moment)
        return adapter_of(found), found | {"path": None}

    def evaluations_of_adapter(self, row: Adapter) -> list[EvaluationRecord]:
        return self.evaluations.of_system(row.ref, row.base, MOST_OF_A_SYSTEM)

    def set_alias(self, ref: str, alias: str, *, base: str | None = None, override: str | None = None) -> Adapter:
        address = f"/domains/{quote(ref.partition('@')[0])}/aliases/{quote(alias, safe='')}"
        body = {"ref": ref, "override": override}
        return adapter_of(self._server.ask("PUT", address, params=given(base=base), json=body))

    def archive(
        self, ref: str, *, base: str | None = None, force: bool = False, override: str | None = None
    ) -> tuple[Adapter, list[str]]:
        body = {"force": force, "override": override}
        found = self._server.ask("POST", f"/adapters/{quote(ref)}:archive", params=given(base=base), json=body)
        return adapter_of(found), found["uses"]

    def approve_adapter(self, ref: str, *, base: str | None = None) -> tuple[str, list[str]]:
        found = self._server.ask("POST", f"/adapters/{quote(ref)}:approve", params=given(base=base))
        return found["ref"], found["approved_by"]

    def difference(self, ref: str, other: str, *, base: str | None = None) -> dict[str, Any]:
        return self._server.get(f"/adapters/{quote(ref, safe='')}/diff", other=other, base=base)

    def verify_adapter(self, ref: str, *, base: str | None = None) -> dict[str, Any]:
        return self._server.get(f"/adapters/{quote(ref, safe='')}/verification", base=base)

    def locate(self, ref: str, *, base: str | None = None) -> Located:
        """In this user's cache, fetched if needed and checked against its digests."""
        from ..serving.resolve import Origin, Resizing

        found = self._server.get(f"/resolve/{quote(ref)}", base=base)
        label = found["build"] or found["adapter"].partition("@v")[2]
        name = f"build {found['build']}" if found["build"] else found["adapter"]
        place = f"/builds/{found['build']}" if found["build"] else f"/adapters/{quote(found['adapter'])}"
        folder = self._server.fetched(f"{place}/files", base=None if found["build"] else found["base"])
        needs = self._server.get(f"/resolve/{quote(ref)}/needs", base=found["base"])
        resizing = needs and Resizing(needs["base_vocabulary"], needs["resize_token_embeddings"])
        return Located(Origin(name, found["base"], found["digest"], label, found["build"]), folder, resizing)

    # builds

    def request_build(self, order: BuildOrder) -> Request:
        """A file's recipe is sent. A request whose answer was lost is sent again, and makes no second build."""
        from ..engine.recipe_book import is_file_name
        from ..engine.recipes import SHIPPED, load_recipe
        from ..registry import Request

        if order.recipe is not None and order.recipe not in SHIPPED and is_file_name(order.recipe):
            order = replace(order, recipe=None, content=load_recipe(order.recipe).to_json())
        once = {"Idempotency-Key": secrets.token_hex(16)}
        found = self._server.ask("POST", "/builds", json=asdict(order), headers=once)
        return Request(build_of(found), found["created"])

    def builds_due(self, *, every: bool, recipe: str | None = None, base: str | None = None) -> Due:
        from ..engine.building.asking import Due

        return Due.from_json(self._server.get("/status/due", every=every, recipe=recipe, base=base))

    def complete(self, build: Build, *, keep_best: bool = False, reports: Reports | None = None) -> Build:
        """The build, once a worker of the server's has made it, with its progress. Raises ConflictError for one that failed.

        `keep_best` is for a search in this process, and does nothing.
        """
        from ..engine.building.completion import Reports

        reports = reports or Reports()
        row = self._awaited(build, reports) if build.status in OPEN else build
        if row.status == "failed":
            raise ConflictError(
                f"build {row.id} failed: {(row.error or {}).get('message')}", hint=f"reccocktail build retry {row.id}"
            )
        return row

    def _awaited(self, row: Build, reports: Reports) -> Build:
        told = None
        with reports.attempt([row]) as progress, self.patient():
            while row.status in OPEN:
                with_whom = f" with worker {row.worker}" if row.worker else ""
                if told != (told := f"build {row.id} is {row.status}{with_whom}"):
                    reports.say(told)
                if row.stage and row.total:
                    progress(row.stage, row.done, row.total)
                time.sleep(POLL_SECONDS)
                row = self.builds.get(row.id)
        return row

    def complete_all(
        self, builds: Sequence[Build], *, keep_best: bool = False, reports: Reports | None = None
    ) -> list[Build]:
        from ..engine.building.completion import Reports
        from ..engine.building.job import BuildOutcome

        reports, done = reports or Reports(), []
        for build in builds:
            try:
                outcome = BuildOutcome(self.complete(build, keep_best=keep_best, reports=reports))
            except ConflictError as error:
                outcome = BuildOutcome(self.builds.get(build.id), error)
            reports.ended(outcome)
            done.append(outcome.build)
        return done

    def list_builds(self, query: BuildQuery, *, limit: int, after: str | None = None) -> list[Build]:
        return [build_of(each) for each in self._server.listed("/builds", limit=limit, after=after, **asdict(query))]

    def describe_build(self, row: Build) -> dict[str, Any]:
        return self._server.get(f"/builds/{row.id}") | {"path": None}

    def evaluations_of_build(self, row: Build) -> list[EvaluationRecord]:
        return [] if row.digest is None else self.evaluations.of_system(row.id, None, MOST_OF_A_SYSTEM)

    def choose(self, domain: str, *, base: str | None = None) -> tuple[Build, dict[str, Any]]:
        found = self._server.get(f"/resolve/{quote(domain)}", base=base, merged=True)
        return self.builds.get(found["build"]), {name: found[name] for name in CHOICE}

    def build_folder(self, row: Build) -> Path:
        """In this user's cache, fetched if needed and checked against its digests."""
        return self._server.fetched(f"/builds/{row.id}/files")

    def copy_build(self, row: Build, target: Path, *, storing: Storing) -> None:
        """In ranges where the line is cut, and checked against the digests of the files."""
        from ..registry.store.files import whole_folder

        with whole_folder(target) as staged, storing() as bar:
            self._server.fetch(f"/builds/{row.id}/files", staged, progress=bar.add)

    def promote(self, row: Build, *, why: str | None = None, override: str | None = None) -> BuildAlias:
        from ..registry.catalog.serving import BuildAlias

        body = {"why": why, "override": override}
        return BuildAlias.from_json(self._server.ask("POST", f"/builds/{row.id}:promote", json=body))

    def publish(self, document: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """The publication, or with `dry_run` what it would be, by the server's login at the Hub."""
        return self._server.ask("POST", "/publications", params=given(dry_run=dry_run), json=document)

    def apply(self, document: bytes, *, dry_run: bool) -> dict[str, Any]:
        """What became, or would become, of each object."""
        return self._server.ask("POST", "/apply", params=given(dry_run=dry_run), content=document)

    def roll_back(
        self,
        domain: str,
        to: str | None = None,
        *,
        base: str | None = None,
        why: str | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        address, body = f"/domains/{quote(domain, safe='')}:rollback", {"to": to, "base": base, "why": why}
        return self._server.ask("POST", address, params=given(dry_run=dry_run), json=body)

    # what happened and what was found

    def status(self, domain: str | None = None, states: Sequence[str] = ()) -> list[Mapping[str, Any]]:
        return self._server.get("/status", domain=domain, state=[*states])

    def list_events(self, query: EventQuery, *, limit: int, after: int | None = None) -> list[Event]:
        from ..registry import Event

        found = self._server.listed("/events", limit=limit, after=after, **asdict(query))
        return [Event.from_json(each) for each in found]

    def follow_events(self, query: EventQuery, count: int) -> Iterator[list[Event]]:
        from ..registry import Event

        newest = self.list_events(replace(query, domain=None, actor=None, kind=None, since=None), limit=1)
        yield self.list_events(query, limit=count)[::-1]
        wanted = asdict(replace(query, since=None))
        for data in self._server.events("/events/follow", newest[0].id if newest else 0, **wanted):
            yield [Event.from_json(data)]

    def list_evaluations(
        self, query: EvaluationQuery, *, limit: int, after: int | None = None
    ) -> list[EvaluationRecord]:
        return self.evaluations.list(asdict(query), limit=limit, after=after)

    def compare(
        self, one: str, other: str, *, domain: str | None = None, metrics: Sequence[str] = (), base: str | None = None
    ) -> dict[str, Any]:
        return self._server.get("/compare", a=one, b=other, domain=domain, metric=[*metrics], base=base)

    def describe_publication(self, what: str) -> dict[str, Any]:
        return self._server.get(f"/publications/{quote(what)}")

    def withdraw(self, what: str, *, make_private: bool, say: Say = unsaid) -> dict[str, Any]:
        """The repository is made private by the server's login at the Hub."""
        body = {"make_private": make_private}
        return self._server.ask("POST", f"/publications/{quote(what)}:withdraw", json=body)

    def ranks(self, row: EvaluationRecord) -> dict[str, list[Any]]:
        return self._server.get(f"/evaluations/{row.id}/ranks")

    def test_webhook(self, name: str) -> dict[str, Any]:
        return self._server.ask("POST", f"/webhooks/{quote(name, safe='')}:test")

    # recipes

    def describe_recipes(self) -> list[dict[str, Any]]:
        return self._server.get("/recipes")

    def recipe(self, name: str) -> dict[str, Any]:
        return self._server.get(f"/recipes/{quote(name)}")

    def add_recipe(self, name: str, file: Path, *, note: str | None = None, say: Say = unsaid) -> RecipeVersion:
        """The file's content is sent. Raises LocalOnlyError where it names a prompt template by its path."""
        from ..engine.recipe_book import is_file_name
        from ..engine.recipes import load_recipe
        from ..tasks import shipped_templates

        recipe = load_recipe(str(file))
        template = recipe.adaptive and recipe.adaptive.template
        if template and template not in shipped_templates() and is_file_name(template):
            raise LocalOnlyError.of(f"the template {template!r}", hint="name one of the registry: NAME or NAME@vN")
        return self.recipes.added({"name": name, "content": recipe.to_json(), "note": note})

    def describe_templates(self) -> list[dict[str, Any]]:
        return self._server.get("/templates")

    def template(self, name: str) -> dict[str, Any]:
        return self._server.get(f"/templates/{quote(name, safe='')}")

    def add_template(self, name: str, file: Path, *, note: str | None = None) -> RecipeVersion:
        """The file's content is sent."""
        from ..tasks import load_template

        content = load_template(file, name=name).model_dump(mode="json")
        return self.templates.added({"name": name, "content": content, "note": note})

    def marks(self) -> int | None:
        """Not known here."""
        return None

    def export(self) -> dict[str, Any]:
        return self._server.get("/export")


def _adapter_document(new: NewAdapter) -> dict[str, Any]:
    labels, checks = new.labels, new.checks
    return {
        "base": new.base,
        "domain": new.domain,
        "metrics": dict(labels.metrics),
        "tags": [*labels.tags],
        "note": labels.note,
        "aliases": [*labels.aliases],
        "context": dict(new.made),
        "if_exists": "reuse" if checks.reuse else "fail",
        "allow_base_mismatch": checks.allow_base_mismatch,
        "allow_partial": checks.allow_partial,
        "scan": checks.scan,
    }
