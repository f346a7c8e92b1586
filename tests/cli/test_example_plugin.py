"""The example of docs/trainers.md: installed from its folder, its domain registered, and an adapter trained for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "reccocktail-bookshop"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example is installed; built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("bookshop")
    source = shutil.copytree(EXAMPLE, folder / "source")
    words = ["install", "--no-deps", "--no-build-isolation", "--no-index", "--target", folder / "site", source]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture
def run(prepared: Any, site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, which finds the example, as do the processes that it starts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.syspath_prepend(site)
    return prepared


@pytest.mark.usefixtures("warm_children")
def test_the_three_commands_lead_from_a_package_to_an_adapter(run: Any) -> None:
    (synced,) = [entry for entry in run("domain", "sync", "--json").json if entry["plugin"] == "bookshop"]
    assert (synced["domain"], synced["state"], synced["error"]) == ("second-hand-books", "added", None)
    assert run("domain", "sync", "bookshop", "--json").json[0]["state"] == "unchanged"
    options = ("epochs=1", "examples=4", "rank=2")
    adapter = run("train", "second-hand-books", *(w for o in options for w in ("-o", o)), "--json").json
    assert (adapter["ref"], adapter["rank"]) == ("second-hand-books@v1", 2)
    shown = run("adapter", "show", "second-hand-books", "--json").json["context"]
    assert (shown["trainer"], shown["trainer_package"], shown["trainer_version"]) == (
        "bookshop",
        "reccocktail-bookshop",
        "1.0",
    )
    assert shown["data"] == [{"domain": "second-hand-books", "digest": shown["tasks"][0]["data"]}]
    assert "second-hand-books@v1" in run("adapter", "list").out


def test_its_domain_can_be_taken_alone_and_is_shown(run: Any) -> None:
    shown = run("trainers", "show", "bookshop", "--json").json
    assert [entry["name"] for entry in shown["domains"]] == ["second-hand-books"]
    added = run("domain", "add", "second-hand-books", "--from-plugin", "bookshop", "--json").json
    assert (added["title"], added["trainer"], added["recipe"]) == ("Second-hand books", "bookshop", "average")
    assert added["found"]["users"] == 60


def test_its_own_tests_pass(site: Path, tmp_path: Path, warm: Any) -> None:
    test = shutil.copy(EXAMPLE / "test_bookshop.py", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = warm.run(command, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
