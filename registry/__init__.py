"""What exists: base models, domains, adapters, aliases, builds, publications, and the store that holds their bytes.

Names are imported when they are first used, so that `import reccocktail.registry` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifacts.facts import AdapterFacts as AdapterFacts
    from .artifacts.facts import BaseFacts as BaseFacts
    from .artifacts.inspect import inspect_adapter as inspect_adapter
    from .artifacts.inspect import inspect_base as inspect_base
    from .catalog.adapters import Adapter as Adapter
    from .catalog.bases import Base as Base
    from .catalog.build_records import Build as Build
    from .catalog.build_records import Request as Request
    from .catalog.domains import Domain as Domain
    from .catalog.events import Event as Event
    from .catalog.publications import Publication as Publication
    from .catalog.references import Reference as Reference
    from .errors import RecCocktailError as RecCocktailError
    from .registry import Registry as Registry
    from .settings import Settings as Settings
    from .store import create_store as create_store
    from .store import open_store as open_store
    from .store.contract import Store as Store

_HOMES = {
    "Adapter": "catalog.adapters",
    "AdapterFacts": "artifacts.facts",
    "Base": "catalog.bases",
    "BaseFacts": "artifacts.facts",
    "Build": "catalog.builds",
    "Domain": "catalog.domains",
    "Event": "catalog.events",
    "Publication": "catalog.publications",
    "RecCocktailError": "errors",
    "Reference": "catalog.references",
    "Registry": "registry",
    "Request": "catalog.builds",
    "Settings": "settings",
    "Store": "store.contract",
    "create_store": "store",
    "open_store": "store",
    "inspect_adapter": "artifacts.inspect",
    "inspect_base": "artifacts.inspect",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
