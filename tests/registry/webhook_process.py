"""A process that writes events and delivers them at once, to be killed: forked from one that has imported everything.

Each line of stdin is a JSON object: the registry's settings, and by how many seconds this process's clock is ahead, so that it need not wait
for the leases of those that were killed. The answer is its process id.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from reccocktail.registry import Registry, Settings
from reccocktail.registry.database.tables import now
from reccocktail.registry.webhooks import post as post  # imported before the fork, for speed
from reccocktail.registry.webhooks.delivery import Deliverer, Surroundings

LIFETIME = 120  # seconds; whatever becomes of the test, no process outlives it for long


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    warm = False
    for line in sys.stdin:
        if not warm:  # whatever is imported or computed once, is so before the fork
            with opened(json.loads(line)) as registry:
                registry.domains.list()
                registry.outbox.claim("nobody", 1, now(), [])
                warm = True
        child = os.fork()
        if not child:
            work(json.loads(line))
        print(child, flush=True)


def work(given: dict[str, Any]) -> NoReturn:
    signal.alarm(LIFETIME)
    with opened(given) as registry:
        threading.Thread(target=move, args=(registry,), daemon=True).start()
        around = Surroundings(clock=lambda: now() + timedelta(seconds=given["ahead"]), environ=given["environ"])
        deliverer = Deliverer(registry.outbox, around)
        while True:
            for _ in deliverer.run():
                pass


def opened(given: dict[str, Any]) -> Registry:
    return Registry.open(Settings(**given["settings"] | {"home": Path(given["settings"]["home"])}), actor="killed")


def move(registry: Registry) -> NoReturn:
    """Moves champion to and fro in every domain."""
    domains = [row.name for row in registry.domains.list()]
    while True:
        for version in (1, 2):
            for domain in domains:
                registry.adapters.alias(f"{domain}@v{version}", "champion")


if __name__ == "__main__":
    main()
