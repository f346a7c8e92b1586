"""The way to a server: who asks, what is asked again, and files that go and come in pieces and are checked by their digests."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ..registry import errors
from ..registry.errors import InvalidArtifactError, RecCocktailError, UsageError

if TYPE_CHECKING:
    import httpx2

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PIECE = 8 * 2**20  # bytes of one piece of an upload
TRIES, MOST_WAIT = 6, 30.0  # of what may succeed later; seconds between two
MOST_LISTED = 1000  # entries of one page, as the server allows

Count = Callable[[int, int], None]
"""Is told how many bytes more were sent, and of how many."""


class Connection:
    """A server's API, asked in the name of one token."""

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
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise UsageError("the token has characters that no token has", hint="reccocktail token create prints one")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http: httpx2.Client = httpx2.Client(
            base_url=f"{url.rstrip('/')}/api/v1",
            headers=headers,
            timeout=600,
            follow_redirects=False,  # a token is for this host alone
            verify=parts.scheme == "https",  # to read the certificates takes longer than most answers
            trust_env=parts.scheme == "https",  # a proxy of the environment would read what is not encrypted
        )

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, address: str, **options: Any) -> Any:
        """The answer as JSON; what may succeed later is asked again. Raises what the server answers."""
        import httpx2

        for attempt in range(1, TRIES + 1):
            wait = min(MOST_WAIT, 2.0**attempt / 4)
            try:
                answer = self._http.request(method, address, **options)
            except httpx2.TransportError as error:
                if attempt == TRIES or not _may_repeat(method, options):
                    raise RecCocktailError(
                        f"{self._http.base_url}: {error or type(error).__name__}", hint="is the server running?"
                    ) from error
            else:
                if answer.status_code not in (429, 503) or attempt == TRIES:
                    return _read(answer)
                wait = min(MOST_WAIT, float(answer.headers.get("Retry-After", wait)))
            time.sleep(wait)
        raise AssertionError

    def get(self, address: str, **params: Any) -> Any:
        """What is None or empty is not sent."""
        return self.ask("GET", address, params=given(**params))

    def listed(self, address: str, *, limit: int, after: object = None, **params: Any) -> list[Any]:
        """At most `limit` entries of a list by pages."""
        found: list[Any] = []
        while len(found) < limit:
            page = self.get(address, limit=min(MOST_LISTED, limit - len(found)), after=after, **params)
            found += page["items"]
            after = page["next"]
            if after is None:
                break
        return found

    def events(self, address: str, last: int, **params: Any) -> Iterator[Any]:
        """The data of server-sent events after one, and again from the last where the line is cut. It has no end."""
        import httpx2

        while True:
            headers = {"Last-Event-ID": str(last)}
            try:
                with self._http.stream("GET", address, params=given(**params), headers=headers) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        _raise(answer)
                    for line in answer.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            last = int(value)
                        elif name == "data":
                            yield json.loads(value)
            except httpx2.TransportError:
                time.sleep(1)

    def upload(self, folder: Path, names: Sequence[str], progress: Count = lambda count, total: None) -> str:
        """The id of a complete upload of these files of a folder, by their paths in it. Raises InvalidArtifactError without one."""
        if not names:
            raise InvalidArtifactError(f"{folder} is no folder with files")
        files = [
            {"path": name, "bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names
        ]
        total = sum(file["bytes"] for file in files)
        begun = self.ask("POST", "/uploads", json={"files": files})["id"]
        for name in names:
            for offset, piece in _pieces(folder / name):
                self.ask("PUT", f"/uploads/{begun}/files/{quote(name)}", params={"offset": offset}, content=piece)
                progress(len(piece), total)
        return begun

    def fetched(self, address: str, **params: Any) -> Path:
        """The files that an address lists, in this user's cache, fetched if needed and checked against their digests."""
        listed = self.get(address, **params)
        target = _cache() / listed["digest"].removeprefix("sha256:")
        if target.is_dir():
            return target
        staged = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            self.fetch(address, staged, **params)
            if not target.is_dir():
                staged.rename(target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return target

    def fetch(self, address: str, folder: Path, *, progress: Count = lambda count, total: None, **params: Any) -> None:
        """The files that an address lists, into a folder. Raises InvalidArtifactError for other bytes than were listed."""
        listed = self.get(address, **params)
        for file in listed["files"]:
            path = PurePosixPath(file["path"])
            if path.is_absolute() or ".." in path.parts:
                raise InvalidArtifactError(f"the server lists the path {path}, which leads elsewhere")
            self._fetch(f"{address}/{quote(file['path'])}", given(**params), folder / path, file)
            progress(file["bytes"], listed["bytes"])

    def _fetch(self, address: str, params: Mapping[str, Any], path: Path, file: Mapping[str, Any]) -> None:
        """In ranges where the line is cut."""
        import httpx2

        path.parent.mkdir(parents=True, exist_ok=True)
        digest, there = hashlib.sha256(), 0
        with path.open("wb") as opened:
            for attempt in range(1, TRIES + 1):
                try:
                    for piece in self._from(address, params, there):
                        digest.update(piece)
                        there += opened.write(piece)
                    break
                except httpx2.TransportError as error:
                    if attempt == TRIES:
                        raise RecCocktailError(f"{self._http.base_url}: {error or type(error).__name__}") from error
                    time.sleep(min(MOST_WAIT, 2.0**attempt / 4))
        if digest.hexdigest() != file["sha256"]:
            raise InvalidArtifactError(
                f"{path.name} arrived with other bytes than its digest says", hint="fetch it again"
            )

    def _from(self, address: str, params: Mapping[str, Any], there: int) -> Iterator[bytes]:
        """The bytes of a file from a place on."""
        headers = {"Range": f"bytes={there}-"} if there else {}
        with self._http.stream("GET", address, params=params, headers=headers) as answer:
            if answer.status_code == 416:  # all of it is there
                return
            if answer.status_code != (206 if there else 200):
                answer.read()
                _raise(answer)
            yield from answer.iter_bytes(PIECE)


def given(**params: Any) -> dict[str, Any]:
    """Those that say anything."""
    return {name: value for name, value in params.items() if value not in (None, (), [], False)}


def files_in(folder: Path) -> list[str]:
    """The names of a folder's own files; none where there is no folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def error_of(code: str, message: str, hint: str | None) -> RecCocktailError:
    """Of the class that has the code, where the registry has one; the code is kept in any case."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RecCocktailError)]
    kind = next((kind for kind in kinds if kind.code == code), RecCocktailError)
    error = kind(message, hint=hint)
    error.code = code
    return error


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
        raise error_of(error["code"], error["message"], error["hint"])
    except (ValueError, KeyError, TypeError):
        where = f"{answer.request.method} {answer.request.url.path}"
        raise RecCocktailError(
            f"{where}: {answer.status_code}, and no answer of RecCocktail", hint="is it the right address?"
        ) from None


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
