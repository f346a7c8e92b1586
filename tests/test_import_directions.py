"""Which package may import which, and that no files import each other in a circle: docs/architecture.md, read off the source."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location(
    "reccocktail_tests_import_graph", Path(__file__).with_name("import_graph.py")
)
assert _spec
assert _spec.loader
import_graph = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(import_graph)

MAY_IMPORT = {
    "api": {"registry", "tasks", "engine", "publishing", "serving", "trainers"},
    "registry": set(),
    "tasks": set(),
    "networks": {"tasks"},
    "engine": {"registry", "tasks", "networks"},
    "publishing": {"registry", "tasks", "engine"},
    "serving": {"registry", "tasks"},
    "trainers": {"registry", "tasks", "networks"},
    "cli": {
        "api",
        "registry",
        "tasks",
        "networks",
        "engine",
        "publishing",
        "serving",
        "server",
        "trainers",
        "migrations",
    },
    "server": {"registry", "tasks", "networks", "engine", "publishing", "serving", "trainers"},
    "migrations": {"registry"},
}
# Light modules without state, which every package may import.
SHARED = {
    "registry.errors",
    "registry.strict_json",
    "registry.strict_yaml",
    "registry.artifacts.bi_tunings",
    "registry.artifacts.bundles",
}
# Alembic runs these files by their path, so they are in no package from which an import could be relative.
RUN_BY_PATH = {ROOT / "migrations" / "env.py", *(ROOT / "migrations" / "versions").glob("[0-9]*.py")}


def test_every_package_is_listed():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == MAY_IMPORT.keys() == set(import_graph.ROOMS)


def test_a_module_imports_only_the_packages_it_may():
    wrong = [
        (name, target)
        for name, path in import_graph.modules().items()
        for target, _ in import_graph.imports(path)
        if not {target, target.rpartition(".")[0]} & SHARED
        and target.split(".")[0] not in MAY_IMPORT[name.split(".")[0]] | {name.split(".")[0]}
    ]
    assert wrong == []


def test_imports_of_our_own_modules_are_relative():
    paths = [path for path in import_graph.modules().values() if path not in RUN_BY_PATH]
    assert [(path, name) for path in paths for name, relative in import_graph.imports(path) if not relative] == []


def test_no_files_import_each_other_in_a_circle():
    edges = import_graph.graph()
    assert len(edges) > 100
    assert import_graph.circle(edges) == []


def test_a_circle_is_found(tmp_path):
    for name, text in {"a": "from . import b\n", "b": "def f():\n    from .deep.c import x\n"}.items():
        (tmp_path / "engine").mkdir(exist_ok=True)
        (tmp_path / "engine" / f"{name}.py").write_text(text)
    (tmp_path / "engine" / "deep").mkdir()
    (tmp_path / "engine" / "deep" / "c.py").write_text("from ..a import y\n")
    assert set(import_graph.circle(import_graph.graph(tmp_path))) == {"engine.a", "engine.b", "engine.deep.c"}


def test_the_reader_of_imports_sees_every_kind(tmp_path):
    module = tmp_path / "engine" / "deep" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import reccocktail.cli\nfrom reccocktail import tasks\nfrom reccocktail.trainers.sft import x\n"
        "def f():\n    from ...registry import y\n    from . import z\n    from .. import w\n    from ... import migrations\n"
    )
    assert list(import_graph.imports(module, tmp_path)) == [
        ("cli", False),
        ("tasks", False),
        ("trainers.sft.x", False),
        ("registry.y", True),
        ("engine.deep.z", True),
        ("engine.w", True),
        ("migrations", True),
    ]
