"""`objective: ranking` on a tiny model: its value against float64, the right mix where it is planted, and what ships otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reccocktail.engine.adapting import adapt as adaptive_module
from reccocktail.engine.adapting.adapt import load_on
from reccocktail.engine.adapting.calibration import losses, margins
from reccocktail.engine.adapting.mixture import Mixture
from reccocktail.engine.adapting.plots import plot_all
from reccocktail.engine.adapting.ranking import MixtureScores, RankingInput, blocks_of, choose_mix
from reccocktail.engine.adapting.users import Labels
from reccocktail.engine.adapting.verdict import Verdict
from reccocktail.engine.adaptive import Adaptive
from reccocktail.engine.errors import AdaptationError, GuardError
from reccocktail.engine.models import load_tokenizer
from reccocktail.registry import inspect_base
from reccocktail.tasks import Example, Question, Score, ScoreParts, generate, load_template, questions
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("in_float32")

FIT, GATE, CANDIDATES = 40, 40, 3
LIKELIHOOD = Score("likelihood")
ROLES = ("spirit", "ingredient", "toys")


@pytest.fixture(scope="module")
def many() -> list[Question]:
    """Questions of two candidates beside the right one, named by their number; right answers are to be replaced by those of a mix."""
    shop = generate("skin-care", users=120)
    asked = questions(shop, "validation", load_template("pick-one"), n_negatives=CANDIDATES - 1, limit=FIT + GATE)[1]
    return [replace(q, example=Example(str(number), ("a",), "b")) for number, q in enumerate(asked)]


@pytest.fixture(scope="module")
def adapters(base, make_adapter) -> list[Path]:
    return [make_adapter(base, seed, target_modules=["q_proj", "v_proj", "up_proj"]) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def loaded(base):
    return load_on(base, "cpu")()


@pytest.fixture
def choose(base, loaded, adapters, parts_of):
    """(questions to choose by, to judge by, options of the recipe): the verdict on two adapters."""

    def run(fit, gate, *, count: int = 2, given=None, warnings=(), looks=0, catalogue=(), **options) -> Verdict:
        parts = parts_of(base, [(folder, 1.0) for folder in adapters[:count]])
        labels = Labels(tuple(fit), tuple(gate), tuple(catalogue), looks=looks, warnings=tuple(warnings))
        asked = RankingInput(
            inspect_base(base), lambda: loaded, dict(zip(ROLES[:count], parts, strict=True)), "linear", "cpu", labels
        )
        adaptive = Adaptive(**{"objective": "ranking", "score": "likelihood", "scale": False} | options)
        return choose_mix(asked, adaptive, **(given or {}))

    return run


def answered(questions: list[Question], scores: np.ndarray) -> list[Question]:
    """The questions with the answers that the scores give, and a little chance."""
    chance = np.random.default_rng(5).gumbel(size=scores.shape)
    picked = (scores + 0.1 * scores.std() * chance).argmax(axis=1)
    return [replace(question, target_index=int(index)) for question, index in zip(questions, picked, strict=True)]


class World:
    """In place of a model: an adapter has a taste of its own, and a mix scores by the mix of tastes."""

    def __init__(self, many: list[Question]) -> None:
        self._many = many
        self._tastes = np.random.default_rng(2).normal(size=(3, len(many), CANDIDATES))

    def scores(self, weights, rows=None) -> np.ndarray:
        row = np.asarray(weights).reshape(-1, np.asarray(weights).shape[-1]).mean(axis=0)
        table = np.tensordot(row, self._tastes[: len(row)], 1)
        return table if rows is None else table[rows]

    def parts(self, scorer, weights, questions, scores) -> list[ScoreParts]:
        scorer.asked += len(questions)
        for _ in questions:
            scorer._progress(1)
        table = self.scores(weights, [int(question.example.user_id) for question in questions])
        return [ScoreParts(tuple(map(float, row))) for row in table]

    def answered(self, *row: float) -> list[Question]:
        return answered(self._many, self.scores(row))


@pytest.fixture
def world(many, monkeypatch) -> World:
    made = World(many)
    monkeypatch.setattr(MixtureScores, "parts", lambda scorer, *given: made.parts(scorer, *given))
    return made


def test_margins_and_loss_are_those_of_the_merged_weights_in_float64(base, adapters, parts_of, deltas, many):
    row, asked = (0.3, 0.8), many[:3]
    tokenizer = load_tokenizer(base)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    weights = dict(whole.named_parameters())
    with torch.no_grad():
        for folder, share in zip(adapters, row, strict=False):
            for name, delta in deltas(base, folder).items():
                weights[name] += share * torch.from_numpy(delta)
        expected = []
        for question in asked:
            prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
            start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            scores = []
            for title in question.titles:
                answer = tokenizer(title + "<|im_end|>", add_special_tokens=False)["input_ids"]
                log_p = whole(torch.tensor([[*start, *answer]])).logits[0].log_softmax(-1)
                scores.append(sum(float(log_p[len(start) - 1 + n, token]) for n, token in enumerate(answer)))
            expected.append(scores)
    expected = torch.tensor(expected, dtype=torch.float64)
    targets = torch.tensor([question.target_index for question in asked])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    parts = parts_of(base, [(folder, 1.0) for folder in adapters[:2]])
    with Mixture(model, parts, "linear") as mixture:
        found = MixtureScores(model, tokenizer, mixture).margins((row,), asked, LIKELIHOOD)
    assert found == pytest.approx((expected - expected.gather(1, targets[:, None])).numpy(), abs=2e-3)
    at = 0.4
    loss = torch.nn.functional.cross_entropy(expected * at, targets, reduction="none").numpy()
    assert losses(found, at) == pytest.approx(loss, abs=1e-3)


def test_the_planted_mix_is_found_on_a_model(choose, loaded, base, adapters, parts_of, many):
    with Mixture(loaded[0], parts_of(base, [(folder, 1.0) for folder in adapters[:2]]), "linear") as mixture:
        found = MixtureScores(*loaded, mixture).parts(((0.3, 0.7),), many[:50], [LIKELIHOOD])
    asked = answered(many[:50], np.array([part.likelihood for part in found]))
    found = choose(asked[:25], asked[25:])
    assert found.chosen[0][1] == pytest.approx(0.7, abs=0.16)
    assert found.asked == 25 * len(found.points) + 25 * (2 + (found.comparison is not None))


@pytest.mark.parametrize("share", [0.35, 0.7])
def test_the_planted_mix_ships(share, choose, world):
    asked = world.answered(1 - share, share)
    ticks = []
    found = choose(asked[:FIT], asked[FIT:], given={"progress": lambda done, total: ticks.append((done, total))})
    assert found.outcome in ("mixed", "average")
    assert found.means()["ingredient"] == pytest.approx(share, abs=0.16)
    assert (found.fit, found.gate, found.score, found.parent) == (FIT, GATE, "likelihood", None)
    assert found.comparison is not None
    assert found.comparison.safe
    assert ticks[-1][0] == ticks[-1][1] >= found.asked
    assert found.chosen == found.coefficients
    json.dumps(found.to_json(), allow_nan=False)
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["chosen"] == list(found.means().values())


def test_a_mix_that_fails_on_users_kept_apart_does_not_ship(choose, world):
    """The two groups want different mixes, as no domain does: what was chosen for the one is worse for the other."""
    fit, gate = world.answered(0.5, 0.5)[:FIT], world.answered(0.0, 1.0)[FIT:]
    found = choose(fit, gate)
    assert found.outcome == "parent"
    assert found.weights() in ({"spirit": 0.0, "ingredient": 1.0}, {"spirit": 1.0, "ingredient": 0.0})
    assert found.parent == max(found.weights(), key=lambda role: found.weights()[role])
    assert not found.win
    assert found.comparison is not None
    assert not found.comparison.safe
    assert 0 < found.chosen[0][1] < 1
    assert "may be worse than an adapter alone" in found.warnings[0]
    assert found.among_parents is not None
    assert found.among_parents.safe  # these users leave no doubt which adapter is the better one
    assert len(found.warnings) == 1
    with pytest.raises(GuardError):
        choose(fit, gate, guard="fail")
    off = choose(fit, gate, guard="off")
    assert off.outcome in ("mixed", "average")
    assert off.coefficients == off.chosen
    assert "guard: off" in off.warnings[0]
    assert choose(fit, gate, margin=0.99).outcome in ("mixed", "average")


def test_what_an_adapter_alone_answers_best_ships_alone(choose, world):
    asked = world.answered(1.0, 0.0)
    found = choose(asked[:FIT], asked[FIT:], score="likelihood")
    assert found.means()["spirit"] > 0.85
    if found.outcome == "parent":
        assert found.weights() == {"spirit": 1.0, "ingredient": 0.0}


def test_the_score_is_chosen_by_the_parents_and_their_average(choose, many):
    titles = [title for question in many for title in question.titles]
    found = choose(many[:20], many[20:21], score="auto", catalogue=titles)
    losses_by = {each.score: each.loss for each in found.scores}
    assert set(losses_by) == {"likelihood", "pmi:0.5", "pmi", "constrained"}
    assert found.score == min(losses_by, key=lambda score: losses_by[score])


def test_few_users_to_judge_by_let_no_mix_pass(choose, world):
    asked = world.answered(0.5, 0.5)
    found = choose(asked[:FIT], asked[FIT : FIT + 5], guard="ship-parent")
    assert found.outcome == "parent"
    assert found.more_users is not None
    other = ({"spirit", "ingredient"} - {found.parent}).pop()
    assert found.among_parents is not None
    assert [bound.parent for bound in found.among_parents.bounds] == [other]
    assert not found.to_json()["among_parents"]["safe"]
    assert f"the {other} alone" in found.warnings[1]  # nor do five users say which adapter is the better one


def test_an_adapter_that_ships_because_no_mix_was_taken_is_not_called_sure(choose, world):
    asked = world.answered(1.0, 0.0)
    found = choose(asked[:FIT], asked[FIT : FIT + 5])
    assert (found.outcome, found.parent, found.comparison) == ("parent", "spirit", None)
    assert "the ingredient alone" in found.warnings[0]
    assert len(found.warnings) == 1
    assert choose(asked[:FIT], asked[FIT:]).warnings == ()  # forty users leave no doubt


def test_where_no_adapter_is_sure_either_the_mix_ships_if_its_loss_is_the_smallest(choose, world):
    asked = world.answered(0.5, 0.5)
    found = choose(asked[:FIT], asked[FIT : FIT + 5])
    assert (found.outcome, found.win, found.parent) == ("average", False, None)
    assert found.coefficients == found.chosen
    assert found.comparison is not None
    assert not found.comparison.safe
    assert f"all {FIT + 5} labelled users" in found.warnings[0]
    assert len(found.warnings) == 2  # the mix is not sure, nor is any adapter
    with pytest.raises(GuardError):
        choose(asked[:FIT], asked[FIT : FIT + 5], guard="fail")


@pytest.mark.parametrize("fit", [0, 19])
def test_without_labels_enough_the_average_is_taken_and_no_model_loaded(fit, base, adapters, parts_of, many, choose):
    found = choose(many[:fit], [], given={}, warnings=("spirit@v1 says nothing",))
    assert (found.outcome, found.win, found.weights()) == ("average", False, {"spirit": 0.5, "ingredient": 0.5})
    assert (found.asked, found.search, found.score) == (0, "none", None)
    assert "the average is taken" in found.warnings[0]
    assert found.warnings[1:] == ("spirit@v1 says nothing",)
    with pytest.raises(AdaptationError):
        choose(many[:fit], [], too_few_labels="fail")


def test_an_adapter_alone_is_taken_as_it_is(choose, many):
    found = choose(many[:FIT], many[FIT:], count=1)
    assert (found.outcome, found.parent, found.weights(), found.asked) == ("parent", "spirit", {"spirit": 1.0}, 0)


def test_a_neighbour_is_added_where_it_helps(choose, world):
    asked = world.answered(0.35, 0.3, 0.35)
    found = choose(asked[:FIT], asked[FIT:], count=3)
    assert any(rung.name == "with toys" for rung in found.rungs)
    assert found.roles == ("spirit", "ingredient", "toys")
    assert found.comparison is None or {bound.parent for bound in found.comparison.bounds} == set(found.roles)


def test_layers_are_moved_in_blocks_where_the_recipe_asks(choose, world):
    asked = world.answered(0.5, 0.5)
    found = choose(asked[:FIT], asked[FIT:], granularity="layer")
    assert found.rungs[-1].name == "blocks"
    assert len(found.groups) == 2
    assert any(point.rung == "blocks" for point in found.points)


def test_blocks_are_quarters_of_the_depth_and_modules_apart():
    layers = [f"model.layers.{n}" for n in range(8)]
    assert blocks_of(layers, "layer") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    modules = [f"model.layers.{n}.{m}" for n in range(2) for m in ("self_attn.q", "self_attn.v", "mlp.up")] + [
        "lm_head"
    ]
    assert blocks_of(modules, "module") == [[0, 1], [2], [3, 4], [5], [6]]
    assert blocks_of(["model"], "model") == []


def test_memory_that_cannot_hold_the_model_is_refused_before_it_is_loaded(choose, many, monkeypatch):
    monkeypatch.setattr(adaptive_module, "available", lambda device: 10_000)
    with pytest.raises(AdaptationError):
        choose(many[:FIT], many[FIT:])


def test_ctrl_c_ends_the_climb_and_the_comparison_still_follows(choose, world):
    asked = world.answered(0.5, 0.5)

    def interrupt(done: int, total: int) -> None:
        if done == 4 * FIT + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose(asked[:FIT], asked[FIT:], given={"progress": interrupt})
    found = choose(asked[:FIT], asked[FIT:], given={"progress": interrupt, "keep_best": True})
    assert [rung.name for rung in found.rungs] == ["average"]
    assert found.outcome == "parent" or found.comparison is not None
    assert "interrupted" in found.warnings[0]


def test_the_looks_are_plotted(choose, world, tmp_path):
    asked = world.answered(0.5, 0.5)
    found = choose(asked[:FIT], asked[FIT:])
    assert plot_all(found, tmp_path, title="beauty") == ["ranking.png"]
    assert (tmp_path / "ranking.png").read_bytes().startswith(b"\x89PNG")


def test_the_right_item_needs_a_score():
    with pytest.raises(AdaptationError):
        margins([[0.0, float("nan")]], [0])
