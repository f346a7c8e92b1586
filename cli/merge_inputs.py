"""What `merge` merges: folders, repositories of the Hub, and bases and adapters of the registry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry.errors import DatabaseError, NotFoundError, StoreError, UsageError
from .app import App
from .bases import say_unchecked
from .console import say

if TYPE_CHECKING:
    from ..engine.mergekit import LoraMix
    from ..registry import Registry


@dataclass(frozen=True)
class GivenAdapter:
    """An adapter as it was written after -a: a folder or a name, and its weight."""

    text: str
    weight: float | None


@dataclass(frozen=True)
class FoundBase:
    """A base's folder, its name in the registry if it was named by that, and the names under which adapters may know it."""

    folder: Path
    name: str | None = None
    known_as: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter's folder, and what it is called in the result: the folder's own name unless it was named otherwise."""

    folder: Path
    label: str | None = None


def parse_adapter(text: str) -> GivenAdapter:
    """`ADAPTER=WEIGHT` or `ADAPTER`; a folder whose own name has an equals sign wins over the split."""
    if "=" not in text or _path(text).is_dir():
        return GivenAdapter(text, None)
    name, _, weight = text.rpartition("=")
    try:
        return GivenAdapter(name, float(weight))
    except ValueError:
        raise UsageError(f"-a {text}: {weight!r} is not a number") from None


def read_mix(recipe: str) -> LoraMix | None:
    """What a mergekit configuration given as the recipe means; None for everything else, which is read as a recipe."""
    from ..engine.mergekit import read_mergekit
    from ..engine.recipes import SUFFIXES

    path = _path(recipe)
    if path.suffix not in SUFFIXES:
        return None
    try:
        return read_mergekit(path)
    except (OSError, ValueError):  # reported when it is read as a recipe
        return None


class Inputs:
    """Finds what is named; the registry is opened at the first name that may be one of its."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._registry: Registry | None = None

    @contextmanager
    def base(self, text: str) -> Iterator[FoundBase]:
        """A folder, a base model of the registry, ORG/NAME on the Hub, or package:NAME."""
        if _is_path(text):
            yield FoundBase(_path(text))
        elif "/" in text or ":" in text:
            from ..registry.artifacts.checkpoints import checkpoint

            with checkpoint(text, None, say=say) as found:
                yield FoundBase(found.folder, known_as=(found.source,))
        else:
            registry = self._opened(text, "base model")
            row = registry.bases.get(text)
            yield FoundBase(registry.store.folder(row.digest), row.name, (row.name, row.source))

    def adapter(self, text: str, base: FoundBase) -> FoundAdapter:
        """A folder, as `adapter add` takes it; a reference of the registry; or ORG/NAME on the Hub."""
        from ..registry.artifacts.sources import find_adapter_source

        if _is_path(text):
            return FoundAdapter(_path(text))
        if "/" in text or ":" in text:
            say(f"fetching {text} from the Hub")
            source = find_adapter_source(text)
            say_unchecked(source.unchecked)
            return FoundAdapter(source.folder, text.replace("/", "-"))
        registry = self._opened(text, "adapter")
        row = registry.adapters.resolve(text, base=base.name)
        say(f"{text} is {row.ref}")
        return FoundAdapter(registry.adapters.folder(row), row.ref)

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def _opened(self, text: str, what: str) -> Registry:
        if self._registry is None:
            try:
                self._registry = self._app.registry()
            except (DatabaseError, StoreError) as error:
                raise NotFoundError(
                    f"{text!r} is not a folder, and there is no registry with {what}s: {error}",
                    hint="a folder, ORG/NAME, or a name in the registry",
                ) from error
        return self._registry


def _path(text: str) -> Path:
    with suppress(RuntimeError):  # ~nobody
        return Path(text).expanduser()
    return Path(text)


def _is_path(text: str) -> bool:
    """Whether a folder is meant: one that is there, or what can be nothing else."""
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or _path(text).is_dir()


def given_adapters(texts: Sequence[str], mix: LoraMix | None) -> list[GivenAdapter]:
    """What is written after -a, or what a mergekit configuration lists, with the weights that it says."""
    given = [parse_adapter(text) for text in texts]
    if mix is None:
        if not given:
            raise UsageError("name the adapters: -a ADAPTER=WEIGHT")
        return given
    if not given:
        return [GivenAdapter(lora, weight) for lora, weight in zip(mix.loras, mix.weights, strict=True)]
    if any(each.weight is not None for each in given):
        raise UsageError("weights come from the recipe or from -a, not from both")
    if len(given) != len(mix.loras):
        raise UsageError(f"the recipe mixes {', '.join(mix.loras)}, but {len(given)} adapters are given")
    return [GivenAdapter(each.text, weight) for each, weight in zip(given, mix.weights, strict=True)]
