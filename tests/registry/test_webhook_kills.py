"""Processes that write events and deliver them are killed with -9, again and again: each event arrives at least once, and in order.

In `make soak` a hundred times on each database.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Adapter, Registry
from reccocktail.registry.database.tables import now
from reccocktail.registry.webhooks.delivery import Deliverer, Surroundings
from reccocktail.registry.webhooks.hooks import WebhookFields
from reccocktail.registry.webhooks.outbox import LEASE_SECONDS

KILLS = 100 if os.environ.get("RECCOCKTAIL_SOAK") == "1" else 30  # `make soak`
DOMAINS = ("beauty", "toys", "books")
PATIENCE = 120  # seconds


class Victims:
    """Starts processes of `webhook_process.py`, one after the other."""

    def __init__(self, registry: Registry, environ: dict[str, str]) -> None:
        self._given = {
            "settings": asdict(registry.settings) | {"home": str(registry.settings.home)},
            "environ": environ,
        }
        script = Path(__file__).with_name("webhook_process.py")
        self._parent = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ahead = 0.0

    def start(self) -> int:
        assert self._parent.stdin
        assert self._parent.stdout
        self.ahead += LEASE_SECONDS + 1
        self._parent.stdin.write(json.dumps(self._given | {"ahead": self.ahead}) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def close(self) -> None:
        self._parent.communicate()


@pytest.fixture
def victims(registry: Registry, receiver: Any) -> Iterator[Victims]:
    found = Victims(registry, {"HOOK": receiver.secret})
    yield found
    found.close()


@pytest.mark.slow
def test_each_event_arrives_at_least_once_and_in_order_however_often_its_deliverer_is_killed(
    registry: Registry, receiver: Any, victims: Victims, add: Callable[..., Adapter]
) -> None:
    for domain in DOMAINS:
        registry.domains.add(domain)
        add(domain, 1)
        add(domain, 2)
    registry.webhooks.add("hook", WebhookFields(receiver.url, secret="env:HOOK", allow_private=True))
    draw, began = random.Random(0), time.monotonic()
    for _ in range(KILLS):
        wanted, process = len(receiver.received) + draw.randrange(1, 10), victims.start()
        deadline = time.monotonic() + PATIENCE
        while len(receiver.received) < wanted:  # it is at work
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))  # and is hit at any of its steps
        os.kill(process, signal.SIGKILL)
        wait_for_end(process)
    took = time.monotonic() - began

    later = Surroundings(
        clock=lambda: now() + timedelta(seconds=victims.ahead + LEASE_SECONDS + 1), environ={"HOOK": receiver.secret}
    )
    rest = [*Deliverer(registry.outbox, later).run()]
    written = [
        event for kind in ("alias.set", "alias.moved") for event in registry.events.list(kind=kind, limit=1_000_000)
    ]
    assert {each.status for each in rest} <= {"delivered"}
    assert all(each.is_signed for each in receiver.received)
    arrived = Counter(body["id"] for body in receiver.bodies)
    assert arrived.keys() == {event.id for event in written}
    first = list(dict.fromkeys((body["domain"], body["id"]) for body in receiver.bodies))
    for domain in DOMAINS:
        ids = [number for name, number in first if name == domain]
        assert ids == sorted(ids)
        assert ids
    assert len(receiver.received) >= KILLS
    twice = sum(count > 1 for count in arrived.values())
    print(
        f"{KILLS} kills in {took:.0f} s: {len(written)} events, {len(rest)} of them after the last kill, {twice} more than once"
    )


def wait_for_end(process: int) -> None:
    with suppress(ProcessLookupError):
        while True:
            os.kill(process, 0)
            time.sleep(0.001)
