"""The root of the `reccocktail` command: global options, the groups, and how failures are reported.

Nothing here or in the command modules imports torch, SQLAlchemy or rich at the top: `--help` has to be quick.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import UsageError
from ..registry.redaction import check_no_secret
from ..registry.settings import Settings
from .console import say, warn

if TYPE_CHECKING:
    from ..registry import Registry

ACTOR_LENGTH = 100
MAY_BE_EMPTY = (
    "--note",
    "--as",
    "--at",
)  # an empty note equals no note; the others are refused by their own checks
CHECK_ARGUMENTS = ("adapter", "base")  # groups whose commands refuse an empty argument in words of their own
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class App:
    """What every command gets: settings, the registry they lead to, and in whose name it is written."""

    def __init__(self, *, actor: str | None = None, **options: str | None) -> None:
        self._options = options
        self._said = False
        self.actor = _checked(actor if actor is not None else os.environ.get("RECCOCKTAIL_AS") or None)
        """The user whose name is written to rows; None means the login name."""

    @property
    def settings(self) -> Settings:
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

    def device(self) -> str:
        from ..engine.models import pick_device

        return pick_device(self.settings.device)


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
    """Ctrl-C, or a signal that asks the process to end (see `cause`), with what to do next."""

    def __init__(self, hint: str, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.hint, self.cause = hint, cause
