"""The gradient of the entropy against stepwise decoding, the constraints, and where descents lead and end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reccocktail.engine.adapting.entropy import TokenSelection, answer
from reccocktail.engine.adapting.mixture import Mixture
from reccocktail.engine.adapting.objective import BatchTokens, Objective
from reccocktail.engine.adapting.search import (
    BROKEN,
    CONSTRAINTS,
    IN_A_CORNER,
    LEVEL,
    SearchTrace,
    gradient_descent,
    project_simplex,
)
from reccocktail.engine.errors import AdaptationError
from reccocktail.engine.recipes import Adaptive
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prompts(asked, tokenizer) -> list[list[int]]:
    return [tokenizer.apply_chat_template(q.messages, add_generation_prompt=True)["input_ids"] for q in asked]


def merged(model, parts, method: str, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Every weight as it is after merging, a function of the coefficients: in float32, W and the deltas whole."""
    found = dict(model.named_parameters())
    for number, name in enumerate(dict.fromkeys(m.name for part in parts for m in part.facts.modules)):
        used = [
            (k, load_factors_of(part, name))
            for k, part in enumerate(parts)
            if name in {m.name for m in part.facts.modules}
        ]
        own = weights[min(number, len(weights) - 1)]
        if method == "linear":
            delta = sum(own[k] * (scale * b @ a) for k, (a, b, scale) in used)
        else:
            mixed_b = sum(own[k] * b for k, (_, b, _) in used)
            mixed_a = sum(own[k] * a for k, (a, _, _) in used)
            delta = used[0][1][2] * mixed_b @ mixed_a
        found[f"{name}.weight"] = found[f"{name}.weight"] + delta
    return found


def load_factors_of(part, name: str) -> tuple[Tensor, Tensor, float]:
    from safetensors.torch import load_file

    tensors = load_file(part.folder / "adapter_model.safetensors")
    start = f"base_model.model.{name}.lora_"
    (module,) = (m for m in part.facts.modules if m.name == name)
    return tensors[f"{start}A.weight"], tensors[f"{start}B.weight"], module.scale


def stepwise(model, weights: dict[str, Tensor], prompt: list[int], tokens: int, stop: int) -> Tensor:
    """Mean entropy as the authors find it: the whole text again for every token, with gradient."""
    ids, found = list(prompt), []
    for _ in range(tokens):
        logits = functional_call(model, weights, (torch.tensor([ids]),), {"use_cache": False}).logits[0, -1]
        log_p = logits.log_softmax(-1)
        found.append(-(log_p.exp() * log_p).sum())
        ids.append(int(logits.argmax()))
        if ids[-1] == stop:
            break
    return torch.stack(found).mean()


@pytest.mark.parametrize("method", ["linear", "factor"])
@pytest.mark.parametrize("granularity", ["model", "module"])
@pytest.mark.parametrize("together", [1, 9999])
def test_the_gradient_is_that_of_stepwise_decoding(
    method, granularity, together, base, make_adapter, parts_of, prompts, tokenizer
):
    parts = parts_of(base, [(make_adapter(base, 1), 1.0), (make_adapter(base, 2), 1.0)])
    model = load(base)
    with Mixture(model, parts, method, granularity=granularity) as mixture:
        objective = Objective(model, tokenizer, mixture, prompts, TokenSelection(3), BatchTokens(9999, together))
        torch.manual_seed(0)
        weights = torch.rand(len(mixture.groups), 2)
        entropy, gradient = objective.gradient(weights, range(len(prompts)))
        assert objective.value(weights, range(len(prompts))) == pytest.approx(entropy, rel=1e-4)
    names = list(dict.fromkeys(m.name for part in parts for m in part.facts.modules))
    place = {group: n for n, group in enumerate(mixture.groups)}
    leaf = weights.clone().requires_grad_()
    rows = [leaf[place[name if granularity == "module" else "model"]] for name in names]
    expected = torch.stack(
        [stepwise(model, merged(model, parts, method, rows), p, 3, tokenizer.eos_token_id) for p in prompts]
    ).mean()
    expected.backward()
    assert entropy == pytest.approx(float(expected.detach()), rel=1e-4)
    assert (gradient - leaf.grad).norm() / leaf.grad.norm() < 1e-4
    assert leaf.grad.norm() > 1e-3


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(deadline=None)
def test_the_simplex_is_met_at_its_nearest_point(rows):
    raw = torch.tensor(rows, dtype=torch.float64)
    found = project_simplex(raw)
    assert (found >= 0).all()
    assert found.sum(-1) == pytest.approx(torch.ones(len(rows), dtype=torch.float64), abs=1e-9)
    corners = torch.eye(3, dtype=torch.float64)
    mixes = torch.cat([corners, corners.mean(0, keepdim=True), found.roll(1, -1), 0.9 * found + 0.1 * corners[0]])
    for row, nearest in zip(raw, found, strict=True):
        assert (row - nearest).norm() <= min((row - other).norm() for other in mixes) + 1e-9


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("adapters", [2, 5])
def test_every_constraint_begins_with_an_even_mix(name, adapters):
    constraint = CONSTRAINTS[name]
    raw = torch.full((1, adapters), constraint.start(1 / adapters))
    assert constraint.weights(raw).tolist() == [pytest.approx([1 / adapters] * adapters)]
    assert torch.equal(constraint.project(raw), raw)


# --- planted: a head that is made surer by one adapter, and disturbed by the other ----------------------------------


@pytest.fixture
def descend(base, parts_of, prompts, tokenizer):
    """(adapter folders, options of the recipe): all runs."""

    def run(*folders: Path, held_out: Sequence[int] = (2, 3), method: str = "linear", **options):
        adaptive = Adaptive(**{"search": "gradient", "batch": 1, "learning_rates": (0.1,), "tokens": 2} | options)
        parts = parts_of(base, [(folder, 1.0) for folder in folders])
        model, sought = load(base), SearchTrace()
        with Mixture(model, parts, method, granularity=adaptive.granularity) as mixture:
            objective = Objective(
                model,
                tokenizer,
                mixture,
                prompts,
                TokenSelection(adaptive.tokens),
                BatchTokens(9999, 9999),
            )
            gradient_descent(objective, len(parts), adaptive, (0, 1), held_out, sought)
            return sought.runs, mixture.groups

    return run


@pytest.fixture
def surer(base, write_adapter) -> Path:
    """Logits times four, and layers that stay as they are."""
    head = load(base).lm_head.weight.detach()
    return write_adapter(base, {"lm_head": (torch.eye(64), 3 * head)})


@pytest.fixture
def blurred(base, write_adapter) -> Path:
    """Logits almost even."""
    head = load(base).lm_head.weight.detach()
    return write_adapter(base, {"lm_head": (torch.eye(64), -0.9 * head)})


@pytest.mark.parametrize("granularity", ["model", "layer", "module"])
@pytest.mark.parametrize(("constraint", "rate"), [("simplex", 0.1), ("softmax", 1.0), ("sigmoid", 1.0), ("free", 0.1)])
def test_weight_moves_to_the_surer_adapter_whatever_the_switches(
    granularity, constraint, rate, descend, surer, blurred
):
    (run,), groups = descend(
        blurred, surer, granularity=granularity, constraint=constraint, learning_rates=(rate,), epochs=4, patience=0
    )
    assert groups == (("model",) if granularity == "model" else ("lm_head",))
    (first,), (last,) = run.points[0].coefficients, run.points[-1].coefficients
    assert first == pytest.approx((0.5, 0.5))
    assert last[0] < 0.5 < last[1]
    assert run.points[-1].entropy < run.points[0].entropy
    assert len(run.points) == 1 + 4 * 2
    if constraint in ("simplex", "softmax"):
        assert all(sum(point.coefficients[0]) == pytest.approx(1, abs=2e-6) for point in run.points)


def test_descents_share_their_first_gradient_and_are_what_they_are_alone(descend, base, make_adapter, monkeypatch):
    folders = make_adapter(base, 1), make_adapter(base, 2)
    asked = []
    gradient = Objective.gradient
    monkeypatch.setattr(
        Objective, "gradient", lambda self, weights, which: asked.append(1) or gradient(self, weights, which)
    )
    options = {"granularity": "layer", "epochs": 2, "patience": 0}
    together, _ = descend(*folders, learning_rates=(0.05, 0.3), **options)
    assert len(asked) == 2 * 4 - 1
    for run, rate in zip(together, (0.05, 0.3), strict=True):
        (alone,), _ = descend(*folders, learning_rates=(rate,), **options)
        assert alone == run


def test_a_descent_ends_in_a_corner(descend, surer, blurred):
    (run,), _ = descend(blurred, surer, learning_rates=(0.5,), epochs=50)
    assert run.stopped == IN_A_CORNER
    assert run.points[-1].coefficients == ((0.0, 1.0),)
    assert len(run.points) < 10


def test_a_descent_ends_when_entropy_no_longer_falls(descend, base, head_of):
    """Both adapters are the same, so no mix is better than another."""
    (run,), _ = descend(head_of(1.0), head_of(1.0), epochs=50, patience=2)
    assert run.stopped == LEVEL
    assert len(run.points) == 3


@pytest.fixture
def head_of(base, write_adapter):
    head = load(base).lm_head.weight.detach()
    return lambda by: write_adapter(base, {"lm_head": (torch.eye(64), by * head)})


def test_a_descent_that_leaves_the_numbers_keeps_what_it_had(descend, base, make_adapter, monkeypatch):
    gradient = Objective.gradient
    calls = []

    def broken(self, weights, which):
        calls.append(1)
        entropy, slope = gradient(self, weights, which)
        return entropy, slope * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(Objective, "gradient", broken)
    (run,), _ = descend(make_adapter(base, 1), make_adapter(base, 2), epochs=9, patience=0)
    assert run.stopped == BROKEN
    assert len(run.points) == 3
    assert all(math.isfinite(point.entropy) for point in run.points)


def test_a_start_that_is_no_number_is_refused(descend, base, head_of):
    with pytest.raises(AdaptationError, match="even mix is not a number"):
        descend(head_of(1.0), head_of(math.nan))


def test_without_held_out_prompts_all_steps_are_taken_and_the_end_is_judged(descend, base, make_adapter):
    (run,), _ = descend(make_adapter(base, 1), make_adapter(base, 2), held_out=(), epochs=3)
    assert [point.entropy is not None for point in run.points] == [True, *[False] * 5, True]
    assert [point.trained is not None for point in run.points] == [False, *[True] * 6]


# --- which tokens count ---------------------------------------------------------------------------------------------


class Scripted(torch.nn.Module):
    """Answers the same words whatever it is asked; the entropy at step n is that of n + 2 equally likely tokens."""

    def __init__(self, script: list[int], vocabulary: int) -> None:
        super().__init__()
        self.script, self.vocabulary = script, vocabulary
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, past_key_values=None, logits_to_keep=0, **_):
        from types import SimpleNamespace

        done = 0 if past_key_values is None else past_key_values
        logits = torch.full((len(input_ids), 1, self.vocabulary), -1e4)
        chosen = [self.script[done], *(t for t in range(self.vocabulary) if t != self.script[done])][: done + 2]
        logits[:, 0, chosen] = 0.0
        logits[:, 0, self.script[done]] = 1e-3
        return SimpleNamespace(logits=logits, past_key_values=done + 1)


class Words:
    """Tokens 10 and up are words; 1 ends the turn; 2 is `||`, 3 is ` |`, and 4 is `| Oil`, as tokenizers do it."""

    eos_token_id, pad_token_id = 1, 0

    def decode(self, ids: list[int]) -> str:
        return "".join({2: " ||", 3: " |", 4: "| Oil"}.get(i, f" w{i}") for i in ids)


CASES = {
    "first title": (None, [10, 11, 12, 13, 1], [0, 1]),
    "every title": ("||", [10, 11, 12, 2, 13, 14, 15, 2, 16, 1], [0, 1, 4, 5, 8, 9]),
    "a mark of several tokens": ("||", [10, 11, 12, 3, 4, 13, 14, 15, 1], [0, 1, 5, 6]),
    "a short title": ("||", [10, 2, 11, 1], [0, 1, 2, 3]),
    "no end": ("||", [10, 11, 12] * 5, [0, 1]),
}


@pytest.mark.parametrize(("mark", "script", "expected"), CASES.values(), ids=CASES)
def test_the_first_tokens_of_each_title_count(mark, script, expected):
    model = Scripted(script, 20)
    answers = answer(model, Words(), [[5, 6], [7]], TokenSelection(2, mark, longest=15))
    counts = answers.counts.tolist()
    assert [[n for n, counted in enumerate(row) if counted] for row in counts] == [expected, expected]
    assert answers.entropies.tolist() == pytest.approx(
        [sum(math.log(n + 2) for n in expected) / len(expected)] * 2, abs=1e-3
    )
