"""What `status` says of builds that are under way or failed, of many domains at once, and as a check; several builds changed by one command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry.catalog.evaluations import Measurement, Weights, weights_of_build

from .conftest import Shell

MORE = {"NDCG@3": 0.0, "HR@1": 0.1}


def _of(answer: Any, domain: str) -> dict[str, Any]:
    (found,) = [entry for entry in answer.json if entry["domain"] == domain]
    return found


def _failed(run: Any, domain: str) -> str:
    """A build of the domain that a worker took and that failed."""
    (asked,) = run("build", "request", domain, "--recipe", "average", "--force", "--json").json
    with run.registry() as registry:
        registry.builds.claim("w", build_id=asked["id"])
        registry.builds.fail(asked["id"], "w", {"code": "merge", "message": "the disk is full", "hint": None})
    return asked["id"]


def test_builds_under_way_and_the_newest_that_failed_are_shown(built: Any) -> None:
    assert _of(built("status", "--json"), "skin-care")["pending"] == []
    failed = _failed(built, "skin-care")
    entry = _of(built("status", "--json"), "skin-care")
    assert (entry["failed"]["id"], entry["failed"]["error"]["code"]) == (failed, "merge")
    assert entry["state"] == "fresh", "what is served is of the current inputs all the same"
    out = built("status").out
    assert failed in out
    assert "the disk is full" in out
    (queued,) = built("build", "request", "skin-care", "--recipe", "average", "--force", "--json").json
    entry = _of(built("status", "skin-care", "--json"), "skin-care")
    assert entry["failed"] is None, "a newer one is asked for"
    assert [(each["id"], each["status"]) for each in entry["pending"]] == [(queued["id"], "queued")]
    with built.registry() as registry:
        registry.builds.claim("w", build_id=queued["id"])
        registry.builds.progress(queued["id"], "w", 1, 4, "merge")
    assert f"{queued['id']} is running, merge 25%" in built("status").out


def test_a_check_fails_where_something_is_stale_blocked_or_failed(built: Any) -> None:
    states = {entry["domain"]: entry["state"] for entry in built("status", "--json").json}
    assert states == {"skin-care": "fresh", "kitchen": "cold"}
    assert built("status", "--check", "--json").json
    _failed(built, "skin-care")
    assert len(built("status", "--check", "--json", code=1).json) == 2
    assert [e["domain"] for e in built("status", "--check", "--state", "failed", "--json", code=1).json] == [
        "skin-care"
    ]
    assert built("status", "kitchen", "--check", "--json").json
    assert [e["domain"] for e in built("status", "--state", "cold", "--state", "stale", "--json").json] == ["kitchen"]
    assert built("status", "--state", "unbuilt", "--json").json == []


def test_domains_with_the_same_reasons_share_a_line(built: Any) -> None:
    for number in range(10):
        built("domain", "add", f"shop-{number}")
    document = built("status", "--json").json
    reasons = {(entry["state"], *entry["reasons"]) for entry in document if entry["reasons"]}
    alike = max(sum(entry["reasons"] == list(each[1:]) for entry in document) for each in reasons)
    assert alike >= 10
    lines = built("status").out.splitlines()
    told = [line for line in lines if any(f" {state}: " in line for state in ("cold", "stale", "unbuilt", "blocked"))]
    assert len(told) == len(reasons)
    (line,) = [line for line in told if line.startswith(f"{alike} are ")]
    assert f"and {alike - 8} more" in line


def test_several_builds_are_cancelled_and_retried_at_once(prepared: Any) -> None:
    one, two = (
        prepared("build", "request", "skin-care", "--recipe", recipe, "--json").json[0]["id"]
        for recipe in ("average", "spirit-only")
    )
    cancelled = prepared("build", "cancel", one, two, one, "--json").json
    assert [(each["id"], each["status"]) for each in cancelled] == [(one, "cancelled"), (two, "cancelled")]
    assert prepared("build", "retry", one, "--json").json["status"] == "queued"
    # one refuses, the other has its turn; a name that means nothing changes nothing
    assert prepared("build", "retry", "nothing", two, "--json", code=1).json["error"]["code"] == "not_found"
    answer = prepared("build", "retry", one, two, "--json", code=1)
    assert [(each["id"], each["status"]) for each in answer.json] == [(two, "queued")]
    assert one in answer.err


@pytest.fixture(scope="session")
def fifty(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, loras: dict[str, Path]) -> Path:
    """A home with fifty domains of which most have a build, all stale since the spirit moved; some builds failed or are queued."""
    from reccocktail.engine.building.planning import request
    from reccocktail.engine.recipes import load_recipe

    folder = tmp_path_factory.mktemp("fifty")
    run = Shell(folder / "home", folder / "work")
    run("init")
    with run.registry() as registry:
        base = registry.bases.add("tiny", tiny_base, source="org/tiny")
        registry.adapters.add(loras["spirit"], base=base, role="spirit")
        recipe = load_recipe("spirit-only")
        for number in range(50):
            name = f"department-{number:02}"
            registry.domains.add(name, recipe="spirit-only")
            build = request(registry, name, recipe).build
            registry.builds.claim("w", build_id=build.id)
            registry.builds.succeed(build.id, "w", base.digest, {"spirit": 1.0}, {})
        registry.adapters.add(loras["newer"], base=base, role="spirit")
        for number in range(14):
            build = request(registry, f"department-{number:02}", recipe).build
            if number < 7:
                registry.builds.claim("w", build_id=build.id)
                registry.builds.fail(build.id, "w", {"code": "merge", "message": "the disk is full", "hint": None})
    return folder / "home"


@pytest.mark.parametrize("lines", [24, 60])
def test_fifty_domains_fit_one_screen_of_eighty_columns(
    bare: Any, fifty: Path, lines: int, on_warm_terminal: Callable[..., Any]
) -> None:
    shutil.copytree(fifty, bare.home)
    shown = on_warm_terminal("status", environment=bare.environment(), folder=bare.folder, lines=lines)
    assert shown.ends(60) == 0
    assert shown.written.count("\n") < lines, "nothing scrolled away"
    assert all(len(line) <= 80 for line in shown.screen)
    text = " ".join(" ".join(shown.screen).split())
    assert "50 are stale: spirit spirit@v1 → spirit@v2" in text
    assert "7 domains: its newest build … failed: the disk is full" in text
    assert "7 domains: build … is queued" in text
    assert text.count("department-49") == (lines == 60)


def test_what_is_piped_names_every_domain(bare: Any, fifty: Path) -> None:
    shutil.copytree(fifty, bare.home)
    assert len({line.split()[0] for line in bare("status").out.splitlines() if "department" in line[:12]}) == 50


def test_what_was_measured_last_of_the_champion_and_of_what_is_served_is_shown(built: Any) -> None:
    (entry,) = built("status", "skin-care", "--json").json
    assert entry["measured"] == {"metric": "NDCG@3", "champion": None, "served": None}
    with built.registry() as registry:
        base, adapter = registry.bases.get("tiny"), registry.adapters.resolve("skin-care")
        build = registry.builds.get(entry["build"])
        systems = {"adapter": Weights(adapter.digest, base.digest), "build": weights_of_build(build, base.digest)}

        def record(system: str, mean: float, *, domain: str = "skin-care", split: str = "test") -> int:
            metrics = {name: {"mean": mean + more, "low": 0.1, "high": 0.9, "n": 9} for name, more in MORE.items()}
            return registry.evaluations.add(
                Measurement(
                    key=f"{system}-{mean}", system=system, weights=systems[system], label=system, domain=domain,
                    mode="pmi", dtype="float32", task_digest="t", task={"split": split}, questions="q", users=9,
                    metrics=metrics, detail={}, ranks=adapter.digest, version="test",
                )
            ).id  # fmt: skip

        ids = [record("adapter", 0.2), record("adapter", 0.3)]
        record("adapter", 0.6, domain="kitchen")
        record("adapter", 0.7, split="cold")
        assert "NDCG@3=0.300 (LoRA)" in built("status", columns=80).out, "of the champion, for nothing else is known"
        ids.append(record("build", 0.4))
    measured = _of(built("status", "--json"), "skin-care")["measured"]
    assert [measured[each]["id"] for each in ("champion", "served")] == ids[1:]
    assert measured["served"]["figure"]["mean"] == 0.4
    out = built("status", columns=80).out
    assert "NDCG@3=0.400" in out
    assert "(LoRA)" not in out
    assert "0.500" not in out, "one metric of each domain"
    built("adapter", "alias", "skin-care@v1", "champion")
    built("domain", "gate", "skin-care", "--require", "metric=HR@1,split=cold")
    assert _of(built("status", "--json"), "skin-care")["measured"]["metric"] == "HR@1"
    assert "HR@1=0.800" in built("status", columns=80).out
    whole = built("status", "skin-care", columns=80).out
    assert "0.800" in whole
    assert "0.700" in whole, "all metrics of one domain"
    assert all(len(line) <= 80 for line in whole.splitlines())
