"""One contract for all executors: every queued build is carried out once, whatever becomes of the workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import pytest
from reccocktail.engine import workers
from reccocktail.engine.builds import request, standing
from reccocktail.engine.recipes import Recipe
from reccocktail.engine.workers import Happening, inline, processes, stopped_by_signals
from reccocktail.registry import Build, Registry

pytestmark = pytest.mark.slow

EXECUTORS = ("inline", "process")


def serve(executor: str, registry: Registry, **options) -> list[Build]:
    if executor == "inline":
        options.pop("count", None)
        return inline(registry, device="cpu", **options)
    return processes(registry, **{"count": 2} | options, device="cpu")


def share(ingredient: float) -> Recipe:
    return Recipe(coefficients={"spirit": round(1 - ingredient, 3), "ingredient": ingredient})


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_waiting_build_is_carried_out_once(executor, stocked):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(5)]
    told: list[Happening] = []
    ended = serve(executor, stocked, once=True, tell=told.append)
    assert sorted(build.id for build in ended) == sorted(build.id for build in asked)
    assert {stocked.builds.get(build.id).status for build in asked} == {"succeeded"}
    assert len({stocked.builds.get(build.id).digest for build in asked}) == 5
    kinds = Counter((happening.what, happening.build) for happening in told if happening.build)
    assert all(kinds["begins", build.id] == kinds["succeeded", build.id] == 1 for build in asked)
    events = Counter(e.kind for build in asked for e in stocked.events.list(subject=build.id))
    assert events == {"build.queued": 5, "build.running": 5, "build.succeeded": 5}
    assert serve(executor, stocked, once=True) == []


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_build_that_cannot_succeed_fails_and_the_others_do_not(executor, stocked):
    bad = request(
        stocked, "skin-care", Recipe(coefficients={"spirit": (0.1, 0.2, 0.3)})
    ).build  # the base has two layers
    good = request(stocked, "skin-care", share(0.5)).build
    told: list[Happening] = []
    ended = {build.id: build.status for build in serve(executor, stocked, once=True, tell=told.append)}
    assert ended == {bad.id: "failed", good.id: "succeeded"}
    (failed,) = [happening for happening in told if happening.what == "failed"]
    assert "spirit has 3 coefficients, but the base has 2 layers" in str(failed)
    assert not [happening for happening in told if happening.what == "died"]


def test_many_builds_that_fail_do_not_make_their_workers_pass_for_broken(stocked, base, make_adapter):
    row = stocked.bases.get("tiny")
    for number in range(4):
        stocked.domains.add(f"d{number}")
        stocked.adapters.add(make_adapter(base, 20 + number), base=row, role="ingredient", domain=f"d{number}")
        request(stocked, f"d{number}", Recipe(coefficients={"spirit": (0.1, 0.2, 0.3), "ingredient": 0.1 * number}))
    ended = processes(stocked, count=4, device="cpu", once=True)
    assert [build.status for build in ended] == ["failed"] * 4


@pytest.mark.parametrize("executor", EXECUTORS)
def test_watching_builds_what_moved(executor, stocked, base, make_adapter, monkeypatch):
    monkeypatch.setattr(workers, "WATCH_SECONDS", 0.5)
    stocked.domains.add("skin-care", recipe="average")
    assert standing(stocked, "skin-care").state == "unbuilt"
    assert [b.domain for b in serve(executor, stocked, once=True, watch=True)] == ["skin-care"]
    assert standing(stocked, "skin-care").state == "fresh"
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 9), base=row, role="ingredient", domain="skin-care")
    assert standing(stocked, "skin-care").state == "stale"
    told: list[Happening] = []
    serve(executor, stocked, once=True, watch=True, tell=told.append)
    assert standing(stocked, "skin-care").state == "fresh"
    assert str(told[0]).endswith("of skin-care requested: ingredient skin-care@v1 → skin-care@v2")


def test_a_worker_process_that_is_killed_is_replaced_and_its_build_made_by_another(stocked):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(4)]
    told: list[Happening] = []
    killed: list[int] = []

    def kill_the_first(happening: Happening) -> None:
        told.append(happening)
        if happening.what == "begins" and not killed:
            killed.append(int(happening.worker.split(":")[-2]))
            os.kill(killed[0], signal.SIGKILL)

    ended = processes(stocked, count=1, device="cpu", once=True, tell=kill_the_first)
    assert {build.status for build in ended} == {"succeeded"}
    assert sorted(build.id for build in ended) == sorted(build.id for build in asked)
    (died,) = [happening for happening in told if happening.what == "died"]
    assert str(died) == f"died: worker process {killed[0]}: SIGKILL"
    first = next(h.build for h in told if h.what == "begins")
    assert stocked.builds.get(first).attempts == 2
    assert len({build.digest for build in ended}) == 4


def test_processes_that_die_at_once_are_not_started_for_ever(stocked, monkeypatch):
    request(stocked, "skin-care", share(0.5))
    environment = workers._environment
    monkeypatch.setattr(
        workers, "_environment", lambda *a: environment(*a) | {"RECCOCKTAIL_DATABASE_URL": "nonsense://nowhere"}
    )
    with pytest.raises(ChildProcessError, match="died as soon as they were started: "):
        processes(stocked, count=1, device="cpu", once=True)


def test_being_stopped_gives_builds_back(stocked):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(3)]
    told: list[Happening] = []

    def stop(happening: Happening) -> None:
        told.append(happening)
        if happening.what == "begins":
            threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
            time.sleep(0.5)

    with stopped_by_signals(), pytest.raises(KeyboardInterrupt):
        processes(stocked, count=2, device="cpu", once=False, tell=stop)
    assert {stocked.builds.get(build.id).status for build in asked} <= {"queued", "succeeded"}
    assert {build.status for build in inline(stocked, device="cpu", once=True)} <= {"succeeded"}
    assert {stocked.builds.get(build.id).status for build in asked} == {"succeeded"}


def test_a_happening_goes_through_json_unharmed():
    import json
    from datetime import datetime

    happening = Happening("failed", "66", "skin-care", "no: space\nleft")
    said = json.loads(json.dumps(happening.to_json()))
    assert Happening(**said | {"at": datetime.fromisoformat(said["at"])}) == happening
