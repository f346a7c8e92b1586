"""The same client over HTTP: what `open_registry("https://…", token=…)` answers with."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ..registry import errors
from ..registry.errors import InvalidArtifactError, RecCocktailError, UsageError, WrongKindError
from .client import Client

if TYPE_CHECKING:
    import httpx2

    from ..registry import Adapter, Build, Publication

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PIECE = 8 * 2**20  # bytes of one piece of an upload
TRIES, MOST_WAIT = 6, 30.0  # of what may succeed later; seconds between two
POLL_SECONDS = 2.0
OPEN = ("queued", "running")


class RemoteClient(Client):
    """Asks a server. Evaluating and recommending want a model on this machine, and are refused."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Raises UsageError for an address that is none, and for a token that would cross a network unencrypted."""
        import httpx2

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise UsageError(
                "the registry's address is no http(s):// URL", hint="https://HOST, without a user or query"
            )
        if token is not None and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise UsageError("a token is not sent over plain http", hint=f"https://{parts.netloc}")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http: httpx2.Client = httpx2.Client(
            base_url=f"{url.rstrip('/')}/api/v1", headers=headers, timeout=600, follow_redirects=False
        )

    def close(self) -> None:
        self._http.close()

    def add_base(self, name: str, folder: str | os.PathLike[str]) -> str:
        """As `Client.add_base`; `folder` is ORG/NAME on the Hub, or, for an admin, a folder of the server."""
        return self._ask("POST", "/bases", json={"name": name, "source": os.fspath(folder)})["name"]

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
        return self._ask("POST", "/domains", json={"name": name, "title": title, "data": place, "recipe": recipe})[
            "name"
        ]

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
        found = self._ask("POST", "/adapters", json=about | {"upload": self._upload(Path(folder))})
        return Adapter.from_json(found, notes=tuple(found["notes"]))

    def _upload(self, folder: Path) -> str:
        """The id of a complete upload. Raises InvalidArtifactError where there is nothing to send."""
        paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        if not paths:
            raise InvalidArtifactError(f"{folder} is no folder with files")
        files = [{"path": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths]
        begun = self._ask("POST", "/uploads", json={"files": files})["id"]
        for path in paths:
            for offset, piece in _pieces(path):
                where = f"/uploads/{begun}/files/{quote(path.name)}"
                self._ask("PUT", where, params={"offset": offset}, content=piece)
        return begun

    def resolve(self, reference: str, *, base: str | None = None, kind: str = "lora") -> Adapter:
        from ..registry import Adapter

        found = Adapter.from_json(self._ask("GET", f"/adapters/{quote(reference)}", params=_given(base=base)))
        if found.kind != kind:
            raise WrongKindError(f"{found.ref} is of the kind {found.kind}, and not {kind}")
        return found

    def set_alias(self, reference: str, alias: str) -> None:
        name = reference.partition("@")[0]
        self._ask("PUT", f"/domains/{quote(name)}/aliases/{quote(alias)}", json={"ref": reference})

    def adapter_folder(self, adapter: Adapter) -> Path:
        """The adapter's files in this user's cache, fetched if needed and checked against their digests."""
        return self._fetched(f"/adapters/{quote(adapter.ref)}/files", {"base": adapter.base})

    def request_build(
        self, domain: str, *, recipe: str | None = None, base: str | None = None, force: bool = False
    ) -> Build:
        """As `Client.request_build`; a request whose answer was lost is sent again, and makes no second build."""
        from ..registry import Build

        wanted = {"domain": domain, "recipe": recipe, "base": base, "force": force}
        once = {"Idempotency-Key": secrets.token_hex(16)}
        return Build.from_json(self._ask("POST", "/builds", json=wanted, headers=once))

    def wait(self, build: Build) -> Build:
        """The finished build, once a worker has made it. Raises what it failed with."""
        from ..registry import Build

        while (row := Build.from_json(self._ask("GET", f"/builds/{build.id}"))).status in OPEN:
            time.sleep(POLL_SECONDS)
        if row.status != "succeeded":
            error = dict(row.error or {})
            message = error.get("message") or f"build {row.id} is {row.status}"
            raise _error(error.get("code") or "conflict", message, error.get("hint"))
        return row

    def build_folder(self, build: Build) -> Path:
        """The merged checkpoint in this user's cache, fetched if needed and checked against its digests."""
        build.stored_digest()  # refuses an item index
        return self._fetched(f"/builds/{build.id}/files", {})

    def evaluate(self, *_: Any, **__: Any) -> Any:
        raise UsageError("a server evaluates nothing", hint="evaluate where the models are: `reccocktail evaluate`")

    def recommend(self, *_: Any, **__: Any) -> Any:
        raise UsageError("a server recommends nothing over HTTP", hint="recommend where the models are")

    def publish(
        self, subject: str, repo: str, *, private: bool = True, tag: str | None = None, license_id: str | None = None
    ) -> Publication:
        from ..registry import Publication

        wanted = {"what": subject, "to": repo, "private": private, "tag": tag, "license": license_id}
        found = self._ask("POST", "/publications", json=wanted)
        place = f"/builds/{found['build']}" if found["build"] else f"/adapters/{quote(found['adapter'])}"
        return Publication.from_json(found, base=self._ask("GET", place)["base"])

    def _fetched(self, address: str, params: Mapping[str, str]) -> Path:
        listed = self._ask("GET", address, params=params)
        target = _cache() / listed["digest"].removeprefix("sha256:")
        if target.is_dir():
            return target
        staged = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            for file in listed["files"]:
                self._fetch(f"{address}/{quote(file['path'])}", params, staged / file["path"], file["sha256"])
            if not target.is_dir():
                staged.rename(target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return target

    def _fetch(self, address: str, params: Mapping[str, str], path: Path, sha256: str) -> None:
        """Raises InvalidArtifactError for other bytes than were listed."""
        if ".." in path.parts:
            raise InvalidArtifactError(f"the server lists the path {path}, which leads elsewhere")
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self._http.stream("GET", address, params=params) as answer, path.open("wb") as opened:
            if answer.status_code != 200:
                answer.read()
                _raise(answer)
            for piece in answer.iter_bytes(PIECE):
                digest.update(piece)
                opened.write(piece)
        if digest.hexdigest() != sha256:
            raise InvalidArtifactError(
                f"{path.name} arrived with other bytes than its digest says", hint="fetch it again"
            )

    def _ask(self, method: str, address: str, **options: Any) -> Any:
        """The answer as JSON; what may succeed later is asked again. Raises what the server answers."""
        import httpx2

        for attempt in range(1, TRIES + 1):
            wait = min(MOST_WAIT, 2.0**attempt / 4)
            try:
                answer = self._http.request(method, address, **options)
            except httpx2.TransportError as error:
                if attempt == TRIES or not _may_repeat(method, options):
                    raise RecCocktailError(f"{self._http.base_url}: {error or type(error).__name__}") from error
            else:
                if answer.status_code not in (429, 503) or attempt == TRIES:
                    return _read(answer)
                wait = min(MOST_WAIT, float(answer.headers.get("Retry-After", wait)))
            time.sleep(wait)
        raise AssertionError


def _may_repeat(method: str, options: Mapping[str, Any]) -> bool:
    """Whether a request whose answer was lost can be sent again without doing its work twice."""
    return method in ("GET", "PUT") or "Idempotency-Key" in (options.get("headers") or {})


def _read(answer: httpx2.Response) -> Any:
    if answer.status_code >= 300:
        _raise(answer)
    return answer.json() if answer.content else None


def _raise(answer: httpx2.Response) -> None:
    try:
        error = answer.json()["error"]
        raise _error(error["code"], error["message"], error["hint"])
    except (ValueError, KeyError, TypeError):
        where = f"{answer.request.method} {answer.request.url.path}"
        raise RecCocktailError(
            f"{where}: {answer.status_code}, and no answer of RecCocktail", hint="is it the right address?"
        ) from None


def _error(code: str, message: str, hint: str | None) -> RecCocktailError:
    """Of the class that has the code, where the registry has one; the code is kept in any case."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RecCocktailError)]
    kind = next((kind for kind in kinds if kind.code == code), RecCocktailError)
    error = kind(message, hint=hint)
    error.code = code
    return error


def _given(**params: str | None) -> dict[str, str]:
    return {name: value for name, value in params.items() if value is not None}


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as opened:
        offset = 0
        while piece := opened.read(PIECE):
            yield offset, piece
            offset += len(piece)


def _cache() -> Path:
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reccocktail" / "trees"
    place.mkdir(parents=True, exist_ok=True)
    return place
