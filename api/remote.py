"""The same client over HTTP: what `open_registry("https://…", token=…)` answers with."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry.errors import InvalidArtifactError, UsageError, WrongKindError
from .client import Client
from .connection import error_of
from .orders import NewAdapter, NewBase, NewDomain, uncounted
from .remote_backend import OPEN, RemoteBackend

if TYPE_CHECKING:
    from ..registry import Adapter, Build, Publication

POLL_SECONDS = 2.0


class RemoteClient(Client):
    """Asks a server. Evaluating and recommending want a model on this machine, and are refused."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Raises UsageError for an address that is none, and for a token that would cross a network unencrypted."""
        self._server = RemoteBackend(url, token)

    def close(self) -> None:
        self._server.close()

    def add_base(self, name: str, folder: str | os.PathLike[str]) -> str:
        """As `Client.add_base`; the folder is sent. Of ORG/NAME on the Hub the server fetches it."""
        return self._server.add_base(NewBase(name, os.fspath(folder)), storing=uncounted).name

    def add_domain(
        self,
        name: str,
        *,
        title: str | None = None,
        data: str | os.PathLike[str] | None = None,
        recipe: str | None = None,
    ) -> str:
        """As `Client.add_domain`; the data are sent, and what a file of a recipe says."""
        folder = None if data is None else Path(data)
        return self._server.add_domain(NewDomain(name, title, folder, recipe=recipe))[0].name

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
        from ..registry.catalog.registration import Checks, Labels

        if not Path(folder).is_dir():
            raise InvalidArtifactError(f"{folder} is no folder with files")
        labels = Labels(metrics or {}, tags, note)
        return self._server.add_adapter(
            NewAdapter(os.fspath(folder), base, labels, Checks(), domain=domain), storing=uncounted
        )

    def resolve(self, reference: str, *, base: str | None = None, kind: str = "lora") -> Adapter:
        found, _ = self._server.show_adapter(reference, base=base)
        if found.kind != kind:
            raise WrongKindError(f"{found.ref} is of the kind {found.kind}, and not {kind}")
        return found

    def set_alias(self, reference: str, alias: str) -> None:
        self._server.set_alias(reference, alias)

    def adapter_folder(self, adapter: Adapter) -> Path:
        """The adapter's files in this user's cache, fetched if needed and checked against their digests."""
        return self._server.adapters.folder(adapter)

    def request_build(
        self, domain: str, *, recipe: str | None = None, base: str | None = None, force: bool = False
    ) -> Build:
        """As `Client.request_build`; a request whose answer was lost is sent again, and makes no second build."""
        from ..engine.building.asking import BuildOrder

        return self._server.request_build(BuildOrder(domain, recipe, base=base, force=force)).build

    def wait(self, build: Build) -> Build:
        """The finished build, once a worker has made it; a server that restarts is asked again. Raises what it failed with."""
        with self._server.patient():
            while (row := self._server.builds.get(build.id)).status in OPEN:
                time.sleep(POLL_SECONDS)
        if row.status != "succeeded":
            error = dict(row.error or {})
            message = error.get("message") or f"build {row.id} is {row.status}"
            raise error_of(error.get("code") or "conflict", message, error.get("hint"))
        return row

    def build_folder(self, build: Build) -> Path:
        """The merged checkpoint in this user's cache, fetched if needed and checked against its digests."""
        build.stored_digest()  # refuses an item index
        return self._server.build_folder(build)

    def evaluate(self, *_: Any, **__: Any) -> Any:
        raise UsageError("a server evaluates nothing", hint="evaluate where the models are: `reccocktail evaluate`")

    def recommend(self, *_: Any, **__: Any) -> Any:
        raise UsageError("a server recommends nothing over HTTP", hint="recommend where the models are")

    def publish(
        self, subject: str, repo: str, *, private: bool = True, tag: str | None = None, license_id: str | None = None
    ) -> Publication:
        from ..registry import Publication

        wanted = {"what": subject, "to": repo, "private": private, "tag": tag, "license": license_id}
        found = self._server.publish(wanted, dry_run=False)
        if found["build"]:
            row = self._server.builds.get(found["build"])
        else:
            row, _ = self._server.show_adapter(found["adapter"])
        return Publication.from_json(found, base=row.base)
