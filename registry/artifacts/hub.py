"""The Hugging Face Hub: bases and adapters are fetched at one commit, and failures of its client are reported as errors of ours.

Login, endpoint, cache and offline mode are `huggingface_hub`'s own (`hf auth login`, `HF_ENDPOINT`, `HF_HOME`,
`HF_HUB_OFFLINE`), and so are the progress bars, on stderr and on a terminal alone.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Literal, TypeVar

from httpx2 import HTTPError, LocalProtocolError, Timeout, TransportError, UnsupportedProtocol
from huggingface_hub import HfApi, ModelInfo, RepoFile, constants, get_cached_repo_tree, get_session, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import HubError, InvalidArtifactError, RecCocktailError, UsageError
from ..redaction import redacted
from ..snapshots import cached_snapshot, check_bytes, check_commit, expected, named_by_blobs, remember
from ..store.links import COMMIT
from .allowlist import INDEX, is_of_adapter, is_of_base, is_of_bundle, is_paper, matches
from .inspect import PICKLES

LOADED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*")
ATTEMPTS = 5  # of a request that may heal
LONGEST_WAIT = 330.0  # seconds; the Hub counts requests in windows of five minutes
TIMEOUT = Timeout(connect=10, read=300, write=60, pool=None)  # the client's own is to wait for ever
_QUERY = re.compile(r"(?<=\S)\?[^\s'\"]+")  # storage hosts' URLs are signed in theirs
_USER = re.compile(r"//[^\s/@'\"]+@")


class HubUnreachableError(HubError):
    """No answer came from the Hub: no network, or offline mode."""


@dataclass(frozen=True)
class Snapshot:
    """A repository of the Hub at one commit, as a local folder inside `huggingface_hub`'s cache.

    `unchecked` names the files whose digests nobody knows: offline, where the cache does not name them by digest.
    """

    folder: Path
    repo_id: str
    commit: str
    unchecked: tuple[str, ...] = ()


def fetch(repo_id: str, *, revision: str | None = None, kind: Literal["base", "adapter"]) -> Snapshot:
    """The files of a base or adapter at the commit that `revision` (branch, tag, commit; None: `main`) is now.

    Their bytes are those that the Hub lists. A full commit hash whose files are in the cache needs no network; offline, branches and tags
    are what they were when the cache last saw them. Raises HubError, and InvalidArtifactError where the repository has no
    safetensors; nothing but what is kept of a model is downloaded.
    """
    with explained("fetch", repo_id, revision):
        return _from_cache(repo_id, revision, kind) or _from_hub(repo_id, revision, kind)


def _from_cache(repo_id: str, revision: str | None, kind: Literal["base", "adapter"]) -> Snapshot | None:
    """Offline whatever is there, otherwise a commit that is known to be there whole."""
    offline = constants.is_offline_mode()
    if not offline and not (revision and COMMIT.fullmatch(revision)):
        return None
    there = cached_snapshot(repo_id, revision)
    if there is None:
        return None
    folder, commit = there
    present = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    try:
        listed: list[str] | None = [file.path for file in get_cached_repo_tree(repo_id, revision=commit)]
    except CachedRepoTreeNotFoundError:
        listed = None
    wanted = _wanted(present if listed is None else listed, kind)
    missing = [name for name in wanted if name not in present]
    if not offline and (listed is None or missing):
        return None
    if missing:
        raise HubUnreachableError(
            f"{repo_id} at {commit} is in the Hub's cache in part, without {', '.join(missing[:8])}, and offline mode is on",
            hint="unset HF_HUB_OFFLINE, and run the same again",
        )
    _check_weights(repo_id, commit, wanted, present if listed is None else listed)
    known = named_by_blobs(folder, wanted)
    check_bytes(folder, known, repo_id)
    return Snapshot(folder, repo_id, commit, tuple(name for name in wanted if name not in known))


def _from_hub(repo_id: str, revision: str | None, kind: Literal["base", "adapter"]) -> Snapshot:
    commit = revision if revision and COMMIT.fullmatch(revision) else check_commit(repo_id, info(repo_id, revision).sha)
    listed = listing(repo_id, commit)
    wanted = _wanted(listed, kind)
    _check_weights(repo_id, commit, wanted, listed)
    folder = Path(snapshot_download(repo_id, revision=commit, allow_patterns=[escape(name) for name in wanted]))
    check_bytes(folder, {name: expected(listed[name]) for name in wanted}, repo_id)
    remember(folder, revision, commit)
    return Snapshot(folder, repo_id, commit)


def listing(repo_id: str, commit: str) -> dict[str, RepoFile]:
    """Every file of a repository by its path. Raises what the client does."""
    entries = HfApi().list_repo_tree(repo_id, revision=commit, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _wanted(names: Iterable[str], kind: Literal["base", "adapter"]) -> list[str]:
    """Weights in subfolders and `consolidated*` are copies of the same model for other programs, or training checkpoints."""
    if kind == "adapter":
        return [name for name in names if is_of_adapter(name) or is_of_bundle(name)]
    weights = ("*.safetensors", INDEX)
    return [
        name
        for name in names
        if is_of_base(name) or is_paper(name) or (matches(name, weights) and not matches(name, ("consolidated*",)))
    ]


def _check_weights(repo_id: str, commit: str, wanted: Iterable[str], listed: Iterable[str]) -> None:
    if any(matches(name, ("*.safetensors",)) for name in wanted):
        return
    pickles = ", ".join(name for name in listed if matches(name.rpartition("/")[2], PICKLES))
    raise InvalidArtifactError(
        f"{repo_id} at {commit} has no safetensors" + (f", only pickled weights: {pickles}" if pickles else ""),
        hint="convert the weights to safetensors, or name a revision that has them",
    )


def download(repo_id: str, *, revision: str | None = None) -> Snapshot:
    """Every file of a repository at the commit that `revision` is now, whatever it is, as the Hub lists it. Raises HubError."""
    with explained("fetch", repo_id, revision):
        commit = check_commit(repo_id, info(repo_id, revision).sha)
        listed = listing(repo_id, commit)
        folder = Path(snapshot_download(repo_id, revision=commit))
        check_bytes(folder, {name: expected(file) for name, file in listed.items()}, repo_id)
        return Snapshot(folder, repo_id, commit)


T = TypeVar("T")


def retried(call: Callable[[], T], notify: Callable[[str], None] = lambda text: None) -> T:
    """What the call answers, once it does: no answer, 429 and 5xx are tried again after a while, as long as the Hub asks for.

    Only for requests that the client does not itself repeat, and that do no harm when they are. Raises what the last attempt does.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except (HTTPError, OSError) as error:
            seconds = back_off(error, attempt)
            if seconds is None:
                raise
            notify(f"{_short(error)}; trying again in {seconds:.0f} s")
            time.sleep(seconds)
    return call()


def back_off(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait before the same is tried again; None where that would not help."""
    if isinstance(error, OfflineModeIsEnabled):
        return None
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status != 429 and status not in (500, 502, 503, 504):
            return None
        asked = error.response.headers.get("Retry-After", "")
        if asked.isdigit():
            return float(asked) + 1 if float(asked) < LONGEST_WAIT else None
    elif not isinstance(error, TransportError) or isinstance(error, LocalProtocolError | UnsupportedProtocol):
        return None  # the latter are of requests that cannot be sent at all, such as with a token that is no header
    return min(8.0, 2.0 ** (attempt - 1)) * random.uniform(0.8, 1.2)  # noqa: S311


def _short(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered {error.response.status_code}"
    return f"no answer from the Hub ({type(error).__name__})"


@contextmanager
def timeouts_and_redaction() -> Iterator[None]:
    """The client gives a silent connection up after a while, and its warnings do not show the keys in the URLs of storage hosts."""
    client, logger = get_session(), logging.getLogger("huggingface_hub.utils._http")
    before, client.timeout = client.timeout, TIMEOUT
    logger.addFilter(_discreet)
    try:
        yield
    finally:
        client.timeout = before
        logger.removeFilter(_discreet)


def _discreet(record: logging.LogRecord) -> bool:
    record.msg, record.args = _line(record.getMessage()), ()
    return True


def existing(repo: str, notify: Callable[[str], None] = lambda text: None) -> ModelInfo | None:
    """What the Hub shows of a repository, None where there is none; a Hub that stumbles is asked again. Raises HubError."""
    with explained("look at", repo):
        try:
            return retried(lambda: info(repo), notify)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None


def info(repo: str, revision: str | None = None) -> ModelInfo:
    """What the Hub says of a repository; its commit is one. Raises HubError and what the client does."""
    found = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    check_commit(repo, found.sha)
    return found


@contextmanager
def explained(doing: str, repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns every failure of the client into one of ours."""
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError, CachedRepoTreeNotFoundError) as error:
        wrapped = isinstance(error, LocalEntryNotFoundError | RuntimeError)
        cause = error.__cause__ if wrapped and error.__cause__ else error
        explanation = _explanation(f"cannot {doing} {repo}", repo, revision, cause)
        # A traceback would show what the line of the explanation leaves out.
        raise explanation from (None if _has_keys(error) else error)


def _explanation(what: str, repo: str, revision: str | None, error: BaseException) -> RecCocktailError:
    endpoint = constants.ENDPOINT.rpartition("@")[2]  # without the password that a URL may carry
    match error:
        case HFValidationError():
            return UsageError(f"{what}: {_line(error)}")
        case OfflineModeIsEnabled():
            return HubUnreachableError(
                f"{what}: offline mode is on",
                hint="unset HF_HUB_OFFLINE, or put it into the Hub's cache first: `hf download`",
            )
        case TransportError():
            return HubUnreachableError(
                f"{what}: no answer from {endpoint} ({type(error).__name__})", hint="check the network and HF_ENDPOINT"
            )
        case GatedRepoError():
            return HubError(
                f"{what}: access is gated", hint=f"ask for access at {endpoint}/{repo}, then run `hf auth login`"
            )
        case RepositoryNotFoundError():
            return HubError(
                f"{what}: the Hub shows no such model", hint="check the name; if it is private, run `hf auth login`"
            )
        case RevisionNotFoundError():
            return HubError(f"{what}: it has no revision {revision!r}", hint="name a branch, a tag or a commit")
        case HfHubHTTPError() if error.response.status_code == 401:
            return HubError(f"{what}: the Hub does not accept the login", hint="run `hf auth login`")
        case HfHubHTTPError() if error.response.status_code == 507 or _is_full(error):
            return HubError(
                f"{what}: the Hub has no room for it: {_line(error.server_message or error)}",
                hint="free storage or raise its limit on the Hub, then run the same again: what was uploaded is kept",
            )
        case HfHubHTTPError() if error.response.status_code == 429:
            asked = error.response.headers.get("Retry-After", "")
            when = f"in {asked} seconds" if asked.isdigit() else "in some minutes"
            return HubError(f"{what}: too many requests (429)", hint=f"run the same again {when}")
        case HfHubHTTPError() if error.response.status_code == 403:
            return HubError(
                f"{what}: the login may not do that", hint="log in with a token that may write: `hf auth login`"
            )
        case HfHubHTTPError() if error.response.status_code >= 500:
            return HubError(
                f"{what}: the Hub answered {error.response.status_code}",
                hint="run the same again later; what was uploaded is kept",
            )
        case HfHubHTTPError():
            answer = _line(error.server_message or error)
            return HubError(f"{what}: the Hub answered {error.response.status_code}: {answer}", hint="try again later")
        case _:
            return HubError(f"{what}: {_line(error)}")


def _is_full(error: HfHubHTTPError) -> bool:
    """The Hub refuses to go over a storage limit by 403."""
    return error.response.status_code == 403 and "storage" in str(error.server_message or "").lower()


def _line(text: object) -> str:
    """The text on one line, without anything that looks like a token, a password in a URL, or a URL's signature."""
    return redacted(_USER.sub("//", _QUERY.sub("?…", " ".join(str(text).split()))))


def _has_keys(error: BaseException | None) -> bool:
    """Whether this error, or one that it came of, contains a URL with a query or a password."""
    while error is not None:
        text = str(error)
        if re.search(r"https?://\S+\?\S", text) or _USER.search(text):
            return True
        error = error.__cause__ or error.__context__
    return False
