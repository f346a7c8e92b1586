"""The root of the `reccocktail` command: global options, the groups, and how failures are reported.

Nothing here or in the command modules imports torch, SQLAlchemy or rich at the top: `--help` has to be quick.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import LocalOnlyError, UsageError
from ..registry.redaction import check_no_secret
from ..registry.settings import Settings
from .console import say, warn

if TYPE_CHECKING:
    from ..api.backend import LocalBackend
    from ..api.remote_backend import RemoteBackend
    from ..registry import Registry

    Backend = LocalBackend | RemoteBackend
    """Whatever answers a command."""

ACTOR_LENGTH = 100
URL, TOKEN = "RECCOCKTAIL_URL", "RECCOCKTAIL_TOKEN"
OF_A_REGISTRY = ("home", "database_url", "store_url")  # options that say where it is
MAY_BE_EMPTY = (
    "--note",
    "--as",
    "--at",
)  # an empty note equals no note; the others are refused by their own checks
CHECK_ARGUMENTS = ("adapter", "base")  # groups whose commands refuse an empty argument in words of their own
KEPT = "what was finished is kept"
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class App:
    """What every command gets: settings, the registry or server that they lead to, and in whose name it is written.

    With RECCOCKTAIL_URL it is a server: what `backend` does goes there, and whatever else would open this machine's registry is refused.
    """

    def __init__(self, *, actor: str | None = None, **options: str | None) -> None:
        self._options = options
        self._said = False
        self.url = os.environ.get(URL) or None
        if self.url is not None:
            _refuse_beside_url(actor, options)
        self.actor = _checked(actor if actor is not None else os.environ.get("RECCOCKTAIL_AS") or None)
        """The user whose name is written to rows; None means the login name."""

    @property
    def settings(self) -> Settings:
        """Of the registry of this machine. Raises LocalOnlyError where a server is asked instead."""
        if self.url is not None:
            raise LocalOnlyError.of(f"`{_command()}`")
        return self.here

    @property
    def here(self) -> Settings:
        """Of this machine, for what needs no registry."""
        found = Settings.load(**self._options)  # pyright: ignore[reportArgumentType]
        if found.used is not None and not self._said:
            self._said = True
            say(f"{', '.join(found.given)} from {found.used}")
        return found

    def registry(self, settings: Settings | None = None, *, create: bool = False) -> Registry:
        """Open the registry of the settings, or make it; use it in a `with`.

        Raises DatabaseError, StoreError when it was never initialised.
        """
        from ..registry import Registry

        settings = settings or self.settings
        if not create:
            return Registry.open(settings, actor=self.actor)
        notes: list[str] = []
        opened = Registry.create(settings, actor=self.actor, notes=notes)
        for note in notes:
            warn(note)
        return opened

    def backend(self) -> Backend:
        """The registry of the settings, or the server; use it in a `with`. Raises as `registry`, UsageError for the address."""
        if self.url is None:
            from ..api.backend import LocalBackend

            return LocalBackend(self.registry())
        return self.remote()

    def remote(self) -> RemoteBackend:
        """The server that RECCOCKTAIL_URL names."""
        from ..api.remote_backend import RemoteBackend

        assert self.url is not None
        return RemoteBackend(self.url, os.environ.get(TOKEN) or None, warn)

    def device(self) -> str:
        from ..engine.models import pick_device

        return pick_device(self.settings.device)


def _refuse_beside_url(actor: str | None, options: Mapping[str, str | None]) -> None:
    given = [f"--{name.replace('_', '-')}" for name in OF_A_REGISTRY if options.get(name) is not None]
    if given:
        raise UsageError(
            f"{given[0]} says where a registry is, and {URL} names a server", hint=f"give one of them: `unset {URL}`"
        )
    if actor is not None:
        raise UsageError("--as says who acts, and on a server the token does", hint=f"leave --as out, or `unset {URL}`")


def _command() -> str:
    context = click.get_current_context(silent=True)
    return "this command" if context is None else context.command_path


def _checked(actor: str | None) -> str | None:
    if actor is not None and not (actor.strip() and actor.isprintable() and len(actor) <= ACTOR_LENGTH):
        raise UsageError(
            f"{actor!r} cannot be a user name",
            hint=f"--as (or RECCOCKTAIL_AS) takes 1 to {ACTOR_LENGTH} printable characters",
        )
    return None if actor is None else check_no_secret("name after --as (or in RECCOCKTAIL_AS)", actor)


pass_app = click.make_pass_decorator(App)


def example(*lines: str) -> str:
    """An epilog that shows how the command is used; click keeps the lines apart."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def base_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--base", metavar="NAME", help="Base model, if there are several.")(function)


def paging_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--after", metavar="KEY", help="Start after this entry: the last of the previous page.")(
        function
    )
    return click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)(function)


def _empty(words: list[str]) -> str | None:
    """The option or argument whose value is empty, which would be taken for one that was left out, or for this folder."""
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        option = word[:-1] if re.fullmatch(r"--[a-z][a-z-]*=", word) else before if not word else None
        if option is None or option in MAY_BE_EMPTY:
            continue
        if option.startswith("-") or not any(group in words[:number] for group in CHECK_ARGUMENTS):
            return option if option.startswith("-") else f"argument {number + 1}"
    return None


class Interrupted(click.exceptions.Abort):
    """Ctrl-C, or a signal that asks the process to end (see `cause`), with what has become of the work and what to do next."""

    def __init__(self, hint: str, cause: KeyboardInterrupt, *, state: str = KEPT) -> None:
        super().__init__()
        self.hint, self.cause, self.state = hint, cause, state
