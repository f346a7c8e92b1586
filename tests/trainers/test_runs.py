"""Training runs: what they are named after, when they are taken up again, and what is registered."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import threading
from typing import ClassVar

import pytest
from pydantic import BaseModel
from reccocktail.registry.errors import ConflictError
from reccocktail.trainers import runs
from reccocktail.trainers.plugin import TrainerError, TrainingResult
from reccocktail.trainers.runs import TrainingRequest, run_folder, train_and_register


class Options(BaseModel):
    strength: float = 1.0


class CopyTrainer:
    """A trainer that takes a ready adapter, so that runs can be watched without training."""

    name: ClassVar[str] = "copy"
    summary: ClassVar[str] = "hands out a ready adapter"
    Options: ClassVar[type[BaseModel]] = Options

    def __init__(self, adapter, place="adapter"):
        self.adapter, self.place, self.jobs = adapter, place, []

    def train(self, job):
        self.jobs.append(job)
        print("a trainer talks")
        out = job.folder / self.place
        shutil.copytree(self.adapter, out, dirs_exist_ok=True)
        return TrainingResult(out, {"train_loss": 0.5}, {"trainer": self.name})


@pytest.fixture
def trainer(base, make_adapter):
    return CopyTrainer(make_adapter(base, 3))


@pytest.fixture
def run(stocked, trainer):
    """(trainer, role, resume, strength): train on skin-care and register."""

    def train(by=trainer, *, role="ingredient", resume=False, restart=False, strength=1.0):
        return train_and_register(
            stocked,
            TrainingRequest(
                by,
                [stocked.domains.get("skin-care")],
                role=role,
                base=stocked.bases.get("tiny"),
                options=Options(strength=strength),
                resume=resume,
                restart=restart,
                device="cpu",
            ),
            progress=lambda *_: None,
        )

    return train


def test_what_was_trained_is_registered_with_its_figures_and_context(run):
    adapter = run()
    assert (adapter.ref, adapter.created) == ("skin-care@v2", True)
    assert adapter.metrics == {"train_loss": 0.5}
    assert adapter.context["trainer"] == "copy"
    assert adapter.context["device"] == "cpu"
    assert adapter.context["base_digest"].startswith("sha256:")


def test_a_spirit_belongs_to_no_domain(run):
    adapter = run(role="spirit")
    assert (adapter.ref, adapter.domain) == ("spirit@v2", None)


def test_a_finished_run_is_not_trained_again_when_resumed(run, trainer):
    first, again = run(), run(resume=True)
    assert len(trainer.jobs) == 1
    assert (again.ref, again.created) == (first.ref, False)


def test_without_resume_it_starts_over_in_an_empty_folder(run, trainer, stocked):
    run()
    (trainer.jobs[0].folder / "checkpoint").mkdir()
    run()
    assert len(trainer.jobs) == 2
    assert not (trainer.jobs[1].folder / "checkpoint").exists()


def test_an_unfinished_run_is_resumed_or_discarded_by_request_alone(run, trainer, monkeypatch):
    def cut_off(job):
        (job.folder / "job.json").write_text("{}")
        (job.folder / "checkpoints").mkdir(exist_ok=True)
        if trainer.jobs:
            (job.folder / "checkpoints" / "one").write_text("hours of work")
        trainer.jobs.append(job)
        raise TrainerError("no luck")

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train", cut_off)
        for _ in range(2):  # the first leaves nothing that would be lost
            with pytest.raises(TrainerError, match="no luck"):
                run()
    checkpoint = trainer.jobs[0].folder / "checkpoints" / "one"
    with pytest.raises(ConflictError) as caught:
        run()
    assert checkpoint.exists()
    assert len(trainer.jobs) == 2
    assert "--resume" in str(caught.value.hint)
    assert "--restart" in str(caught.value.hint)
    run(resume=True)
    assert checkpoint.exists()
    (trainer.jobs[0].folder / "result.json").unlink()
    run(restart=True)
    assert not checkpoint.exists()


def test_other_options_make_another_run(run, trainer):
    run(strength=1.0)
    run(strength=2.0, resume=True)
    assert trainer.jobs[0].folder != trainer.jobs[1].folder


def test_changed_data_makes_another_run(run, trainer, stocked, tmp_path):
    run()
    lines = (tmp_path / "data" / "sequences.jsonl").read_text().splitlines()
    (tmp_path / "data" / "sequences.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    run(resume=True)
    assert len({job.folder for job in trainer.jobs}) == 2


def test_a_run_that_failed_is_not_taken_for_finished(run, trainer, monkeypatch):
    def fail(job):
        raise TrainerError("no luck")

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train", fail)
        with pytest.raises(TrainerError, match="no luck"):
            run()
    assert run(resume=True).ref == "skin-care@v2"


def test_an_adapter_outside_the_run_folder_is_refused(run, base, make_adapter):
    with pytest.raises(TrainerError, match="outside its run folder"):
        run(CopyTrainer(make_adapter(base, 3), place="../elsewhere"))


def test_what_a_trainer_prints_stays_off_stdout(run, capsys):
    run()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a trainer talks" in captured.err


def test_a_domain_without_data_cannot_be_trained_on(stocked, trainer):
    from reccocktail.registry.errors import UsageError

    stocked.domains.add("empty")
    with pytest.raises(UsageError, match="'empty' has no data"):
        train_and_register(
            stocked,
            TrainingRequest(
                trainer,
                [stocked.domains.get("empty")],
                role="ingredient",
                base=stocked.bases.get("tiny"),
                options=Options(),
                resume=False,
                device="cpu",
            ),
            progress=lambda *_: None,
        )


def test_the_run_folder_lies_under_the_home(stocked, trainer):
    folder = run_folder(
        stocked, TrainingRequest(trainer, [], role="spirit", base=stocked.bases.get("tiny"), options=Options()), []
    )
    assert folder.parent == stocked.settings.home / "runs"


def test_two_processes_do_not_train_in_one_folder(run, trainer):
    def train_again(job):
        with pytest.raises(TrainerError, match="running in another process"):
            run()
        raise TrainerError("enough")

    train, trainer.train = trainer.train, train_again
    with pytest.raises(TrainerError, match="enough"):
        run()
    trainer.train = train
    assert run().ref == "skin-care@v2"


def test_what_a_plugin_raises_is_told_as_its_failure(run, trainer):
    trainer.train = lambda job: 1 // 0
    with pytest.raises(TrainerError, match=r"trainer 'copy' failed: ZeroDivisionError"):
        run()


def test_a_note_that_a_power_cut_left_empty_is_no_result(run, trainer):
    run()
    (trainer.jobs[0].folder / "result.json").write_text("")
    run(resume=True)
    assert len(trainer.jobs) == 2


def test_another_wording_of_the_template_makes_another_run(stocked, trainer, tmp_path):
    class Asking(Options):
        template: str

    folders = []
    for wording in ("History: {history}", "Bought: {history}"):
        (tmp_path / "t.yaml").write_text(f"name: t\nuser: '{wording}'\n")
        options = Asking(template=str(tmp_path / "t.yaml"))
        base = stocked.bases.get("tiny")
        folders.append(run_folder(stocked, TrainingRequest(trainer, [], role="spirit", base=base, options=options), []))
    assert folders[0] != folders[1]


def test_runs_are_the_users_alone(stocked, run):
    before = os.umask(0o022)
    try:
        stocked.settings.home.chmod(0o755)
        run()
    finally:
        os.umask(before)
    assert stat.S_IMODE((stocked.settings.home / "runs").stat().st_mode) == 0o700


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_trainer_without_room_says_what_to_free_and_where(run, trainer, monkeypatch, code):
    def fail(job):
        raise OSError(code, os.strerror(code), str(job.folder / "checkpoint"))

    monkeypatch.setattr(trainer, "train", fail)
    with pytest.raises(TrainerError, match="checkpoint") as caught:
        run()
    assert "store gc" in caught.value.hint
    assert "runs" in caught.value.hint


@pytest.mark.parametrize("lets_go", [True, False])
def test_a_run_that_another_has_is_waited_for_a_while_and_then_refused(lets_go, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "LOCK_SECONDS", 20.0 if lets_go else 0.3)
    with (tmp_path / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not lets_go:
            with pytest.raises(TrainerError) as caught, runs._alone(tmp_path / "run"):
                pass
            assert caught.value.hint
            return
        timer = threading.Timer(0.5, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        timer.start()
        with runs._alone(tmp_path / "run") as handle:
            assert handle >= 0
        timer.join()
