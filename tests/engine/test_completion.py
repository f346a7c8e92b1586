"""Waiting for several builds: one pass over their base, and every build's fate its own."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
from reccocktail.engine.building import completion, job
from reccocktail.engine.building.completion import Reports, complete_all
from reccocktail.engine.building.job import BuildOutcome, Progress
from reccocktail.engine.building.planning import request
from reccocktail.engine.merging import stream
from reccocktail.engine.recipes import Recipe
from reccocktail.registry import Build, Registry


def share(ingredient: float) -> Recipe:
    return Recipe(coefficients={"spirit": round(1 - ingredient, 3), "ingredient": ingredient})


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many results each reading of a base was for."""
    merge_all, found = stream.merge_all, []

    def merge(base, facts, mixes, **options):
        found.append(len(mixes))
        return merge_all(base, facts, mixes, **options)

    monkeypatch.setattr(stream, "merge_all", merge)
    return found


def ask(registry: Registry, *recipes: Recipe) -> list[Build]:
    return [request(registry, "skin-care", recipe).build for recipe in recipes]


def test_several_builds_read_their_base_once_and_one_that_fails_harms_no_other(stocked, passes):
    overflowing = Recipe(coefficients={"spirit": 1e30}, output={"format": "checkpoint", "dtype": "float16"})
    asked = ask(stocked, share(0.1), share(0.2))
    ended: list[BuildOutcome] = []
    done = complete_all(stocked, [*asked, asked[0]], device="cpu", reports=Reports(ended=ended.append))
    assert passes == [2]
    assert [(row.id, row.status, row.report["together"]) for row in done] == [(b.id, "succeeded", 2) for b in asked]
    assert [outcome.build.id for outcome in ended] == [build.id for build in asked]

    passes.clear()
    more = ask(stocked, share(0.3), overflowing, share(0.1))  # the last is there already
    done = complete_all(stocked, more, device="cpu", reports=Reports(ended=ended.append))
    assert [row.status for row in done] == ["succeeded", "failed", "succeeded"]
    assert passes == [2, 1, 1]
    assert [outcome.build.id for outcome in ended if outcome.error] == [more[1].id]
    assert len(ended) == 5


def test_what_failed_for_a_while_in_a_pass_is_tried_again(stocked, passes, monkeypatch):
    monkeypatch.setattr(job, "back_off", lambda attempts: 0.0)
    asked = ask(stocked, share(0.1), share(0.2))
    adopt, failures, heard = stocked.store.adopt, [OSError(errno.ENOSPC, "no space")], []

    def refuse_once(*given, **options):
        if failures:
            raise failures.pop()
        return adopt(*given, **options)

    monkeypatch.setattr(stocked.store, "adopt", refuse_once)
    done = complete_all(stocked, asked, device="cpu", reports=Reports(warn=heard.append))
    assert sorted(row.attempts for row in done if row.status == "succeeded") == [1, 2]
    assert passes == [2, 1]
    assert len(heard) == 1


def test_ctrl_c_fails_the_pass_at_hand_and_leaves_the_others_queued(stocked, passes, monkeypatch):
    monkeypatch.setattr(completion, "GROUP", 2)
    asked = ask(stocked, *(share(n / 10) for n in range(1, 6)))

    def interrupted(builds: Sequence[Build]) -> AbstractContextManager[Progress]:
        def stop(stage: str, done: int, total: int) -> None:
            if builds[0].id == asked[2].id:
                raise KeyboardInterrupt

        return nullcontext(stop)

    with pytest.raises(KeyboardInterrupt):
        complete_all(stocked, asked, device="cpu", reports=Reports(attempt=interrupted))
    rows = [stocked.builds.get(build.id) for build in asked]
    assert [row.status for row in rows] == ["succeeded", "succeeded", "failed", "failed", "queued"]
    assert {row.error["code"] for row in rows[2:4]} == {"interrupted"}
    assert not list((stocked.store.root / "staging").iterdir())
    again = ask(stocked, *(share(n / 10) for n in range(1, 6)))
    assert {row.status for row in complete_all(stocked, again, device="cpu")} == {"succeeded"}


def test_a_claim_that_is_interrupted_leaves_nothing_running(stocked, monkeypatch):
    asked = ask(stocked, share(0.1), share(0.2))
    claim: Callable[..., Build | None] = stocked.builds.claim

    def claim_one(worker: str, **options) -> Build | None:
        if options["build_id"] == asked[1].id:
            raise KeyboardInterrupt
        return claim(worker, **options)

    monkeypatch.setattr(stocked.builds, "claim", claim_one)
    with pytest.raises(KeyboardInterrupt):
        complete_all(stocked, asked, device="cpu")
    assert [stocked.builds.get(build.id).status for build in asked] == ["queued", "queued"]
