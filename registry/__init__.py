"""What exists: base models, domains, adapters, aliases, builds, publications, and the store that holds their bytes.

Names are imported when they are first used, so that `import reccocktail.registry` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Adapter as Adapter
    from .bases import Base as Base
    from .builds import Build as Build
    from .builds import Request as Request
    from .domains import Domain as Domain
    from .errors import RecCocktailError as RecCocktailError
    from .events import Event as Event
    from .inspect import AdapterFacts as AdapterFacts
    from .inspect import BaseFacts as BaseFacts
    from .inspect import inspect_adapter as inspect_adapter
    from .inspect import inspect_base as inspect_base
    from .publications import Publication as Publication
    from .references import Reference as Reference
    from .registry import Registry as Registry
    from .settings import Settings as Settings
    from .store import Store as Store

_HOMES = {
    "Adapter": "adapters",
    "AdapterFacts": "inspect",
    "Base": "bases",
    "BaseFacts": "inspect",
    "Build": "builds",
    "Domain": "domains",
    "Event": "events",
    "Publication": "publications",
    "RecCocktailError": "errors",
    "Reference": "references",
    "Registry": "registry",
    "Request": "builds",
    "Settings": "settings",
    "Store": "store",
    "inspect_adapter": "inspect",
    "inspect_base": "inspect",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
