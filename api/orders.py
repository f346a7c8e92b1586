"""What is handed to a backend: things to register, as a caller names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from ..registry.catalog.registration import Checks, Labels
    from ..serving.resolve import Origin, Resizing, Servable

Say = Callable[[str], None]


class Counting(Protocol):
    def add(self, count: int, total: int) -> None: ...


Storing = Callable[[], AbstractContextManager[Counting]]
"""Entered once there are bytes to store or send; gives what counts them."""


@dataclass(frozen=True)
class Located:
    """What a reference means for a serving engine, and where its files are on this machine. `resizing` is what its base model needs first.

    `servable` has the registry's facts, of which a server's client has none.
    """

    origin: Origin
    folder: Path
    resizing: Resizing | None
    servable: Servable | None = None


class _Uncounted:
    def add(self, count: int, total: int) -> None:
        pass


def uncounted() -> AbstractContextManager[Counting]:
    """Where nobody watches."""
    return nullcontext(_Uncounted())


def unsaid(line: str) -> None:
    pass


@dataclass(frozen=True)
class NewBase:
    """`source` is a folder of this machine, ORG/NAME on the Hub, or package:NAME."""

    name: str
    source: str
    revision: str | None = None


@dataclass(frozen=True)
class NewDomain:
    """What is None stays as it is. `data` is a folder of this machine, `recipe` a name or a file of it."""

    name: str
    title: str | None = None
    data: Path | None = None
    trainer: str | None = None
    recipe: str | None = None


@dataclass(frozen=True)
class NewAdapter:
    """`source` is a folder of this machine or ORG/NAME on the Hub; without a `domain` it is a spirit.

    `made` is what is known of how it came about, for its context.
    """

    source: str
    base: str
    labels: Labels
    checks: Checks
    domain: str | None = None
    revision: str | None = None
    made: Mapping[str, object] = field(default_factory=dict)

    @property
    def role(self) -> Literal["spirit", "ingredient"]:
        return "spirit" if self.domain is None else "ingredient"
