"""Planted cases: mixes whose entropy curve, or where its minimum lies, is known beforehand.

An adapter with B = c·W and A = 1 on the head multiplies all logits by 1 + c: it never changes a greedy answer, and makes it surer.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reccocktail.engine.adaptive import Adaptation, CurvePoint, adapt, plot
from reccocktail.engine.errors import AdaptationError
from reccocktail.engine.models import load_tokenizer
from reccocktail.engine.recipes import Adaptive
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("in_float32")

SHARPER = 3.0


@pytest.fixture
def head(base: Path) -> torch.Tensor:
    return load_file(base / "model.safetensors")["lm_head.weight"]


@pytest.fixture
def sharpening(base, head, write_adapter) -> Path:
    return write_adapter(base, {"lm_head": (torch.eye(64), SHARPER * head)})


@pytest.fixture
def nothing(base, head, write_adapter) -> Path:
    return write_adapter(base, {"lm_head": (torch.eye(64), torch.zeros_like(head))})


@pytest.fixture
def find(base, parts_of, asked):
    """(spirit folder, ingredient folder, options of the recipe): the adaptation on two prompts."""

    def run(spirit: Path, ingredient: Path, method: str = "linear", progress=lambda *_: None, **options) -> Adaptation:
        parts = parts_of(base, [(spirit, 1.0), (ingredient, 1.0)])
        adaptive = Adaptive(**{"points": 5, "tokens": 3} | options)
        return adapt(base, *parts, asked[:2], adaptive, method=method, device="cpu", progress=progress)

    return run


@torch.inference_mode()
def entropy_when_logits_are_multiplied(base: Path, asked, by: float, tokens: int) -> float:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer, total = load_tokenizer(base), 0.0
    for question in asked:
        ids = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True)["input_ids"]
        found = []
        while len(found) < tokens and ids[-1] != tokenizer.eos_token_id:
            p = (by * model(torch.tensor([ids])).logits[0, -1].double()).softmax(-1)
            found.append(-float(torch.special.xlogy(p, p).sum()))
            ids = [*ids, int(p.argmax())]
        total += sum(found) / len(found)
    return total / len(asked)


def test_the_mix_moves_to_an_ingredient_that_makes_answers_surer(find, nothing, sharpening, base, asked):
    found = find(nothing, sharpening)
    assert (found.spirit, found.ingredient) == (0.0, 1.0)
    assert [point.ingredient for point in found.curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for point in found.curve:
        expected = entropy_when_logits_are_multiplied(base, asked[:2], 1 + SHARPER * point.ingredient, 3)
        assert point.entropy == pytest.approx(expected, abs=1e-4)
    assert found.entropy == found.curve[-1].entropy
    assert found.warnings == (
        "entropy is smallest for the ingredient alone, so nothing is mixed; low entropy means sure, not right",
    )
    assert (found.prompts, found.tokens) == (2, 3)


def test_the_mix_moves_to_a_spirit_that_makes_answers_surer(find, nothing, sharpening):
    found = find(sharpening, nothing)
    assert (found.spirit, found.ingredient) == (1.0, 0.0)
    assert found.entropy == found.curve[0].entropy < found.curve[-1].entropy


def test_an_adapter_of_noise_does_not_keep_the_mix_from_the_sharp_one(find, make_adapter, base, sharpening):
    noise = make_adapter(base, 3, target_modules=["q_proj", "k_proj"], lora_alpha=1)
    assert find(noise, sharpening).ingredient == 1.0
    assert find(sharpening, noise).ingredient == 0.0


@pytest.mark.parametrize(("points", "share"), [(3, 0.5), (5, 0.5), (4, 0.333333)])
def test_a_minimum_between_the_ends_is_found(points, share, find, base, head, write_adapter):
    """One brings only A, the other only B: mixed factor by factor they multiply the logits by 1 + c·λ(1 - λ)."""
    only_a = write_adapter(base, {"lm_head": (8 * torch.eye(64), torch.zeros_like(head))})
    only_b = write_adapter(base, {"lm_head": (torch.zeros(64, 64), head)})
    found = find(only_a, only_b, "factor", points=points)
    assert found.ingredient == pytest.approx(share)
    assert found.spirit == pytest.approx(1 - share, abs=2e-6)
    assert found.curve[0].entropy == pytest.approx(found.curve[-1].entropy, abs=1e-5)


@pytest.mark.parametrize("points", [3, 7])
def test_progress_counts_every_prompt_at_every_point(points, find, nothing, sharpening):
    told = []
    found = find(nothing, sharpening, points=points, progress=lambda done, total: told.append((done, total)))
    assert len(found.curve) == points
    assert told[-1] == (2 * points, 2 * points)
    assert told == sorted(told)


def test_how_prompts_are_batched_does_not_show(base, parts_of, nothing, sharpening, asked):
    parts = parts_of(base, [(nothing, 1.0), (sharpening, 1.0)])
    adaptive = Adaptive(points=3)
    alone, together = (
        adapt(base, *parts, asked, adaptive, method="linear", device="cpu", batch_tokens=tokens) for tokens in (1, 9999)
    )
    assert [p.entropy for p in alone.curve] == pytest.approx([p.entropy for p in together.curve], abs=1e-4)


def test_labels_are_never_looked_at(base, parts_of, nothing, sharpening, asked):
    parts = parts_of(base, [(nothing, 1.0), (sharpening, 1.0)])
    unlabelled = [replace(question, target_index=None, example=None) for question in asked[:2]]
    found = adapt(base, *parts, unlabelled, Adaptive(points=3), method="linear", device="cpu")  # pyright: ignore
    assert found.ingredient == 1.0


def test_an_adapter_with_nan_is_refused(find, base, head, write_adapter, nothing):
    broken = write_adapter(base, {"lm_head": (torch.eye(64), torch.full_like(head, math.nan))})
    with pytest.raises(AdaptationError, match="not a number"):
        find(nothing, broken)


def test_without_prompts_there_is_nothing_to_adapt_on(base, parts_of, nothing):
    parts = parts_of(base, [(nothing, 1.0), (nothing, 1.0)])
    with pytest.raises(AdaptationError, match="no validation prompts"):
        adapt(base, *parts, [], Adaptive(), method="linear", device="cpu")


def test_the_same_curve_is_plotted_to_the_same_bytes(tmp_path):
    curve = tuple(CurvePoint(share / 4, 2 - share / 10) for share in range(5))
    found = Adaptation(0.0, 1.0, 1.6, 50, 3, curve)
    for name in ("first.png", "second.png"):
        plot(found, tmp_path / name, title="beauty: entropy over the mix")
    first = (tmp_path / "first.png").read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert first == (tmp_path / "second.png").read_bytes()
    plot(Adaptation(1.0, 0.0, 1.6, 50, 3, curve[:3]), tmp_path / "other.png", title="other")
    assert first != (tmp_path / "other.png").read_bytes()
