"""A signal that ends the process ends it in good order: no transaction is left open, and no request to end is lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator

import pytest
from reccocktail.cli.bars import Bar
from reccocktail.registry import Registry
from reccocktail.registry.database import write_queue
from reccocktail.registry.database.connection import BUSY_SECONDS, sqlite_file
from reccocktail.registry.signals import Stopped, check, deferred, raised


@pytest.fixture(autouse=True)
def _by_signals() -> Iterator[None]:
    with raised():
        yield


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_a_transaction_comes_at_its_end_and_leaves_no_lock(number: int, registry: Registry) -> None:
    survived = []

    def write() -> None:
        with registry._database.writing():
            ask(number)
            survived.append(number)

    with pytest.raises(KeyboardInterrupt) as caught:
        write()
    assert survived == [number]
    assert getattr(caught.value, "number", signal.SIGINT) == number
    registry.domains.add("beauty")  # waits for a write lock that was left behind, and fails


def test_a_signal_just_as_a_transaction_begins_leaves_no_lock(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = write_queue._begun

    def and_asked(connection: sqlite3.Connection) -> bool:
        done = begun(connection)
        ask()
        return done

    if sqlite_file(registry.settings.database_url) is None:
        pytest.skip("PostgreSQL has no such queue")
    with monkeypatch.context() as patched:
        patched.setattr(write_queue, "_begun", and_asked)
        with pytest.raises(Stopped):
            registry.domains.add("beauty")
    registry.domains.add("toys")


def test_who_waits_for_the_write_lock_is_stopped_at_once(registry: Registry) -> None:
    file = sqlite_file(registry.settings.database_url)
    if file is None:
        pytest.skip("PostgreSQL has no such queue")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, ask).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        registry.domains.add("beauty")
    assert time.monotonic() - began < BUSY_SECONDS
    other.execute("ROLLBACK")
    other.close()
    registry.domains.add("beauty")


def test_a_second_signal_does_not_wait() -> None:
    reached = []

    def work() -> None:
        with deferred():
            ask()
            reached.append("after the first")
            ask()
            reached.append("after the second")

    with pytest.raises(Stopped):
        work()
    assert reached == ["after the first"]


class Interrupted:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class Finalized:
    def __del__(self) -> None:
        ask()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_to_end_that_python_discarded_is_made_again() -> None:
    check()
    Finalized()  # what a handler raises in a finalizer goes nowhere
    with pytest.raises(Stopped):
        check()


def test_nothing_of_it_is_left_for_the_next() -> None:
    with pytest.raises(Stopped), raised():
        ask()
    check()


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised():
            ask(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_in_a_finalizer_is_not_lost():
    with raised():
        Interrupted()
        with pytest.raises(KeyboardInterrupt):
            check()
        check()  # once


def test_work_that_reports_its_progress_notices_a_lost_ctrl_c_outside_of_deferred_blocks() -> None:
    bar = Bar("work")
    with raised():
        Interrupted()
        with deferred():
            bar.update(1, 3)
        assert bar.state.done == 1
        with pytest.raises(KeyboardInterrupt):
            bar.update(2, 3)
        bar.update(3, 3)
