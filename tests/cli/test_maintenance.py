"""Status of all domains, collection of what nothing refers to, schema versions, and a read-only registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reccocktail.cli.app import App
from reccocktail.registry.digests import RACE_SECONDS
from reccocktail.registry.errors import StoreError
from sqlalchemy import Engine, event

from .conftest import asked

Checks = dict[str, dict[str, Any]]


def _age(store: Path) -> None:
    for path in store.rglob("*"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * 86_400))


# status


@pytest.fixture
def statements() -> Iterator[list[str]]:
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield asked
    event.remove(Engine, "before_cursor_execute", note)


def test_status_asks_the_database_no_more_for_many_domains(built: Any, statements: list[str]) -> None:
    built("status", "--json")
    few = len(statements)
    for number in range(20):
        built("domain", "add", f"shop-{number}", "--recipe", "spirit-only")
    statements.clear()
    document = built("status", "--json").json
    assert len(document) == 22
    assert len(statements) == few <= 35
    states = {entry["domain"]: entry["state"] for entry in document}
    assert (states["skin-care"], states["kitchen"], states["shop-7"]) == ("fresh", "cold", "unbuilt")


def test_one_domain_stands_alone_as_it_does_among_all(built: Any, loopback_hub: Any) -> None:
    built("publish", "skin-care", "--to", "acme/skin-care")
    every = {entry["domain"]: entry for entry in built("status", "--json").json}
    for name in ("skin-care", "kitchen"):
        assert built("status", name, "--json").json == [every[name]]
    assert (every["skin-care"]["spirit"], every["skin-care"]["ingredient"]) == ("spirit@v1", "skin-care@v1")
    assert every["skin-care"]["published"].startswith("acme/skin-care@")
    assert "there is no domain 'absent'" in built("status", "absent", code=1).err


def test_status_needs_no_torch(built: Any) -> None:
    time.sleep(RACE_SECONDS)  # data that was written just now is read again
    built("status")
    command = [sys.executable, "-X", "importtime", Path(sys.executable).with_name("reccocktail"), "status"]
    done = subprocess.run(
        command, env=built.environment(), cwd=built.folder, capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "reccocktail.engine.building.planning" in imported, "the trace was read"
    assert not {name.partition(".")[0] for name in imported} & {"torch", "transformers", "peft", "numpy", "matplotlib"}


def test_what_is_not_on_this_machine_has_no_path_and_is_still_fresh(
    built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reccocktail.registry.store.local.LocalStore.has", lambda *_: True)
    monkeypatch.setattr("reccocktail.registry.store.local.LocalStore.local", lambda *_: None)
    assert built("status", "skin-care", "--json").json[0]["state"] == "fresh"
    assert built("build", "list", "--json").json[0]["path"] is None
    assert built("adapter", "show", "spirit", "--json").json["path"] is None
    assert built("base", "show", "tiny", "--json").json["path"] is None


# what is collected


def test_gc_lists_what_it_removes(prepared: Any, tiny_base: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(tiny_base, tmp_path / "changed"))
    (changed / "generation_config.json").write_text('{"temperature": 0.25}')
    prepared("base", "add", "tiny", changed, code=1)  # stored by the time it is found to be another
    (prepared.home / "store" / "staging" / f"build-{'0' * 32}").mkdir()
    assert "would remove 0 folders, 0 files, 0 unfinished" in prepared("store", "gc", "--dry-run").err, "too young"

    words = ("store", "gc", "--grace", "0", "--json")
    planned = prepared(*words, "--dry-run").json
    (tree,) = planned["trees"]
    assert tree["digest"].startswith("sha256:")
    assert tree["bytes"] == sum(path.stat().st_size for path in changed.iterdir())
    assert len(planned["blobs"]) == 2, "the changed file, and the manifest"
    assert planned["staging"] == [f"build-{'0' * 32}"]
    text = prepared("store", "gc", "--grace", "0", "--dry-run")
    assert tree["digest"] in text.out
    assert f"build-{'0' * 32}" in text.out
    assert "would remove 1 folder, 2 files, 1 unfinished" in text.err

    done = prepared(*words).json
    assert done == planned | {"dry_run": False}
    assert "removed 0 folders" in prepared("store", "gc", "--grace", "0").err
    assert prepared("store", "verify", "--json").json["ok"]


def test_gc_spares_what_is_younger_than_its_grace(prepared: Any) -> None:
    orphan = prepared.home / "store" / "staging" / f"add-{'1' * 32}"
    orphan.mkdir()
    _age(prepared.home / "store" / "staging")
    assert prepared("store", "gc", "--dry-run", "--grace", "72", "--json").json["staging"] == []
    assert prepared("store", "gc", "--dry-run", "--json").json["staging"] == [orphan.name]


@pytest.mark.parametrize("hours", ["-1", "much", "nan", "inf"])
def test_a_grace_that_is_no_time_is_refused(prepared: Any, hours: str) -> None:
    assert "error:" in prepared("store", "gc", "--dry-run", "--grace", hours, code=2).err


# the schema


def test_the_database_goes_back_and_forth(prepared: Any) -> None:
    newest = prepared("db", "current", "--json").json["revision"]
    assert prepared("db", "downgrade", "0001", "--allow-data-loss", "--json").json == {"revision": "0001"}
    assert "db upgrade" in prepared("status", code=1).err
    prepared("db", "upgrade")
    assert prepared("db", "check", "--json").json == {"revision": newest, "drift": False}
    assert [entry["ref"] for entry in prepared("adapter", "list", "--json").json] == ["skin-care@v1", "spirit@v1"]
    assert "there is no revision '9999'" in prepared("db", "downgrade", "9999", code=2).err


def test_a_loss_of_data_has_to_be_allowed(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def downgrade(url: str, revision: str, *, allow_loss: bool = False) -> str:
        told.append(allow_loss)
        return revision

    monkeypatch.setattr("reccocktail.registry.database.migrate.downgrade", downgrade)
    prepared("db", "downgrade", "0001")
    prepared("db", "downgrade", "0001", "--allow-data-loss")
    assert told == [False, True]


# read-only


def _checks(shell: Any, code: int = 0) -> Checks:
    return {entry["check"]: entry for entry in shell("doctor", "--json", code=code).json}


def test_a_database_that_can_only_be_read_is_told_and_works(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and writable(path, mode))
    checks = _checks(built)
    assert checks["database"]["ok"]
    assert checks["database"]["read_only"]
    assert "read-only: reading commands work" in checks["database"]["detail"]
    assert not checks["store"]["read_only"]
    for words in (("status",), ("adapter", "list"), ("adapter", "log", "spirit"), ("build", "list")):
        built(*words)
    assert "reads" in built("doctor").out
    assert "open for reading only" in built("domain", "add", "toys", code=1).err


def test_a_store_that_can_only_be_read_is_told_and_works(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise StoreError("cannot write to the store: Read-only file system")

    monkeypatch.setattr("reccocktail.registry.store.local.LocalStore.probe", refuse)
    checks = _checks(built)
    assert (checks["store"]["ok"], checks["store"]["read_only"]) == (True, True)
    assert "Read-only file system" in checks["store"]["detail"]
    assert "reads" in built("doctor").out
    built("store", "verify")


@pytest.mark.parametrize("name", ["device", "hub"])
def test_a_check_that_the_system_fails_leaves_the_others(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(*{"device": (App, "device", fail), "hub": ("huggingface_hub.get_token", fail)}[name])
    needed = name == "device"
    checks = _checks(prepared, code=int(needed))
    assert len(checks) == 6
    assert (checks[name]["ok"], checks[name]["read_only"]) == (not needed, False)
    assert "Permission denied: '/somewhere'" in checks[name]["detail"]
    assert checks["database"]["ok"]


def test_a_home_that_is_called_read_only_is_not_read_only(bare: Any) -> None:
    bare.home = bare.home / "read-only: reading commands work"
    bare("init")
    assert not any(check["read_only"] for check in _checks(bare).values())


def test_what_cannot_even_be_read_fails(prepared: Any) -> None:
    shutil.move(prepared.home / "store", prepared.home / "elsewhere")
    checks = _checks(prepared, code=1)
    assert (checks["database"]["ok"], checks["store"]["ok"]) == (True, False)
    shutil.move(prepared.home / "elsewhere", prepared.home / "store")
    (prepared.home / "registry.sqlite").unlink()
    checks = _checks(prepared, code=1)
    assert (checks["database"]["ok"], checks["store"]["ok"]) == (False, True)


def test_doctor_shows_the_cache_of_an_object_store(bare: Any) -> None:
    shard = bare.home / "cache/store/blobs/sha256/00"
    shard.mkdir(parents=True)
    (shard / ("0" * 64)).write_bytes(b"x" * 6000)
    remote = {"RECCOCKTAIL_STORE_URL": "s3://shop/x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}

    def told(**environment: str) -> str:
        answer = bare("doctor", "--json", code=1, **remote, **environment)  # there is neither a database nor a server
        (found,) = (entry for entry in answer.json if entry["check"] == "cache")
        assert found["ok"]
        return found["detail"].removeprefix(f"{bare.home}/")

    assert told() == "cache/store has 6.0 KB without limit"
    assert told(RECCOCKTAIL_CACHE_LIMIT="50GB") == "cache/store has 6.0 KB of at most 50.0 GB"
    assert "above the limit while files are in use" in told(RECCOCKTAIL_CACHE_LIMIT="5KB")
    assert "cache_limit of 'much' is not a size" in bare("--cache-limit", "much", "doctor", code=2).err


# PostgreSQL


def test_all_of_it_on_postgresql(
    bare: Any, postgres: Any, tiny_base: Path, loras: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.create()

    def run(*words: object, **options: Any) -> Any:
        return bare("--as", "ann", *words, RECCOCKTAIL_DATABASE_URL=postgres.url(name), **options)

    run("init")
    run("base", "add", "tiny", tiny_base)
    for domain in ("skin-care", "toys"):
        run("domain", "add", domain, "--recipe", "ingredient-only")
    run("adapter", "add", loras["ingredient"], "--base", "tiny", "--domain", "skin-care", "--metric", "HR@1=0.25")
    run("adapter", "alias", "skin-care@v1", "champion")
    run("build", "request", "--stale", "--wait")
    states = {entry["domain"]: (entry["state"], entry["ingredient"]) for entry in run("status", "--json").json}
    assert states == {"skin-care": ("fresh", "skin-care@v1"), "toys": ("blocked", None)}
    assert run("build", "list", "--adapter", "skin-care", "--json").json[0]["created_by"] == "ann"
    (moved, added) = run("adapter", "log", "skin-care", "--json").json
    assert (moved["kind"], moved["created_by"], added["kind"]) == ("alias.set", "ann", "adapter.added")
    assert not any(entry["read_only"] for entry in run("doctor", "--json").json)
    assert not any(entry["read_only"] for entry in run("doctor", "--json").json)
    (build,) = run("build", "list", "--json").json

    def completing(**environment: str) -> Any:
        return bare(RECCOCKTAIL_DATABASE_URL=postgres.url(name), **environment)

    monkeypatch.setattr("reccocktail.cli.completion.SECONDS", 60)
    assert asked(completing, "domain", "show", "") == ["skin-care", "toys"]
    assert asked(completing, "adapter", "show", "skin-care@") == ["skin-care@champion", "skin-care@v1"]
    assert asked(completing, "build", "show", build["id"][:4]) == [build["id"]]
    assert asked(completing, "adapter", "alias", "skin-care@v1", "champ") == ["champion"]
    assert asked(completing, "adapter", "list", "--base", "") == ["tiny"]
    assert asked(completing, "build", "request", "toys", "--recipe", "aver") == ["average"]
    assert run("db", "check", "--json").json["drift"] is False

    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    checks = {entry["check"]: entry for entry in run("doctor", "--json").json}
    assert (checks["database"]["ok"], checks["database"]["read_only"]) == (True, True)
    assert {entry["domain"] for entry in run("status", "--json").json} == {"skin-care", "toys"}
    assert "open for reading only" in run("domain", "add", "more", code=1).err
    postgres.drop(name)


def test_the_working_folders_file_is_named_once_when_it_is_used(bare: Any) -> None:
    (bare.folder / "reccocktail.toml").write_text('device = "cpu"\n')
    answer = bare("init", "--json")
    assert answer.err.count("reccocktail.toml") == 1
    assert "device from" in answer.err


def test_doctor_says_which_modes_are_open_and_the_registry_goes_on_working(bare: Any) -> None:
    bare("init")
    assert not _checks(bare)["modes"]["open"]
    bare.home.chmod(0o755)
    found = _checks(bare)["modes"]
    assert (found["ok"], found["open"]) == (True, True)
    assert f"chmod 700 {bare.home}" in found["detail"]
    bare.home.chmod(0o700)
    assert not _checks(bare)["modes"]["open"]
    assert "modes" not in {entry["check"] for entry in bare("doctor", "--json", RECCOCKTAIL_STORE_SHARED="1").json}
