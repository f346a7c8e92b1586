"""`apply` that is interrupted or killed at any of its steps: the same command again does what is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Registry
from reccocktail.registry.declared.exporting import export, to_yaml

FILE = """\
bases:
  tiny: {source: ./tiny, note: License checked}
recipes:
  halves: {method: linear, coefficients: {spirit: 0.5, ingredient: 0.5}}
domains:
  beauty: {title: Beauty, recipe: halves, tags: [team-a]}
policies:
  beauty: {gate: {approvals: 1}, serve: live, promote: automatic}
adapters:
  - {source: ./spirit, base: tiny, spirit: true, aliases: [champion]}
  - {source: ./one, base: tiny, domain: beauty, metrics: {HR@1: 0.5}, tags: [trial], note: first, description: The first}
  - {source: ./two, base: tiny, domain: beauty, aliases: [champion, candidate], archived: false}
aliases:
  beauty@fallback: v1
"""


@pytest.fixture
def source(make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    place = tmp_path / "declared"
    place.mkdir()
    make_base(place / "tiny")
    for seed, name in enumerate(("spirit", "one", "two")):
        make_adapter(place / name, seed=seed)
    (place / "registry.yaml").write_text(FILE)
    return place / "registry.yaml"


def exported(registry: Registry) -> str:
    return to_yaml(export(registry)).replace(str(registry.settings.home), "HOME")


@pytest.mark.slow
def test_what_was_stopped_is_finished_by_the_same_command(
    dialect: str, open_settings: Any, source: Path, tmp_path: Path
) -> None:
    ways = {"undisturbed": (signal.SIGTERM, 0), "interrupted": (signal.SIGINT, 29), "killed": (signal.SIGKILL, 23)}
    with ExitStack() as stack:
        registries: list[Registry] = []
        plans: list[dict[str, Any]] = []
        for name, (number, stride) in ways.items():
            settings = stack.enter_context(open_settings(dialect, tmp_path / name))
            registries.append(stack.enter_context(Registry.create(settings)))
            place = ["--home", str(settings.home), "--database-url", settings.database_url]
            plans.append({"words": [*place, "apply", "-f", str(source)], "signal": number, "stride": stride})
        script = Path(__file__).with_name("stopping.py")
        command = [sys.executable, script, json.dumps(plans)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=400)
        (undisturbed,), (*interrupted, _), (*killed, last) = json.loads(done.stdout)

        assert "unchanged" not in undisturbed["err"]
        assert "unchanged" in last["err"], "what the others had done was not done again"
        assert {end["code"] for end in killed} == {-signal.SIGKILL}
        assert {end["code"] for end in interrupted} == {130}
        assert all("run the same command again" in end["err"] for end in interrupted)
        assert any("created" in end["err"] and end["out"].startswith("+") for end in interrupted)
        assert min(len(interrupted), len(killed)) > 3
        for registry in registries:
            assert exported(registry) == exported(registries[0])
            assert registry.missing() == registry.store.verify() == []
