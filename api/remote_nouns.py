"""Single things of a server: the methods that the command uses of the registry's own nouns, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .connection import Connection, given

if TYPE_CHECKING:
    import builtins

    from ..registry import Adapter, Base, Build, Domain, Event, Publication
    from ..registry.catalog.annotations import Edit
    from ..registry.catalog.build_records import LogLine
    from ..registry.catalog.editing import BuildAnnotation
    from ..registry.catalog.evaluations import EvaluationRecord
    from ..registry.catalog.gates import Gate, GateChange, Requirement
    from ..registry.catalog.recipes import RecipeVersion
    from ..registry.catalog.serving import BuildAlias, Move, ServingPolicy


def adapter_of(document: Mapping[str, Any]) -> Adapter:
    from ..registry import Adapter

    known = {name: tuple(document.get(key, ())) for name, key in _ABOUT_ADDING.items()}
    return Adapter.from_json(document, created=document.get("created", False), **known)


_ABOUT_ADDING = {"skipped": "not_stored", "notes": "notes", "ignored": "ignored"}


def build_of(document: Mapping[str, Any]) -> Build:
    """Its result is not on this machine, wherever it is there."""
    from ..registry import Build

    return replace(Build.from_json(document), path=None)


class _Noun:
    def __init__(self, server: Connection) -> None:
        self._server = server


class RemoteBases(_Noun):
    def list(self) -> builtins.list[Base]:
        from ..registry import Base

        return [Base.from_json(each) for each in self._server.get("/bases")]

    def get(self, name: str) -> Base:
        from ..registry import Base

        return Base.from_json(self._server.get(f"/bases/{quote(name, safe='')}"))

    def added(self, document: Mapping[str, Any]) -> Base:
        from ..registry import Base

        found = self._server.ask("POST", "/bases", json=document)
        return Base.from_json(found, created=found["created"], skipped=tuple(found["not_stored"]))

    def remove(self, name: str) -> Base:
        from ..registry import Base

        return Base.from_json(self._server.ask("DELETE", f"/bases/{quote(name, safe='')}"))


class RemoteDomains(_Noun):
    def list(self) -> builtins.list[Domain]:
        from ..registry import Domain

        return [Domain.from_json(each) for each in self._server.get("/domains")]

    def get(self, name: str) -> Domain:
        from ..registry import Domain

        return Domain.from_json(self._server.get(f"/domains/{quote(name, safe='')}"))

    def added(self, document: Mapping[str, Any]) -> Domain:
        from ..registry import Domain

        found = self._server.ask("POST", "/domains", json=document)
        return Domain.from_json(found, created=found["created"], changed=tuple(found["changed"]))

    def rename(self, name: str, new: str) -> Domain:
        from ..registry import Domain

        found = self._server.ask("POST", f"/domains/{quote(name, safe='')}:rename", json={"name": new})
        return Domain.from_json(found)

    def remove(self, name: str) -> Domain:
        from ..registry import Domain

        return Domain.from_json(self._server.ask("DELETE", f"/domains/{quote(name, safe='')}"))


class RemoteAdapters(_Noun):
    def added(self, document: Mapping[str, Any]) -> Adapter:
        return adapter_of(self._server.ask("POST", "/adapters", json=document))

    def folder(self, adapter: Adapter) -> Path:
        """In this user's cache, fetched if needed and checked against its digests."""
        return self._server.fetched(f"/adapters/{quote(adapter.ref, safe='')}/files", base=adapter.base)

    def log(
        self, ref: str, *, base: str | None = None, limit: int = 50, after: int | None = None
    ) -> builtins.list[Event]:
        from ..registry import Event

        found = self._server.listed(f"/adapters/{quote(ref, safe='')}/log", limit=limit, after=after, base=base)
        return [Event.from_json(each) for each in found]

    def remove_alias(self, ref: str, *, base: str | None = None, override: str | None = None) -> Adapter:
        name, _, alias = ref.partition("@")
        address = f"/domains/{quote(name, safe='')}/aliases/{quote(alias, safe='')}"
        return adapter_of(self._server.ask("DELETE", address, params=given(base=base, override=override)))

    def restore(self, ref: str, *, base: str | None = None) -> Adapter:
        address = f"/adapters/{quote(ref, safe='')}:restore"
        return adapter_of(self._server.ask("POST", address, params=given(base=base)))


class RemoteBuilds(_Noun):
    def get(self, id_: str) -> Build:
        return build_of(self._server.get(f"/builds/{quote(id_, safe='')}"))

    def logs(self, id_: str, *, after: int = 0) -> list[LogLine]:
        from ..registry.catalog.build_records import LogLine

        return [LogLine.from_json(each) for each in self._server.get(f"/builds/{id_}/logs", after=after)]

    def cancel(self, id_: str) -> Build:
        return build_of(self._server.ask("POST", f"/builds/{id_}:cancel"))

    def retry(self, id_: str) -> Build:
        return build_of(self._server.ask("POST", f"/builds/{id_}:retry"))


class RemoteServing(_Noun):
    def resolve(self, text: str, *, base: str | None = None) -> BuildAlias:
        from ..registry.catalog.serving import BuildAlias

        return BuildAlias.from_json(self._server.get(_alias(text), base=base))

    def alias(self, text: str, name: str, *, base: str | None = None, why: str | None = None) -> BuildAlias:
        from ..registry.catalog.serving import BuildAlias

        id_ = self.resolve(text, base=base).build if "@" in text else text
        row = build_of(self._server.get(f"/builds/{quote(id_, safe='')}"))
        address = _alias(f"{row.domain}@{name}")
        return BuildAlias.from_json(self._server.ask("PUT", address, json={"build": row.id, "why": why}))

    def remove(self, text: str, *, base: str | None = None, override: str | None = None) -> BuildAlias:
        from ..registry.catalog.serving import BuildAlias

        found = self._server.ask("DELETE", _alias(text), params=given(base=base, override=override))
        return BuildAlias.from_json(found)

    def pin(self, id_: str, *, undo: bool = False) -> str:
        return self._server.ask("POST", f"/builds/{id_}:pin", params=given(undo=undo))["id"]

    def policy(self, domain: str) -> ServingPolicy:
        from ..registry.catalog.serving import ServingPolicy

        return ServingPolicy.from_json(self._server.get(f"/domains/{quote(domain, safe='')}/policy"))

    def set_policy(
        self, domain: str, *, alias: str | None = None, promote: str | None = None, override: str | None = None
    ) -> ServingPolicy:
        from ..registry.catalog.serving import ServingPolicy

        body = given(alias=alias, promote=promote, override=override)
        found = self._server.ask("PATCH", f"/domains/{quote(domain, safe='')}/policy", json=body)
        return ServingPolicy.from_json(found)

    def history(
        self,
        domain: str,
        *,
        alias: str | None = None,
        base: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> list[Move]:
        from ..registry.catalog.serving import Move

        address = f"/domains/{quote(domain, safe='')}/history"
        found = self._server.listed(address, limit=limit, after=after, alias=alias, base=base)
        return [Move.from_json(each) for each in found]

    def served_at(self, moment: datetime, domain: str | None = None) -> list[Move]:
        from ..registry.catalog.serving import Move

        return [Move.from_json(each) for each in self._server.get("/status", at=moment.isoformat(), domain=domain)]


def _alias(text: str) -> str:
    domain, _, alias = text.partition("@")
    return f"/domains/{quote(domain, safe='')}/build-aliases/{quote(alias, safe='')}"


class RemoteGates(_Noun):
    def get(self, domain: str) -> Gate | None:
        from ..registry.catalog.gates import Gate

        found = self._server.get(_gate(domain))
        return found and Gate.from_json(found)

    def set(self, domain: str, require: Requirement | None, approvals: int) -> Gate:
        from ..registry.catalog.gates import Gate

        body = {"require": require and asdict(require), "approvals": approvals}
        return Gate.from_json(self._server.ask("PUT", _gate(domain), json=body))

    def remove(self, domain: str) -> None:
        self._server.ask("DELETE", _gate(domain))

    def history(self, domain: str) -> list[GateChange]:
        from ..registry.catalog.gates import GateChange

        return [GateChange.from_json(each) for each in self._server.get(f"{_gate(domain)}/history")]

    def approve_build(self, id_: str) -> list[str]:
        return self._server.ask("POST", f"/builds/{id_}:approve")["approved_by"]


def _gate(domain: str) -> str:
    return f"/domains/{quote(domain, safe='')}/gate"


class RemoteEdits(_Noun):
    def adapter(self, ref: str, change: Edit, *, base: str | None = None) -> Adapter:
        return adapter_of(self._edit(f"/adapters/{quote(ref, safe='')}", change, base=base))

    def domain(self, name: str, change: Edit) -> Domain:
        from ..registry import Domain

        found = self._edit(f"/domains/{quote(name, safe='')}", change)
        return Domain.from_json(found, notes=tuple(found["notes"]))

    def base(self, name: str, change: Edit) -> Base:
        from ..registry import Base

        found = self._edit(f"/bases/{quote(name, safe='')}", change)
        return Base.from_json(found, notes=tuple(found["notes"]))

    def build(self, id_: str, change: Edit) -> BuildAnnotation:
        from ..registry.catalog.editing import BuildAnnotation

        found = self._edit(f"/builds/{quote(id_, safe='')}", change)
        return BuildAnnotation.from_json(found, notes=tuple(found["notes"]))

    def _edit(self, address: str, change: Edit, **params: str | None) -> Any:
        return self._server.ask("PATCH", address, params=given(**params), json=asdict(change))


class RemoteEvaluations(_Noun):
    def list(
        self, query: Mapping[str, Any], *, limit: int, after: int | None = None
    ) -> builtins.list[EvaluationRecord]:
        from ..registry.catalog.evaluations import EvaluationRecord

        found = self._server.listed("/evaluations", limit=limit, after=after, **query)
        return [EvaluationRecord.from_json(each) for each in found]

    def of_system(self, system: str, base: str | None, limit: int) -> builtins.list[EvaluationRecord]:
        return self.list({"system": system, "base": base}, limit=limit)

    def get(self, id_: int) -> EvaluationRecord:
        from ..registry.catalog.evaluations import EvaluationRecord

        return EvaluationRecord.from_json(self._server.get(f"/evaluations/{id_}"))


class RemotePublications(_Noun):
    def list(
        self, domain: str | None = None, *, repo: str | None = None, limit: int = 50, after: int | None = None
    ) -> builtins.list[Publication]:
        from ..registry import Publication

        found = self._server.listed("/publications", limit=limit, after=after, domain=domain, repo=repo)
        return [Publication.from_json(each, base="") for each in found]


class RemoteRecipes(_Noun):
    kind = "recipe"

    def log(self, name: str) -> list[RecipeVersion]:
        from ..registry.catalog.recipes import RecipeVersion

        found = self._server.get(f"/{self.kind}s/{quote(name, safe='')}/versions")
        return [RecipeVersion.from_json(each) for each in found]

    def users(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for each in self._server.get("/domains"):
            if each["recipe"] is not None:
                found.setdefault(each["recipe"], []).append(each["name"])
        return found

    def added(self, document: Mapping[str, Any]) -> RecipeVersion:
        from ..registry.catalog.recipes import RecipeVersion

        found = self._server.ask("POST", f"/{self.kind}s", json=document)
        return RecipeVersion.from_json(found, created=found["created"])


class RemoteTemplates(RemoteRecipes):
    kind = "template"
