"""One adapter trained on the domain, one on noise: whatever the granularity, weight moves to the one that has learned."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reccocktail.engine.adapting.adapt import AdaptationInput, adapt, load_on
from reccocktail.engine.adapting.ranking import RankingInput, choose_mix
from reccocktail.engine.adapting.users import Labels
from reccocktail.engine.recipes import Adaptive
from reccocktail.registry import inspect_base
from reccocktail.tasks import load_template, questions
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.usefixtures("in_float32"), pytest.mark.slow]

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
STEPS = 60


@pytest.fixture(scope="module")
def taught(base, shop, tokenizer, tmp_path_factory) -> Callable[[bool], Path]:
    """(noise?): a LoRA trained on the domain's prompts with the right answers, or with other random words at every step."""
    asked = questions(shop, "test", load_template("pick-one"))[1]
    prompts = [tokenizer.apply_chat_template(q.messages, add_generation_prompt=True)["input_ids"] for q in asked]
    answers = [tokenizer(f"{q.answer} <|im_end|>", add_special_tokens=False)["input_ids"] for q in asked]

    def train(noise: bool) -> Path:
        rng = torch.Generator().manual_seed(7)
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = get_peft_model(
            model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        adam = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(STEPS):
            texts, wanted = [], []
            for prompt, answer in zip(prompts, answers, strict=True):
                words = torch.randint(4, len(tokenizer), (len(answer),), generator=rng).tolist() if noise else answer
                texts.append(torch.tensor([*prompt, *words]))
                wanted.append(torch.tensor([-100] * len(prompt) + words))
            ids, labels = pad_sequence(texts, True), pad_sequence(wanted, True, padding_value=-100)[:, 1:]
            logits = adapted(input_ids=ids).logits[:, :-1]  # what pads stands behind everything that is asked for
            losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1) / (labels >= 0).sum(1)
            adam.zero_grad()
            losses.mean().backward()
            adam.step()
        folder = tmp_path_factory.mktemp("noise" if noise else "taught")
        adapted.save_pretrained(folder)
        return folder

    made = {noise: train(noise) for noise in (False, True)}
    return lambda noise: made[noise]


@pytest.mark.parametrize(
    ("constraint", "granularity", "taught_first"),
    [
        (constraint, granularity, taught_first)
        for row, constraint in enumerate(["simplex", "softmax"])
        for column, granularity in enumerate(["model", "layer", "module"])
        for taught_first in (True, False)
        if SOAK or (row + column) % 2 == taught_first
    ],
)
def test_weight_moves_to_the_adapter_that_was_trained_on_the_domain(
    constraint, granularity, taught_first, taught, base, parts_of, shop
):
    folders = [taught(not taught_first), taught(taught_first)]
    parts = dict(zip(("spirit", "ingredient"), parts_of(base, [(folder, 1.0) for folder in folders]), strict=True))
    prompts = questions(shop, "test", load_template("pick-one"), limit=8)[1]
    adaptive = Adaptive(
        granularity=granularity, constraint=constraint, search="gradient", tokens=2, batch=2, epochs=4, held_out=0.25
    )
    found = adapt(AdaptationInput(inspect_base(base), load_on(base, "cpu"), parts, "linear", "cpu", prompts), adaptive)
    right = "spirit" if taught_first else "ingredient"
    assert found.means()[right] > 0.6
    assert found.entropy < found.start
    column = found.roles.index(right)
    moved = [row[column] > 0.5 for row in found.coefficients]
    assert sum(moved) > 0.75 * len(moved)
    if granularity == "model":
        line = Adaptive(tokens=2, points=5)
        found = adapt(AdaptationInput(inspect_base(base), load_on(base, "cpu"), parts, "linear", "cpu", prompts), line)
        assert found.means()[right] > 0.5


@pytest.mark.parametrize("taught_first", [True, False])
def test_ranking_gives_the_weight_to_the_adapter_that_was_trained_on_the_domain(
    taught_first, taught, base, parts_of, shop
):
    folders = [taught(not taught_first), taught(taught_first)]
    parts = dict(zip(("spirit", "ingredient"), parts_of(base, [(folder, 1.0) for folder in folders]), strict=True))
    learned = tuple(questions(shop, "test", load_template("pick-one"))[1])
    given = RankingInput(
        inspect_base(base), load_on(base, "cpu"), parts, "linear", "cpu", Labels(learned * 2, learned * 2)
    )
    found = choose_mix(given, Adaptive(objective="ranking", score="likelihood"))
    right, wrong = ("spirit", "ingredient") if taught_first else ("ingredient", "spirit")
    assert found.means()[right] > 2 * abs(found.means()[wrong])
    alone = [point.loss for point in found.points[:2]]
    assert alone[found.roles.index(right)] < alone[found.roles.index(wrong)]
