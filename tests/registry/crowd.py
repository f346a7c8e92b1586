"""A crowd's members: `Member` starts this file as a script, in a process of its own, and tells it what to do.

The process says `ready` when the registry is open, begins when it is told `go`, and ends with a JSON line about what it did.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from reccocktail.registry import Adapter, Registry, Settings
from reccocktail.registry.errors import DatabaseError
from sqlalchemy import Engine, event

LIFETIME = 150  # seconds; whatever becomes of the test, no process of a crowd outlives it for long

Place = tuple[str, str, str]
"""Base, domain or `spirit`, and the folder of an adapter."""


class Member:
    """A process that does `work`, one of the functions below, on the registry once it is told to `go`; `start` may be `Warm.popen`."""

    def __init__(
        self,
        settings: Settings,
        work: str,
        *,
        actor: str = "member",
        start: Callable[..., subprocess.Popen[str]] = subprocess.Popen,
        **given: Any,
    ) -> None:
        self._process = start([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        about = asdict(settings) | {"home": str(settings.home)}
        self._notify(json.dumps({"settings": about, "actor": actor, "work": work, "given": given}))
        self.hears("ready")

    def go(self) -> None:
        self._notify("go")

    def hears(self, word: str) -> None:
        """Waits for the word that the process says next."""
        assert self._process.stdout
        assert self._process.stdout.readline() == f"{word}\n"

    def done(self) -> dict[str, Any]:
        """What it did; fails unless it ended by itself and well."""
        out, _ = self._process.communicate(timeout=200)
        assert self._process.returncode == 0
        return json.loads(out.splitlines()[-1])

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _notify(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


def add(registry: Registry, place: Place) -> Adapter:
    base, name, folder = place
    where: dict[str, Any] = {"role": "spirit"} if name == "spirit" else {"role": "ingredient", "domain": name}
    return registry.adapters.add(folder, base=registry.bases.get(base), **where)


def say(word: Any) -> None:
    print(word if isinstance(word, str) else json.dumps(word), flush=True)


def begin() -> None:
    say("ready")
    assert sys.stdin.readline() == "go\n"


def mix(registry: Registry, places: list[Place], shared: list[Place], seed: int) -> dict[str, Any]:
    """Registers all, and between the registrations does what else people do, drawn by the seed."""
    draw = random.Random(seed)
    me = f"member-{seed}"
    own: list[Adapter] = []
    archived: set[tuple[str, str]] = set()
    created: list[tuple[str, str, int, str]] = []
    claimed: list[str] = []

    def register(place: Place) -> Adapter:
        adapter = add(registry, place)
        if adapter.created:
            created.append((adapter.base, place[1], adapter.version, adapter.digest))
        return adapter

    def move_alias() -> None:
        adapter = draw.choice([each for each in own if (each.base, each.ref) not in archived])
        registry.adapters.alias(adapter.ref, draw.choice(["champion", "candidate", me]), base=adapter.base)

    def remove_own_alias() -> None:
        adapter = registry.adapters.alias(own[-1].ref, me, base=own[-1].base)
        registry.adapters.remove_alias(f"{adapter.ref.partition('@')[0]}@{me}", base=adapter.base)

    def archive() -> None:
        adapter = draw.choice(own[:-1] or own)
        if adapter is not own[-1]:
            registry.adapters.archive(adapter.ref, base=adapter.base, force=True)
            archived.add((adapter.base, adapter.ref))

    def restore() -> None:
        if archived:
            base, ref = archived.pop()
            registry.adapters.restore(ref, base=base)

    def request() -> None:
        ingredients = [each for each in own if each.domain]
        if ingredients:
            adapter = draw.choice(ingredients)
            inputs = {"adapters": [{"ref": adapter.ref, "digest": adapter.digest}]}
            key, force = f"{adapter.domain}-{draw.randrange(3)}", draw.random() < 0.3
            registry.builds.request(adapter.domain or "", adapter.base, key, {}, inputs, force=force)

    def work() -> None:
        build = registry.builds.claim(me, lease_seconds=600)
        if build is None:
            return
        claimed.append(build.id)
        registry.builds.heartbeat(build.id, me, lease_seconds=600)
        registry.builds.progress(build.id, me, 1, 2)
        end = draw.randrange(4)
        if end == 0:
            registry.builds.fail(build.id, me, {"code": "drawn", "message": "as drawn"})
        elif end == 1:
            registry.builds.cancel(build.id)
        elif end == 2:
            registry.builds.succeed(build.id, me, own[0].digest, None, None)

    rest = list(shared)
    draw.shuffle(rest)
    begin()
    for number, place in enumerate(places):
        own.append(register(place))
        if number % 3 == 0 and rest:
            register(rest.pop())
        for step in draw.sample([move_alias, remove_own_alias, archive, restore, request, work], k=2):
            step()
    for place in rest:
        register(place)
    if not archived:  # whatever was drawn, each leaves an archived version and a build that was claimed
        registry.adapters.archive(own[0].ref, base=own[0].base, force=True)
    request()
    work()
    return {"created": created, "claimed": claimed}


def persist(registry: Registry, places: list[Place]) -> dict[str, Any]:
    """Registers all, each again and again until it is in; tells what refused it, and which version it got."""
    refused: list[str] = []
    added: list[tuple[str, int]] = []
    begin()
    for place in places:
        while True:
            try:
                adapter = add(registry, place)
            except DatabaseError as error:
                refused.append(str(error))
                continue
            added.append((adapter.digest, adapter.version))
            say("added")
            break
    return {"refused": refused, "added": added}


def die(settings: Settings, places: list[Place]) -> dict[str, Any]:
    """Of each place a child process begins the registration, and kills itself before its 1st, 2nd, 3rd … step.

    A step is what the interpreter does to the file system, a statement to the database, or a commit. Ends when a
    registration went through; that one and how it ended is not among the deaths.
    """
    begin()
    for number, place in enumerate(places):
        child = os.fork()
        if child == 0:
            signal.alarm(LIFETIME)
            with Registry.open(settings) as registry:
                count_down(number)
                add(registry, place)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return {"deaths": number, "ended": os.WEXITSTATUS(status)}
    return {"deaths": len(places), "ended": None}


def die_collecting(settings: Settings, waste: list[str], steps: int) -> dict[str, Any]:
    """A child process begins a collection of these folders and kills itself before its 1st, 2nd, 3rd … step.

    Ends when a collection went through; `broken` is what was lost or damaged meanwhile.
    """
    begin()
    broken: list[str] = []
    for number in range(steps):
        with Registry.open(settings) as registry:
            for folder in waste:
                registry.store.add_folder(Path(folder))
        child = os.fork()
        if child == 0:
            signal.alarm(LIFETIME)
            with Registry.open(settings) as registry:
                count_down(number)
                registry.store.gc(registry.digests(), grace=timedelta(0))
                os._exit(0)
        _, status = os.waitpid(child, 0)
        with Registry.open(settings) as registry:
            broken += [*map(str, registry.missing()), *map(str, registry.store.verify())]
        if os.WIFEXITED(status):
            return {"deaths": number, "ended": os.WEXITSTATUS(status), "broken": broken}
    return {"deaths": steps, "ended": None, "broken": broken}


def count_down(steps: int, number: int = signal.SIGKILL) -> None:
    """Sends this process the signal before the step after so many."""
    left = steps
    lock = threading.RLock()

    def step() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == -1:  # os.kill is heard too
                os.kill(os.getpid(), number)

    def heard(name: str, arguments: tuple[Any, ...]) -> None:
        changes = name.startswith(("os.", "shutil.")) and not name.startswith(("os.listdir", "os.scandir", "os.walk"))
        if changes or (name == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            step()

    sys.addaudithook(heard)
    event.listen(Engine, "before_cursor_execute", lambda *_: step())
    event.listen(Engine, "commit", lambda *_: step())


def main() -> None:
    signal.alarm(LIFETIME)
    plan = json.loads(sys.stdin.readline())
    settings = Settings(**plan["settings"] | {"home": Path(plan["settings"]["home"])})
    works: dict[str, Callable[..., dict[str, Any]]] = {"mix": mix, "persist": persist}
    work = plan.pop("work")
    if work in ("die", "die_collecting"):
        done = (die if work == "die" else die_collecting)(settings, **plan["given"])
    else:
        with Registry.open(settings, actor=plan["actor"]) as registry:
            done = works[work](registry, **plan["given"])
    say(done | {"torch": "torch" in sys.modules})


if __name__ == "__main__":
    main()
