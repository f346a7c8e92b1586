"""A server that is killed again and again while it is asked for changes and sends them to a webhook: each event arrives, in order, signed."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from reccocktail.registry import Registry
from reccocktail.registry.database.tables import WebhookDeliveryRow
from reccocktail.registry.webhooks.hooks import WebhookFields
from reccocktail.server.app import API
from sqlalchemy import select

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
KILLS = 100 if SOAK else 2
BUSY_SECONDS = 0.8  # a kill comes so long after the server has changed something, at most
HOMES = ("skin-care", "toys", "spirit")
PATIENCE = 120.0


class Victim:
    """`reccocktail server --with-webhooks` on one port, which can be killed and started again."""

    def __init__(self, registry: Registry, warm: Any, secret: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self._port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._warm, self._home, self._secret = warm, registry.settings.home, secret

    @contextmanager
    def running(self) -> Iterator[None]:
        """From when it answers; at the end of the block it is killed."""
        command = [Path(sys.executable).with_name("reccocktail"), "--home", self._home, "server", "--with-webhooks"]
        words = [*command, "--port", self._port, "--requests-per-minute", 10**6]
        environment = os.environ | {"OPS_SECRET": self._secret, "RECCOCKTAIL_SESSION_KEY": "k" * 64}
        process = self._warm.popen(words, env=environment, cwd=self._home, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + PATIENCE
            while not self._answers():
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)
            yield
        finally:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        with suppress(httpx2.TransportError), httpx2.Client(verify=False) as client:
            return client.get(f"{self.url}/healthz").status_code == 200
        return False


class Caller(threading.Thread):
    """Puts an alias there and takes it away, without end, whether the server answers or not; counts what it was told has happened."""

    def __init__(self, url: str, home: str, ended: threading.Event) -> None:
        super().__init__(name=f"caller of {home}", daemon=True)
        self._path = f"{url}{API}/domains/{home}/aliases/shadow"
        self._home, self._ended, self.answered = home, ended, 0

    def run(self) -> None:
        with httpx2.Client(timeout=PATIENCE) as client:  # one, for to make one takes longer than an answer
            while not self._ended.wait(0.02):
                with suppress(httpx2.TransportError):
                    only_new = {
                        "If-None-Match": "*"
                    }  # it may be there: where the answer to its removal was lost, or its removal
                    put = client.put(self._path, json={"ref": f"{self._home}@v1"}, headers=only_new)
                    self.answered += put.status_code == 200
                    removed = client.delete(self._path)
                    self.answered += removed.status_code in (200, 204)


def pass_leases(registry: Registry) -> None:
    """As if a minute had passed: what a killed deliverer had is anybody's."""
    row = WebhookDeliveryRow
    with registry._database.reading() as session:
        held = {*session.scalars(select(row.worker).where(row.status == "pending", row.worker.is_not(None)))}
    for worker in held:
        registry.outbox.release(worker)


def wait_for_an_answer(callers: Sequence[Caller]) -> None:
    until, before = time.monotonic() + PATIENCE, sum(caller.answered for caller in callers)
    while sum(caller.answered for caller in callers) == before:
        assert time.monotonic() < until
        time.sleep(0.01)


def wait_until_sent(registry: Registry) -> None:
    until = time.monotonic() + PATIENCE
    while registry.webhooks.get("ops").pending:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_every_event_of_a_server_that_is_killed_under_load_arrives_signed_and_in_order(
    stocked, base, make_adapter, receiver, warm
):
    seed = random.SystemRandom().randrange(1 << 32) if SOAK else 1
    draw = random.Random(seed)
    stocked.domains.add("toys")
    stocked.adapters.add(make_adapter(base, 2), base=stocked.bases.get("tiny"), role="ingredient", domain="toys")
    hook = WebhookFields(receiver.url, ["alias.moved"], secret="env:OPS_SECRET", allow_private=True)
    stocked.webhooks.add("ops", hook)
    before = stocked.events.list(limit=1)[0].id
    victim, ended = Victim(stocked, warm, receiver.secret), threading.Event()
    callers = [Caller(victim.url, home, ended) for home in HOMES]
    for caller in callers:
        caller.start()
    for _ in range(KILLS):
        with victim.running():
            wait_for_an_answer(callers)
            time.sleep(draw.uniform(0, BUSY_SECONDS))
        pass_leases(stocked)
    ended.set()
    for caller in callers:
        caller.join()
    with victim.running():
        wait_until_sent(stocked)

    happened = [each.id for each in stocked.events.list(limit=10**6, kind="alias") if each.id > before][::-1]
    assert all(each.is_signed for each in receiver.received)
    assert {body["id"] for body in receiver.bodies} == {*happened}
    assert len(happened) >= sum(caller.answered for caller in callers) > 0
    for home in HOMES:
        first = [*dict.fromkeys(body["id"] for body in receiver.bodies if body["domain"] == home)]
        assert first == sorted(first)
    twice = len(receiver.received) - len(happened)
    answered = sum(caller.answered for caller in callers)
    print(f"seed {seed}: {KILLS} kills, {len(happened)} events, {answered} answered, {twice} sent again")
