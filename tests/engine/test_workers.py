"""One contract for all executors: every queued build is carried out once, whatever becomes of the workers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from reccocktail.engine.building import ray_executor as placing_on_ray
from reccocktail.engine.building import stale_builds, workers
from reccocktail.engine.building.execution import worker_name
from reccocktail.engine.building.freshness import freshness_of
from reccocktail.engine.building.job import BuildOutcome
from reccocktail.engine.building.planning import request
from reccocktail.engine.building.prometheus import Counters
from reccocktail.engine.building.ray_executor import Cluster as RayCluster
from reccocktail.engine.building.ray_executor import on_ray
from reccocktail.engine.building.resources import Needs
from reccocktail.engine.building.worker_events import WorkerEvent
from reccocktail.engine.building.workers import WorkerOptions, inline, processes, stopped_by_signals
from reccocktail.engine.recipe_book import settle_recipe
from reccocktail.engine.recipes import Recipe
from reccocktail.registry import Build, Registry
from reccocktail.registry.errors import StoreError, UnavailableError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_children")]

EXECUTORS = ("inline", "process", pytest.param("ray", marks=pytest.mark.ray))


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes on loopback, with one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    room = {"num_cpus": 1, "object_store_memory": 80 << 20, "resources": {"disk_gb": 5}}
    started = Cluster(initialize_head=True, head_node_args=room | {"include_dashboard": False})
    started.add_node(**room)
    yield started.address
    ray.shutdown()  # a node that somebody is connected to cannot be removed
    started.shutdown()


@pytest.fixture
def connected(cluster: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the cluster, with which all tests that ask for this stay connected: Ray starts workers anew for each connection."""
    import ray

    connect = placing_on_ray._connected

    def stay(address: str | None) -> Any:
        if address != cluster:
            return connect(address)
        if not ray.is_initialized():
            connect(address)
        return SimpleNamespace(**vars(ray) | {"shutdown": lambda: None})

    monkeypatch.setattr(placing_on_ray, "_connected", stay)
    return cluster


@pytest.fixture
def address(executor: str, request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("connected") if executor == "ray" else None


def serve(executor: str, address: str | None, registry: Registry, **options) -> list[Build]:
    notify = {"notify": options.pop("notify")} if "notify" in options else {}
    wanted = WorkerOptions(device="cpu", **options)
    if executor == "inline":
        return inline(registry, wanted, **notify)
    if executor == "ray":
        return on_ray(registry, wanted, RayCluster(address), **notify)
    return processes(registry, wanted, count=2, **notify)


def share(ingredient: float) -> Recipe:
    return Recipe(coefficients={"spirit": round(1 - ingredient, 3), "ingredient": ingredient})


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_waiting_build_is_carried_out_once(executor, address, stocked):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(5)]
    told: list[WorkerEvent] = []
    ended = serve(executor, address, stocked, once=True, notify=told.append)
    assert sorted(build.id for build in ended) == sorted(build.id for build in asked)
    assert {stocked.builds.get(build.id).status for build in asked} == {"succeeded"}
    assert len({stocked.builds.get(build.id).digest for build in asked}) == 5
    kinds = Counter((event.what, event.build) for event in told if event.build)
    assert all(kinds["begins", build.id] == kinds["succeeded", build.id] == 1 for build in asked)
    events = Counter(e.kind for build in asked for e in stocked.events.list(subject=build.id))
    assert events == {"build.queued": 5, "build.running": 5, "build.succeeded": 5}
    assert serve(executor, address, stocked, once=True) == []


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_build_that_cannot_succeed_fails_and_the_others_do_not(executor, address, stocked):
    bad = request(
        stocked, "skin-care", Recipe(coefficients={"spirit": (0.1, 0.2, 0.3)})
    ).build  # the base has two layers
    good = request(stocked, "skin-care", share(0.5)).build
    told: list[WorkerEvent] = []
    ended = {build.id: build.status for build in serve(executor, address, stocked, once=True, notify=told.append)}
    assert ended == {bad.id: "failed", good.id: "succeeded"}
    (failed,) = [event for event in told if event.what == "failed"]
    assert "spirit has 3 coefficients, but the base has 2 layers" in str(failed)
    assert not [event for event in told if event.what == "died"]


def test_many_builds_that_fail_do_not_make_their_workers_pass_for_broken(stocked, base, make_adapter):
    row = stocked.bases.get("tiny")
    for number in range(4):
        stocked.domains.add(f"d{number}")
        stocked.adapters.add(make_adapter(base, 20 + number), base=row, role="ingredient", domain=f"d{number}")
        request(stocked, f"d{number}", Recipe(coefficients={"spirit": (0.1, 0.2, 0.3), "ingredient": 0.1 * number}))
    ended = processes(stocked, WorkerOptions(device="cpu", once=True), count=4)
    assert [build.status for build in ended] == ["failed"] * 4


@pytest.mark.parametrize("executor", EXECUTORS)
def test_watching_builds_what_moved(executor, address, stocked, base, make_adapter, monkeypatch):
    monkeypatch.setattr(stale_builds, "WATCH_SECONDS", 0.5)
    stocked.domains.add("skin-care", recipe="average")
    assert freshness_of(stocked, "skin-care").state == "unbuilt"
    assert [b.domain for b in serve(executor, address, stocked, once=True, watch=True)] == ["skin-care"]
    assert freshness_of(stocked, "skin-care").state == "fresh"
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 9), base=row, role="ingredient", domain="skin-care")
    assert freshness_of(stocked, "skin-care").state == "stale"
    told: list[WorkerEvent] = []
    serve(executor, address, stocked, once=True, watch=True, notify=told.append)
    assert freshness_of(stocked, "skin-care").state == "ready"
    assert str(told[0]).endswith("of skin-care requested: ingredient skin-care@v1 → skin-care@v2")
    stocked.adapters.add(make_adapter(base, 10), base=row, role="ingredient", domain="skin-care")
    for _ in range(2):  # what is known already is no event
        stale_builds.StaleBuildPoller(stocked, True, told.append).look()
    assert len(stocked.events.list(kind="domain.stale")) == 2


def test_a_worker_process_that_is_killed_is_replaced_and_its_build_made_by_another(stocked):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(4)]
    told: list[WorkerEvent] = []
    killed: list[int] = []

    def kill_the_first(event: WorkerEvent) -> None:
        told.append(event)
        if event.what == "begins" and not killed:
            killed.append(int(event.worker.split(":")[-2]))
            os.kill(killed[0], signal.SIGKILL)

    ended = processes(stocked, WorkerOptions(device="cpu", once=True), count=1, notify=kill_the_first)
    assert {build.status for build in ended} == {"succeeded"}
    assert sorted(build.id for build in ended) == sorted(build.id for build in asked)
    (died,) = [event for event in told if event.what == "died"]
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
        processes(stocked, WorkerOptions(device="cpu", once=True), count=1)


def test_a_worker_beside_a_server_is_replaced_each_time_it_dies_until_that_is_of_no_use(stocked, monkeypatch):
    asked = request(stocked, "skin-care", share(0.5)).build
    started, waited, told = list[Any](), list[float | None](), list[WorkerEvent]()

    def start(*_: Any) -> Any:
        # the first two were of use; the others end as soon as they were started
        number = len(started)
        about = {"has_begun": number < 2, "is_alive": False, "ending": "SIGKILL", "last_words": "no torch"}
        started.append(SimpleNamespace(token=f"token-{number}", pid=number, **about))
        return started[-1]

    class Never(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout)
            return False

    monkeypatch.setattr(workers, "_Child", start)
    kept = workers.KeptWorker(stocked, WorkerOptions(device="cpu"), told.append)
    stocked.builds.claim(worker_name("token-0"), build_id=asked.id)
    kept.keep(Never())
    assert stocked.builds.get(asked.id).status == "queued"  # it was freed when its worker died
    assert len(started) == 2 + workers.BROKEN_BESIDE
    seconds = [each for each in waited if each != workers.LOOK_SECONDS]
    assert seconds[:6] == [1.0, 1.0, 1.0, 2.0, 4.0, 8.0]
    assert seconds[-1] == workers.LONGEST_RESTART_SECONDS
    assert Counter(event.what for event in told) == {"died": len(started), "started": len(started) - 1}
    assert "no torch" in str(told[-1])


def test_being_stopped_gives_builds_back(stocked):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(3)]
    told: list[WorkerEvent] = []

    def stop(event: WorkerEvent) -> None:
        told.append(event)
        if [each.what for each in told].count("begins") == 1 and event.what == "begins":
            threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
            time.sleep(0.5)

    with stopped_by_signals(), pytest.raises(KeyboardInterrupt):
        processes(stocked, WorkerOptions(device="cpu", once=False), count=2, notify=stop)
    assert {stocked.builds.get(build.id).status for build in asked} <= {"queued", "succeeded"}
    assert {build.status for build in inline(stocked, WorkerOptions(device="cpu", once=True))} <= {"succeeded"}
    assert {stocked.builds.get(build.id).status for build in asked} == {"succeeded"}


def test_builds_over_one_base_are_made_in_one_pass_and_what_goes_wrong_with_one_is_its_own_affair(
    stocked, base, make_adapter
):
    """Beside good builds: one that cannot be planned, one that cannot be merged, one that is cancelled while it is made."""
    row = stocked.bases.get("tiny")
    for name, seed in ("good", 31), ("unplanned", 32), ("overflowing", 33), ("cancelled", 34):
        stocked.domains.add(name)
        stocked.adapters.add(make_adapter(base, seed), base=row, role="ingredient", domain=name)
    asked = {
        "good": request(stocked, "good", share(0.5)).build,
        "unplanned": request(stocked, "unplanned", Recipe(coefficients={"spirit": (0.1, 0.2, 0.3)})).build,
        "overflowing": request(
            stocked,
            "overflowing",
            Recipe(coefficients={"spirit": 1e30}, output={"format": "checkpoint", "dtype": "float16"}),
        ).build,
        "cancelled": request(stocked, "cancelled", share(0.25)).build,
    }
    alone = request(stocked, "good", share(0.75)).build
    told: list[WorkerEvent] = []

    def cancel(event: WorkerEvent) -> None:
        told.append(event)
        if event.what == "begins" and event.domain == "cancelled":
            stocked.builds.cancel(asked["cancelled"].id)

    ended = {
        build.domain: build
        for build in inline(stocked, WorkerOptions(device="cpu", once=True, group=4), notify=cancel)[:4]
    }
    assert {name: build.status for name, build in ended.items()} == {
        "good": "succeeded", "unplanned": "failed", "overflowing": "failed", "cancelled": "cancelled",
    }  # fmt: skip
    assert "does not stay finite" in stocked.builds.get(asked["overflowing"].id).error["message"]
    begun = [event.detail for event in told if event.what == "begins"]
    assert begun == ["attempt 1, in one pass with 3 more"] * 4 + ["attempt 1"]
    assert any("is made alone, since 3 builds in one pass failed" in str(event) for event in told)
    made = stocked.builds.get(asked["good"].id)
    said = [line.text for line in stocked.builds.logs(made.id)]
    assert any(re.fullmatch(r"merge: [\d,]+ bytes in [\d.]+ s", text) for text in said)  # counted once for all
    again = request(stocked, "good", share(0.5), force=True).build
    inline(stocked, WorkerOptions(device="cpu", once=True, group=1))
    assert stocked.builds.get(again.id).digest == made.digest
    assert stocked.builds.get(alone.id).status == "succeeded"
    assert not list(stocked.store.root.glob("staging/*"))


def test_every_worker_takes_its_share_and_what_was_lost_goes_alone(stocked):
    asked = [request(stocked, "skin-care", share(n / 20)).build.id for n in range(10)]
    first = stocked.builds.claim_batch("one", 8, num_workers=4)
    assert [build.id for build in first] == asked[:3]  # a quarter of ten, rounded up
    stocked.builds.free("one", "it died")
    assert [build.id for build in stocked.builds.claim_batch("two", 8)] == asked[:1]
    assert [build.id for build in stocked.builds.claim_batch("three", 8)] == asked[1:2]
    assert [build.attempts for build in stocked.builds.claim_batch("four", 8)] == [2]
    assert [build.id for build in stocked.builds.claim_batch("five", 8)] == asked[3:]


def test_a_worker_is_freed_by_its_token_and_by_no_other(stocked):
    one, other = (request(stocked, "skin-care", share(n / 10)).build for n in (1, 2))
    stocked.builds.claim("host:1:2/abc", build_id=one.id)
    stocked.builds.claim("host:1:2/xabc", build_id=other.id)
    assert [build.id for build in stocked.builds.free("abc", "gone")] == [one.id]
    assert stocked.builds.get(other.id).status == "running"


def test_a_database_that_is_away_for_a_while_is_waited_for(stocked, monkeypatch):
    asked = request(stocked, "skin-care", share(0.5)).build
    monkeypatch.setattr(workers, "AWAY_SECONDS", 0.01)
    failures = {"claim_batch": 3, "succeed": 2}
    for name in failures:
        real = getattr(stocked.builds, name)

        def shaky(*arguments, name=name, real=real, **options):
            if failures[name]:
                failures[name] -= 1
                raise UnavailableError("the server is starting up")
            return real(*arguments, **options)

        monkeypatch.setattr(stocked.builds, name, shaky)
    told: list[WorkerEvent] = []
    ended = inline(stocked, WorkerOptions(device="cpu", once=True), notify=told.append)
    assert [(build.id, build.status, build.attempts) for build in ended] == [(asked.id, "succeeded", 1)]
    assert [event.what for event in told] == ["waiting", "back", "begins", "succeeded"]
    assert "the server is starting up" in str(told[0])


def test_a_success_whose_answer_was_lost_is_told_again(stocked, monkeypatch):
    asked = request(stocked, "skin-care", share(0.5)).build
    real, said = stocked.builds.succeed, []

    def lost(*arguments, **options):
        said.append(real(*arguments, **options))
        if len(said) == 1:
            raise UnavailableError("the connection was lost")
        return said[-1]

    monkeypatch.setattr(stocked.builds, "succeed", lost)
    (ended,) = inline(stocked, WorkerOptions(device="cpu", once=True))
    assert (ended.id, ended.status, len(said)) == (asked.id, "succeeded", 2)
    kinds = [event.kind for event in stocked.events.list(subject=asked.id)]
    assert kinds.count("build.succeeded") == 1


def test_one_who_has_no_patience_left_says_so(stocked, monkeypatch):
    monkeypatch.setattr(workers, "AWAY_SECONDS", 0.01)
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.05)

    def away(*_: object, **__: object) -> None:
        raise UnavailableError("nobody answers")

    monkeypatch.setattr(stocked.builds, "claim_batch", away)
    with pytest.raises(UnavailableError, match="nobody answers"):
        inline(stocked, WorkerOptions(device="cpu", once=True))


def test_counters_tell_prometheus_what_happened(stocked):
    from prometheus_client.parser import text_string_to_metric_families

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    counters = Counters(stocked, "127.0.0.1", port)
    try:
        for number in range(3):
            request(stocked, "skin-care", share(number / 10))
        request(stocked, "skin-care", Recipe(coefficients={"spirit": (0.1, 0.2, 0.3)}))
        with pytest.raises(UsageError, match="cannot be served"):
            Counters(stocked, "127.0.0.1", port)
        inline(stocked, WorkerOptions(device="cpu", once=True), notify=counters.hear)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    finally:
        counters.close()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["reccocktail_builds_total", "succeeded"] == found["reccocktail_build_seconds_count",] == 3
    assert found["reccocktail_builds_total", "failed"] == found["reccocktail_builds_in_registry", "failed"] == 1
    assert found["reccocktail_builds_begun_total",] == 4
    assert found["reccocktail_builds_total", "postponed"] == 0
    assert found["reccocktail_builds_in_registry", "succeeded"] == 3
    assert 0 < found["reccocktail_build_seconds_sum",] < 60


@pytest.mark.parametrize(("total", "again"), [(10**4, False), (10**15, True)])
def test_a_pass_that_does_not_fit_into_memory_is_refused_before_it_begins(total, again, stocked, monkeypatch):
    from reccocktail.engine.adapting import memory

    monkeypatch.setattr(memory, "available", lambda device: 10_000)
    monkeypatch.setattr(memory, "total", lambda: total)
    ties = Recipe(method="ties_mergekit", options={"density": 0.5}, coefficients={"spirit": 0.5, "ingredient": 0.5})
    asked = request(stocked, "skin-care", ties).build
    (ended,) = inline(stocked, WorkerOptions(device="cpu", once=True))
    assert ended.status == ("queued" if again else "failed")
    left = stocked.builds.get(asked.id)
    assert left.error["code"] == "no_room"
    assert re.fullmatch(r"merging takes up to .* GB of memory, and .* GB are free", left.error["message"])
    assert not any("merge begins" in line.text for line in stocked.builds.logs(asked.id))


def test_watching_does_not_ask_again_for_what_failed_with_the_same_inputs(stocked, base, make_adapter, monkeypatch):
    file = stocked.settings.home / "bad.yaml"
    file.write_text("coefficients: {spirit: [0.1, 0.2, 0.3], ingredient: 1.0}\n")  # the base has two layers
    stocked.domains.add("skin-care", recipe=settle_recipe(stocked, str(file)))
    monkeypatch.setattr(stale_builds, "WATCH_SECONDS", 0.0)
    told: list[WorkerEvent] = []
    watch = stale_builds.StaleBuildPoller(stocked, True, told.append)
    for _ in range(3):
        watch.look()
        inline(stocked, WorkerOptions(device="cpu", once=True))
    assert [build.status for build in stocked.builds.list()] == ["failed"]
    assert [event.what for event in told] == ["requested", "blocked"]
    assert f"`reccocktail build retry {stocked.builds.list()[0].id}`" in str(told[1])
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 9), base=row, role="ingredient", domain="skin-care")
    watch.look()
    assert stocked.builds.counts() == {"failed": 1, "queued": 1}


def test_watching_goes_on_where_the_store_does_not_answer(stocked, monkeypatch):
    monkeypatch.setattr(stale_builds, "WATCH_SECONDS", 0.0)
    told: list[WorkerEvent] = []

    def away() -> set[str]:
        raise StoreError("the bucket does not answer")

    monkeypatch.setattr(stale_builds, "freshness_by_domain", lambda registry: away())
    stale_builds.StaleBuildPoller(stocked, True, told.append).look()
    assert str(told[0]) == "blocked: stale domains cannot be determined now: the bucket does not answer"


def test_who_listens_is_nothing_to_the_builds(stocked):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(3)]

    def deaf(event: WorkerEvent) -> None:
        if event.what in ("says", "succeeded"):
            raise BrokenPipeError("nobody listens any more")

    inline(stocked, WorkerOptions(device="cpu", once=True), notify=deaf)
    assert {stocked.builds.get(build.id).status for build in asked} == {"succeeded"}
    assert "the listener failed: BrokenPipeError" in stocked.builds.logs(asked[0].id)[-1].text


def test_what_was_claimed_and_not_begun_is_given_back(stocked):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(3)]

    def stopped(event: WorkerEvent) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inline(stocked, WorkerOptions(device="cpu", once=True), notify=stopped)
    assert {stocked.builds.get(build.id).status for build in asked} == {"queued"}


def test_worker_processes_end_with_the_one_that_started_them(stocked):
    settings = stocked.settings
    own = {"RECCOCKTAIL_HOME": str(settings.home), "OMP_NUM_THREADS": "1"}
    words = ["worker", "--executor", "process", "--workers", "2"]
    driver = subprocess.Popen(
        [sys.executable, "-c", "from reccocktail.cli import main; main()", *words],
        env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stderr is not None
    pids = [int(driver.stderr.readline().rpartition(" ")[2]) for _ in range(2)]
    time.sleep(6)  # until they wait for builds
    driver.kill()
    driver.wait()
    until = time.monotonic() + 60
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    asked = request(stocked, "skin-care", share(0.5)).build
    assert stocked.builds.get(asked.id).status == "queued"


def test_a_build_that_another_worker_has_by_now_is_told_as_lost(stocked):
    asked = request(stocked, "skin-care", share(0.5)).build
    row = stocked.builds.claim("another", build_id=asked.id)
    said = WorkerEvent.of(BuildOutcome(row, RuntimeError("it is not mine")), "me")
    assert str(said) == f"build {asked.id} of skin-care lost: another has it now"


def test_a_happening_goes_through_json_unharmed():
    import json
    from datetime import datetime

    event = WorkerEvent("failed", "66", "skin-care", "no: space\nleft")
    said = json.loads(json.dumps(event.to_json()))
    assert WorkerEvent(**said | {"at": datetime.fromisoformat(said["at"])}) == event


# --- Ray ------------------------------------------------------------------------------------------------------------


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def process_of(event: WorkerEvent) -> int:
    return int(event.worker.split(":")[1])


@pytest.mark.ray
def test_work_lands_on_both_nodes_of_a_cluster(stocked, cluster):
    import ray

    ray.shutdown()  # whatever was connected: this one connects by itself, and leaves
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(6)]
    nodes: set[int] = set()

    def note(event: WorkerEvent) -> None:
        if event.what in ("begins", "succeeded"):
            nodes.add(parent(process_of(event)))

    ended = on_ray(stocked, WorkerOptions("cpu", once=True, group=1), RayCluster(cluster), notify=note)
    assert {build.status for build in ended} == {"succeeded"}
    assert sorted(build.id for build in ended) == sorted(build.id for build in asked)
    assert len(nodes) == 2  # each node's own process has started the workers
    assert not ray.is_initialized()


@pytest.mark.ray
def test_a_task_that_is_killed_is_placed_again(stocked, connected):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(3)]
    told: list[WorkerEvent] = []

    def kill_the_first(event: WorkerEvent) -> None:
        told.append(event)
        if event.what == "begins" and len([h for h in told if h.what == "begins"]) == 1:
            os.kill(process_of(event), signal.SIGKILL)

    ended = on_ray(stocked, WorkerOptions("cpu", once=True, group=1), RayCluster(connected), notify=kill_the_first)
    assert sorted(build.id for build in ended) == sorted(build.id for build in asked)
    assert {build.status for build in ended} == {"succeeded"}
    first = next(event for event in told if event.what == "begins")
    assert "WorkerCrashedError" in str(next(event for event in told if event.what == "died"))
    # unless it had just been done
    assert stocked.builds.get(first.build).attempts == 2


@pytest.mark.ray
def test_what_no_machine_could_hold_fails_at_once_with_the_numbers(stocked, connected, monkeypatch):
    asked = [request(stocked, "skin-care", share(n / 10)).build for n in range(2)]
    monkeypatch.setattr(placing_on_ray, "needs_of", lambda *_, **__: Needs(disk=9 * 10**12, memory=10**9))
    ended = on_ray(stocked, WorkerOptions("cpu", once=True), RayCluster(connected))
    assert [build.status for build in ended] == ["failed", "failed"]
    row = stocked.builds.get(asked[0].id)
    assert row.error["code"] == "no_room"
    assert re.fullmatch(
        r"no machine of the cluster has 1 CPU \(the most is 1 CPU\), 1\.0 GB of memory \(.*\), 9000 disk_gb \(the most is 5 disk_gb\)",
        row.error["message"],
    )


@pytest.mark.ray
@pytest.mark.parametrize("asked_for", [{"gpus": 1}, {"cpus": 64}])
def test_cores_and_gpus_that_no_machine_has_are_the_options_fault_and_no_build_s(asked_for, stocked, connected):
    asked = request(stocked, "skin-care", share(0.5)).build
    with pytest.raises(UsageError, match=r"no machine of the cluster has (1 CPU and 1 GPU|64 CPU and 0 GPU)"):
        on_ray(stocked, WorkerOptions("cpu", once=True), RayCluster(connected, **asked_for))
    assert stocked.builds.get(asked.id).status == "queued"


@pytest.mark.ray
@pytest.mark.parametrize("wrong", ["a device", "a store"])
def test_tasks_that_cannot_even_begin_are_not_placed_for_ever(wrong, stocked, connected, tmp_path):
    asked = request(stocked, "skin-care", share(0.5)).build
    if wrong == "a store":  # as on a machine that does not see the folder
        stocked.settings = replace(stocked.settings, store_url=str(tmp_path / "nowhere"))
    cause = "there is no device 'cuda'|cuda" if wrong == "a device" else "is not an artifact store"
    with pytest.raises(ChildProcessError, match=rf"3 tasks ended before they had begun a build: \w+Error: .*({cause})"):
        on_ray(stocked, WorkerOptions("cuda" if wrong == "a device" else "cpu", once=True), RayCluster(connected))
    left = stocked.builds.get(asked.id)
    assert (left.status, left.attempts) == ("queued", 0)


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_told(stocked, monkeypatch):
    with pytest.raises(UsageError, match=r"no Ray cluster can be reached at 127\.0\.0\.1:9"):
        on_ray(stocked, WorkerOptions("cpu", once=True), RayCluster("127.0.0.1:9"))
