from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from reccocktail.registry import Adapter, Base, Build, Registry
from reccocktail.registry.catalog.build_lists import SORTS
from reccocktail.registry.catalog.builds import MAX_ATTEMPTS
from reccocktail.registry.catalog.filters import BuildFilter
from reccocktail.registry.errors import ConflictError, NotFoundError, StoreError, UsageError


@pytest.fixture
def ask(registry: Registry, base: Base) -> Callable[..., Build]:
    """(key): requests a build for `beauty`."""
    registry.domains.add("beauty")

    def request(key: str = "k", **options: Any) -> Build:
        return registry.builds.request("beauty", base.name, key, {"method": "linear"}, {}, **options).build

    return request


@pytest.fixture
def stored(registry: Registry) -> str:
    """The digest of some result."""
    with registry.store.staging("build") as staged:
        (staged / "model.safetensors").write_bytes(b"x")
        return registry.store.adopt(staged).digest


def test_a_build_goes_from_queued_to_succeeded(registry: Registry, ask: Callable[..., Build], stored: str) -> None:
    asked = ask()
    assert (asked.status, asked.domain, asked.base, asked.path) == ("queued", "beauty", "tiny", None)
    running = registry.builds.claim("w1")
    assert running is not None
    assert (running.id, running.status, running.worker, running.attempts) == (asked.id, "running", "w1", 1)
    registry.builds.progress(asked.id, "w1", 3, 10)
    assert (registry.builds.get(asked.id).done, registry.builds.get(asked.id).total) == (3, 10)
    done = registry.builds.succeed(asked.id, "w1", stored, {"spirit": 0.5}, {"lost": 0.1})
    assert (done.status, done.digest, done.coefficients) == ("succeeded", stored, {"spirit": 0.5})
    assert done.path == registry.store.folder(stored)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert registry.builds.newest_succeeded("beauty") == done
    assert stored in registry.digests()
    kinds = [event.kind for event in registry.events.list(subject=asked.id)]
    assert kinds == ["build.succeeded", "build.running", "build.queued"]


def test_a_build_answers_with_the_agreed_names(ask: Callable[..., Build]) -> None:
    agreed = {
        "id", "domain", "status", "key", "digest", "recipe", "coefficients", "inputs", "path", "report", "error",
        "created_at", "started_at", "finished_at",
    }  # fmt: skip
    assert agreed <= ask().to_json().keys()


def test_an_equal_request_gives_the_build_that_is_there(
    registry: Registry, base: Base, ask: Callable[..., Build], stored: str
) -> None:
    def again(**options: Any) -> tuple[str, bool]:
        request = registry.builds.request("beauty", base.name, "k", {}, {}, **options)
        return request.build.id, request.created

    first = ask()
    assert again() == again(force=True) == (first.id, False)  # queued
    registry.builds.claim("w")
    assert again() == again(force=True) == (first.id, False)  # running
    registry.builds.succeed(first.id, "w", stored, None, None)
    assert again() == (first.id, False)
    forced, created = again(force=True)
    assert created
    assert forced != first.id
    assert registry.builds.get(first.id).status == "succeeded"


def test_a_succeeded_build_whose_result_is_gone_is_not_given_again(
    registry: Registry, ask: Callable[..., Build], stored: str
) -> None:
    first = ask()
    registry.builds.claim("w")
    registry.builds.succeed(first.id, "w", stored, None, None)
    shutil.rmtree(registry.store.folder(stored))
    cancelled = registry.builds.cancel(ask().id)
    assert cancelled.id != first.id
    assert registry.builds.retry(cancelled.id).status == "queued"


def test_a_failed_build_does_not_stand_in_the_way(registry: Registry, ask: Callable[..., Build]) -> None:
    first = ask()
    registry.builds.claim("w")
    assert registry.builds.fail(first.id, "w", {"code": "store", "message": "full"}).error == {
        "code": "store",
        "message": "full",
    }
    assert ask().id != first.id


def test_the_oldest_waiting_build_is_claimed_first_and_each_only_once(
    registry: Registry, ask: Callable[..., Build]
) -> None:
    asked = [ask(key).id for key in "abc"]
    claimed = [build.id if (build := registry.builds.claim("w")) else None for _ in range(4)]
    assert claimed == [*asked, None]


def test_a_certain_build_can_be_claimed(registry: Registry, ask: Callable[..., Build]) -> None:
    _, second = ask("a"), ask("b")
    claimed = registry.builds.claim("w", build_id=second.id)
    assert claimed is not None
    assert claimed.id == second.id
    assert registry.builds.claim("w", build_id=second.id) is None


def test_a_dead_workers_build_is_taken_over_and_its_word_refused(
    registry: Registry, ask: Callable[..., Build], stored: str
) -> None:
    build = ask()
    registry.builds.claim("dead", lease_seconds=-1)
    assert [(each.name, each.builds, each.is_alive) for each in registry.builds.workers()] == [
        ("dead", (build.id,), False)
    ]
    taken = registry.builds.claim("alive")
    assert [(each.name, each.builds, each.is_alive) for each in registry.builds.workers()] == [
        ("alive", (build.id,), True)
    ]
    assert taken is not None
    assert (taken.id, taken.worker, taken.attempts) == (build.id, "alive", 2)
    for report in (
        lambda: registry.builds.succeed(build.id, "dead", stored, None, None),
        lambda: registry.builds.fail(build.id, "dead", {}),
        lambda: registry.builds.heartbeat(build.id, "dead"),
        lambda: registry.builds.progress(build.id, "dead", 1, 2),
    ):
        with pytest.raises(ConflictError, match="running by alive: dead does not hold it"):
            report()
    ended = registry.builds.succeed(build.id, "alive", stored, None, None)
    assert ended.status == "succeeded"
    (sign,) = registry.builds.workers()
    assert (sign.name, sign.builds, sign.seen_at, sign.is_alive) == ("alive", (), ended.finished_at, False)


def test_a_build_that_lost_its_worker_too_often_fails(registry: Registry, ask: Callable[..., Build]) -> None:
    build, next_one = ask("a"), ask("b")
    for _ in range(MAX_ATTEMPTS):
        assert registry.builds.claim("dead", lease_seconds=-1, build_id=build.id) is not None
    claimed = registry.builds.claim("alive")
    assert claimed is not None
    assert claimed.id == next_one.id
    failed = registry.builds.get(build.id)
    assert failed.status == "failed"
    assert failed.error == {"code": "lost", "message": f"build {build.id} failed: its worker was lost 5 times"}
    assert [each.name for each in registry.builds.workers()] == ["alive"]  # the dead one said nothing
    assert registry.builds.retry(build.id).attempts == 0


def test_a_heartbeat_keeps_the_lease(registry: Registry, ask: Callable[..., Build]) -> None:
    build = ask()
    registry.builds.claim("w", lease_seconds=-1)
    registry.builds.heartbeat(build.id, "w", lease_seconds=60)
    assert registry.builds.claim("other") is None


def test_a_result_that_is_not_in_the_store_is_no_success(registry: Registry, ask: Callable[..., Build]) -> None:
    build = ask()
    registry.builds.claim("w")
    with pytest.raises(StoreError):
        registry.builds.succeed(build.id, "w", "sha256:" + "0" * 64, None, None)
    assert registry.builds.get(build.id).status == "running"


def test_a_cancelled_build_is_lost_to_its_worker_and_can_be_retried(
    registry: Registry, ask: Callable[..., Build], stored: str
) -> None:
    build = ask()
    registry.builds.claim("w")
    assert registry.builds.cancel(build.id).status == "cancelled"
    with pytest.raises(ConflictError, match="is cancelled"):
        registry.builds.heartbeat(build.id, "w")
    retried = registry.builds.retry(build.id)
    assert (retried.status, retried.worker, retried.finished_at) == ("queued", None, None)
    registry.builds.claim("w")
    registry.builds.succeed(build.id, "w", stored, None, None)
    for change in (registry.builds.cancel, registry.builds.retry):
        with pytest.raises(ConflictError):
            change(build.id)


def test_a_build_is_not_retried_beside_one_of_its_key(registry: Registry, ask: Callable[..., Build]) -> None:
    first = ask()
    registry.builds.cancel(first.id)
    second = ask()
    with pytest.raises(ConflictError, match=second.id):
        registry.builds.retry(first.id)


def test_a_unique_beginning_of_an_id_is_enough(registry: Registry, ask: Callable[..., Build]) -> None:
    first, second = ask("a"), ask("b")
    assert first.id < second.id
    assert registry.builds.get(first.id).id == first.id
    assert registry.builds.get(first.id[:15]).id == first.id
    for unknown in ("", "%", "zz"):
        with pytest.raises(NotFoundError):
            registry.builds.get(unknown)
    with pytest.raises(UsageError, match=f"several builds .* {second.id} and {first.id}"):
        registry.builds.get(first.id[:3])


def test_builds_are_listed_newest_first_by_status_and_page(registry: Registry, ask: Callable[..., Build]) -> None:
    ids = [ask(key).id for key in "abcd"]
    registry.builds.cancel(ids[0])
    assert [b.id for b in registry.builds.list(BuildFilter(status="cancelled"))] == [ids[0]]
    first = registry.builds.list(BuildFilter(domain="beauty"), limit=2)
    assert [b.id for b in first + registry.builds.list(limit=2, after=first[-1].id)] == ids[::-1]


def test_builds_are_sorted_in_pages_and_filtered_by_recipe_requester_and_time(
    registry: Registry, base: Base, stored: str
) -> None:
    def make(name: str, recipe: str | None, end: Callable[[Build], object]) -> str:
        registry.domains.add(name)
        about = {"adapters": []} | ({"recipe": {"ref": recipe, "digest": "d"}} if recipe else {})
        asked = registry.builds.request(name, base.name, f"{name}{recipe}", {}, about).build
        end(asked)
        return asked.id

    def succeeded(build: Build) -> None:
        registry.builds.claim("w", build_id=build.id)
        registry.builds.succeed(build.id, "w", stored, None, None)

    a = make("toys", "mine@v2", succeeded)
    b = make("beauty", "mine@v10", lambda build: registry.builds.claim("w", build_id=build.id))
    c = make("beauty", None, lambda build: None)
    d = make("garden", "average", succeeded)
    orders = {
        "created": [d, c, b, a],
        "started": [d, b, a, c],
        "finished": [d, a, c, b],
        "domain": [c, b, d, a],
        "status": [c, b, d, a],
        "recipe": [c, d, b, a],
        "requester": [d, c, b, a],
    }
    assert set(orders) == set(SORTS)
    for sort, order in orders.items():
        seen: list[str] = []
        while found := registry.builds.list(sort=sort, limit=1, after=seen[-1] if seen else None):
            seen.append(found[0].id)
        assert seen == order == [each.id for each in registry.builds.list(sort=sort)], sort
    with pytest.raises(UsageError):
        registry.builds.list(sort="size")

    def filtered(**wanted: Any) -> list[str]:
        return [each.id for each in registry.builds.list(BuildFilter(**wanted), sort="domain")]

    first = registry.builds.get(b)
    assert filtered(recipe="mine") == [b, a]
    assert filtered(recipe="mine@v1") == []
    assert filtered(recipe="mine@v10", requester=first.created_by) == [b]
    assert filtered(requester="nobody") == []
    assert filtered(since=first.created_at) == [c, b, d]
    assert (first.recipe_ref, registry.builds.get(c).recipe_ref) == ("mine@v10", None)


def test_cancelling_claiming_retrying_and_requesting_at_once_breaks_no_rule(
    registry: Registry, ask: Callable[..., Build], stored: str
) -> None:
    """Whoever comes too late is told so in our words; nobody meets a rule of the database."""
    builds, said = registry.builds, []

    def work(number: int) -> None:
        drawn = random.Random(number)
        worker = f"w{number}"
        for _ in range(25):
            found = builds.list(limit=3)
            one = drawn.choice(found).id if found else "none"
            steps: list[Callable[[], object]] = [
                lambda: ask(drawn.choice(["k", "l"])),
                lambda: builds.claim(worker),
                lambda one=one: builds.cancel(one),
                lambda one=one: builds.retry(one),
                lambda one=one: builds.fail(one, worker, {"code": "x", "message": "x"}),
                lambda one=one: builds.succeed(one, worker, stored, None, None),
            ]
            try:
                drawn.choice(steps)()
            except (ConflictError, NotFoundError) as error:
                said.append(str(error))

    builds.claim("nobody")  # the fixture's domain is there
    ask()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert [text for text in said if "the database refused" in text] == []
    for key in ("k", "l"):
        assert len([b for b in builds.list(limit=1000) if b.key == key and b.status in ("queued", "running")]) <= 1


def test_inputs_become_lineage(
    registry: Registry,
    base: Base,
    add: Callable[..., Adapter],
    ask: Callable[..., Build],
    sql: Callable[[str], list[tuple[Any, ...]]],
) -> None:
    spirit, ingredient = add("spirit", 1), add("beauty", 2)
    inputs = {"adapters": [{"ref": a.ref, "digest": a.digest} for a in (spirit, ingredient)]}
    build = registry.builds.request("beauty", base.name, "k", {}, inputs).build
    rows = sql(
        f"SELECT a.digest FROM build_inputs i JOIN adapters a ON a.id = i.adapter_id WHERE i.build_id = '{build.id}'"
    )
    assert {row[0] for row in rows} == {spirit.digest, ingredient.digest}
    assert build.inputs == inputs
    wrong = {"adapters": [{"ref": spirit.ref, "digest": ingredient.digest}]}
    with pytest.raises(ConflictError, match=r"spirit@v1 is"):
        registry.builds.request("beauty", base.name, "other", {}, wrong)
    assert len(registry.builds.list()) == 1


def test_a_publication_is_listed_under_its_domain(registry: Registry, ask: Callable[..., Build]) -> None:
    build = ask()
    publication = registry.publications.add(build, "org/beauty", "abc123", "v1")
    assert (publication.build, publication.domain, publication.tag) == (build.id, "beauty", "v1")
    registry.domains.add("office")
    assert registry.publications.list("beauty") == registry.publications.list() == [publication]
    assert registry.publications.list("office") == []


# --- another attempt, and what was said -----------------------------------------------------------------------------


def test_a_build_that_is_put_back_is_claimed_again_once_its_time_has_come(
    registry: Registry, ask: Callable[..., Build]
) -> None:
    asked = ask()
    registry.builds.claim("w1")
    registry.builds.progress(asked.id, "w1", 3, 10, "merge")
    assert registry.builds.get(asked.id).stage == "merge"
    full = {"code": "merge", "message": "no space left on device"}
    put_back = registry.builds.postpone(asked.id, "w1", full, 60)
    assert (put_back.status, put_back.error, put_back.worker, put_back.stage) == ("queued", full, None, None)
    assert put_back.retry_at is not None
    assert registry.builds.claim("w2") is None
    with pytest.raises(ConflictError, match="does not hold it any more"):
        registry.builds.heartbeat(asked.id, "w1")
    assert not registry.builds.request("beauty", "tiny", "k", {}, {}).created
    registry.builds.cancel(asked.id)
    assert registry.builds.retry(asked.id).retry_at is None
    again = registry.builds.claim("w2")
    assert again is not None
    assert (again.id, again.attempts, again.error) == (asked.id, 1, None)
    registry.builds.postpone(asked.id, "w2", full, 0)
    third = registry.builds.claim("w3")
    assert third is not None
    assert third.attempts == 2
    kinds = [event.kind for event in registry.events.list(subject=asked.id)]
    assert kinds[:3] == ["build.running", "build.queued", "build.running"]
    assert registry.events.list(subject=asked.id)[1].detail["error"] == full


def test_a_build_is_given_up_after_its_last_attempt(registry: Registry, ask: Callable[..., Build]) -> None:
    asked = ask()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claimed = registry.builds.claim("w")
        assert claimed is not None
        assert claimed.attempts == attempt
        left = registry.builds.postpone(asked.id, "w", {"code": "store", "message": "gone"}, 0)
    assert (left.status, left.retry_at) == ("failed", None)
    assert left.error == {"code": "store", "message": "gone"}


def test_a_worker_that_is_stopped_costs_no_attempt(registry: Registry, ask: Callable[..., Build]) -> None:
    asked = ask()
    for _ in range(2 * MAX_ATTEMPTS):
        assert registry.builds.claim("w") is not None
        left = registry.builds.postpone(asked.id, "w", None, 0)
    assert (left.status, left.attempts, left.error) == ("queued", 0, None)


def test_what_workers_said_is_read_in_order_and_from_where_one_left_off(
    registry: Registry, ask: Callable[..., Build]
) -> None:
    first, second = ask("a"), ask("b")
    for text in ("begins", "x" * 5000, "ends"):
        registry.builds.log(first.id, "w", text)
    registry.builds.log(second.id, None, "other")
    lines = registry.builds.logs(first.id[:15])
    assert [(line.worker, line.text) for line in lines] == [("w", "begins"), ("w", "x" * 4000), ("w", "ends")]
    assert [line.text for line in registry.builds.logs(first.id, after=lines[1].id)] == ["ends"]
    assert len(registry.builds.logs(first.id, limit=2)) == 2
