"""The root of the `reccocktail` command: global options, the groups, and how failures are told.

Nothing here or in the command modules imports torch, SQLAlchemy or rich at the top: `--help` has to be quick.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..registry.errors import RecCocktailError, UsageError
from ..registry.redaction import redacted
from ..registry.settings import Settings
from ..tasks.errors import TaskError
from .console import json_text, printable

if TYPE_CHECKING:
    from ..registry import Registry

ACTOR_LENGTH = 100
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class App:
    """What every command gets: settings, the registry they lead to, and in whose name it is written."""

    def __init__(self, *, actor: str | None = None, **options: str | None) -> None:
        self._options = options
        self.actor = _checked(actor if actor is not None else os.environ.get("RECCOCKTAIL_AS") or None)
        """In whose name rows are written; None stands for the login name."""

    @property
    def settings(self) -> Settings:
        return Settings.load(**self._options)  # pyright: ignore[reportArgumentType]

    def registry(self, settings: Settings | None = None, *, create: bool = False) -> Registry:
        """Open the registry of the settings, or make it; use it in a `with`.

        Raises DatabaseError, StoreError when it was never initialised.
        """
        from ..registry import Registry

        enter = Registry.create if create else Registry.open
        return enter(settings or self.settings, actor=self.actor)

    def device(self) -> str:
        from ..engine.models import pick_device

        return pick_device(self.settings.device)


def _checked(actor: str | None) -> str | None:
    if actor is not None and not (actor.strip() and actor.isprintable() and len(actor) <= ACTOR_LENGTH):
        raise UsageError(
            f"{actor!r} cannot be who this is done as",
            hint=f"--as (or RECCOCKTAIL_AS) takes 1 to {ACTOR_LENGTH} printable characters",
        )
    return actor


pass_app = click.make_pass_decorator(App)


def example(*lines: str) -> str:
    """An epilog that shows how the command is used; click keeps the lines apart."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")(function)


def base_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--base", metavar="NAME", help="Base model, where there are several.")(function)


def paging_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--after", metavar="KEY", help="Go on after this entry of the page before.")(function)
    return click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)(function)


class _InOrder(click.Group):
    """Lists its commands in the order of `commands.ALL`, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings=CONTEXT,
    epilog=example("reccocktail demo", "reccocktail build request beauty --wait", "reccocktail status"),
)
@click.option("--home", metavar="DIR", type=click.Path(path_type=Path), help="[env: RECCOCKTAIL_HOME; ~/.reccocktail]")
@click.option("--database-url", metavar="URL", help="[env: RECCOCKTAIL_DATABASE_URL; SQLite in HOME]")
@click.option("--store-url", metavar="URL", help="[env: RECCOCKTAIL_STORE_URL; a folder in HOME]")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 … [env: RECCOCKTAIL_DEVICE; auto]")
@click.option(
    "--cache-limit", metavar="SIZE", help="Of an S3 store's cache: 50GB, … [env: RECCOCKTAIL_CACHE_LIMIT; 0, none]"
)
@click.option(
    "--as", "actor", metavar="NAME", help="Who does it, in rows and events. [env: RECCOCKTAIL_AS; login name]"
)
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error came from.")
@click.version_option(package_name="reccocktail", prog_name="reccocktail")
@click.pass_context
def reccocktail(context: click.Context, show_traceback: bool, **options: Any) -> None:
    """Adapter registry and merge engine for LLM recommenders.

    Keep one general recommendation LoRA (the base spirit) and one LoRA per domain (the ingredients), and mix them into
    merged checkpoints that any serving engine loads.
    """
    context.obj = App(**options)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command; exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    from . import commands

    for command in commands.ALL:
        reccocktail.add_command(command)
    words = sys.argv[1:] if arguments is None else arguments
    _hush()
    # Importing torch makes a million objects that live until the end: looking through them again and again for garbage, and
    # once more at the end, would take a third of a second of every command that merges.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    as_json = "--json" in words
    try:
        code = reccocktail.main(words, prog_name="reccocktail", standalone_mode=False)
    except (RecCocktailError, TaskError) as error:
        _fail(error.code, str(error), error.hint, 2 if isinstance(error, UsageError) else 1, as_json, words)
    except click.exceptions.Abort as error:
        hint = getattr(error, "hint", "run the same command again")
        _fail("interrupted", "interrupted; what was finished is kept", hint, 130, as_json, words)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # the help, to stderr: nothing was asked for, and nothing was wrong
        sys.exit(error.exit_code)
    except click.ClickException as error:
        usage = getattr(error, "ctx", None)
        hint = f"`{usage.command_path} --help`" if usage else None
        _fail("usage", error.format_message(), hint, error.exit_code, as_json, words)
    except OSError as error:
        _fail("os", str(error), None, 1, as_json, words)
    except Exception as error:  # noqa: BLE001  the last resort: a bug is told like any other failure
        message = f"{type(error).__name__}: {error}"
        _fail(
            "internal", message, "this should not happen; --traceback before the command shows where", 1, as_json, words
        )
    sys.exit(code if isinstance(code, int) else 0)


class Interrupted(click.exceptions.Abort):
    """Ctrl-C, with what to do to go on."""

    def __init__(self, hint: str) -> None:
        super().__init__()
        self.hint = hint


def _hush() -> None:
    """Keep other libraries' bars and deprecation notes out of our output; their errors still come through."""
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")):
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars are for terminals
    warnings.filterwarnings("ignore", category=FutureWarning)


def _fail(code: str, message: str, hint: str | None, exit_code: int, as_json: bool, words: list[str]) -> NoReturn:
    if "--traceback" in words:
        click.echo(printable(redacted(traceback.format_exc()), indent=""), err=True)
    message, hint = redacted(message), hint and redacted(hint)
    if as_json:
        click.echo(json_text({"error": {"code": code, "message": message, "hint": hint}}))
    else:
        click.echo(f"error: {printable(message, indent='       ')}", err=True)
        if hint:
            click.echo(f"hint: {printable(hint, indent='      ')}", err=True)
    sys.exit(exit_code)
