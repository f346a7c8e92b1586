"""What a gradient is expected to take, beside what it took."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reccocktail.engine.adapting import memory
from reccocktail.engine.adapting.entropy import TokenSelection
from reccocktail.engine.adapting.memory import MemoryModel, available
from reccocktail.engine.adapting.mixture import Mixture
from reccocktail.engine.adapting.objective import BatchTokens, Objective
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM


def test_a_growth_is_the_parabola_of_its_probes_with_its_constant_once():
    growth = MemoryModel(lambda length: 1000 + 10 * length + 2 * length * length, each=50)
    one = 1000 + 10 * 200 + 2 * 200 * 200 + 50
    assert growth(200) == pytest.approx(memory.MARGIN * one, rel=1e-4)
    assert growth(200, 3) == pytest.approx(memory.MARGIN * (3 * (one - 1000) + 1000), rel=1e-4)


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = available("cpu")
    assert whole is None or whole > 1 << 20
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert available("cpu") == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available("cpu") != 1_000_000


def peak_of(work) -> int:
    """The most bytes that torch held at once, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counting", "prompts"), [(TokenSelection(3), 1), (TokenSelection(3), 4), (TokenSelection(3, "||", longest=40), 3)]
)
def test_a_gradient_takes_about_what_was_expected(counting, prompts, base, make_adapter, parts_of, tokenizer):
    parts = parts_of(base, [(make_adapter(base, 1, r=16), 1.0), (make_adapter(base, 2, r=16), 1.0)])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    asked = [torch.randint(4, model.config.vocab_size, (150,), generator=draw).tolist() for _ in range(prompts)]
    with Mixture(model, parts, "linear", granularity="module") as mixture:
        objective = Objective(model, tokenizer, mixture, asked, counting, BatchTokens(9999, 9999))
        even = torch.full((len(mixture.groups), 2), 0.5)
        objective.gradient(even, range(prompts))
        expected = objective.growth(even)(150 + counting.length, prompts)
        took = peak_of(lambda: objective.gradient(even, range(prompts)))
    assert 0.6 * took < expected < 2.5 * took
