"""The wheel, installed where the checkout is on no path, is the whole of RecCocktail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from reccocktail.tasks import generate, write_domain

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
TYPED = ("api", "registry", "tasks", "networks", "engine", "publishing", "serving", "trainers", "cli")
Run = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what the packaging names, so that nothing else can be needed and the checkout stays clean."""
    folder = tmp_path_factory.mktemp("source")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    for room in project["tool"]["setuptools"]["package-dir"].values():
        shutil.copytree(CHECKOUT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]):
        shutil.copy(CHECKOUT / name, folder / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; dependencies come through a .pth, which runs no other .pth beside them."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(command, capture_output=True, check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # only now: pip must not take the checkout's own installation for one that is to be replaced
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """(program, words): runs a program of the new environment in an empty folder, with its home there."""
    hidden = ("RECCOCKTAIL_", "PYTHON", "XDG_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    environment |= {"RECCOCKTAIL_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}

    def run_one(program: str, *words: object) -> str:
        command = [installed / "bin" / program, *map(str, words)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run_one


def test_the_rooms_come_from_the_new_environment(run: Run, installed: Path) -> None:
    imports = "; ".join(
        f"import reccocktail.{room}; print(reccocktail.{room}.__file__)" for room in (*TYPED, "migrations")
    )
    for line in run("python", "-c", imports).splitlines():
        assert Path(line).is_relative_to(installed)


def test_what_is_not_python_is_shipped_too(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in TYPED:
        assert f"reccocktail/{room}/py.typed" in names
    assert {
        "reccocktail/engine/merging/card.jinja",
        "reccocktail/tasks/template_pick-one.yaml",
        "reccocktail/migrations/env.py",
        "reccocktail/migrations/script.py.mako",
    } <= names
    migrations = {path.name for path in (CHECKOUT / "migrations" / "versions").glob("*.py")}
    assert {f"reccocktail/migrations/versions/{name}" for name in migrations} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks", "reccocktail/__init__"))]
    every = {f"reccocktail/{path.relative_to(CHECKOUT)}" for room in TYPED
             for path in (CHECKOUT / room).rglob("*") if path.is_file() and path.suffix != ".pyc"}  # fmt: skip
    assert every <= names


def test_the_commands_work_outside_the_checkout(run: Run, tmp_path: Path) -> None:
    write_domain(generate("kitchen", users=5), tmp_path / "data")
    run("reccocktail", "init")
    assert json.loads(run("reccocktail", "db", "check", "--json"))["drift"] is False
    assert "default" in run("reccocktail", "recipe", "list")
    assert [t["error"] for t in json.loads(run("reccocktail", "trainers", "list", "--json"))] == [None] * 3
    added = json.loads(run("reccocktail", "domain", "add", "kitchen", "--data", tmp_path / "data", "--json"))
    assert added["found"]["users"] == 5
    assert "pick-one" in run(
        "python", "-c", "from reccocktail.tasks import load_template as t; print(t('pick-one').name)"
    )
    assert run("reccocktail", "--version").strip().endswith(json.loads(run("python", "-c", VERSION)))


VERSION = "import json; from importlib.metadata import version; print(json.dumps(version('reccocktail')))"
