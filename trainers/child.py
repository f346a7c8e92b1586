"""A training in a process of its own: both ends of it.

The command writes the job to the run's folder and starts `python -m reccocktail.trainers.child`, a fresh interpreter that
loads the trainer, trains and leaves `result.json`. Progress and what went wrong come back as lines of JSON through a pipe that
nothing else writes to. Whatever a trainer does to its process, the command reports it.

Standard input is a leash: it ends when the command does, whichever way, and then the child ends too.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ValidationError

from ..registry.errors import RecCocktailError
from ..registry.signals import check
from ..registry.store.atomic import write_whole
from ..registry.store.room import NO_ROOM, lacks_room
from ..registry.strict_json import OWN_LIMIT, read_object
from ..tasks import DomainData, read_domain
from .plugin import Trainer, TrainerError, TrainingJob, TrainingResult, load
from .runs import JOB, Progress, Run, finished, in_this_process

STALL_SECONDS = 30 * 60.0
START_SECONDS = 120.0
"""How long a child may take at least until it has loaded its trainer, however short its time to be silent is."""
GRACE_SECONDS = 15.0
"""How long a child that was asked to end has for its last words."""
POLL_SECONDS = 0.2
RESUME = "run the same command with --resume to continue from the last checkpoint"
SIGNALS = {
    signal.SIGKILL: "often the machine ran out of memory: see `dmesg`, and train with smaller batches",
    signal.SIGSEGV: "it crashed in compiled code; the location is shown above",
    signal.SIGBUS: "it crashed in compiled code, or the disk or shared memory is full",
    signal.SIGABRT: "it aborted in compiled code; the reason is shown above",
    signal.SIGTERM: "a user or the system stopped it",
    signal.SIGXCPU: "it reached its limit of processor time",
}


def in_a_child(stall_seconds: float | None = STALL_SECONDS) -> Callable[[Run], TrainingResult]:
    """A way to carry out a run: in a child process that is stopped when it shows no progress for so long; None: never."""
    return lambda run: _Child(run, stall_seconds).result()


class _Child:
    """The command's end."""

    def __init__(self, run: Run, stall_seconds: float | None) -> None:
        self._run = run
        self._stall_seconds = stall_seconds
        self._told: dict[str, Any] | None = None
        self._began = False
        self._who = f"trainer {run.trainer.name!r}"

    def result(self) -> TrainingResult:
        """Start it, watch it, and read what it left. Raises TrainerError, or KeyboardInterrupt once it has ended."""
        _write_job(self._run)
        read, write = os.pipe()
        handles = [write] if self._run.lock is None else [write, self._run.lock]
        words = [
            "-P",
            "-W",
            "ignore::FutureWarning",
            "-m",
            __name__,
            str(self._run.job.folder / JOB),
            *map(str, handles),
        ]
        try:
            process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=handles,
                start_new_session=True,  # Ctrl-C reaches it through us, and its own children end with it
                env=os.environ | {"TQDM_DISABLE": "1"},  # its progress comes by the pipe; the terminal is not its own
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        try:
            self._watch(process, read)
        except BaseException as error:
            _end(process, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            raise
        finally:
            os.close(read)
            assert process.stdin
            process.stdin.close()
        return self._outcome(process.returncode)

    def _watch(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        """Pass its progress on until it has ended. Raises TrainerError when it is silent for too long."""
        rest, heard, open_ = b"", time.monotonic(), True
        while True:
            check()
            ended = process.poll() is not None  # asked before reading: what it wrote last is not missed
            ready = open_ and select.select([pipe], [], [], 0 if ended else POLL_SECONDS)[0]
            if ready:
                chunk = os.read(pipe, 1 << 16)
                open_ = bool(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
                    heard = time.monotonic()
            elif ended:
                _signal_group(process, signal.SIGKILL)  # what it left behind
                return
            elif not open_:
                time.sleep(POLL_SECONDS)
            if time.monotonic() - heard > self._allowed():
                _signal_group(process, signal.SIGUSR1)  # prints its stack to stderr
                time.sleep(POLL_SECONDS)
                if finished(self._run.job.folder) is not None:  # it hangs on the way out
                    _end(process, signal.SIGTERM)
                    return
                raise TrainerError(
                    f"{self._who} showed no progress for {_duration(self._allowed())} and was stopped",
                    hint=f"{RESUME}; --stall-timeout gives it more time",
                )

    def _allowed(self) -> float:
        """How many seconds it may be silent now: what it imports before it begins takes long on a busy machine."""
        if self._stall_seconds is None:
            return math.inf
        return self._stall_seconds if self._began else max(self._stall_seconds, START_SECONDS)

    def _take(self, line: dict[str, Any]) -> None:
        if "error" in line:
            self._told = line["error"]
        elif "began" in line:
            self._began = True
        else:
            self._run.job.progress(line["done"], line["total"], line["figures"])

    def _outcome(self, code: int) -> TrainingResult:
        if self._told is not None:
            error = TrainerError(self._told["message"], hint=self._told["hint"])
            error.code = self._told["code"]
            error.add_note(self._told["traceback"])
            raise error
        if (result := finished(self._run.job.folder)) is not None:
            return result  # it was done; libraries that crash on the way out take nothing away from that
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
            why = f"; {SIGNALS[signal.Signals(-code)]}" if -code in SIGNALS else ""
            raise TrainerError(f"{self._who} was ended by signal {-code} ({name}){why}", hint=RESUME)
        if code:
            raise TrainerError(f"{self._who} ended its process with exit code {code} before it was done", hint=RESUME)
        raise TrainerError(f"{self._who} ended its process with exit code 0 before it was done", hint=RESUME)


def _end(process: subprocess.Popen[bytes], first: signal.Signals) -> None:
    """Ask it to end, wait a while, then end it and all that it started. A second Ctrl-C cuts the waiting short."""
    try:
        if first is signal.SIGINT:
            # Python's own children get the signal from their parent; on a terminal they would get it twice
            process.send_signal(first)
        else:
            _signal_group(process, first)
        process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"


def _write_job(run: Run) -> None:
    job = run.job
    content = {
        "trainer": run.trainer.name,
        "role": job.role,
        "base": {"name": job.base_name, "folder": str(job.base_folder)},
        "domains": [
            {"name": data.name, "folder": str(folder), "digest": data.digest}
            for data, folder in zip(job.domains, run.data_folders, strict=True)
        ],
        "options": as_json(job.options, run.trainer),
        "resume": job.resume,
        "device": job.device,
        "context": run.context,
    }
    write_whole(job.folder / JOB, json.dumps(content, indent=2))


def as_json(options: BaseModel, trainer: Trainer) -> Any:
    """The options as they travel. Raises TrainerError for such as do not come back the same; a SecretStr does not."""
    content = options.model_dump(mode="json", by_alias=True, round_trip=True)
    try:
        back = trainer.Options.model_validate(content)
    except ValidationError as error:
        raise TrainerError(f"trainer {trainer.name!r}: its options cannot be read back from JSON: {error}") from error
    for name in type(options).model_fields:
        if getattr(back, name) != getattr(options, name):
            raise TrainerError(
                f"trainer {trainer.name!r}: its option {name} does not come back from JSON as it was",
                hint="options are kept with the adapter; read secrets from the environment instead",
            )
    return content


def main(job_file: str, pipe: str, *locks: str) -> int:
    """The child's end: train as the job file says; progress and failures go into the pipe."""
    for handle in (pipe, *locks):
        os.set_inheritable(int(handle), False)  # this process holds them, not what it starts
    threading.Thread(target=_follow, args=[_leash()], daemon=True).start()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    with os.fdopen(int(pipe), "w", encoding="utf-8", buffering=1) as lines:
        try:
            run = _read_job(Path(job_file), _progress_writer(lines))
            _write_line(lines, {"began": True})
            in_this_process(run)
        except KeyboardInterrupt:
            return 130
        except RecCocktailError as error:
            _write_line(lines, {"error": _failure(error)})
            return 1
        except BaseException as error:  # noqa: BLE001  the last resort of a process that someone waits for
            wrapped = TrainerError(f"{type(error).__name__}: {error}", hint=NO_ROOM if lacks_room(error) else None)
            _write_line(lines, {"error": _failure(wrapped) | {"traceback": traceback.format_exc()}})
            return 1
    return 0


def _failure(error: RecCocktailError) -> dict[str, Any]:
    lines = "".join(traceback.format_exception(error))
    return {"code": error.code, "message": str(error), "hint": error.hint, "traceback": lines}


def _leash() -> int:
    """The handle of standard input, which is empty from now on."""
    leash = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return leash


def _follow(leash: int) -> None:
    """End with the command."""
    os.read(leash, 1)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)  # for a trainer that catches it
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _progress_writer(lines: IO[str]) -> Progress:
    """The job's `progress`. Raises TypeError, ValueError for what are no numbers, where the trainer can be seen."""

    def progress(done: int, total: int, figures: Mapping[str, float]) -> None:
        numbers = {str(name): float(value) for name, value in figures.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        _write_line(lines, {"done": int(done), "total": int(total), "figures": finite})

    return progress


_telling = threading.Lock()


def _write_line(lines: IO[str], content: Mapping[str, Any]) -> None:
    with _telling:
        lines.write(json.dumps(content) + "\n")


def _read_job(path: Path, progress: Progress) -> Run:
    content = read_object(path, limit=OWN_LIMIT)
    trainer = load(content["trainer"])
    folders = tuple(Path(domain["folder"]) for domain in content["domains"])
    job = TrainingJob(
        role=content["role"],
        base_folder=Path(content["base"]["folder"]),
        base_name=content["base"]["name"],
        domains=tuple(map(_data, content["domains"])),
        folder=path.parent,
        options=trainer.Options.model_validate(content["options"]),
        resume=content["resume"],
        device=content["device"],
        progress=progress,
    )
    return Run(trainer, job, folders, content["context"])


def _data(domain: Mapping[str, str]) -> DomainData:
    data = read_domain(domain["folder"], domain["name"])
    if data.digest != domain["digest"]:
        raise TrainerError(f"the data in {domain['folder']} changed while training began", hint="run it again")
    return data


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
