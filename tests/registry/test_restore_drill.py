"""The drill of `docs/operations.md`: back up while others work, lose what can be lost, get it back by the document's blocks."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from reccocktail.cli import commands
from reccocktail.cli.main import reccocktail
from reccocktail.registry import Registry, Settings
from reccocktail.registry.catalog.registration import Labels
from reccocktail.registry.store import create_store
from sqlalchemy import make_url

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"

NOBODY = 65_534
SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`: every drill on both databases
ON_SQLITE, ON_POSTGRESQL = (
    pytest.mark.parametrize("dialect", ["sqlite", "postgresql"] if SOAK else [name])
    for name in ("sqlite", "postgresql")
)

Member: Any = runpy.run_path(str(Path(__file__).with_name("crowd.py")))["Member"]


def blocks() -> dict[str, str]:
    """The document's named blocks: what stands behind the language is the name."""
    found = re.findall(r"^```(?:sh|sql) ([a-z-]+)\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert len(dict(found)) == len(found)
    return dict(found)


@dataclass(frozen=True)
class Sight:
    """What the registry tells about itself."""

    adapters: dict[str, str]
    """Reference to digest."""
    aliases: dict[str, tuple[str, ...]]
    bases: dict[str, str]
    builds: dict[str, str | None]
    events: int


class Drill:
    """A registry that can be lost, and what the document says about it, run as it stands there."""

    def __init__(
        self, settings: Settings, folder: Path, server: Any, make_adapter: Callable[..., Path], warm: Any
    ) -> None:
        self.settings, self._folder, self._server, self._make = settings, folder, server, make_adapter
        self._bin = folder / "bin"
        self._bin.mkdir(parents=True, exist_ok=True)
        self._variables = warm.command(self._bin)
        self.store = settings.home / "store"
        self.dialect = "sqlite" if settings.database_url.startswith("sqlite") else "postgresql"
        self._seeds = iter(range(1, 1000))

    def run(self, name: str, *, code: int = 0, **variables: object) -> str:
        """Runs a block of the document and expects the exit code; the answer is what it said on stdout and stderr."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RECCOCKTAIL_")}
        places = {"RECCOCKTAIL_HOME": self.settings.home, "HOME": self._folder, "BASE": "tiny", "DOMAIN": "beauty"}
        path = [str(self._bin)]
        if self.dialect == "postgresql":
            places["RECCOCKTAIL_DATABASE_URL"] = self.settings.database_url
            places["MAINTENANCE_URL"] = self._server.url()
            places["DATABASE"] = make_url(self.settings.database_url).database or ""
            path.append(str(self._server.bin))
        given = {key: str(value) for key, value in (places | variables).items()}
        environment = kept | given | self._variables | {"PATH": os.pathsep.join([*path, os.environ["PATH"]])}
        text = blocks().get(name, name)
        done = subprocess.run(
            ["bash", "-euc", text], env=environment, cwd=self._folder, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, f"{text}\n{done.stdout}"
        return done.stdout

    def adapter(self) -> Path:
        seed = next(self._seeds)
        return self._make(self._folder / "adapters" / str(seed), seed=seed)

    def add(self, *sources: Path, to: str = "beauty") -> list[str]:
        """Registers adapters through the library; their references."""
        place: dict[str, Any] = {"role": "spirit"} if to == "spirit" else {"role": "ingredient", "domain": to}
        with Registry.open(self.settings) as registry:
            base = registry.bases.get("tiny")
            return [registry.adapters.add(source, base=base, **place).ref for source in sources]

    def sight(self) -> Sight:
        with Registry.open(self.settings) as registry:
            adapters = registry.adapters.list(limit=1000)
            return Sight(
                adapters={adapter.ref: adapter.digest for adapter in adapters},
                aliases={adapter.ref: adapter.aliases for adapter in adapters if adapter.aliases},
                bases={base.name: base.digest for base in registry.bases.list()},
                builds={build.id: build.digest for build in registry.builds.list()},
                events=len(registry.events.list(limit=10_000)),
            )

    def copy(self, name: str, backup: Path) -> None:
        """Runs a block that copies, twice: the first may have been interrupted."""
        for _ in range(2):
            self.run(name, BACKUP=backup)

    def back_up(self, name: str) -> Path:
        backup = self._folder / name
        self.copy(f"backup-{self.dialect}", backup)
        self.copy("backup-store", backup)
        return backup

    def lose_database(self) -> None:
        if self.dialect == "sqlite":
            (self.settings.home / "registry.sqlite").unlink()
        else:
            self._server.drop(make_url(self.settings.database_url).database)

    def lose_store(self) -> None:
        shutil.rmtree(self.store)

    def verify(self) -> dict[str, str]:
        """What is damaged or missing, as the command names it: reason by name or path."""
        with_code = 'reccocktail store verify --json || test "$?" = 1'
        answer = self.run(with_code)
        document = json.loads(answer[answer.index("{") :])
        return {damage["path"]: damage["reason"] for damage in document["damage"]}


@pytest.fixture
def drill(
    settings: Settings,
    dialect: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_base: Callable[..., Path],
    make_adapter: Callable[..., Path],
    warm: Any,
) -> Drill:
    """A base, a spirit, two ingredients, a champion, and a build that has succeeded."""
    server = request.getfixturevalue("postgres") if dialect == "postgresql" else None
    drill = Drill(settings, tmp_path, server, make_adapter, warm)
    result = tmp_path / "result"
    result.mkdir()
    (result / "model.safetensors").write_bytes(b"merged")
    with Registry.create(settings) as registry:
        registry.bases.add("tiny", make_base(tmp_path / "tiny"), source=str(tmp_path / "tiny"))
        registry.domains.add("beauty", recipe="average")
        drill.add(drill.adapter(), to="spirit")
        drill.add(drill.adapter(), drill.adapter())
        registry.adapters.alias("beauty@v1", "champion")
        build = registry.builds.request("beauty", "tiny", "key", {}, {}).build
        registry.builds.claim("worker")
        registry.builds.succeed(build.id, "worker", registry.store.add_folder(result).digest, None, None)
    return drill


def assert_next_version_follows(drill: Drill) -> None:
    """Whatever was lost, the next one takes the number after the newest that is known."""
    numbers = [int(ref.partition("@v")[2]) for ref in drill.sight().adapters if ref.startswith("beauty@")]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert drill.add(drill.adapter()) == [f"beauty@v{len(numbers) + 1}"]


@pytest.mark.slow
def test_a_lost_database_comes_back_and_what_came_later_is_registered_again_from_the_store(drill: Drill) -> None:
    before = drill.sight()
    backup = drill.back_up("backup")
    later = drill.add(*(drill.adapter() for _ in range(3)))
    with Registry.open(drill.settings) as registry:
        registry.adapters.alias("beauty@v4", "champion")
    newest = drill.sight()

    drill.lose_database()
    drill.run(f"restore-{drill.dialect}", BACKUP=backup)
    assert drill.sight() == before  # known to be lost: the later rows, and that the champion moved

    listed = drill.run("list-orphans")
    orphans = [tree["digest"] for tree in json.loads(listed[listed.index("{") :])["trees"]]
    assert set(orphans) == {newest.adapters[ref] for ref in later}
    folders = sorted(
        (drill.store / "trees" / digest.removeprefix("sha256:") for digest in orphans),
        key=lambda folder: folder.stat().st_mtime_ns,
    )
    for folder in folders:
        drill.run("adopt-orphan", HEX=folder.name)
    assert drill.sight().adapters == newest.adapters
    assert drill.verify() == {}
    assert_next_version_follows(drill)


@pytest.mark.slow
@ON_SQLITE
def test_a_lost_store_comes_back_and_what_came_later_is_stored_again_from_its_source(drill: Drill) -> None:
    backup = drill.back_up("backup")
    source = drill.adapter()
    (later,) = drill.add(source)
    newest = drill.sight()

    drill.lose_store()
    drill.copy("restore-store", backup)
    assert drill.verify() == {f"adapter {later}": "is not in the store"}
    assert f"already there: {later}" in drill.run("repair-adapter", SOURCE=source)
    assert drill.verify() == {}
    assert drill.sight() == newest
    assert_next_version_follows(drill)


@pytest.mark.slow
@ON_SQLITE
def test_a_store_without_a_backup_is_filled_again_from_the_sources(drill: Drill, tmp_path: Path) -> None:
    sources = [tmp_path / "adapters" / str(seed) for seed in (2, 3)]
    drill.run("reccocktail build request beauty --wait")
    newest = drill.sight()

    drill.lose_store()
    drill.run("reccocktail init")
    old, merged = sorted(newest.builds)
    builds = {f"build {old}", f"build {merged}"}
    assert set(drill.verify()) == {"base tiny", *builds, *(f"adapter {ref}" for ref in newest.adapters)}
    drill.run("repair-base", SOURCE=tmp_path / "tiny")
    for source in sources:
        drill.run("repair-adapter", SOURCE=source)
    drill.run(f"reccocktail adapter add {tmp_path / 'adapters' / '1'} --base tiny --spirit")
    assert set(drill.verify()) == builds

    drill.run("repair-build")  # the same inputs give the same bytes: the build that is made anew repairs the one before
    assert set(drill.verify()) == {f"build {old}"}  # the fixture's, of inputs that no domain has
    restored = drill.sight()
    assert restored.adapters == newest.adapters
    assert restored.aliases == newest.aliases
    assert sorted(restored.builds.values()) == sorted([*newest.builds.values(), newest.builds[merged]])
    assert_next_version_follows(drill)


@pytest.mark.slow
@ON_SQLITE
def test_damaged_bytes_are_named_and_repaired_from_the_source(drill: Drill, tmp_path: Path) -> None:
    tree = drill.store / "trees" / drill.sight().adapters["beauty@v1"].removeprefix("sha256:")
    weights = tree / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert any(path == weights.name for path in drill.verify())
    assert "already there: beauty@v1" in drill.run("repair-adapter", SOURCE=tmp_path / "adapters" / "2")
    assert drill.verify() == {}


@pytest.mark.slow
@ON_POSTGRESQL
def test_a_backup_that_was_taken_while_others_registered_is_sound_when_both_are_lost(drill: Drill) -> None:
    member = Member(drill.settings, "persist", places=[("tiny", "beauty", str(drill.adapter())) for _ in range(12)])
    before = drill.sight()
    member.go()
    member.hears("added")
    backup = drill.back_up("backup")
    assert member.done()["refused"] == []
    newest = drill.sight()

    drill.lose_database()
    drill.lose_store()
    drill.run(f"restore-{drill.dialect}", BACKUP=backup)
    drill.copy("restore-store", backup)
    drill.run("after-restore")
    assert drill.verify() == {}
    restored = drill.sight()
    assert before.adapters.items() < restored.adapters.items() <= newest.adapters.items()
    assert restored.aliases == before.aliases
    assert restored.builds == before.builds
    assert_next_version_follows(drill)


@pytest.mark.slow
@ON_SQLITE
def test_a_newer_store_under_an_older_database_only_has_bytes_too_many(drill: Drill) -> None:
    older = drill.back_up("older")
    before = drill.sight()
    drill.add(drill.adapter(), drill.adapter())
    newer = drill.back_up("newer")

    drill.lose_database()
    drill.lose_store()
    drill.run(f"restore-{drill.dialect}", BACKUP=older)
    drill.copy("restore-store", newer)
    assert drill.verify() == {}
    drill.run("after-restore")
    assert drill.sight() == before
    with Registry.open(drill.settings) as registry:
        assert registry.store.digests() == registry.digests()
    assert_next_version_follows(drill)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that belongs to somebody who is not root, where every user can get."""
    with tempfile.TemporaryDirectory(prefix="reccocktail-drill-") as name:
        yield Path(name)


def test_the_store_is_copied_there_and_back_by_a_user_who_is_not_root_again_and_again(
    shared: Path, make_adapter: Callable[..., Path]
) -> None:
    home, backup, path = shared / "home", shared / "backup", os.environ["PATH"]
    store = create_store(home / "store")
    digest = store.add_folder(make_adapter(shared / "adapter")).digest
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        for place in (shared, *shared.rglob("*")):
            os.chown(place, NOBODY, NOBODY)

    def run(name: str) -> None:
        text = blocks()[name].replace("reccocktail init\n", "")
        variables = {"PATH": path, "RECCOCKTAIL_HOME": str(home), "BACKUP": str(backup)}
        done = subprocess.run(
            ["bash", "-euc", text], env=variables, cwd=shared, check=False, capture_output=True, text=True, **user
        )
        assert done.returncode == 0, done.stderr

    for _ in range(2):
        run("backup-store")
    tree = next((backup / "store" / "trees").iterdir())
    assert all(path.stat().st_nlink == 2 for path in tree.iterdir()), "hard links are kept"
    (home / "store").rename(home / "store.damaged")
    for _ in range(2):
        run("restore-store")
    assert not [*(home / "store" / "trees").glob("*/trees")], "nothing was copied into itself"
    restored = create_store(home / "store")
    assert (restored.digests(), restored.verify()) == ({digest}, [])
    assert all(path.stat().st_nlink == 2 for path in restored.folder(digest).iterdir())


@pytest.fixture
def daily_url(postgres: Any, settings: Settings) -> Iterator[str]:
    """The URL of the role that the document makes for people and workers."""
    with psycopg.connect(settings.database_url, autocommit=True) as owner:
        owner.execute(blocks()["roles"])
        yield make_url(settings.database_url).set(username="reccocktail_user").render_as_string(hide_password=False)
        owner.execute("DROP OWNED BY reccocktail_user CASCADE")
        owner.execute("DROP ROLE reccocktail_user")


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_role_without_rights_on_tables_can_do_all_daily_work(
    drill: Drill, daily_url: str, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    daily = Settings.load(home=drill.settings.home, database_url=daily_url, cwd=tmp_path, environ={})
    with Registry.open(daily) as registry:
        base = registry.bases.get("tiny")
        folder = make_adapter(tmp_path / "daily", seed=999)
        registry.domains.add("toys", title="Toys")
        registry.adapters.add(
            folder, labels=Labels(tags=["t"], metrics={"HR@1": 0.5}), base=base, role="ingredient", domain="toys"
        )
        registry.adapters.alias("toys@v1", "champion")
        registry.adapters.remove_alias("toys@champion")
        registry.adapters.archive("toys@v1")
        registry.builds.request("beauty", "tiny", "another", {}, {})
        registry.builds.claim("worker")
        registry.store.gc(registry.digests())
    with psycopg.connect(daily_url, autocommit=True) as connection:
        for change in (
            "ALTER TABLE adapters DISABLE TRIGGER ALL",
            "DROP TABLE events",
            "CREATE TABLE mine (id int)",
            "DELETE FROM events",
            "UPDATE alembic_version SET version_num = '0001'",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(change)


def mentioned() -> list[str]:
    """Every `reccocktail …` in the document: in blocks, line by line, and in the text."""
    text = DOCUMENT.read_text()
    fenced = re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines() if line.startswith("reccocktail ")]
    for block in fenced:
        text = text.replace(block, "")
    return sorted({*lines, *(" ".join(span.split()) for span in re.findall(r"`(reccocktail\s[^`]+)`", text))})


@pytest.mark.parametrize("line", mentioned())
def test_a_command_in_the_document_exists(line: str) -> None:
    for each in commands.ALL:
        reccocktail.add_command(each)
    command: click.Command = reccocktail
    words = iter(shlex.split(line)[1:])
    for word in words:
        if word.startswith("--"):
            options = {option: param for param in command.params for option in param.opts}
            assert word in options, f"{line}: {command.name} has no {word}"
            option = options[word]
            if isinstance(option, click.Option) and not option.is_flag:
                next(words)
        elif isinstance(command, click.Group):
            assert word in command.commands, f"{line}: {command.name} has no {word}"
            command = command.commands[word]
    assert not isinstance(command, click.Group), f"{line}: names no command"
