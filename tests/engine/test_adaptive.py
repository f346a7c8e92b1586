"""Planted cases: mixes whose entropy curve, or where its minimum lies, is known beforehand.

An adapter with B = c·W and A = 1 on the head multiplies all logits by 1 + c: it never changes a greedy answer, and makes it surer.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
import torch
from reccocktail.engine.adapting import adapt as adaptive_module
from reccocktail.engine.adapting.adapt import Adaptation, AdaptationInput, _with_warnings, adapt, load_on
from reccocktail.engine.adapting.objective import Objective
from reccocktail.engine.adapting.plots import plot_all, plot_search
from reccocktail.engine.adapting.search import Point, Run
from reccocktail.engine.errors import AdaptationError, RecipeError
from reccocktail.engine.models import load_tokenizer
from reccocktail.engine.recipes import Adaptive
from reccocktail.registry import inspect_base
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

    def run(*folders: Path, method: str = "linear", questions=None, given=None, **options) -> Adaptation:
        roles = ("spirit", "ingredient", *(f"neighbour-{n}" for n in range(6)))
        parts = dict(zip(roles, parts_of(base, [(folder, 1.0) for folder in folders]), strict=False))
        if options.get("search") == "gradient":
            options.pop("points", None)
        elif "points" not in options and len(parts) == 2 and options.get("granularity", "model") == "model":
            options["points"] = 5
        adaptive = Adaptive(**{"tokens": 3} | options)
        options = dict(given or {})
        wanted = AdaptationInput(
            inspect_base(base),
            load_on(base, "cpu"),
            parts,
            method,
            "cpu",
            asked[:2] if questions is None else questions,
            options.pop("labelled", ()),
        )
        return adapt(wanted, adaptive, **options)

    return run


def along(found: Adaptation) -> list[tuple[float, float]]:
    """(λ of the ingredient, entropy) of a line."""
    return [(point.coefficients[0][1], point.entropy) for point in found.runs[0].points]


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
    assert found.weights() == {"spirit": 0.0, "ingredient": 1.0}
    assert [share for share, _ in along(found)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for share, entropy in along(found):
        expected = entropy_when_logits_are_multiplied(base, asked[:2], 1 + SHARPER * share, 3)
        assert entropy == pytest.approx(expected, abs=1e-4)
    assert found.entropy == along(found)[-1][1]
    assert [end.entropy for end in found.ends] == pytest.approx([along(found)[0][1], along(found)[-1][1]], abs=1e-5)
    assert found.warnings == (
        "entropy is smallest for the ingredient alone, so nothing is mixed; low entropy means confident, not correct",
    )
    assert (found.prompts, found.tokens) == (2, 3)


def test_the_mix_moves_to_a_spirit_that_makes_answers_surer(find, nothing, sharpening):
    found = find(sharpening, nothing)
    assert found.weights() == {"spirit": 1.0, "ingredient": 0.0}
    assert found.entropy == along(found)[0][1] < along(found)[-1][1]


def test_an_adapter_of_noise_does_not_keep_the_mix_from_the_sharp_one(find, make_adapter, base, sharpening):
    noise = make_adapter(base, 3, target_modules=["q_proj", "k_proj"], lora_alpha=1)
    assert find(noise, sharpening).weights()["ingredient"] == 1.0
    assert find(sharpening, noise).weights()["ingredient"] == 0.0


@pytest.mark.parametrize(("points", "share"), [(3, 0.5), (5, 0.5), (4, 0.333333)])
def test_a_minimum_between_the_ends_is_found(points, share, find, base, head, write_adapter):
    """One brings only A, the other only B: mixed factor by factor they multiply the logits by 1 + c·λ(1 - λ)."""
    only_a = write_adapter(base, {"lm_head": (8 * torch.eye(64), torch.zeros_like(head))})
    only_b = write_adapter(base, {"lm_head": (torch.zeros(64, 64), head)})
    found = find(only_a, only_b, method="factor", points=points)
    assert found.weights() == pytest.approx({"spirit": 1 - share, "ingredient": share}, abs=2e-6)
    assert along(found)[0][1] == pytest.approx(along(found)[-1][1], abs=1e-5)


@pytest.mark.parametrize("points", [3, 7])
def test_progress_counts_every_prompt_at_every_point_and_every_end(points, find, nothing, sharpening):
    told = []
    found = find(nothing, sharpening, points=points, given={"progress": lambda done, total: told.append((done, total))})
    assert len(along(found)) == points
    assert told[-1] == (2 * (points + 2), 2 * (points + 2))
    assert told == sorted(told)


@pytest.mark.parametrize("search", ["line", "gradient"])
def test_how_prompts_are_batched_does_not_show(search, find, nothing, sharpening, asked):
    alone, together = (
        find(nothing, sharpening, questions=asked, search=search, points=3, given={"batch_tokens": tokens})
        for tokens in (1, 9999)
    )
    assert torch.tensor(along(alone)) == pytest.approx(torch.tensor(along(together)), abs=1e-4)


@pytest.mark.parametrize("search", ["line", "gradient"])
def test_labels_are_never_looked_at(search, find, nothing, sharpening, asked):
    def with_answer(index: int) -> Adaptation:
        questions = [replace(question, target_index=index) for question in asked[:2]]
        return find(nothing, sharpening, questions=questions, search=search, points=3)

    found = with_answer(0)
    assert found.weights()["ingredient"] > 0.5
    assert with_answer(1).weights() == found.weights()


def test_an_adapter_with_nan_is_refused(find, base, head, write_adapter, nothing):
    broken = write_adapter(base, {"lm_head": (torch.eye(64), torch.full_like(head, math.nan))})
    with pytest.raises(AdaptationError, match="not a number"):
        find(nothing, broken)


def test_without_prompts_there_is_nothing_to_adapt_on(find, nothing):
    with pytest.raises(AdaptationError, match="no prompts to adapt on"):
        find(nothing, nothing, questions=[])


def test_a_memory_that_cannot_hold_it_is_told_beforehand_with_the_numbers(find, base, make_adapter, monkeypatch):
    folders = make_adapter(base, 1), make_adapter(base, 2)
    said = []
    find(*folders, search="gradient", given={"notify": said.append})
    assert len(said) == 1
    assert "GB of memory beside the model" in said[0]
    monkeypatch.setattr(adaptive_module, "available", lambda device: 10_000)
    with pytest.raises(AdaptationError, match=r"the base and its adapters take 0\.0 GB of memory on cpu") as refused:
        find(*folders)
    assert "give coefficients" in (refused.value.hint or "")
    free = iter([10**9, 10_000])
    monkeypatch.setattr(adaptive_module, "available", lambda device: next(free))
    with pytest.raises(AdaptationError, match=r"a gradient over .* tokens needs about"):
        find(*folders, search="gradient")


# --- judged by labels -----------------------------------------------------------------------------------------------


def test_validation_labels_are_reported_along_the_way_and_warn_of_a_better_end(find, asked, base, make_adapter):
    first, second = make_adapter(base, 1), make_adapter(base, 2)
    found = find(first, second, questions=asked, points=3, given={"labelled": asked})
    assert found.labels == len(asked)
    assert all(point.ndcg is not None for point in found.runs[0].points)
    by_share = {point.coefficients[0][1]: point.ndcg for point in found.runs[0].points}
    assert [end.ndcg for end in found.ends] == [by_share[0.0], by_share[1.0]]
    assert found.ndcg == by_share[found.weights()["ingredient"]]
    for end in found.ends:
        assert end.difference.mean == pytest.approx(found.ndcg - end.ndcg)
        said = any(f"the {end.role} alone is better: NDCG@3 {end.ndcg:.3f}" in text for text in found.warnings)
        assert said == (end.difference.mean < 0)


def test_the_choice_by_validation_is_of_the_best_ndcg(find, asked, base, make_adapter):
    folders = make_adapter(base, 1), make_adapter(base, 2), make_adapter(base, 3)
    options = {
        "granularity": "layer",
        "search": "gradient",
        "learning_rates": (0.3, 1.0),
        "held_out": 0.5,
        "patience": 0,
    }
    found = find(*folders, questions=asked, labels=4, select="validation", given={"labelled": asked}, **options)
    ndcg = [point.ndcg for run in found.runs for point in run.points]
    assert found.ndcg == max(ndcg)
    assert len(set(ndcg)) > 1


# --- several adapters, or one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("constraint", ["simplex", "softmax"])
def test_a_spirit_alone_has_all_the_weight_and_no_model_is_loaded_for_it(constraint, base, parts_of, nothing):
    (part,) = parts_of(base, [(nothing, 1.0)])

    def load():
        raise AssertionError("nothing to be found with it")

    found = adapt(AdaptationInput(None, load, {"spirit": part}, "linear", "cpu", []), Adaptive(constraint=constraint))
    assert found.weights() == {"spirit": 1.0}
    assert found.warnings == ("there is no adapter but the spirit, so nothing is mixed",)


def test_how_much_of_a_spirit_alone_is_found_where_its_weight_is_free(find, sharpening):
    found = find(sharpening, constraint="sigmoid", search="gradient", learning_rates=(0.5,), held_out=0.5)
    assert found.roles == ("spirit",)
    assert found.runs[0].points[0].coefficients[0][0] == pytest.approx(0.982014)
    assert found.weights()["spirit"] > 0.982014


@pytest.mark.parametrize("adapters", [3, 8])
def test_weight_moves_to_the_one_adapter_of_many_that_makes_answers_surer(adapters, find, nothing, sharpening):
    folders = [nothing] * (adapters - 1) + [sharpening]
    found = find(*folders, search="gradient", learning_rates=(0.1,), epochs=12, held_out=0.5)
    assert found.search == "gradient"
    assert found.runs[0].points[0].coefficients == ((pytest.approx(1 / adapters, abs=1e-6),) * adapters,)
    assert max(found.weights(), key=found.weights().get) == found.roles[-1]
    assert sum(found.weights().values()) == pytest.approx(1, abs=1e-5)


# --- interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["line", "gradient"])
def test_a_search_that_is_interrupted_keeps_its_best_if_told_to(search, find, nothing, sharpening):
    def interrupting(after: int):
        done = 0

        def progress(_done: int, _total: int) -> None:
            nonlocal done
            done += 1
            if done == after:
                raise KeyboardInterrupt

        return progress

    options = {"search": search, "points": 5}
    if search == "gradient":
        options |= {"held_out": 0.5, "learning_rates": (0.1,), "epochs": 9}
    whole = find(nothing, sharpening, **options)
    found = find(
        nothing, sharpening, given={"progress": interrupting(7), "keep_best": True, "batch_tokens": 1}, **options
    )
    assert found.runs[0].stopped == "interrupted"
    assert 1 < len(found.runs[0].points) < len(whole.runs[0].points)
    assert found.entropy == min(point.entropy for point in found.runs[0].points)
    assert found.warnings == ("the search was interrupted; this is the best mix so far. Use --force to build again",)
    with pytest.raises(KeyboardInterrupt):
        find(nothing, sharpening, given={"progress": interrupting(7), "batch_tokens": 1}, **options)
    with pytest.raises(KeyboardInterrupt):  # before anything was found
        find(nothing, sharpening, given={"progress": interrupting(1), "keep_best": True, "batch_tokens": 1}, **options)


def test_without_held_out_prompts_nothing_is_kept_before_a_descent_has_ended(find, nothing, sharpening):
    def interrupt(done: int, _total: int) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(
            nothing, sharpening, search="gradient", held_out=0.0, epochs=9, batch=1,
            given={"progress": interrupt, "keep_best": True, "batch_tokens": 1},
        )  # fmt: skip


# --- what is said of the result -------------------------------------------------------------------------------------


def test_two_adapters_that_both_help_do_not_hold_each_other(find, base, head, write_adapter):
    """Both partials have one sign: their common part must not use the steps up."""
    less, more = (write_adapter(base, {"lm_head": (torch.eye(64), by * head)}) for by in (1.0, 3.0))
    for constraint in ("simplex", "softmax"):
        found = find(less, more, search="gradient", constraint=constraint, held_out=0.5, epochs=8)
        assert found.weights()["ingredient"] > 0.9
        assert found.entropy < found.start


def test_only_a_weight_that_stands_alone_is_called_alone():
    point = Point(((1.1, 0.9995),), 1.0)
    line = a_line(3)
    found = replace(line, coefficients=point.coefficients, constraint="free", runs=(Run(0.1, (point,)),))
    assert _with_warnings(found, interrupted=False).warnings == ()
    found = replace(line, coefficients=((0.0, 1.0),))
    assert "for the ingredient alone" in _with_warnings(found, interrupted=False).warnings[0]


def test_an_end_that_is_no_number_is_said_and_not_kept_as_one(find, nothing, sharpening, monkeypatch):
    """As where an adapter alone takes the logits out of the numbers, and half of it does not."""
    value = Objective.value
    monkeypatch.setattr(
        Objective, "value", lambda self, weights, which: math.nan if weights.max() == 1 else value(self, weights, which)
    )
    found = find(nothing, sharpening, search="gradient", constraint="softmax", epochs=1, held_out=0.5)
    assert [end.entropy for end in found.ends] == [None, None]
    assert [text for text in found.warnings if "no finite entropy" in text] == [
        f"the {role} alone gives no finite entropy; it may be broken" for role in ("spirit", "ingredient")
    ]
    json.dumps(found.to_json(), allow_nan=False)
    json.dumps(found.summary(), allow_nan=False)


def test_every_title_of_a_template_that_asks_for_one_is_refused(find, nothing, sharpening):
    with pytest.raises(RecipeError, match="template 'pick-one' asks for one title"):
        find(nothing, sharpening, titles="every")


# --- plots ----------------------------------------------------------------------------------------------------------


def a_line(shares: int) -> Adaptation:
    points = tuple(Point(((1 - n / 4, n / 4),), 2 - n / 10, ndcg=n / 9) for n in range(shares))
    return Adaptation(
        roles=("spirit", "ingredient"),
        groups=("model",),
        modules={"model": ("a",)},
        coefficients=points[-1].coefficients,
        granularity="model",
        constraint="simplex",
        search="line",
        tokens=3,
        titles="first",
        prompts=50,
        judged=50,
        entropy=1.6,
        start=2.0,
        chosen=0,
        runs=(Run(None, points),),
    )


def test_the_same_curve_is_plotted_to_the_same_bytes(tmp_path):
    for name in ("first.png", "second.png"):
        plot_search(a_line(5), tmp_path / name, title="beauty: entropy over the mix")
    first = (tmp_path / "first.png").read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert first == (tmp_path / "second.png").read_bytes()
    plot_search(a_line(3), tmp_path / "other.png", title="other")
    assert first != (tmp_path / "other.png").read_bytes()


def test_a_search_per_module_is_plotted_with_a_map_of_its_coefficients(tmp_path, find, base, make_adapter):
    found = find(make_adapter(base, 1), make_adapter(base, 2), granularity="module", held_out=0.5)
    assert plot_all(found, tmp_path, title="beauty") == ["entropy.png", "coefficients.png"]
    for name in ("entropy.png", "coefficients.png"):
        image = matplotlib.image.imread(tmp_path / name)
        assert image.shape[0] > 200
        assert image.std() > 0.05  # something is drawn
