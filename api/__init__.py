"""The Python API: register adapters, request builds, evaluate and publish, in the terms of the `reccocktail` command.

Only what `__all__` lists here is stable. Everything else may change in any release. Importing this module imports neither torch
nor SQLAlchemy; the first call that needs them does.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..registry.errors import NotFoundError, RecCocktailError, UsageError
from .client import Client

__all__ = ["Client", "NotFoundError", "RecCocktailError", "UsageError", "open_registry"]


def open_registry(
    home: str | os.PathLike[str] | None = None,
    *,
    database_url: str | None = None,
    store_url: str | None = None,
    device: str | None = None,
    actor: str | None = None,
    create: bool = False,
    token: str | None = None,
) -> Client:
    """A client of the registry that the arguments lead to. What is not given comes from the environment and the settings files.

    `https://HOST` as `home` is a server (`reccocktail server`), asked with the `token`; nothing else is given then. Without any argument, that of
    RECCOCKTAIL_URL is asked with RECCOCKTAIL_TOKEN, if it is set.

    `actor` is the name that rows and events carry; by default the login name. With `create`, database and store are created
    where they are missing. Raises DatabaseError or StoreError if there is no registry, UsageError for a wrong setting.
    """
    here = any(each is not None for each in (home, database_url, store_url))
    named = None if here else os.environ.get("RECCOCKTAIL_URL")
    if named:
        home, token = named, token or os.environ.get("RECCOCKTAIL_TOKEN") or None
    if isinstance(home, str) and (named or home.startswith(("http://", "https://"))):
        if create or any(each is not None for each in (database_url, store_url, device, actor)):
            raise UsageError(
                "a server has its own database, store, device and actors", hint="give its address and a token"
            )
        from .remote import RemoteClient

        return RemoteClient(home, token)
    if token is not None:
        raise UsageError("a token is for a server", hint='open_registry("https://…", token=…)')
    from ..registry import Registry, Settings

    settings = Settings.load(
        home=None if home is None else Path(home).expanduser(),
        database_url=database_url,
        store_url=store_url,
        device=device,
    )
    opened = Registry.create if create else Registry.open
    return Client(opened(settings, actor=actor))
