"""The way to a server: who asks, what is asked again, and files that go and come in pieces and are checked by their digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import SplitResult, quote, urlsplit

from ..registry import errors
from ..registry.errors import InvalidArtifactError, RecCocktailError, UsageError
from .orders import Say, unsaid
from .outages import BRIEF, CONNECT_SECONDS, FIRST, LONG, Outage, unreachable

if TYPE_CHECKING:
    import httpx2

WHERE_TOKENS_COME_FROM = "`reccocktail token create NAME --scope read`, where the registry is, prints one; put it into RECCOCKTAIL_TOKEN (`token list` there shows which are valid)"
PERHAPS_DONE = "it may have done what was asked: look, before you ask again"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PIECE = 8 * 2**20  # bytes of one piece of an upload
TRIES, MOST_WAIT = 6, 30.0  # of what the server says may succeed later; seconds between two
BY_A_PROXY = (502, 503, 504)  # where a proxy answers in the place of a server that is away
MOST_LISTED = 1000  # entries of one page, as the server allows

Count = Callable[[int, int], None]
"""Is told how many bytes more were sent, and of how many."""


class Connection:
    """A server's API, asked in the name of one token."""

    def __init__(self, url: str, token: str | None = None, say: Say = unsaid) -> None:
        """`say` hears of a server that is away for a while, and back.

        Raises UsageError for an address that is none, and for a token that would cross a network unencrypted.
        """
        import httpx2

        parts = _address(url)
        if token is not None and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise UsageError("a token is not sent over plain http", hint=f"https://{parts.netloc}")
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise UsageError("the token has characters that no token has", hint=WHERE_TOKENS_COME_FROM)
        self._place = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        self._token, self._say = token, say
        self._reached, self._patience = False, BRIEF
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http: httpx2.Client = httpx2.Client(
            base_url=f"{parts.geturl().rstrip('/')}/api/v1",
            headers=headers,
            timeout=httpx2.Timeout(600, connect=CONNECT_SECONDS),
            follow_redirects=False,  # a token is for this host alone
            verify=parts.scheme == "https",  # to read the certificates takes longer than most answers
            trust_env=parts.scheme == "https",  # a proxy of the environment would read what is not encrypted
        )

    def close(self) -> None:
        self._http.close()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """While something is waited for that goes on without this command: a server that restarts is asked for ten minutes."""
        self._patience = LONG
        try:
            yield
        finally:
            self._patience = BRIEF

    def ask(self, method: str, address: str, **options: Any) -> Any:
        """The answer as JSON; what may succeed later is asked again. Raises what the server answers, UnreachableError."""
        for attempt in range(1, TRIES + 1):
            answer = self._answer(method, address, options)
            if answer.status_code not in (429, 503) or attempt == TRIES:
                return self._read(answer)
            wait = float(answer.headers.get("Retry-After", 2.0**attempt / 4))
            time.sleep(min(MOST_WAIT, wait))
        raise AssertionError

    def _answer(self, method: str, address: str, options: Mapping[str, Any]) -> httpx2.Response:
        """Of the server, which is asked again while it is away, if the request may be sent twice."""
        import httpx2

        outage = self._outage()
        while True:
            try:
                answer = self._http.request(method, address, **options)
                _expect_server(answer)
            except httpx2.TransportError as error:
                never_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                if not never_sent and not _may_repeat(method, options):
                    raise unreachable(self._place, error, hint=PERHAPS_DONE) from error
                outage.wait(error)
            else:
                self._reached = True
                outage.over()
                return answer

    def _outage(self) -> Outage:
        return Outage(self._place, self._patience if self._reached else FIRST, self._say)

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
        """The data of server-sent events after one, and again from the last where the line is cut. It ends only with UnreachableError."""
        import httpx2

        with self.patient():
            outage = self._outage()
        while True:
            headers = {"Last-Event-ID": str(last)}
            try:
                with self._http.stream("GET", address, params=given(**params), headers=headers) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        _expect_server(answer)
                        self._raise(answer)
                    outage.over()
                    for line in answer.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            last = int(value)
                        elif name == "data":
                            yield json.loads(value)
                time.sleep(1)  # a server that stops ends its streams
            except httpx2.TransportError as error:
                outage.wait(error)

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
        digest, there, outage = hashlib.sha256(), 0, self._outage()
        with path.open("wb") as opened:
            while True:
                try:
                    for piece in self._from(address, params, there):
                        outage.over()
                        digest.update(piece)
                        there += opened.write(piece)
                    break
                except httpx2.TransportError as error:
                    outage.wait(error)
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
                _expect_server(answer)
                self._raise(answer)
            yield from answer.iter_bytes(PIECE)

    def _read(self, answer: httpx2.Response) -> Any:
        if answer.status_code >= 300:
            self._raise(answer)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise self._foreign(answer) from None

    def _raise(self, answer: httpx2.Response) -> NoReturn:
        """Raises what the server answered; where it wants a token, with where one comes from."""
        if (found := _error_in(answer)) is None:
            raise self._foreign(answer)
        if found.code == "unauthenticated":
            why = (
                "wants a token, and RECCOCKTAIL_TOKEN is not set or empty" if self._token is None else f"says: {found}"
            )
            raise error_of(found.code, f"the server at {self._place} {why}", WHERE_TOKENS_COME_FROM)
        if str(found) == f"{answer.request.method} {answer.request.url.path}: Not Found":  # no route is there
            raise error_of(found.code, str(found), _elsewhere(answer))
        raise found

    def _foreign(self, answer: httpx2.Response) -> RecCocktailError:
        where = f"{answer.request.method} {answer.request.url.path}"
        return RecCocktailError(
            f"{self._place} answers {where} with {answer.status_code}, and not as RecCocktail does",
            hint=_elsewhere(answer),
        )


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


def _address(url: str) -> SplitResult:
    """The parts of a server's address; one that ends in the API's own path is the server's. Raises UsageError for what is none."""
    text = url.strip()
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets without an end
        parts = urlsplit("")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "the server's address has a user, a query or a fragment, which it does not take",
            hint="RECCOCKTAIL_URL is like https://registry.example.org; RECCOCKTAIL_TOKEN has the token",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("the server's address is no http:// or https:// URL", hint=_example(text))
    if not _has_port(parts):
        raise UsageError(
            f"the server's address has the port {parts.netloc.rpartition(':')[2]!r}; ports are from 1 to 65535",
            hint="RECCOCKTAIL_URL is like https://registry.example.org or http://127.0.0.1:8321",
        )
    path = parts.path.rstrip("/").removesuffix("/api/v1")
    return parts._replace(path=path)


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is left out, or one that there can be."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def _example(text: str) -> str:
    """How the address may have been meant."""
    host = text.partition("://")[2] or text
    if not re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[\w./-]*)?", host):
        return "RECCOCKTAIL_URL is like https://registry.example.org or http://127.0.0.1:8321"
    scheme = "http" if re.split("[:/]", host)[0] in LOOPBACK else "https"
    return f"write {scheme}://{host}"


def _expect_server(answer: httpx2.Response) -> None:
    """Raises TransportError where a proxy answers that the server is away."""
    import httpx2

    if answer.status_code in BY_A_PROXY and _error_in(answer) is None:
        raise httpx2.TransportError(f"the proxy before it answers {answer.status_code}", request=answer.request)


def _error_in(answer: httpx2.Response) -> RecCocktailError | None:
    """What the answer says as every error of RecCocktail is said."""
    try:
        error = answer.json()["error"]
        return error_of(error["code"], error["message"], error["hint"])
    except (ValueError, KeyError, TypeError):
        return None


def _elsewhere(answer: httpx2.Response) -> str:
    """What to do where something else than RecCocktail answers."""
    place = answer.headers.get("Location", "").partition("/api/v1")[0]
    if answer.is_redirect and place.startswith(("http://", "https://")):
        return f"it sends on to {place}, where a token does not follow: is RECCOCKTAIL_URL to name that?"
    if answer.status_code == 400 and answer.request.url.scheme == "http":
        return "is it the right address? Where the server wants https, RECCOCKTAIL_URL says so"
    return "is it the right address? RECCOCKTAIL_URL is where the pages are, such as https://registry.example.org"


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
