"""The root of the `reccocktail` command: global options, the groups, and how failures are told.

Nothing here or in the command modules imports torch, SQLAlchemy or rich at the top: `--help` has to be quick.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..registry.errors import RecCocktailError, UsageError
from ..registry.redaction import redacted
from ..registry.room import NO_ROOM, lacks_room
from ..registry.settings import Settings
from ..registry.signals import Stopped, exit_code, raised
from ..tasks.errors import TaskError
from . import display
from .console import json_text, printable, say

if TYPE_CHECKING:
    from ..registry import Registry

ACTOR_LENGTH = 100
MAY_BE_EMPTY = (
    "--note",
    "--as",
    "--at",
)  # an empty note says the same as none; the others are refused by their own checks
CHECK_ARGUMENTS = ("adapter", "base")  # groups whose commands refuse an empty argument in words of their own
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class App:
    """What every command gets: settings, the registry they lead to, and in whose name it is written."""

    def __init__(self, *, actor: str | None = None, **options: str | None) -> None:
        self._options = options
        self._said = False
        self.actor = _checked(actor if actor is not None else os.environ.get("RECCOCKTAIL_AS") or None)
        """In whose name rows are written; None stands for the login name."""

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

    def invoke(self, ctx: click.Context) -> Any:
        """Raises Interrupted, before click writes to a stderr that may be closed."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("run the same command again", error) from error


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
@click.option("--quiet", is_flag=True, help="Only warnings and errors on stderr: no progress, no remarks.")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error came from.")
@click.version_option(package_name="reccocktail", prog_name="reccocktail")
@click.pass_context
def reccocktail(context: click.Context, show_traceback: bool, quiet: bool, **options: Any) -> None:
    """Adapter registry and merge engine for LLM recommenders.

    Keep one general recommendation LoRA (the base spirit) and one LoRA per domain (the ingredients), and mix them into
    merged checkpoints that any serving engine loads.
    """
    context.obj = App(**options)
    if quiet:
        display.manner.quiet = True
        os.environ.update(QUIET)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command; exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 and 129 ended by SIGTERM, SIGHUP."""
    from . import commands

    _open_standard_streams()
    for command in commands.ALL:
        reccocktail.add_command(command)
    words = sys.argv[1:] if arguments is None else arguments
    display.begin(json_lines="--log-json" in words)
    _hush()
    # Importing torch makes a million objects that live until the end: looking through them again and again for garbage, and
    # once more at the end, would take a third of a second of every command that merges.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    as_json = "--json" in words
    with raised(), display.working() if display.manner.json_lines else nullcontext():
        code = _run(words, as_json)
        if "--traceback" in words:
            _show_problems()
    sys.exit(code)


def _run(words: list[str], as_json: bool) -> int:
    """The exit code, once what went wrong is told."""
    if any("\0" in word for word in words):  # only a program that calls us can say it, and no path may have it
        return _fail("usage", "an argument has a NUL character", None, 2, as_json, words)
    if (empty := _empty(words)) is not None:
        hint = "give a value, or leave it out; in a shell script, look at the variable"
        return _fail("usage", f"{empty} has an empty value", hint, 2, as_json, words)
    try:
        code = reccocktail.main(words, prog_name="reccocktail", standalone_mode=False)
    except (RecCocktailError, TaskError) as error:
        return _fail(error.code, str(error), error.hint, 2 if isinstance(error, UsageError) else 1, as_json, words)
    except click.exceptions.Abort as error:
        cause = error.cause if isinstance(error, Interrupted) else None
        what = "the process was asked to end" if isinstance(cause, Stopped) else "interrupted"
        hint = getattr(error, "hint", "run the same command again")
        number = exit_code(cause or error)
        display.begin_line()
        return _fail("interrupted", f"{what}; what was finished is kept", hint, number, as_json, words)
    except click.exceptions.NoArgsIsHelpError as error:
        display.write(f"{error.format_message()}\n")  # the help: nothing was asked for, and nothing was wrong
        return error.exit_code
    except click.ClickException as error:
        usage = getattr(error, "ctx", None)
        hint = f"`{usage.command_path} --help`" if usage else None
        return _fail("usage", error.format_message(), hint, error.exit_code, as_json, words)
    except OSError as error:
        return _fail("os", str(error), NO_ROOM if lacks_room(error) else None, 1, as_json, words)
    except Exception as error:  # noqa: BLE001  the last resort: a bug is told like any other failure
        message = f"{type(error).__name__}: {error}"
        if lacks_room(error):  # as a library reports it
            return _fail("os", message, NO_ROOM, 1, as_json, words)
        return _fail(
            "internal", message, "this should not happen; --traceback before the command shows where", 1, as_json, words
        )
    return code if isinstance(code, int) else 0


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
    """Ctrl-C, or a signal that asks the process to end (the cause tells), with what to do to go on."""

    def __init__(self, hint: str, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.hint, self.cause = hint, cause


def _open_standard_streams() -> None:
    """Where the process was started without one of the three, the next file that is opened would take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free


def _hush() -> None:
    """Keep other libraries' bars and deprecation notes out of our output; their errors still come through."""
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")):
        os.environ.setdefault(name, value)
    if not display.is_terminal(sys.stderr):
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars are for terminals
    warnings.filterwarnings("ignore", category=FutureWarning)


def _fail(code: str, message: str, hint: str | None, number: int, as_json: bool, words: list[str]) -> int:
    """The exit code, once the failure is told."""
    lines = redacted(traceback.format_exc()) if "--traceback" in words else None
    message, hint = redacted(message), hint and redacted(hint)
    if as_json:
        click.echo(json_text({"error": {"code": code, "message": message, "hint": hint}}))
    if display.manner.json_lines:
        display.write(display.json_line(what="error", code=code, detail=message, hint=hint, traceback=lines))
        return number
    if lines:
        display.write(f"{printable(lines, indent='')}\n")
    if not as_json:
        display.write(f"error: {printable(message, indent='       ')}\n")
        if hint:
            display.write(f"hint: {printable(hint, indent='      ')}\n")
    return number


def _show_problems() -> None:
    """What the display of progress failed with, which was nothing to the work."""
    for problem in display.manner.problems:
        lines = redacted("".join(traceback.format_exception(problem)))
        if display.manner.json_lines:
            display.write(display.json_line(what="log", detail="the display of progress ended", traceback=lines))
        else:
            display.write(f"the display of progress ended, which changed nothing else:\n{printable(lines, indent='')}")
