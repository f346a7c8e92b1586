"""The same client over HTTP: what `open_registry("https://…", token=…)` answers with."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..registry.errors import UsageError, WrongKindError
from .client import Client
from .connection import Connection, error_of, files_in

if TYPE_CHECKING:
    from ..registry import Adapter, Build, Publication

POLL_SECONDS = 2.0
OPEN = ("queued", "running")


class RemoteClient(Client):
    """Asks a server. Evaluating and recommending want a model on this machine, and are refused."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Raises UsageError for an address that is none, and for a token that would cross a network unencrypted."""
        self._server = Connection(url, token)

    def close(self) -> None:
        self._server.close()

    def add_base(self, name: str, folder: str | os.PathLike[str]) -> str:
        """As `Client.add_base`; `folder` is ORG/NAME on the Hub, or, for an admin, a folder of the server."""
        return self._server.ask("POST", "/bases", json={"name": name, "source": os.fspath(folder)})["name"]

    def add_domain(
        self,
        name: str,
        *,
        title: str | None = None,
        data: str | os.PathLike[str] | None = None,
        recipe: str | None = None,
    ) -> str:
        """As `Client.add_domain`; `data` is a folder of the server, which an admin alone may name, and `recipe` no file."""
        place = None if data is None else os.fspath(data)
        return self._server.ask(
            "POST", "/domains", json={"name": name, "title": title, "data": place, "recipe": recipe}
        )["name"]

    def register_adapter(
        self,
        folder: str | os.PathLike[str],
        *,
        base: str,
        domain: str | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
        note: str | None = None,
    ) -> Adapter:
        """As `Client.register_adapter`; the folder is sent in pieces, and checked against its digests there."""
        from ..registry import Adapter

        about = {"base": base, "domain": domain, "metrics": dict(metrics or {}), "tags": [*tags], "note": note}
        found = self._server.ask(
            "POST", "/adapters", json=about | {"upload": self._server.upload(Path(folder), files_in(Path(folder)))}
        )
        return Adapter.from_json(found, notes=tuple(found["notes"]))

    def resolve(self, reference: str, *, base: str | None = None, kind: str = "lora") -> Adapter:
        from ..registry import Adapter

        found = Adapter.from_json(self._server.get(f"/adapters/{quote(reference)}", base=base))
        if found.kind != kind:
            raise WrongKindError(f"{found.ref} is of the kind {found.kind}, and not {kind}")
        return found

    def set_alias(self, reference: str, alias: str) -> None:
        name = reference.partition("@")[0]
        self._server.ask("PUT", f"/domains/{quote(name)}/aliases/{quote(alias)}", json={"ref": reference})

    def adapter_folder(self, adapter: Adapter) -> Path:
        """The adapter's files in this user's cache, fetched if needed and checked against their digests."""
        return self._server.fetched(f"/adapters/{quote(adapter.ref)}/files", base=adapter.base)

    def request_build(
        self, domain: str, *, recipe: str | None = None, base: str | None = None, force: bool = False
    ) -> Build:
        """As `Client.request_build`; a request whose answer was lost is sent again, and makes no second build."""
        from ..registry import Build

        wanted = {"domain": domain, "recipe": recipe, "base": base, "force": force}
        once = {"Idempotency-Key": secrets.token_hex(16)}
        return Build.from_json(self._server.ask("POST", "/builds", json=wanted, headers=once))

    def wait(self, build: Build) -> Build:
        """The finished build, once a worker has made it. Raises what it failed with."""
        from ..registry import Build

        while (row := Build.from_json(self._server.ask("GET", f"/builds/{build.id}"))).status in OPEN:
            time.sleep(POLL_SECONDS)
        if row.status != "succeeded":
            error = dict(row.error or {})
            message = error.get("message") or f"build {row.id} is {row.status}"
            raise error_of(error.get("code") or "conflict", message, error.get("hint"))
        return row

    def build_folder(self, build: Build) -> Path:
        """The merged checkpoint in this user's cache, fetched if needed and checked against its digests."""
        build.stored_digest()  # refuses an item index
        return self._server.fetched(f"/builds/{build.id}/files")

    def evaluate(self, *_: Any, **__: Any) -> Any:
        raise UsageError("a server evaluates nothing", hint="evaluate where the models are: `reccocktail evaluate`")

    def recommend(self, *_: Any, **__: Any) -> Any:
        raise UsageError("a server recommends nothing over HTTP", hint="recommend where the models are")

    def publish(
        self, subject: str, repo: str, *, private: bool = True, tag: str | None = None, license_id: str | None = None
    ) -> Publication:
        from ..registry import Publication

        wanted = {"what": subject, "to": repo, "private": private, "tag": tag, "license": license_id}
        found = self._server.ask("POST", "/publications", json=wanted)
        place = f"/builds/{found['build']}" if found["build"] else f"/adapters/{quote(found['adapter'])}"
        return Publication.from_json(found, base=self._server.ask("GET", place)["base"])
