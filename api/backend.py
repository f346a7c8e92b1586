"""What the command asks for, answered by the registry of this machine; `remote_backend` answers the same by a server.

Reading and changing single rows goes through the registry's own nouns (`bases`, `builds`, …), all else through a method here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry.closing import Closing
from .orders import Located, NewAdapter, NewBase, NewDomain, Say, Storing, unsaid

if TYPE_CHECKING:
    from ..engine.building.asking import BuildOrder, Due
    from ..engine.building.completion import Reports
    from ..engine.queries import AdapterQuery, BuildQuery, EvaluationQuery, EventQuery
    from ..registry import Adapter, Base, Build, Domain, Event, Registry, Request
    from ..registry.catalog.evaluations import EvaluationRecord
    from ..registry.catalog.recipes import RecipeVersion
    from ..registry.catalog.serving import BuildAlias
    from ..tasks import DataFacts

LOOK_SECONDS = 1.0  # between two looks for new events


class LocalBackend(Closing):
    """An open registry. Use it as a context manager, or call `close`."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.bases, self.domains, self.adapters = registry.bases, registry.domains, registry.adapters
        self.builds, self.serving, self.gates = registry.builds, registry.serving, registry.gates
        self.recipes, self.templates = registry.recipes, registry.templates
        self.webhooks, self.outbox = registry.webhooks, registry.outbox
        self.evaluations, self.publications, self.edits = registry.evaluations, registry.publications, registry.edits

    def close(self) -> None:
        self.registry.close()

    def patient(self) -> AbstractContextManager[None]:
        """There is no server that could be away."""
        return nullcontext()

    # base models and domains

    def add_base(self, new: NewBase, *, storing: Storing, say: Say = unsaid) -> Base:
        """Raises UsageError, HubError, InvalidArtifactError, ConflictError if the name has other weights."""
        from ..registry.artifacts.checkpoints import checkpoint

        with checkpoint(new.source, new.revision, say=say) as found:
            total = bytes_in(found.folder)
            with storing() as bar:
                return self.registry.bases.add(
                    new.name,
                    found.folder,
                    source=found.source,
                    revision=found.revision,
                    progress=lambda count: bar.add(count, total),
                )

    def describe_base(self, name: str) -> dict[str, Any]:
        """With the folder on this machine, if it is there."""
        row = self.registry.bases.get(name)
        path = self.registry.store.local(row.digest)
        return row.to_json() | {"path": None if path is None else str(path)}

    def add_domain(self, new: NewDomain, *, say: Say = unsaid) -> tuple[Domain, DataFacts | None]:
        """The domain, and what is in the data that it was given. Raises TaskError, TrainerError, UsageError."""
        from ..engine.recipe_book import settle_recipe
        from ..trainers.plugin import load

        data, found = facts_of(new)
        if new.trainer is not None:
            load(new.trainer)
        recipe = new.recipe and settle_recipe(self.registry, new.recipe, say=say)
        row = self.registry.domains.add(
            new.name, title=new.title, data=data and str(data), trainer=new.trainer, recipe=recipe
        )
        return row, found

    def data_facts(self, row: Domain) -> DataFacts | None:
        """What is in a domain's data; None without any. Raises TaskError."""
        from ..engine.domain_data import domain_data
        from ..tasks import describe

        return None if row.data is None else describe(domain_data(self.registry, row.name))

    # adapters

    def add_adapter(self, new: NewAdapter, *, storing: Storing, say: Say = unsaid) -> Adapter:
        """Raises NotFoundError, UsageError, HubError, InvalidArtifactError."""
        from ..registry.artifacts.sources import find_adapter_source

        base = self.registry.bases.get(new.base)
        if new.domain is not None:
            self.registry.domains.get(new.domain)  # before anything is fetched or copied
        found = find_adapter_source(new.source, revision=new.revision)
        say_origin(found.origin, found.unchecked, say)
        labels = replace(new.labels, context={**new.made, **found.origin})
        total = bytes_in(found.folder)
        with storing() as bar:
            return self.registry.adapters.add(
                found.folder,
                base=base,
                role=new.role,
                domain=new.domain,
                labels=labels,
                checks=new.checks,
                progress=lambda count: bar.add(count, total),
            )

    def list_adapters(
        self, query: AdapterQuery, *, limit: int, after: str | None = None
    ) -> list[tuple[Adapter, dict[str, Any]]]:
        """Each with its document, which has what was measured of it last."""
        from ..engine.documents import describe_adapters

        rows = query.rows(self.registry, limit=limit, after=after)
        return list(zip(rows, describe_adapters(self.registry, rows), strict=True))

    def show_adapter(
        self, ref: str, *, base: str | None = None, at: datetime | None = None
    ) -> tuple[Adapter, dict[str, Any]]:
        """What a reference means, with evaluations, builds and publications, or what it meant at a moment."""
        from ..engine.documents import describe_adapter

        row = self.registry.adapters.resolve(ref, base=base, at=at, kind=None)
        if at is None:
            return row, describe_adapter(self.registry, row)
        path = self.registry.store.local(row.digest)
        return row, row.to_json() | {"path": None if path is None else str(path), "at": at.isoformat()}

    def evaluations_of_adapter(self, row: Adapter) -> list[EvaluationRecord]:
        from ..engine.documents import evaluations_of_adapter

        return evaluations_of_adapter(self.registry, row)

    def set_alias(self, ref: str, alias: str, *, base: str | None = None, override: str | None = None) -> Adapter:
        """`champion` through the domain's gate. Raises NotFoundError, GateError."""
        from ..engine.gates import move_champion

        return move_champion(self.registry, ref, alias, base=base, override=override)

    def archive(
        self, ref: str, *, base: str | None = None, force: bool = False, override: str | None = None
    ) -> tuple[Adapter, list[str]]:
        """The version, and, where it was forced, what it is used by. Raises ConflictError for one in use."""
        row = self.registry.adapters.resolve(ref, base=base, kind=None)
        uses = self.registry.adapters.uses(row) if force and row.archived_at is None else []
        return self.registry.adapters.archive(row.ref, base=row.base, force=force, override=override), uses

    def approve_adapter(self, ref: str, *, base: str | None = None) -> tuple[str, list[str]]:
        """The version, and who has approved it. Raises ConflictError for who registered it."""
        row = self.registry.adapters.resolve(ref, base=base)
        return row.ref, self.registry.gates.approve_adapter(row.ref, base=row.base)

    def difference(self, ref: str, other: str, *, base: str | None = None) -> dict[str, Any]:
        """What two versions differ in. Raises NotFoundError, StoreError, InvalidArtifactError."""
        from ..engine.documents import describe_difference

        return describe_difference(self.registry, ref, other, base=base)

    def verify_adapter(self, ref: str, *, base: str | None = None) -> dict[str, Any]:
        """All of its files are read again. Raises StoreError, InvalidArtifactError for a version that is not sound."""
        from ..engine.documents import describe_verification

        return describe_verification(self.registry, ref, base=base)

    def locate(self, ref: str, *, base: str | None = None) -> Located:
        """Fetched where its files are not on this machine. Raises as `serving.find`."""
        from ..serving.resolve import find, resizing

        found = find(self.registry, ref, base=base)
        return Located(found.origin, found.folder, resizing(self.registry, found), found)

    # builds

    def request_build(self, order: BuildOrder) -> Request:
        from ..engine.building.asking import ask_for_build

        return ask_for_build(self.registry, order)

    def builds_due(self, *, every: bool, recipe: str | None = None, base: str | None = None) -> Due:
        from ..engine.building.asking import builds_due
        from ..engine.recipe_book import find_recipe

        chosen = None if recipe is None else find_recipe(self.registry, recipe)
        return builds_due(self.registry, every=every, recipe=chosen, base=base)

    def complete(self, build: Build, *, keep_best: bool = False, reports: Reports | None = None) -> Build:
        """The build, run here if it is free, else awaited from its worker. Raises what it failed with."""
        from ..engine.building.completion import complete

        return complete(self.registry, build, device=self._device(), keep_best=keep_best, reports=reports)

    def complete_all(
        self, builds: Sequence[Build], *, keep_best: bool = False, reports: Reports | None = None
    ) -> list[Build]:
        """Those over one base in one pass; failures are in the rows and in what `reports.ended` receives."""
        from ..engine.building.completion import complete_all

        return complete_all(self.registry, builds, device=self._device(), keep_best=keep_best, reports=reports)

    def _device(self) -> str:
        from ..engine.models import pick_device

        return pick_device(self.registry.settings.device)

    def list_builds(self, query: BuildQuery, *, limit: int, after: str | None = None) -> list[Build]:
        return query.rows(self.registry, limit=limit, after=after)

    def describe_build(self, row: Build) -> dict[str, Any]:
        """With what people wrote of it, its lineage and evaluations."""
        from ..engine.documents import describe_build

        return describe_build(self.registry, row)

    def evaluations_of_build(self, row: Build) -> list[EvaluationRecord]:
        from ..engine.documents import evaluations_of_build

        return evaluations_of_build(self.registry, row)

    def choose(self, domain: str, *, base: str | None = None) -> tuple[Build, dict[str, Any]]:
        """The build that a domain serves, and why that one. Raises NotFoundError where it serves none."""
        from ..engine.building.freshness import chosen
        from ..engine.documents import describe_choice

        found = chosen(self.registry, domain, base=base)
        assert found.build is not None
        return found.build, describe_choice(found)

    def build_folder(self, row: Build) -> Path:
        """The result on this machine, fetched if needed. Raises ConflictError, StoreError."""
        from ..engine.building.planning import result_folder

        return result_folder(self.registry, row)

    def copy_build(self, row: Build, target: Path, *, storing: Storing) -> None:
        """The files of a build's result into a new folder. Raises ConflictError, StoreError."""
        from ..engine.building.planning import result_folder
        from ..registry.store.files import copy_folder, whole_folder

        source = result_folder(self.registry, row, row.kind)
        with whole_folder(target) as staged:
            copy_folder(source, staged)

    def promote(self, row: Build, *, why: str | None = None, override: str | None = None) -> BuildAlias:
        """Makes it what its domain serves, through the gate. Raises GateError."""
        from ..engine.gates import promote

        return promote(self.registry, row, why=why, override=override)

    def roll_back(
        self,
        domain: str,
        to: str | None = None,
        *,
        base: str | None = None,
        why: str | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Serves an earlier build again, and what that changes. Raises as `plan_rollback`."""
        from ..engine.building.rollback import describe_rollback, plan_rollback, roll_back, rollback_target

        planned = plan_rollback(self.registry, domain, to=rollback_target(to), base=base)
        if planned.is_needed and not dry_run:
            roll_back(self.registry, planned, why=why)
        return describe_rollback(planned) | {"dry_run": dry_run}

    # what happened and what was found

    def status(self, domain: str | None = None, states: Sequence[str] = ()) -> list[Mapping[str, Any]]:
        from ..publishing.status import is_in, status_of

        return [each for each in status_of(self.registry, domain).entries if not states or is_in(each, states)]

    def list_events(self, query: EventQuery, *, limit: int, after: int | None = None) -> list[Event]:
        return self.registry.events.list(limit=limit, after=after, **query.filter(self.registry))

    def follow_events(self, query: EventQuery, count: int) -> Iterator[list[Event]]:
        """The last `count` events, and then, each time, those that are new. It has no end."""
        from ..registry.catalog.following import EventFollower

        following = EventFollower(self.registry.events, **query.filter(self.registry))
        yield following.past(count)
        while True:
            time.sleep(LOOK_SECONDS)
            yield following.new()

    def list_evaluations(
        self, query: EvaluationQuery, *, limit: int, after: int | None = None
    ) -> list[EvaluationRecord]:
        return query.rows(self.registry, limit=limit, after=after)

    def compare(
        self, one: str, other: str, *, domain: str | None = None, metrics: Sequence[str] = (), base: str | None = None
    ) -> dict[str, Any]:
        """Two evaluations, or the newest comparable ones of two systems, with paired intervals."""
        from ..engine.documents import describe_comparison
        from ..engine.records import compare, find_pair

        found = compare(self.registry, *find_pair(self.registry, one, other, domain=domain, base=base))
        return describe_comparison(found, metrics)

    def describe_publication(self, what: str) -> dict[str, Any]:
        """A publication by its id, or a repository's newest, with its files."""
        return self.registry.publications.get(what).describe()

    def withdraw(self, what: str, *, make_private: bool, say: Say = unsaid) -> dict[str, Any]:
        """A publication by its id, or all of a repository. Raises NotFoundError, HubError."""
        from ..publishing.release import withdraw

        return withdraw(self.registry, what, private=make_private, notify=say)

    def ranks(self, row: EvaluationRecord) -> dict[str, list[Any]]:
        """Of each user of an evaluation, of clicks of each row."""
        from ..engine.documents import describe_ranks

        return describe_ranks(self.registry, row)

    def test_webhook(self, name: str) -> dict[str, Any]:
        """Sends a test event now. Raises WebhookError where it does not arrive."""
        from ..registry.webhooks.delivery import expect_test

        return expect_test(self.registry.webhooks.get(name))

    # recipes

    def describe_recipes(self) -> list[dict[str, Any]]:
        from ..engine.documents import describe_recipes

        return describe_recipes(self.registry)

    def recipe(self, name: str) -> dict[str, Any]:
        """NAME or NAME@vN with its defaults. Raises RecipeError."""
        from ..engine.recipe_book import find_recipe

        return find_recipe(self.registry, name).complete()

    def add_recipe(self, name: str, file: Path, *, note: str | None = None, say: Say = unsaid) -> RecipeVersion:
        """Raises RecipeError, UsageError for the name of a recipe that ships."""
        from ..engine.recipe_book import add_recipe

        return add_recipe(self.registry, name, file, note=note, say=say)

    def describe_templates(self) -> list[dict[str, Any]]:
        from ..engine.documents import describe_templates

        return describe_templates(self.registry)

    def template(self, name: str) -> dict[str, Any]:
        """One that ships, NAME or NAME@vN. Raises TaskError."""
        from ..engine.recipe_book import find_template

        return find_template(self.registry, name).model_dump(mode="json")

    def add_template(self, name: str, file: Path, *, note: str | None = None) -> RecipeVersion:
        """Raises TaskError, UsageError for the name of a template that ships."""
        from ..engine.recipe_book import add_template

        return add_template(self.registry, name, file, note=note)

    def marks(self) -> int | None:
        """How many aliases and pins of builds there are, which no export has."""
        return len(self.registry.serving.aliases()) + len(self.registry.serving.pinned())

    def export(self) -> dict[str, Any]:
        """The registry as the document that `apply` reads."""
        from ..registry.declared.exporting import export

        return export(self.registry)


def facts_of(new: NewDomain) -> tuple[Path | None, DataFacts | None]:
    """The absolute folder of a domain's data, and what is in it. Raises TaskError."""
    if new.data is None:
        return None, None
    from ..tasks import describe, read_domain

    data = new.data.expanduser().resolve()
    return data, describe(read_domain(data, new.name))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def say_origin(origin: Mapping[str, Any], unchecked: Sequence[str], say: Say) -> None:
    """Where an adapter came from, as `find_adapter_source` gives it, for people."""
    names = {"mlflow_registered": "registered model", "mlflow_model": "model", "mlflow_run": "run"}
    parts = [f"{word} {origin[key]}" for key, word in names.items() if key in origin]
    if "hub_repo" in origin:
        say(f"from {origin['hub_repo']} on the Hub, commit {origin['hub_commit']}")
    elif parts:
        say(f"from MLflow: {', '.join(parts)}")
    if unchecked:
        from ..registry.artifacts.checkpoints import unchecked as words

        say(words(unchecked))
