"""Where base models come from: a folder, a repository of the Hub, or a GGUF inside an installed package."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .gguf import SCHEME, dequantise, find_in_package
from .sources import is_folder, without_secrets


@dataclass(frozen=True)
class Checkpoint:
    """A base model's folder on this machine, and what is recorded of where it came from."""

    folder: Path
    source: str
    revision: str | None = None


def is_on_hub(source: str) -> bool:
    """Whether ORG/NAME on the Hub is meant, and no folder that is there, path or address."""
    if source.startswith((SCHEME, ".", "/", "~")) or source.count("/") != 1 or ":" in source:
        return False
    return not is_folder(Path(source)) and without_secrets(source) == source


@contextmanager
def checkpoint(
    source: str, revision: str | None, *, say: Callable[[str], None] = lambda line: None
) -> Iterator[Checkpoint]:
    """The folder behind a folder's path, ORG/NAME on the Hub or package:NAME, for as long as it is needed. Raises UsageError, HubError."""

    if not source.strip():
        raise UsageError("no source was named", hint="a folder, ORG/NAME, or package:NAME")
    folder = Path(source)
    with suppress(RuntimeError):  # ~nobody
        folder = folder.expanduser()
    there, shown = not source.startswith(SCHEME) and is_folder(folder), without_secrets(source)
    if revision is not None and (source.startswith(SCHEME) or there):
        raise UsageError("--revision belongs to a Hub repo, and this source is none")
    if source.startswith(SCHEME):
        gguf = find_in_package(source)
        with tempfile.TemporaryDirectory(prefix="reccocktail-") as staged:
            say(f"turning {gguf.name} into a bfloat16 checkpoint")
            dequantise(gguf, Path(staged))
            yield Checkpoint(Path(staged), f"{SCHEME}{source.removeprefix(SCHEME).partition('/')[0]}/{gguf.name}")
    elif there:
        yield Checkpoint(folder, str(folder.resolve()))
    elif shown != source or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UsageError(
            f"{shown!r} is not a folder, and not a valid name of a Hub repo", hint="a folder, ORG/NAME, or package:NAME"
        )
    else:
        from .hub import constants, fetch  # the Hub's client is slow to import

        place = "the Hub's cache, since offline mode is on" if constants.is_offline_mode() else "the Hub"
        say(f"fetching {source} from {place}")
        snapshot = fetch(source, revision=revision, kind="base")
        if snapshot.unchecked:
            say(unchecked(snapshot.unchecked))
        yield Checkpoint(snapshot.folder, snapshot.repo_id, snapshot.commit)


def unchecked(names: Sequence[str]) -> str:
    """What is to be said of files whose digests the Hub's cache does not have."""
    return f"not compared with what the Hub lists, because the cache does not have the digests: {', '.join(names)}"
