"""Domains that plugins bring: what may be brought, where their data go, and that doing it again changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel
from reccocktail.registry import Registry
from reccocktail.registry.errors import ConflictError
from reccocktail.tasks import generate, read_domain, write_domain
from reccocktail.trainers.domains import find_domain, register
from reccocktail.trainers.plugin import PluginDomain, TrainerError, domains_of


class Options(BaseModel):
    pass


class Bringing:
    name: ClassVar[str] = "bringing"
    summary: ClassVar[str] = "brings domains"
    Options: ClassVar[type[BaseModel]] = Options

    def __init__(self, *brought: Any) -> None:
        self.brought = brought

    def domains(self) -> Any:
        return self.brought

    def train(self, job: Any) -> Any:
        raise NotImplementedError


def write(users: int = 5) -> Callable[[Path], None]:
    return lambda folder: write_domain(generate("kitchen", users=users), folder)


def toys(data: Any = None, **more: Any) -> PluginDomain:
    return PluginDomain(**{"name": "toys", "title": "Toys", "data": data or write()} | more)


def put(registry: Registry, brought: PluginDomain, **more: Any) -> Any:
    return register(registry, Bringing(brought), brought, **{"settle_recipe": lambda name: name} | more)


def test_a_trainer_without_domains_brings_none() -> None:
    class Plain:
        name, summary, Options = "plain", "brings nothing", Options

        def train(self, job: Any) -> Any: ...

    assert domains_of(Plain()) == ()


@pytest.mark.parametrize(
    ("brought", "told"),
    [
        ((toys(name="Toys & Games"),), "Toys & Games"),
        ((toys(name="spirit"),), "spirit"),
        ((toys(title="two\nlines\0"),), "title"),
        ((toys(title=7),), "domain 'toys'"),
        ((toys(data="a/path"),), "neither a Path nor a function"),
        ((toys(recipe=7),), "recipe is 7"),
        ((toys(), toys()), "brings toys more than once"),
        (("toys",), "gave 'toys', which is no PluginDomain"),
    ],
)
def test_what_cannot_be_a_domain_is_refused(brought: Any, told: str) -> None:
    with pytest.raises(TrainerError, match=told):
        domains_of(Bringing(*brought))


def test_a_domain_is_found_by_name_or_the_known_ones_are_told() -> None:
    trainer = Bringing(toys())
    assert find_domain(trainer, "toys").title == "Toys"
    with pytest.raises(TrainerError, match="brings no domain 'cars'; it brings: toys"):
        find_domain(trainer, "cars")


def test_data_that_a_plugin_makes_lie_under_the_home(registry: Registry) -> None:
    done = put(registry, toys())
    assert (done.state, done.domain.title, done.domain.trainer) == ("added", "Toys", "bringing")
    folder = Path(done.domain.data)
    assert folder.parent == registry.settings.home / "data" / "plugins" / "bringing" / "toys"
    assert read_domain(folder).digest == generate("kitchen", users=5).digest
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing staged is left"


def test_a_folder_that_a_plugin_ships_is_read_where_it_is(registry: Registry, tmp_path: Path) -> None:
    write()(tmp_path / "shipped")
    done = put(registry, toys(tmp_path / "shipped"))
    assert done.domain.data == str(tmp_path / "shipped")
    assert done.facts.users == 5


def test_doing_it_again_changes_nothing(registry: Registry) -> None:
    first, again = put(registry, toys()), put(registry, toys())
    assert again.state == "unchanged"
    assert again.domain == first.domain


@pytest.mark.parametrize("change", [{"title": "Games"}, {"data": write(6)}, {"recipe": "average"}])
def test_what_changed_is_brought_up_to_date_and_older_data_stay(registry: Registry, change: Any) -> None:
    before = put(registry, toys())
    after = put(registry, toys(**change))
    assert after.state == "changed"
    assert Path(before.domain.data).is_dir()
    assert put(registry, toys(**change)).state == "unchanged"


def test_data_that_somebody_spoiled_are_made_again(registry: Registry) -> None:
    folder = Path(put(registry, toys()).domain.data)
    (folder / "sequences.jsonl").write_text("spoiled")
    assert put(registry, toys()).state == "unchanged"
    assert read_domain(folder).sequences


def test_a_domain_that_is_somebody_elses_is_left_alone_unless_taken_over(registry: Registry) -> None:
    registry.domains.add("toys", title="My own", data="/somewhere")
    with pytest.raises(ConflictError, match="'toys' is there already and was not brought by a plugin") as caught:
        put(registry, toys())
    assert "--from-plugin bringing" in str(caught.value.hint)
    assert registry.domains.get("toys").title == "My own"
    assert put(registry, toys(), take_over=True).state == "changed"


def test_a_recipe_is_checked_before_anything_is_made(registry: Registry) -> None:
    def refuse(recipe: str) -> str:
        raise TrainerError(f"no recipe {recipe}")

    with pytest.raises(TrainerError, match=r"no recipe /x/mine\.yaml"):
        put(registry, toys(recipe=Path("/x/mine.yaml")), settle_recipe=refuse)
    assert registry.domains.list() == []
    assert not (registry.settings.home / "data").exists()


def boom(folder: Path) -> None:
    (folder / "items.jsonl").touch()
    raise OSError("the network is gone")


def leave(folder: Path) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (boom, "its data could not be made: OSError: the network is gone"),
        (leave, "its data could not be made: SystemExit"),
        (lambda folder: None, "trainer 'bringing', domain 'toys': "),
        (Path("/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_data_that_cannot_be_made_or_read_leave_nothing_behind(registry: Registry, data: Any, told: str) -> None:
    with pytest.raises(TrainerError, match=told):
        put(registry, toys(data))
    assert registry.domains.list() == []
    assert not [path for path in (registry.settings.home / "data").rglob("*") if path.is_file()]


def test_what_a_plugin_prints_while_it_makes_data_stays_off_stdout(registry: Registry, capfd: Any) -> None:
    def talk(folder: Path) -> None:
        print("python talks")
        os.write(1, b"the descriptor talks\n")
        write()(folder)

    put(registry, toys(talk))
    out, err = capfd.readouterr()
    assert out == ""
    assert "the descriptor talks" in err


MAKING = """
import sys, time
from pathlib import Path
from reccocktail.registry.store.files import own_folder
with own_folder(Path(sys.argv[1])) as own:
    (own / "half").touch()
    print("at work", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_was_making_goes_and_what_a_living_one_makes_stays(registry: Registry) -> None:
    above = registry.settings.home / "data" / "plugins" / "bringing" / "toys"
    above.mkdir(parents=True)
    making = [
        subprocess.Popen([sys.executable, "-c", MAKING, above], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in making:
        assert process.stdout is not None
        process.stdout.readline()
    making[0].kill()
    making[0].communicate()
    before = set(above.iterdir())

    def fill(folder: Path) -> None:
        assert folder.parent.parent == above
        assert len(set(above.iterdir()) & before) == 1
        write()(folder)

    made = Path(put(registry, toys(fill)).domain.data)
    assert len(before) == 2
    assert len(set(above.iterdir()) - {made}) == 1
    making[1].kill()
    making[1].communicate()
    put(registry, toys())
    assert list(above.iterdir()) == [made]
