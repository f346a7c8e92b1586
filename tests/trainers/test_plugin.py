"""Plugins are found without being imported, and a broken one harms nobody else."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from pydantic import BaseModel
from reccocktail.trainers import plugin
from reccocktail.trainers.plugin import Trainer, TrainerError, installed, load, parse_options
from reccocktail.trainers.sft.options import SftOptions
from reccocktail.trainers.sft.trainer import SftTrainer


@pytest.fixture
def entry_points(monkeypatch):
    """Stand-in for what is installed: (name, object reference) pairs."""

    def install(**points: str) -> None:
        found = [EntryPoint(name, value, plugin.GROUP) for name, value in points.items()]
        monkeypatch.setattr(plugin, "entry_points", lambda group: found)

    return install


def test_the_shipped_trainer_is_installed_and_keeps_the_contract():
    assert installed()["sft"].value == "reccocktail.trainers.sft.trainer:SftTrainer"
    assert isinstance(load("sft"), Trainer)


def test_listing_imports_no_plugin(entry_points):
    entry_points(ghost="a_module_that_is_not_there:Trainer")
    assert list(installed()) == ["ghost"]
    assert "a_module_that_is_not_there" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("a_module_that_is_not_there:Trainer", "ModuleNotFoundError"),
        ("reccocktail.trainers.sft.trainer:NoSuchName", "AttributeError"),
        ("json:loads", "TypeError"),
        ("collections:OrderedDict", "lacks one of"),
    ],
)
def test_a_broken_plugin_is_an_error_that_names_it(entry_points, reference, problem):
    entry_points(broken=reference)
    with pytest.raises(TrainerError, match=problem) as caught:
        load("broken")
    assert "'broken'" in str(caught.value)
    assert reference in str(caught.value)


def test_an_unknown_trainer_is_refused_with_the_known_ones(entry_points):
    entry_points(sft="reccocktail.trainers.sft.trainer:SftTrainer")
    with pytest.raises(TrainerError, match=r"no trainer 'stf'; installed: sft"):
        load("stf")


def test_options_come_as_text_and_are_validated():
    options = parse_options(SftTrainer(), {"epochs": "4", "learning_rate": "2e-4", "examples": "30"})
    assert options == SftOptions(epochs=4, learning_rate=2e-4, examples=30)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ({"epoch": "3"}, "unknown option 'epoch'; did you mean 'epochs'?"),
        ({"epochs": "many"}, "epochs='many'"),
        ({"learning_rate": "-1"}, "learning_rate='-1'"),
        ({"dropout": "1.5", "rank": "0"}, "rank='0'"),
        ({"weights": "kitchen=x"}, "weights.kitchen='x'"),
        ({"recommender": "epochs=x"}, "recommender: epochs='x'"),
        ({"recommender": "epochs=1.5"}, "recommender: epochs=1.5"),
        ({"recommender": "epochs"}, "recommender: 'epochs'"),
        ({"recommender": "epochs=1,epochs=2"}, "recommender: "),
        ({"recommender": "epoch=2"}, "recommender: unknown option 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_wrong_option_is_refused_by_name_and_value(pairs, named):
    for trainer in map(load, ("reclora", "laser") if "recommender" in pairs else ("sft",)):
        with pytest.raises(TrainerError) as caught:
            parse_options(trainer, pairs)
        assert f"trainer {trainer.name!r}: {named}" in str(caught.value).replace("dropout='1.5' is not below 1.0; ", "")
        assert not re.search("Input should|Value error|union", str(caught.value)), "these are pydantic's words"
        assert f"trainers show {trainer.name}" in str(caught.value.hint)


def test_options_that_do_not_go_together_are_refused_without_a_list_of_all():
    with pytest.raises(TrainerError, match=r"^trainer 'sft': temperature is for the losses masked"):
        parse_options(SftTrainer(), {"epochs": "7", "temperature": "2"})


def test_a_class_with_the_four_attributes_is_a_trainer():
    class MineOptions(BaseModel):
        steps: int = 1

    class Mine:
        name: ClassVar[str] = "mine"
        summary: ClassVar[str] = "an example"
        Options: ClassVar[type[BaseModel]] = MineOptions

        def train(self, job):
            raise NotImplementedError

    assert isinstance(Mine(), Trainer)
    assert parse_options(Mine(), {"steps": "7"}) == MineOptions(steps=7)


def test_a_trainer_that_goes_by_another_name_than_its_entry_point_is_refused(entry_points):
    entry_points(other="reccocktail.trainers.sft.trainer:SftTrainer")
    with pytest.raises(TrainerError, match=r"trainer 'other' .* calls itself 'sft'"):
        load("other")


def test_a_trainer_whose_options_are_no_model_of_its_own_is_refused(entry_points, monkeypatch):
    monkeypatch.setattr(SftTrainer, "Options", BaseModel)
    entry_points(sft="reccocktail.trainers.sft.trainer:SftTrainer")
    with pytest.raises(TrainerError, match="Options is no pydantic model of its own"):
        load("sft")
