"""Records commands on a pseudo-terminal and writes what they showed as an SVG picture.

    .venv/bin/python docs/images/record.py docs/images/status.svg 'reccocktail status' 'reccocktail adapter list'

The picture in the README was made so, from the registry that `make demo` leaves in .demo.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 80


def shown(command: str) -> str:
    """What the command leaves on a terminal of 80 columns, colours included. Raises CalledProcessError if it fails."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "24", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        shlex.split(command), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the last one closed its end
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    if code := process.wait():
        raise subprocess.CalledProcessError(code, command)
    return b"".join(parts).decode().replace("\r\n", "\n")


def main(target: str, *commands: str) -> None:
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    for command in commands:
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(shown(command)))
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="reccocktail"), flags=re.DOTALL)
    Path(target).write_text(picture, encoding="utf-8")  # without fonts from elsewhere: nothing is fetched


if __name__ == "__main__":
    main(*sys.argv[1:])
