"""The entry point of the `reccocktail` command: the root group, exit codes, and how failures are reported.

Nothing here or in the command modules imports torch, SQLAlchemy or rich at the top: `--help` has to be quick.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import click

from ..registry.errors import RecCocktailError, UsageError
from ..registry.redaction import redacted
from ..registry.signals import Stopped, exit_code, raised
from ..registry.store.room import NO_ROOM, lacks_room
from . import display
from .app import CONTEXT, KEPT, QUIET, App, Interrupted, _empty, example
from .console import json_text, printable, prose
from .help_text import WholeWords

click.Context.formatter_class = WholeWords  # of all commands
COMPLETE = "_RECCOCKTAIL_COMPLETE"  # set by the scripts of `completion`, when a person presses Tab


class _InOrder(click.Group):
    """Lists its commands in the order and under the headings of `commands.GROUPS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from .commands import GROUPS

        width = formatter.width - max(map(len, self.commands)) - 6
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                rows = [(command.name or "", command.get_short_help_str(width)) for command in commands]
                formatter.write_dl([(name.ljust(max(map(len, self.commands))), text) for name, text in rows])

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
@click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the registry. [env: RECCOCKTAIL_HOME; ~/.reccocktail]",
)
@click.option(
    "--database-url", metavar="URL", help="PostgreSQL or SQLite. [env: RECCOCKTAIL_DATABASE_URL; SQLite in HOME]"
)
@click.option("--store-url", metavar="URL", help="Folder or s3://… [env: RECCOCKTAIL_STORE_URL; a folder in HOME]")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 … [env: RECCOCKTAIL_DEVICE; auto]")
@click.option(
    "--cache-limit",
    metavar="SIZE",
    help="Limit of an object store's local cache, such as 50GB. [env: RECCOCKTAIL_CACHE_LIMIT; none]",
)
@click.option("--as", "actor", metavar="NAME", help="User name in rows and events. [env: RECCOCKTAIL_AS; login name]")
@click.option("--quiet", is_flag=True, help="Print only warnings and errors to stderr.")
@click.option("--traceback", "show_traceback", is_flag=True, help="Print the traceback of an error.")
@click.version_option(package_name="reccocktail", prog_name="reccocktail")
@click.pass_context
def reccocktail(context: click.Context, show_traceback: bool, quiet: bool, **options: Any) -> None:
    """Adapter registry and merge engine for LLM recommenders.

    Registers one general recommendation LoRA (the base spirit) and one LoRA per domain (the ingredients), merges them
    into checkpoints that any serving engine loads, and publishes these to the Hugging Face Hub.
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
    if COMPLETE in os.environ and not words:
        from . import completion

        sys.exit(0 if completion.answer(reccocktail) else 1)
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
    """The exit code, after errors are reported."""
    if any("\0" in word for word in words):  # only a program that calls us can say it, and no path may have it
        return _fail("usage", "an argument has a NUL character", None, 2, as_json, words)
    if (empty := _empty(words)) is not None:
        hint = "give a value, or leave it out; in a shell script, check the variable"
        return _fail("usage", f"{empty} has an empty value", hint, 2, as_json, words)
    try:
        code = reccocktail.main(words, prog_name="reccocktail", standalone_mode=False)
    except RecCocktailError as error:
        return _fail(error.code, str(error), error.hint, 2 if isinstance(error, UsageError) else 1, as_json, words)
    except click.exceptions.Abort as error:
        cause = error.cause if isinstance(error, Interrupted) else None
        what = "the process was stopped by a signal" if isinstance(cause, Stopped) else "interrupted"
        hint = getattr(error, "hint", "run the same command again")
        number = exit_code(cause or error)
        display.begin_line()
        return _fail("interrupted", f"{what}; {getattr(error, 'state', KEPT)}", hint, number, as_json, words)
    except click.exceptions.NoArgsIsHelpError as error:
        display.write(f"{error.format_message()}\n")  # the help: nothing was asked for, and nothing was wrong
        return error.exit_code
    except click.ClickException as error:
        usage = getattr(error, "ctx", None)
        hint = f"`{usage.command_path} --help`" if usage else None
        return _fail("usage", error.format_message(), hint, error.exit_code, as_json, words)
    except OSError as error:
        return _fail("os", str(error), NO_ROOM if lacks_room(error) else None, 1, as_json, words)
    except Exception as error:  # noqa: BLE001  the last resort: a bug is reported like any other failure
        message = f"{type(error).__name__}: {error}"
        if lacks_room(error):  # as a library reports it
            return _fail("os", message, NO_ROOM, 1, as_json, words)
        return _fail(
            "internal",
            message,
            "this is a bug in RecCocktail; put --traceback before the command to see where",
            1,
            as_json,
            words,
        )
    return code if isinstance(code, int) else 0


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
    """The exit code, after the failure is reported."""
    lines = redacted(traceback.format_exc()) if "--traceback" in words else None
    message, hint = redacted(message), hint and redacted(hint)
    if as_json:
        _answer({"error": {"code": code, "message": message, "hint": hint}})
    if display.manner.json_lines:
        display.write(display.json_line(what="error", code=code, detail=message, hint=hint, traceback=lines))
        return number
    if lines:
        display.write(f"{printable(lines, indent='')}\n")
    if not as_json:
        for lead, text in (("error: ", message), ("hint: ", hint)):
            if text:
                display.write(f"{prose(text, stream=sys.stderr, lead=lead, indent=' ' * len(lead))}\n")
    return number


def _answer(failure: dict[str, Any]) -> None:
    """To stdout. A closed terminal does not take it, and must not change the exit code when Python flushes stdout at the end."""
    try:
        click.echo(json_text(failure))
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _show_problems() -> None:
    """The errors of the progress display, which did not affect the work."""
    for problem in display.manner.problems:
        lines = redacted("".join(traceback.format_exception(problem)))
        if display.manner.json_lines:
            display.write(display.json_line(what="log", detail="the progress display failed", traceback=lines))
        else:
            display.write(
                f"the progress display failed; the command itself was not affected:\n{printable(lines, indent='')}"
            )
