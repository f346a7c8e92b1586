"""What pages make of hints that are written for the command."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from reccocktail.server.pages import hints
from reccocktail.server.pages.hints import COMMAND, OPTION, on_page

ROOT = Path(hints.__file__).parents[2]


def _hints() -> Iterator[str]:
    """Every hint in the source of what pages do; X stands for what is put in."""
    for folder in ("engine", "publishing", "registry", "server"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            for each in (
                k.value for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords if k.arg == "hint"
            ):
                if isinstance(each, ast.Constant | ast.JoinedStr):
                    parts = each.values if isinstance(each, ast.JoinedStr) else [each]
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)


def test_no_hint_of_a_page_names_an_option_that_only_the_command_has():
    found = set(_hints())
    assert len(found) > 200
    assert sum(bool(OPTION.search(hint)) for hint in found) > 30
    assert [hint for hint in found if OPTION.search(COMMAND.sub("", on_page(hint) or ""))] == []


@pytest.mark.parametrize(
    ("hint", "page"),
    [
        (None, None),
        ("choose another name", "choose another name"),
        ('--override "why"', "give a reason for passing the gate by"),
        (
            'somebody else: reccocktail build approve 66; reccocktail evaluate 66 --domain a; --override "why" lets it through all the'
            " same, and the reason is recorded",
            "somebody else approves it on this page, logged in in their own name; where the registry is, run reccocktail evaluate 66"
            " --domain a; a reason for passing the gate by lets it through all the same, and is recorded",
        ),
        ("use --force to archive it", "it can be archived all the same"),
        ("try again; --soup does it", "try again"),
        ("--soup", None),
        ("the card has none; set one with --license ID", "the card has none; set one under “License”"),
        ("write metric=NDCG@3,against=champion,margin=0.02,confidence=0.95", None),
        ("reccocktail evaluate a@v1 --domain a", "where the registry is, run reccocktail evaluate a@v1 --domain a"),
        ("reccocktail build request toys --wait", "request a build on the page of toys"),
    ],
)
def test_a_hint_names_what_the_page_offers(hint, page):
    assert on_page(hint) == page
