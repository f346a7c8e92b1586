"""Whatever a trainer does to its process, the command is there to tell, and a training that was cut off can go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from reccocktail.registry.catalog.adapters import AdapterFilter
from reccocktail.trainers import plugin
from reccocktail.trainers.child import in_a_child
from reccocktail.trainers.plugin import TrainerError, load, parse_options
from reccocktail.trainers.runs import TrainingRequest, train_and_register

pytestmark = pytest.mark.usefixtures("warm_children")


@pytest.fixture
def run(stocked, misbehaving, base, make_adapter):
    """(how, resume, stall seconds): train on skin-care in a child process and register."""

    def train(how="well", *, resume=False, stall=60.0, progress=lambda *_: None):
        trainer = load("misbehaving")
        options = parse_options(trainer, {"how": how, "adapter": str(make_adapter(base, 3))})
        return train_and_register(
            stocked,
            TrainingRequest(
                trainer,
                [stocked.domains.get("skin-care")],
                role="ingredient",
                base=stocked.bases.get("tiny"),
                options=options,
                resume=resume,
                device="cpu",
            ),
            progress=progress,
            carry_out=in_a_child(stall),
        )

    return train


def only_run(stocked):
    (lock,) = (stocked.settings.home / "runs").glob("*.lock")
    return lock.with_suffix("")


def test_a_training_in_a_child_is_registered_with_its_progress_and_context(run):
    steps = []
    adapter = run(progress=lambda *step: steps.append(step))
    assert (adapter.ref, adapter.metrics) == ("skin-care@v2", {"train_loss": 0.5})
    assert steps == [(1, 4, {"loss": 2.5}), (4, 4, {"loss": 0.5})]
    context = adapter.context
    assert (context["trainer"], context["trainer_package"], context["trainer_version"]) == (
        "misbehaving",
        "a-misbehaving",
        "1.2.3",
    )
    assert context["options"]["how"] == "well"
    assert context["data"][0]["domain"] == "skin-care"
    assert context["resumed"] is False
    assert context["home"] == "~/x"
    assert context["seconds"] >= 0


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raise", r"trainer 'misbehaving' failed: ValueError: a bug"),
        ("refuse", r"no luck today"),
        ("memory", r"failed: MemoryError: too much"),
        ("exit", r"called sys\.exit\(3\)"),
        ("vanish", r"ended its process with exit code 0 before it was done"),
        ("vanish badly", r"ended its process with exit code 7"),
        ("segfault", r"ended by signal 11 \(SIGSEGV\); it crashed in compiled code"),
        ("killed", r"ended by signal 9 \(SIGKILL\); often the machine ran out of memory"),
        ("dict", r"returned dict, not a TrainingResult"),
        ("text", r"for its adapter, which is not a Path"),
        ("nothing", r"made an adapter that cannot be registered: .*adapter"),
        ("outside", r"outside its run folder"),
        ("bare", r"in the run folder itself"),
        ("invalid", r"made an adapter that cannot be registered: .*adapter_model\.safetensors"),
        ("incomplete", r"made an adapter that cannot be registered: .*adapter_config\.json"),
        ("nan", r"the metric train_loss=nan, which is not a finite number"),
        ("word", r"the metric train_loss='low', which is not a finite number"),
        ("context", r"a context that is not plain JSON"),
        ("figures", r"could not convert string to float"),
    ],
)
def test_what_a_trainer_does_to_itself_is_told(run, stocked, how, told):
    with pytest.raises(TrainerError, match=told) as caught:
        run(how)
    assert caught.value.hint
    assert len(stocked.adapters.list(AdapterFilter(domain="skin-care"))) == 1
    assert (only_run(stocked) / "checkpoint").exists()
    assert not (only_run(stocked) / "result.json").exists()


def test_what_a_trainer_raised_is_shown_where(run):
    with pytest.raises(TrainerError) as caught:
        run("raise")
    assert 'raise ValueError("a bug")' in "".join(caught.value.__notes__)


def test_nothing_that_a_trainer_prints_reaches_stdout(run, capfd):
    run("talk")
    out, err = capfd.readouterr()
    assert out == ""
    for who in ("python", "the descriptor", "a child", "C"):
        assert f"{who} talks" in err


def test_a_trainer_that_reads_its_input_finds_it_empty(run):
    assert run("read").ref == "skin-care@v2"


def test_a_crash_after_the_work_takes_nothing_away_from_it(run):
    assert run("crash later").ref == "skin-care@v2"


def test_the_time_to_be_silent_begins_when_the_trainer_is_loaded(run, misbehaving, monkeypatch):
    misbehaving.write_text("import time\ntime.sleep(3.5)\n" + misbehaving.read_text())
    assert run(stall=3.0).ref == "skin-care@v2"
    monkeypatch.setattr("reccocktail.trainers.child.START_SECONDS", 0.5)
    with pytest.raises(TrainerError, match="no progress for 1 seconds"):
        run(stall=1.0)


@pytest.mark.parametrize("how", ["hang", "hang with a child"])
def test_a_trainer_that_hangs_is_stopped_with_all_that_it_started(run, stocked, how, capfd):
    with pytest.raises(TrainerError, match=r"showed no progress for 3 seconds and was stopped") as caught:
        run(how, stall=3.0)
    assert "--resume" in str(caught.value.hint)
    assert "a_misbehaving.py" in capfd.readouterr().err, "it told where it stood"
    if how == "hang with a child":
        pid = int((only_run(stocked) / "child").read_text())
        assert ends(pid)


def test_a_trainer_that_hangs_and_is_deaf_is_killed(run, monkeypatch):
    monkeypatch.setattr("reccocktail.trainers.child.GRACE_SECONDS", 0.5)
    with pytest.raises(TrainerError, match="was stopped"):
        run("hang deaf", stall=1.0)


def test_progress_keeps_a_slow_training_alive_and_an_interruption_ends_it(run, stocked):
    heard = []

    def progress(done, total, figures):
        heard.append(time.monotonic())
        if heard[-1] - heard[0] > 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("slowly", stall=4.0, progress=progress)
    assert not (only_run(stocked) / "result.json").exists()


def test_a_child_ends_with_the_command_that_started_it(run, stocked, make_adapter, base, tmp_path):
    options = ["-o", "how=hang with a child", "-o", f"adapter={make_adapter(base, 3)}"]
    words = [sys.executable, "-c", "from reccocktail.cli import main; main()", "train", "skin-care"]
    environment = os.environ | {"RECCOCKTAIL_HOME": str(stocked.settings.home), "RECCOCKTAIL_DEVICE": "cpu"}
    command = subprocess.Popen([*words, "--trainer", "misbehaving", *options], env=environment)
    child = None
    for _ in range(600):
        with contextlib.suppress(ValueError, FileNotFoundError):
            child = int((only_run(stocked) / "child").read_text())
            break
        time.sleep(0.1)
    assert child
    command.kill()
    command.wait()
    assert ends(child)


def ends(pid):
    """Whether it has ended within a minute."""
    until = time.monotonic() + 60
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_run_that_was_killed_is_resumed_and_then_taken_as_it_is(run):
    with pytest.raises(TrainerError, match="SIGKILL") as caught:
        run("killed once")
    assert "--resume" in str(caught.value.hint)
    resumed = run("killed once", resume=True)
    assert (resumed.ref, resumed.context["resumed"]) == ("skin-care@v2", True)
    again = run("killed once", resume=True, progress=lambda *_: pytest.fail("trained again"))
    assert (again.ref, again.created) == ("skin-care@v2", False)


def test_options_that_do_not_survive_the_way_are_refused(stocked, install):
    install(
        "secretive",
        "from pydantic import BaseModel, SecretStr\n"
        "class Secretive:\n"
        "    name, summary = 'secretive', 'takes a secret'\n"
        "    class Options(BaseModel):\n        key: SecretStr\n"
        "    def train(self, job): ...\n",
        "Secretive",
    )
    trainer = plugin.load("secretive")
    with pytest.raises(TrainerError, match="its option key does not come back") as caught:
        train_and_register(
            stocked,
            TrainingRequest(
                trainer,
                [stocked.domains.get("skin-care")],
                role="ingredient",
                base=stocked.bases.get("tiny"),
                options=parse_options(trainer, {"key": "hunter2"}),
                resume=False,
                device="cpu",
            ),
            progress=lambda *_: None,
            carry_out=in_a_child(),
        )
    assert "environment" in str(caught.value.hint)
    assert "hunter2" not in "".join(path.read_text() for path in stocked.settings.home.glob("runs/*/*.json"))


def test_data_that_changed_meanwhile_is_refused(run, stocked, tmp_path, monkeypatch):
    from reccocktail.trainers import child

    write = child._write_job

    def change_then_write(job):
        write(job)
        lines = (tmp_path / "data" / "sequences.jsonl").read_text().splitlines()
        (tmp_path / "data" / "sequences.jsonl").write_text("\n".join(lines[:-1]) + "\n")

    monkeypatch.setattr(child, "_write_job", change_then_write)
    with pytest.raises(TrainerError, match="changed while training began"):
        run()
