"""Which room may import which: DESIGN §2's column, read off the source of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "registry": set(),
    "tasks": set(),
    "engine": {"registry", "tasks"},
    "trainers": {"registry", "tasks"},
    "cli": {"registry", "tasks", "engine", "trainers", "migrations"},
    "migrations": {"registry"},
}
# Alembic runs these files by their path, so they are in no package from which an import could be relative.
RUN_BY_PATH = {ROOT / "migrations" / "env.py", *(ROOT / "migrations" / "versions").glob("[0-9]*.py")}
MODULES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Every (room, whether it was named relatively) that a module imports, at its top or inside functions."""
    inside = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names, relative = [alias.name for alias in node.names], False
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names, relative = [f"{node.module}.{alias.name}" for alias in node.names], False
        elif isinstance(node, ast.ImportFrom):
            above = ("reccocktail", *inside)[: len(inside) + 2 - node.level]
            package = ".".join((*above, *filter(None, [node.module])))
            names, relative = [f"{package}.{alias.name}" for alias in node.names], True
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "reccocktail":
                yield parts[1], relative


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_room_of_the_house_is_held():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= MAY_IMPORT.keys()
    assert MODULES


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_a_module_imports_only_the_rooms_it_may(path):
    room = path.relative_to(ROOT).parts[0]
    assert {name for name, _ in imported(path)} <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("path", [path for path in MODULES if path not in RUN_BY_PATH], ids=label)
def test_imports_of_our_own_modules_are_relative(path):
    assert [name for name, relative in imported(path) if not relative] == []


def test_the_reader_of_imports_sees_every_kind(tmp_path, monkeypatch):
    module = tmp_path / "engine" / "deep" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import reccocktail.cli\nfrom reccocktail import tasks\nfrom reccocktail.trainers.sft import x\n"
        "def f():\n    from ...registry import y\n    from . import z\n    from .. import w\n    from ... import migrations\n"
    )
    monkeypatch.setitem(imported.__globals__, "ROOT", tmp_path)
    assert list(imported(module)) == [
        ("cli", False),
        ("tasks", False),
        ("trainers", False),
        ("registry", True),
        ("engine", True),
        ("engine", True),
        ("migrations", True),
    ]
