"""Writers of a SQLite database take turns, whatever becomes of those before them."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from reccocktail.registry.database import write_queue
from reccocktail.registry.database.write_queue import begin_writing
from reccocktail.registry.errors import UnavailableError

URL = "sqlite:///here"
WRITER = """
import sqlite3, sys, time
from reccocktail.registry.database.write_queue import begin_writing
place = sqlite3.connect(sys.argv[1], isolation_level=None)
def write(name, hold=0):
    begin_writing(place, 60, "sqlite:///here")
    if hold:
        print("has it", flush=True)
        time.sleep(hold)
    place.execute("INSERT INTO writes (name) VALUES (?)", [name])
    place.execute("COMMIT")
print("ready", flush=True)
"""
HOG = "while True: write('hog')"
HOLD = "write('holder', hold=60)"
WAIT = "write(sys.argv[2])"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "registry.sqlite"
    with connected(path) as place:
        place.execute("PRAGMA journal_mode = WAL")
        place.execute("CREATE TABLE writes (id INTEGER PRIMARY KEY, name TEXT)")
    return path


@pytest.fixture
def start(file: Path) -> Iterator[Start]:
    """Starts a process that writes, and waits until it says so much."""
    started: list[subprocess.Popen[str]] = []

    def begin(script: str, *words: str, until: str = "ready") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER + script, str(file), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        while process.stdout.readline().strip() != until:
            assert process.poll() is None
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def connected(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, isolation_level=None, timeout=60)


def written(place: sqlite3.Connection) -> list[str]:
    return [name for (name,) in place.execute("SELECT name FROM writes ORDER BY id")]


def in_line(file: Path, count: int) -> None:
    """Waits until so many processes have a ticket."""
    queue = file.with_name(f"{file.name}-queue")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        inode = f":{queue.stat().st_ino}" if queue.exists() else ":?"
        tickets = [words for words in lines if words[1:4:2] == ["POSIX", "WRITE"] and words[5].endswith(inode)]
        if len([words for words in tickets if int(words[6]) >= 16]) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("they do not stand in line")


def test_one_who_writes_without_a_pause_lets_another_in_at_once(file: Path, start: Start) -> None:
    for _ in range(2):
        start(HOG)
    place = connected(file)
    passed = []
    for _ in range(20):
        before = len(written(place))
        begin_writing(place, 60, URL)
        passed.append(len(written(place)) - before)
        place.execute("COMMIT")
    # each of the others once, apart from what they write before the ticket is taken; without a queue it is hundreds
    assert sum(passed) < 100


def test_who_came_first_writes_first(file: Path, start: Start) -> None:
    place = connected(file)
    begin_writing(place, 60, URL)
    names = ["one", "two", "three", "four"]
    waiting = []
    for number, name in enumerate(names, 1):
        waiting.append(start(WAIT, name))
        in_line(file, number)
    place.execute("COMMIT")
    for process in waiting:
        process.communicate(timeout=120)
    assert written(place) == names


@pytest.mark.parametrize("killed", [0, 1])
def test_one_who_is_killed_in_the_line_leaves_no_gap(file: Path, start: Start, killed: int) -> None:
    place = connected(file)
    begin_writing(place, 60, URL)
    waiting = []
    for number, name in enumerate(["one", "two", "three"], 1):
        waiting.append(start(WAIT, name))
        in_line(file, number)
    waiting[killed].kill()
    place.execute("COMMIT")
    for process in waiting:
        process.communicate(timeout=120)
    assert len(written(place)) == 2


def test_one_who_is_killed_while_it_writes_keeps_nobody_waiting(file: Path, start: Start) -> None:
    holder = start(HOLD, until="has it")
    waiting = start(WAIT, "next")
    in_line(file, 1)
    holder.kill()
    waiting.communicate(timeout=120)
    assert written(connected(file)) == ["next"]


def test_one_who_is_stopped_in_the_line_is_passed_by(file: Path, start: Start) -> None:
    place = connected(file)
    begin_writing(place, 60, URL)
    stopped = start(WAIT, "stopped")
    in_line(file, 1)
    stopped.send_signal(signal.SIGSTOP)
    place.execute("COMMIT")
    begin_writing(place, 4, URL)  # half of it in the line
    place.execute("COMMIT")


def test_who_holds_the_lock_is_named_and_nothing_stays_of_the_wait(file: Path, start: Start) -> None:
    holder = start(HOLD, until="has it")
    place = connected(file)
    with pytest.raises(UnavailableError, match=f"process {holder.pid} .*nothing was committed") as caught:
        begin_writing(place, 0.3, URL)
    assert str(holder.pid) in (caught.value.hint or "")
    holder.kill()
    holder.wait()
    begin_writing(place, 60, URL)
    assert place.execute("PRAGMA busy_timeout").fetchone() == (60_000,)


def test_others_who_wrote_meanwhile_are_no_process_that_hangs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = connected(file)

    def always_too_late(_: sqlite3.Connection) -> bool:
        other.execute("INSERT INTO writes (name) VALUES ('other')")
        return False

    monkeypatch.setattr(write_queue, "_begun", always_too_late)
    with pytest.raises(UnavailableError, match="while others wrote") as caught:
        begin_writing(connected(file), 0.1, URL)
    assert "hangs" not in (caught.value.hint or "")


def test_without_a_file_to_stand_in_line_writers_still_write(file: Path, start: Start) -> None:
    file.with_name(f"{file.name}-queue").mkdir()
    place = connected(file)
    begin_writing(place, 60, URL)
    waiting = start(WAIT, "waited")
    time.sleep(0.1)
    place.execute("COMMIT")
    waiting.communicate(timeout=120)
    assert written(place) == ["waited"]


def test_threads_of_one_process_take_turns_too(file: Path) -> None:
    def write(name: str) -> None:
        place = connected(file)
        for _ in range(20):
            begin_writing(place, 60, URL)
            place.execute("INSERT INTO writes (name) VALUES (?)", [name])
            place.execute("COMMIT")

    threads = [Thread(target=write, args=[str(number)]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(written(connected(file))) == 80
