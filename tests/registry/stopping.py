"""Commands, each again and again in child processes that send themselves a signal before one of their steps.

`python stopping.py PLANS` with a JSON list of plans: `words` of the command, the `signal`'s number, `stride`: how many steps further each next
child comes; with 0 nothing is sent. A step is as in `crowd.py`. A plan ends with the child that goes through. Prints what became of each child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from typing import IO, Any

import reccocktail.engine.declared_versions
import reccocktail.engine.gates
import reccocktail.engine.recipe_book
import reccocktail.registry.declared.applying
import reccocktail.tasks  # noqa: F401  once, and not in every child
from crowd import count_down
from reccocktail.cli import main

LIFETIME = 300  # seconds of the whole and of a child: none outlives its test for long


def stop(words: list[str], number: int, stride: int) -> list[dict[str, Any]]:
    ends: list[dict[str, Any]] = []
    while not ends or ends[-1]["code"] != 0:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                signal.alarm(LIFETIME)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                if stride:
                    count_down((len(ends) + 1) * stride, number)  # the first step is before the command begins
                _end(words)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            ends.append({"code": code, "out": _read(out), "err": _read(err)})
    return ends


def _end(words: list[str]) -> None:
    try:
        main(words)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


if __name__ == "__main__":
    signal.alarm(LIFETIME)
    print(json.dumps([stop(plan["words"], plan["signal"], plan["stride"]) for plan in json.loads(sys.argv[1])]))
