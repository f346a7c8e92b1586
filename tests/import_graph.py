"""The import structure, read off the source: who imports whom, by file and by package. `make imports` prints it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = (
    "api",
    "registry",
    "tasks",
    "networks",
    "engine",
    "publishing",
    "serving",
    "server",
    "trainers",
    "cli",
    "migrations",
)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the packages, by its dotted name below `reccocktail`."""
    paths = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    return {".".join(_parts(path, root)): path for path in paths}


def _parts(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path, root: Path = ROOT) -> Iterator[tuple[str, bool]]:
    """(dotted name below `reccocktail`, whether it is relative) of all that a module imports, at its top or inside functions."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names, relative = [alias.name for alias in node.names], False
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names, relative = [f"{node.module}.{alias.name}" for alias in node.names], False
        elif isinstance(node, ast.ImportFrom):
            above = ("reccocktail", *package)[: len(package) + 2 - node.level]
            stem = ".".join((*above, *filter(None, [node.module])))
            names, relative = [f"{stem}.{alias.name}" for alias in node.names], True
        else:
            continue
        for name in names:
            room, _, rest = name.partition(".")
            if room == "reccocktail":
                yield rest, relative


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """For each module those that it imports.

    An `__init__` that imports its names only when they are used (`_HOMES`) is left out: it imports nothing by itself.
    """
    known = modules(root)
    lazy = {
        name
        for name, path in known.items()
        if path.name == "__init__.py" and "_HOMES" in path.read_text(encoding="utf-8")
    }
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = {_module(target, known) for target, _ in imports(path, root)} if name not in lazy else set()
        found[name] = {target for target in targets if target is not None and target != name}
    return found


def _module(target: str, known: dict[str, Path]) -> str | None:
    """The module that a dotted name leads to: itself, or the one that it is a name of."""
    return target if target in known else next((stem for stem in [target.rpartition(".")[0]] if stem in known), None)


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of imports, if there is any."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def levels(edges: dict[str, set[str]]) -> list[list[str]]:
    """The nodes in layers: each imports only from layers before its own."""
    sorter = TopologicalSorter(edges)
    sorter.prepare()
    layers = []
    while sorter.is_active():
        layers.append(sorted(sorter.get_ready()))
        sorter.done(*layers[-1])
    return layers


def folders(edges: dict[str, set[str]], inside: str) -> dict[str, set[str]]:
    """The same by the folders and files of one package."""

    def place(name: str) -> str:
        return name.split(".")[1] if "." in name else "__init__"

    own = [name for name in edges if name.split(".")[0] == inside]
    found: dict[str, set[str]] = {place(name): set() for name in own}
    for name in own:
        found[place(name)] |= {place(to) for to in edges[name] if to.split(".")[0] == inside} - {place(name)}
    return found


def main() -> int:
    edges = graph()
    for room in ROOMS:
        inner = folders(edges, room)
        if found := circle(inner):
            print(f"{room}: folders import each other: {' -> '.join(found)}")
            continue
        print(f"{room}: {sum(map(len, inner.values()))} arrows on {len(levels(inner))} levels")
        for number, layer in enumerate(levels(inner), 1):
            print(f"  {number}  {'  '.join(layer)}")
    found = circle(edges)
    print(f"circle of files: {' -> '.join(found)}" if found else f"{len(edges)} files, no circle")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
