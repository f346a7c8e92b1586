"""The command against a server: the trip of the README gives the same JSON as beside the registry, and what needs this machine's files is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest
from pydantic import TypeAdapter
from reccocktail.cli import commands
from reccocktail.engine.building.completion import complete
from reccocktail.registry import Registry
from reccocktail.server import models
from reccocktail.server.app import ServerOptions, create_app

SCOPES = ["admin"]
TRIP = """
base add tiny {tiny_base}
base list
base show tiny
domain add kitchen --data {data}/kitchen
domain add skin-care --title Skin --data {data}/skin-care --recipe {small_recipe}
domain add skin-care --title Body
domain add kitchen
domain list
domain show skin-care
adapter add {spirit} --base tiny --spirit --tag 2026-11
adapter add {ingredient} --base tiny --domain skin-care --metric HR@1=0.25 --note first --run https://runs.example.org/7
adapter add {ingredient} --base tiny --domain skin-care --tag again
webhook add ops http://127.0.0.1:9/hook --secret-env SECRET --kind alias.moved --allow-private
webhook edit ops --all-kinds
webhook disable ops
webhook enable ops
webhook list
webhook show ops
adapter alias skin-care@v1 champion
adapter edit skin-care@v1 --tag prod
adapter show skin-care@champion
adapter list --tag prod
adapter diff skin-care@v1 spirit
adapter verify skin-care@v1
domain add garden
domain rename garden patio
domain remove patio
base add spare {tiny_base}
base remove spare
adapter log skin-care
build request skin-care --recipe average --wait
build request skin-care --recipe average
build request --all --recipe average
build list --domain skin-care --sort finished
build show skin-care
build logs skin-care
build promote {build}
build pin {build}
build edit {build} --note checked
build history skin-care
build policy skin-care --promote automatic
rollback skin-care --to {build} --dry-run
domain gate kitchen --require metric=NDCG@3,margin=0.02 --approvals 1
domain gate kitchen
domain gate kitchen --remove
domain gate kitchen --log
status
status skin-care --state stale
resolve skin-care
resolve skin-care --merged
build export skin-care {target}
recipe add house {small_recipe} --note n
recipe list
recipe show small
recipe log small
recipe diff small average
template add ours {template} --note n
template list
template show ours
template log ours
template diff ours next-title
evaluation list --domain skin-care
publish skin-care --to acme/skin-care --dry-run --offline
publication list
adapter archive skin-care@v1 --force
adapter archive skin-care@v1 --undo
webhook log ops
webhook log --delivery 1
webhook remove ops
log --domain skin-care --kind alias
export
"""
# times, workers, seconds
RUN = re.compile(r"\d{4}-\d\d-\d\d(T[\d:.]+\+00:00| \d\d:\d\d UTC)|\d+:\d+ on cpu|\d+(\.\d+)? s\b")
WHERE = ("path", "data", "files", "uploads")  # where a machine has its files
NEVER = ("seconds", "worker", "peak", "rss")  # of one run alone


FORMS: dict[str, Any] = {
    "base list": list[models.BaseModelModel],
    "domain list": list[models.DomainModel],
    "adapter list": list[models.AdapterModel],
    "adapter show": models.AdapterModel,
    "adapter diff": models.DifferenceModel,
    "adapter verify": models.VerificationModel,
    "build list": list[models.BuildModel],
    "build show": models.BuildModel,
    "build logs": list[models.LogLineModel],
    "build history": list[models.MoveModel],
    "build promote": models.BuildAliasModel,
    "status": list[models.StatusModel],
    "resolve": models.ResolvedModel,
    "rollback": models.RollbackModel,
    "recipe list": list[models.RecipeEntryModel],
    "recipe log": list[models.RecipeModel],
    "template list": list[models.TemplateEntryModel],
    "template log": list[models.RecipeModel],
    "log": list[models.EventModel],
}
"""What the API's document says of an answer, by the beginning of a command."""


@dataclass(frozen=True)
class Way:
    """The command in one way: what it is asked, and the build that was made."""

    run: Callable[..., Any]
    names: dict[str, Any]

    def trip(self) -> Iterator[tuple[str, Any]]:
        """Each command, and its JSON without what one run alone has."""
        names = dict(self.names)
        for line in TRIP.strip().splitlines():
            found = self.run(*(word.format(**names) for word in line.split()), "--json").json
            if line.startswith("build request") and "build" not in names:
                names["build"] = found[0]["id"]
            yield line, _alike(found, names)


def _alike(found: Any, names: dict[str, Any]) -> Any:
    text = RUN.sub("RUN", json.dumps(found)).replace(str(names.get("build")), "BUILD")
    text = text.replace(str(names["target"]), "TARGET")
    return _without(json.loads(text))


def _without(found: Any, name: str = "") -> Any:
    if any(word in name for word in NEVER) or (name in WHERE and isinstance(found, str | None)):
        return None
    if isinstance(found, dict):
        # a domain's data have `files` only where they were uploaded
        return {key: _without(value, key) for key, value in found.items() if key != "files" or "data" not in found}
    return [_without(each) for each in found] if isinstance(found, list) else found


@pytest.fixture
def worker(bare: Any) -> Iterator[Callable[[Registry], None]]:
    """(registry): makes the first build that is asked for, beside the test."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def work(registry: Registry) -> None:
        while not ended.wait(0.05):
            for build in registry.builds.claimable(limit=1):
                complete(registry, build, device="cpu")

    def begin(registry: Registry) -> None:
        threads.append(threading.Thread(target=work, args=(registry,), daemon=True))
        threads[0].start()

    yield begin
    ended.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def by_server(bare: Any, serve: Callable[[Any], str]) -> Iterator[Callable[..., Any]]:
    """The command, asking a server at `url` with the token `secret`, on another `registry` than that of its home."""
    home = bare.home.with_name("of-the-server")
    bare("--home", home, "init")
    from reccocktail.registry import Settings

    with Registry.open(Settings.load(home=home, cwd=bare.folder, environ={"HOME": str(bare.folder)})) as registry:
        secret = registry.tokens.create("anna", SCOPES, lasts=None).secret
        url = serve(create_app(registry, ServerOptions(login=True)))

        def run(*words: object, **options: Any) -> Any:
            return bare(*words, **{"RECCOCKTAIL_URL": url, "RECCOCKTAIL_TOKEN": secret} | options)

        run.registry, run.url, run.secret = registry, url, secret  # pyright: ignore[reportFunctionMemberAccess]
        yield run


def test_the_trip_gives_the_same_json_by_a_server(
    bare: Any,
    by_server: Any,
    worker: Any,
    tiny_base: Path,
    loras: dict[str, Path],
    data: Path,
    small_recipe: Path,
    tmp_path: Path,
) -> None:
    (template := tmp_path / "ours.yaml").write_text('{"name": "ours", "user": "{history}"}')
    names = {"tiny_base": tiny_base, "data": data, "small_recipe": small_recipe, "template": template, **loras}
    cache = str(tmp_path / "cache")
    worker(by_server.registry)
    theirs = Way(lambda *words: by_server(*words, XDG_CACHE_HOME=cache), names | {"target": tmp_path / "theirs"}).trip()
    there = dict(theirs)
    assert not bare.home.exists()
    bare("init")
    bare("token", "create", "anna", "--scope", "read")  # so that events have the same numbers
    ours = Way(lambda *words: bare("--as", "anna", *words), names | {"target": tmp_path / "ours"}).trip()
    for line, expected in ours:
        assert there.pop(line) == expected, line
        for form in (form for start, form in FORMS.items() if line.startswith(start)):
            TypeAdapter(form).validate_python(expected)
    assert not there
    for file in (tmp_path / "ours").rglob("*.safetensors"):
        assert (tmp_path / "theirs" / file.name).read_bytes() == file.read_bytes()


def test_waiting_outlasts_a_restart_and_ctrl_c_says_which_builds_go_on_at_the_server(
    by_server: Any, tiny_base: Path, loras: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    by_server("base", "add", "tiny", tiny_base)
    by_server("adapter", "add", loras["spirit"], "--base", "tiny", "--spirit")
    for name, role in (("skin-care", "ingredient"), ("kitchen", "newer")):
        by_server("domain", "add", name)
        by_server("adapter", "add", loras[role], "--base", "tiny", "--domain", name)
    request, polled = httpx2.Client.request, list[str]()

    def restarting(self: Any, method: str, address: str, **options: Any) -> Any:
        """The server is away for four requests after the build was seen once, which somebody cancels meanwhile."""
        if method == "GET" and address.startswith("/builds/"):
            polled.append(address)
            if 2 <= len(polled) <= 5:
                if len(polled) == 2:
                    by_server.registry.builds.cancel(address.rpartition("/")[2])
                raise httpx2.ConnectError("refused")
        return request(self, method, address, **options)

    with monkeypatch.context() as away:
        away.setattr(httpx2.Client, "request", restarting)
        away.setattr("reccocktail.api.outages.MOST_WAIT", 0.0)
        away.setattr("reccocktail.api.connection.BRIEF", -1.0)
        waited = by_server("build", "request", "kitchen", "--recipe", "spirit-only", "--wait", code=None).err
    assert (len(polled), waited.count(" is away: "), waited.count(" is back")) == (6, 1, 1)
    monkeypatch.setattr(time, "sleep", interrupt)
    for names in (["skin-care"], ["skin-care", "kitchen"]):
        error = by_server("build", "request", *names, "--recipe", "average", "--wait", "--json", code=130).json["error"]
        ids = [row.id for row in by_server.registry.builds.list()][::-1]
        ids = [id_ for id_ in ids if f"/builds/{id_}" not in polled]
        assert len(ids) == len(names)
        assert error["code"] == "interrupted"
        assert f"build cancel {' '.join(ids)}`" in error["hint"]
        assert "kept" not in error["message"]
        assert all(id_ in error["message"] for id_ in ids)


ONLY_HERE = """
init
doctor
demo
train skin-care
evaluate popularity --domain skin-care
recommend skin-care --user u
personalise skin-care u -o lora
worker --once
server
token create x --scope read
token list
token revoke x
db upgrade
db downgrade 0001
db current
db check
store verify
store gc
domain sync
domain add books --from-plugin p
build request skin-care --wait --keep-best
recipe import {mix} --add mix
verify {built}
publish --stale
publish skin-care --to acme/x --sign {small_recipe}
resolve skin-care --format peft -o out
apply -f {document}
merge tiny -a spirit=1 -o merged
webhook add ops https://example.org/ --secret-file s
webhook deliver
"""
OF_FILES = {("trainers", "list"), ("trainers", "show"), ("completion",), ("recipe", "check"), ("recipe", "methods")}
"""What needs no registry, wherever one is."""
BY_OTHERS = {("base", "edit"), ("domain", "edit"), ("build", "cancel"), ("build", "retry"), ("build", "alias")} | {
    ("evaluation", "compare"), ("publication", "show"), ("build", "approve"), ("adapter", "approve"),
    ("webhook", "test"), ("webhook", "redeliver"), ("unpublish",), ("evaluation", "show")
}  # fmt: skip
"""What goes by the server and is not in the trip: the test of those that name nothing."""


def _leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        yield path
        return
    for name, below in command.commands.items():
        yield from _leaves(below, (*path, name))


def test_every_command_goes_to_the_server_or_is_refused(
    bare: Any, by_server: Any, small_recipe: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "registry.yaml").write_text("domains:\n  skin-care: {data: ./data}\n")
    (tmp_path / "mix.yaml").write_text("merge_method: linear\nmodels: [{model: a/b+c/d, parameters: {weight: 1}}]\n")
    names = {"small_recipe": small_recipe, "mix": tmp_path / "mix.yaml", "document": tmp_path / "registry.yaml"}
    lines = [line.split() for line in ONLY_HERE.strip().splitlines()]
    by_server("domain", "add", "skin-care")
    for words in lines:
        as_json = () if words[0] == "server" else ("--json",)
        answer = by_server(*(word.format(**names, built=data) for word in words), *as_json, code=2)
        assert ("local_only" if as_json else "RECCOCKTAIL_URL") in answer.out + answer.err, (words, answer)
    assert not bare.home.exists()
    for words in ("build show 12", "build cancel 12", "build retry 12", "build alias 12 x", "evaluation show 7", "base edit x --tag t",
                  "domain edit x --tag t", "evaluation compare 7 8", "publication show acme/x", "build approve 12", "adapter approve x",
                  "webhook test ops", "webhook redeliver 7", "unpublish acme/x", "evaluation show 7 --ranks"):  # fmt: skip
        assert by_server(*words.split(), "--json", code=1).json["error"]["code"] == "not_found", words
    every = {path for command in commands.ALL for path in _leaves(command, (str(command.name),))}
    asked = [tuple(line.split()) for line in (TRIP + ONLY_HERE).strip().splitlines()]
    assert {path for path in every if not any(words[: len(path)] == path for words in asked)} == OF_FILES | BY_OTHERS


def test_what_says_where_a_registry_is_does_not_go_with_a_server(bare: Any, by_server: Any) -> None:
    for option in (("--home", "x"), ("--database-url", "sqlite:///x"), ("--store-url", "x"), ("--as", "eve")):
        assert by_server(*option, "status", "--json", code=2).json["error"]["code"] == "usage", option
    for url in ("ftp://host", "https://eve@host", "http://registry.example.org"):
        assert by_server("status", "--json", code=2, RECCOCKTAIL_URL=url).json["error"]["code"] == "usage", url
    for token, said in (("", "RECCOCKTAIL_TOKEN is not set or empty"), ("rct_wrong", "unknown")):
        error = by_server("status", "--json", code=1, RECCOCKTAIL_TOKEN=token).json["error"]
        assert (error["code"], said in error["message"]) == ("unauthenticated", True)
        assert "reccocktail token create" in error["hint"]
    assert by_server("recipe", "add", "x", "nowhere.yaml", "--json", code=1).json["error"]["code"] == "recipe"


def test_a_command_that_asks_a_server_is_light(by_server: Any, tmp_path: Path) -> None:
    script = (
        "import sys; from reccocktail.cli import main\n"
        "try: main(['build', 'list', '--json'])\n"
        "finally: print({'torch', 'transformers', 'pydantic', 'rich', 'numpy', 'alembic'} & set(sys.modules), file=sys.stderr)"
    )
    asking = {**os.environ, "RECCOCKTAIL_URL": by_server.url, "RECCOCKTAIL_TOKEN": by_server.secret}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=asking, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "set()\n")
