"""Plugins at the command: the domains they bring, what is told of data, and trainings that are stopped."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reccocktail.cli.domains import facts_lines
from reccocktail.tasks import DataFacts

from .conftest import Answer

SHOP = """
import os, time
from pathlib import Path

from pydantic import BaseModel, Field
from reccocktail.tasks import generate, write_domain
from reccocktail.trainers.plugin import PluginDomain, TrainerError


class Options(BaseModel, extra="forbid"):
    seconds: float = Field(600, description="how long it does nothing")


class Shop:
    name, summary, Options = "shop", "brings domains and sleeps", Options

    def domains(self):
        def write(folder):
            print("writing")
            write_domain(generate("kitchen", users=5), folder)

        def fail(folder):
            raise OSError("the network is gone")

        return [
            PluginDomain("toys", "Toys", write, recipe="average"),
            PluginDomain("games", "Games", fail),
            PluginDomain("kitchen", "Kitchen", write),
            PluginDomain("books", "Books", write, recipe=Path(__file__).with_name("absent.yaml")),
        ]

    def train(self, job):
        job.progress(1, 2, {})
        (job.folder / "begun").touch()
        time.sleep(job.options.seconds)
"""
BROKEN = "raise SystemExit('no licence')\n"


class Plugins:
    """The command in processes that find two plugins: one with domains, and one that cannot be imported."""

    def __init__(self, shell: Any, warm: Any) -> None:
        self.home, self._shell, self._warm = shell.home, shell, warm

    def __call__(self, *words: object) -> Answer:
        """The command in this process."""
        return self._shell(*words)

    def process(self, *words: object, code: int = 0) -> Answer:
        with self.begun(*words) as process:
            out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{words}\n{out}{err}"
        return Answer(process.returncode, out, err)

    def begun(self, *words: object) -> subprocess.Popen[str]:
        command = [Path(sys.executable).with_name("reccocktail"), *words]
        environment = self._shell.environment() | {"WARM_CHILDREN": "1"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return self._warm.popen(command, env=environment, cwd=self._shell.folder, **streams)


@pytest.fixture
def plugins(prepared: Any, warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    for name, source in ("shop", SHOP), ("wreck", BROKEN):
        about = tmp_path / "site" / f"a_{name}-1.dist-info"
        about.mkdir(parents=True)
        (about.parent / f"a_{name}.py").write_text(source)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: a-{name}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[reccocktail.trainers]\n{name} = a_{name}:Shop\n")
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return Plugins(prepared, warm)


def test_syncing_tells_of_every_domain_and_stops_for_none(plugins: Any) -> None:
    found = plugins.process("domain", "sync", "--json", code=1).json
    told = {(each["plugin"], each["domain"]): (each["state"], (each["error"] or {}).get("message")) for each in found}
    assert told["shop", "toys"] == ("added", None)
    assert "the network is gone" in told["shop", "games"][1]
    assert "'kitchen' is there already" in told["shop", "kitchen"][1]
    assert "absent.yaml cannot be read" in told["shop", "books"][1]
    assert "SystemExit: no licence" in told["wreck", None][1]
    shown = plugins("domain", "show", "toys", "--json").json
    assert (shown["trainer"], shown["found"]["users"]) == ("shop", 5)
    shutil.rmtree(shown["data"])
    unread = plugins("domain", "show", "toys", "--json")
    assert (unread.json["found"], "cannot be read here" in unread.err) == (None, True)
    again = plugins.process("domain", "sync", "shop", code=1)
    assert "unchanged" in again.out
    assert "the network is gone" in again.out
    assert "writing" in again.err


def test_a_domain_is_taken_from_a_plugin_with_a_title_of_ones_own(plugins: Any) -> None:
    words = ("domain", "add", "kitchen", "--from-plugin", "shop", "--title", "Ours", "--json")
    added = plugins.process(*words)
    assert (added.json["title"], added.json["trainer"]) == ("Ours", "shop")
    assert "found reccocktail jsonl: 5 users" in added.err
    assert "brings no domain 'cars'; it brings: toys" in plugins.process(*words[:2], "cars", *words[3:5], code=1).err


def test_a_plugin_brings_data_and_trainer_itself(prepared: Any) -> None:
    assert (
        "leave --data and --trainer out"
        in prepared("domain", "add", "toys", "--from-plugin", "sft", "--trainer", "sft", code=2).err
    )
    assert (
        "brings no domain 'toys'; it brings: none"
        in prepared("domain", "add", "toys", "--from-plugin", "sft", code=1).err
    )


def test_a_plugin_is_shown_with_its_domains(plugins: Any) -> None:
    shown = plugins.process("trainers", "show", "shop")
    assert "how long it does nothing" in shown.out
    assert "toys" in shown.out
    assert "domain sync shop" in shown.err
    listed = plugins.process("trainers", "list", "--json").json
    assert [each["name"] for each in listed if each["error"]] == ["wreck"]


def test_a_training_that_hangs_is_stopped_and_told(plugins: Any) -> None:
    words = ("train", "skin-care", "--trainer", "shop", "--stall-timeout", "0.1", "--json")
    error = plugins.process(*words, code=1).json["error"]
    assert error["code"] == "trainer"
    assert "no progress for 6 seconds" in error["message"]
    assert "--resume" in error["hint"]


def test_ctrl_c_ends_the_child_and_says_how_to_go_on(plugins: Any) -> None:
    process = plugins.begun("train", "skin-care", "--trainer", "shop", "--json")
    until = time.monotonic() + 240
    while not list(plugins.home.glob("runs/*/begun")) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "--resume" in json.loads(out)["error"]["hint"]


# what is told of data


def facts(**more: Any) -> DataFacts:
    usual = {"format": "csv", "users": 1000, "items": 100, "interactions": 10_000, "first_time": 1_400_000_000.0}
    rest = dict.fromkeys(
        ("missing_titles", "repeats", "never_taken", "too_short", "dropped", "unlisted", "duplicates", "unused"), 0
    )
    return DataFacts(**{**rest, **usual, "last_time": 1_500_000_000.0, **more})


def test_good_data_are_told_in_one_line() -> None:
    assert facts_lines(facts()) == [
        "found csv: 1,000 users, 100 items, 10,000 interactions, from 2014-05-13 to 2017-07-14"
    ]


def test_times_in_milliseconds_are_days_too_and_other_units_numbers() -> None:
    assert "from 2014-05-13 to" in facts_lines(facts(first_time=1.4e12, last_time=1.5e12))[0]
    assert "from 2014-05-13 to 2017-07-14" in facts_lines(facts(first_time=1.4e18, last_time=1.5e18))[0]
    assert "from 1956-01-01 to 2017-07-14" in facts_lines(facts(first_time=-441849600.0))[0]
    assert "from 5 to 1500000000" in facts_lines(facts(first_time=5.0))[0]
    assert "from 1 to 300" in facts_lines(facts(first_time=1.0, last_time=300.0))[0]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"missing_titles": 12}, "12 (12%) of the items have no title"),
        ({"unlisted": 3}, "3 items taken but without a record"),
        ({"too_short": 600}, "600 (60%) of the users have fewer than three titled items"),
        ({"repeats": 4000}, "4,000 (40%) of the interactions repeat an item"),
        ({"never_taken": 50}, "50 (50%) of the items have no interactions"),
        ({"first_time": None, "last_time": None}, "there are no times"),
        (
            {"time_units": {"seconds": 5, "milliseconds": 7}},
            "5 in seconds, 7 in milliseconds; all were turned into milli",
        ),
        ({"without_user": 2500}, "2,500 (20%) of the interactions have no user"),
        ({"respelled_ids": 2}, "2 ids written like 12.0"),
        ({"without_rating": 100}, "100 (1%) of the interactions have no rating"),
    ],
)
def test_what_deserves_a_second_thought_is_said(more: dict[str, Any], told: str) -> None:
    (line,) = [line for line in facts_lines(facts(**more)) if line.startswith("note: ")]
    assert told in line


def test_what_was_left_out_is_said() -> None:
    assert facts_lines(facts(dropped=5, unused=2000))[1] == (
        "left out: 5 interactions that the filters drop, 2,000 records of items without interactions"
    )


def test_adding_data_tells_what_was_found(prepared: Any, tmp_path: Path, write_reviews: Callable[[Path], None]) -> None:
    write_reviews(tmp_path / "beauty")
    answer = prepared("domain", "add", "beauty", "--data", tmp_path / "beauty", "--json")
    assert "found amazon 2014: 4 users, 3 items, 12 interactions" in answer.err
    assert answer.json["found"]["format"] == "amazon 2014"
    assert answer.json["found"]["missing_titles"] == 0


@pytest.fixture
def write_reviews() -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        with gzip.open(folder / "reviews_Beauty_5.json.gz", "wt") as file:
            for user in range(4):
                for item in range(3):
                    row = {"reviewerID": f"u{user}", "asin": f"i{item}", "overall": 5.0}
                    file.write(json.dumps(row | {"unixReviewTime": 1_400_000_000 + item}) + "\n")
        with gzip.open(folder / "meta_Beauty.json.gz", "wt") as file:
            for item in range(3):
                file.write(repr({"asin": f"i{item}", "title": f"Soap {item}"}) + "\n")

    return write
