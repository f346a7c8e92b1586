"""Help that breaks its lines between words alone: a name with a hyphen, such as `item-user-mean`, is one word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

WHOLE = "\N{NON-BREAKING HYPHEN}"  # while lines are broken


class WholeWords(click.HelpFormatter):
    def write(self, string: str) -> None:
        super().write(string.replace(WHOLE, "-"))

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", WHOLE))

    def write_dl(self, rows: Sequence[tuple[str, str]], *given: Any, **named: Any) -> None:
        super().write_dl([(name, text.replace("-", WHOLE)) for name, text in rows], *given, **named)
