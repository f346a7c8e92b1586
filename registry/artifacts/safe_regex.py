"""Python's regular expressions from outside. One that keeps the engine busy for ever is ended with its process."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

SECONDS = 20  # expressions that people write take milliseconds for all modules of a model

Mode = Literal["match", "fullmatch"]

_PLAIN = re.compile(r"[A-Za-z0-9_.-]*")
_PROGRAM = """
import json, re, sys
expression, mode, names = json.load(sys.stdin)
try:
    match = getattr(re.compile(expression), mode)
except (re.error, OverflowError, RecursionError) as error:
    json.dump(str(error), sys.stdout)
else:
    found = map(match, names)
    json.dump([None if one is None else one.groupdict().get("idx") or "" for one in found], sys.stdout)
"""


@functools.lru_cache(maxsize=32)
def matched(expression: str, mode: Mode, names: tuple[str, ...]) -> tuple[str | None, ...]:
    """For each name what the group `idx` holds, "" without one, or None where the expression does not match.

    Raises ValueError for what is no expression, or takes too long.
    """
    if mode == "fullmatch" and _PLAIN.fullmatch(expression):
        plain = re.compile(expression)
        return tuple("" if plain.fullmatch(name) else None for name in names)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([expression, mode, names]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"takes more than {SECONDS} seconds to match {len(names)} names") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"cannot be matched: Python ended with {error.returncode}") from None
    found = json.loads(done.stdout)
    if isinstance(found, str):
        raise ValueError(f"is not a regular expression: {found}")
    return tuple(found)


def any_matched(expressions: Sequence[str], mode: Mode, names: tuple[str, ...]) -> set[str]:
    """The names that one of the expressions matches. Raises as `matched`."""
    found = set[str]()
    for expression in expressions:
        found.update(name for name, one in zip(names, matched(expression, mode, names), strict=True) if one is not None)
    return found
