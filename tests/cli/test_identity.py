"""Who did it is in every row and event that a command writes."""

from __future__ import annotations

import getpass
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from reccocktail.trainers.plugin import TrainingJob, TrainingResult
from reccocktail.trainers.runs import in_this_process

TABLES = ("base_models", "domains", "adapters", "aliases", "builds", "publications", "events")


class Book:
    """The names in all rows, read without our code; `after()` gives those of the rows added since it was last asked."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen = self._all()

    def _all(self) -> set[tuple[object, ...]]:
        with closing(sqlite3.connect(self._home / "registry.sqlite")) as database:
            return {
                (table, *row) for table in TABLES for row in database.execute(f"SELECT rowid, created_by FROM {table}")
            }

    def after(self) -> dict[str, set[str]]:
        now = self._all()
        added, self._seen = now - self._seen, now
        names: dict[str, set[str]] = {}
        for table, _, name in added:
            names.setdefault(str(table), set()).add(str(name))
        return names


@pytest.fixture
def book(prepared: Any) -> Book:
    return Book(prepared.home)


def test_without_a_name_it_is_the_login_name(prepared: Any, book: Book) -> None:
    prepared("domain", "add", "toys")
    assert book.after() == {"domains": {getpass.getuser()}, "events": {getpass.getuser()}}


def test_the_name_reaches_bases_domains_adapters_and_aliases(
    prepared: Any, book: Book, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    (other / "generation_config.json").write_text('{"temperature": 0.5}')
    for words, table in (
        (("base", "add", "other", other), "base_models"),
        (("domain", "add", "toys"), "domains"),
        (("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care"), "adapters"),
        (("adapter", "alias", "skin-care@v1", "champion"), "aliases"),
    ):
        prepared("--as", "ann", *words)
        assert book.after() == {table: {"ann"}, "events": {"ann"}}, words
    for words in (
        ("adapter", "alias", "skin-care@v2", "champion"),
        ("adapter", "alias", "skin-care@champion", "--remove"),
        ("adapter", "archive", "skin-care@v2"),
        ("adapter", "archive", "skin-care@v2", "--undo"),
        ("domain", "add", "toys", "--title", "Toys"),
    ):
        prepared("--as", "ann", *words)
        assert book.after() == {"events": {"ann"}}, words
    assert prepared("adapter", "show", "skin-care@v2", "--json").json["created_by"] == "ann"


def test_the_name_reaches_builds_their_workers_and_publications(prepared: Any, book: Book, loopback_hub: Any) -> None:
    asked = ("build", "request", "skin-care", "--recipe", "average", "--wait", "--json")
    (built,) = prepared("--as", "ann", *asked).json
    assert book.after() == {"builds": {"ann"}, "events": {"ann"}}
    prepared("--as", "ann", "publish", built["id"], "--to", "acme/skin-care")
    assert book.after() == {"publications": {"ann"}, "events": {"ann"}}
    (queued,) = prepared("--as", "ann", "build", "request", "skin-care", "--recipe", "spirit-only", "--json").json
    for command in ("cancel", "retry"):
        prepared("--as", "ann", "build", command, queued["id"])
    assert book.after() == {"builds": {"ann"}, "events": {"ann"}}
    prepared("--as", "a worker", "worker", "--once")
    assert book.after() == {"events": {"a worker"}}


def test_the_name_reaches_what_is_trained(
    prepared: Any, book: Book, loras: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(_: object, job: TrainingJob) -> TrainingResult:
        return TrainingResult(Path(shutil.copytree(loras["newer"], job.folder / "adapter")), {})

    monkeypatch.setattr("reccocktail.trainers.child.in_a_child", lambda _: in_this_process)
    monkeypatch.setattr("reccocktail.trainers.sft.trainer.SftTrainer.train", train)
    prepared("--as", "ann", "train", "skin-care")
    assert book.after() == {"adapters": {"ann"}, "events": {"ann"}}


def test_the_name_comes_from_the_environment_and_the_option_wins(prepared: Any, book: Book) -> None:
    prepared("domain", "add", "toys", RECCOCKTAIL_AS="ben")
    assert book.after() == {"domains": {"ben"}, "events": {"ben"}}
    prepared("--as", "Ann Ø. (nightly)", "domain", "add", "games", RECCOCKTAIL_AS="ben")
    assert book.after() == {"domains": {"Ann Ø. (nightly)"}, "events": {"Ann Ø. (nightly)"}}
    prepared("domain", "add", "books", RECCOCKTAIL_AS="")
    assert book.after()["domains"] == {getpass.getuser()}


@pytest.mark.parametrize("name", ["", "  ", "ann\n", "a\x1b[31m", "\udcff", "x" * 101])
def test_a_name_that_nobody_could_read_is_refused(prepared: Any, book: Book, name: str) -> None:
    answer = prepared("--as", name, "domain", "add", "toys", "--json", code=2)
    assert answer.json["error"]["code"] == "usage"
    assert "RECCOCKTAIL_AS" in answer.json["error"]["hint"]
    assert book.after() == {}


def test_the_demo_is_in_that_name_too(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_base(trip: Any, *_: Any) -> None:
        trip._registry.domains.add("toys")
        raise KeyboardInterrupt

    monkeypatch.setattr("reccocktail.cli.demo._Trip.fetch_base", fetch_base)
    bare("--as", "ann", "demo", code=130)
    with closing(sqlite3.connect(bare.home / "demo" / "registry.sqlite")) as database:
        assert database.execute("SELECT created_by FROM domains WHERE name = 'toys'").fetchall() == [("ann",)]


OPENING = r"Registry\.(open|create)\b"


def test_registries_are_opened_in_one_place_alone() -> None:
    root = Path(__file__).parents[2]
    rooms = ("api", "cli", "engine", "publishing", "serving", "tasks", "trainers")
    sources = [path for room in rooms for path in (root / room).rglob("*.py")]
    opening = {path.relative_to(root).as_posix() for path in sources if re.search(OPENING, path.read_text())}
    # beside the command: a task on another machine, which is told in whose name, and a serving engine, which only reads
    assert opening == {
        "api/__init__.py",
        "cli/app.py",
        "engine/building/ray_executor.py",
        "serving/vllm_plugin.py",
    }
    assert "Registry.open(settings, actor=job.actor)" in (root / "engine" / "building" / "ray_executor.py").read_text()
