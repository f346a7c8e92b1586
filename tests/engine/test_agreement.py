"""`objective: agreement` on a tiny model: the loss against merged weights in float64, planted truth, and builds without any user."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reccocktail.engine.adapting import adapt as adaptive_module
from reccocktail.engine.adapting.adapt import load_on
from reccocktail.engine.adapting.agreement import UNMEASURED, AgreementInput, find_agreement
from reccocktail.engine.adapting.plots import plot_all
from reccocktail.engine.adapting.ranking import MixtureScores
from reccocktail.engine.adapting.verdict import Agreement
from reccocktail.engine.adaptive import Adaptive
from reccocktail.engine.building.execution import run
from reccocktail.engine.building.job import RunOptions
from reccocktail.engine.building.labels import label_note
from reccocktail.engine.building.planning import plan, request
from reccocktail.engine.errors import AdaptationError
from reccocktail.engine.models import load_tokenizer
from reccocktail.engine.recipes import Recipe
from reccocktail.publishing.package import publishable
from reccocktail.registry import Build, Registry, inspect_base
from reccocktail.registry.errors import UsageError
from reccocktail.tasks import (
    DataError,
    DomainData,
    OpenQuestion,
    ScoreParts,
    generate,
    load_template,
    pseudo_questions,
    write_domain,
)
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("in_float32")

USERS, CANDIDATES = 20, 4
ROLES = ("spirit", "ingredient", "toys")


@pytest.fixture(scope="module")
def catalogue() -> DomainData:
    """Items and no user."""
    return generate("skin-care", users=0)


@pytest.fixture(scope="module")
def pseudo(catalogue) -> list[OpenQuestion]:
    return pseudo_questions(catalogue, load_template("pick-one"), users=USERS, n_negatives=CANDIDATES - 1)


@pytest.fixture(scope="module")
def adapters(base, make_adapter) -> list[Path]:
    return [make_adapter(base, seed, target_modules=["q_proj", "v_proj", "up_proj"]) for seed in (1, 2, 3)]


@pytest.fixture
def find(base, adapters, parts_of, pseudo):
    """(number of adapters, options of the recipe): what is found."""
    loaded = load_on(base, "cpu")()

    def run(*, count: int = 2, given=None, questions=pseudo, **options) -> Agreement:
        parts = parts_of(base, [(folder, 1.0) for folder in adapters[:count]])
        asked = AgreementInput(
            inspect_base(base), lambda: loaded, dict(zip(ROLES, parts, strict=False)), "linear", "cpu", questions
        )
        adaptive = Adaptive(**{"objective": "agreement", "prompts": USERS, "scale": False} | options)
        return find_agreement(asked, adaptive, **(given or {}))

    return run


@pytest.fixture
def world(monkeypatch):
    """In place of a model: an adapter has a taste, of a strength of its own, and a mix scores by the mix of them."""
    strengths, tastes = [1.0, 1.0, 1.0], np.random.default_rng(2).normal(size=(3, 500, CANDIDATES))

    def parts(scorer, weights, questions, scores) -> list[ScoreParts]:
        scorer.asked += len(questions)
        for _ in questions:
            scorer._progress(1)
        row = np.mean(weights, axis=0)
        table = sum(w * s * taste for w, s, taste in zip(row, strengths, tastes, strict=False))
        return [ScoreParts(tuple(own), tuple(0.0 for _ in own)) for own in table[: len(questions)].tolist()]

    monkeypatch.setattr(MixtureScores, "parts", parts)
    return strengths


def test_the_loss_of_every_mix_is_that_of_merged_weights_in_float64(base, adapters, deltas, find, pseudo):
    asked = pseudo[:USERS]
    found = find(score="likelihood", beta=0.8, temperature=2.0)
    tokenizer = load_tokenizer(base)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    plain = {name: weight.detach().clone() for name, weight in whole.named_parameters()}

    @torch.no_grad()
    def scores(row) -> np.ndarray:
        for name, weight in whole.named_parameters():
            weight.copy_(plain[name])
        weights = dict(whole.named_parameters())
        for folder, share in zip(adapters, row, strict=False):
            for name, delta in deltas(base, folder).items():
                weights[name] += share * torch.from_numpy(delta)
        table = []
        for question in asked:
            prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
            start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answers = [
                tokenizer(title + "<|im_end|>", add_special_tokens=False)["input_ids"] for title in question.titles
            ]
            longest = max(map(len, answers))
            rows = torch.tensor([[*start, *answer, *([0] * (longest - len(answer)))] for answer in answers])
            log_p = whole(rows).logits.log_softmax(-1)
            table.append(
                [
                    sum(float(log_p[r, len(start) - 1 + n, token]) for n, token in enumerate(answer))
                    for r, answer in enumerate(answers)
                ]
            )
        return np.array(table)

    parents = [scores((1.0, 0.0)), scores((0.0, 1.0))]
    wanted = np.log(CANDIDATES) / 2
    softened = []
    for table in parents:
        at = brentq(lambda at, t=table: entropy(softmax(at * t, axis=1), axis=1).mean() - wanted, 1e-9, 1e6)
        softened.append(softmax(at * table / 2.0, axis=1))
    average, votes = sum(softened) / 2, sum(np.eye(CANDIDATES)[table.argmax(axis=1)] for table in parents) / 2

    def loss(table: np.ndarray, at: float) -> float:
        apart = log_softmax(at * table / 2.0, axis=1)
        divergence = (average * (np.log(average) - apart)).sum(axis=1)
        return float((-(votes * log_softmax(at * table, axis=1)).sum(axis=1) + 0.8 * 2.0**2 * divergence).mean())

    assert len(found.points) >= 5
    for point in found.points:
        table = scores(point.coefficients[0])
        best = minimize_scalar(
            lambda logarithm, t=table: (
                len(t) * loss(t, np.exp(logarithm)) - log_softmax(np.exp(logarithm) * t, axis=1).mean()
            ),
            bounds=(-12, 6),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert point.loss == pytest.approx(loss(table, np.exp(best.x)), abs=2e-3)


def test_what_is_found_says_that_nobody_measured_it(find):
    found = find()
    assert (found.win, found.measured, found.score, found.pseudo_users) == (False, False, "pmi", USERS)
    assert found.warnings[0] == UNMEASURED
    assert found.asked == USERS * len(found.points)
    assert [vote.role for vote in found.votes] == ["spirit", "ingredient"]
    assert all(0 <= share <= 1 for share in (found.unanimous, *(vote.agrees for vote in found.votes)))
    json.dumps(found.to_json(), allow_nan=False)
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["chosen"] == list(found.means().values())
    assert find() == found


def test_the_mix_that_agrees_with_both_is_found_where_one_is_stronger(find, world, pseudo):
    world[:2] = [4.0, 1.0]
    ticks: list[tuple[int, int]] = []
    found = find(questions=pseudo * 10, given={"progress": lambda done, total: ticks.append((done, total))})
    assert found.outcome == "mixed"
    assert found.means()["ingredient"] == pytest.approx(0.8, abs=0.08)
    assert ticks[-1][0] == ticks[-1][1] >= found.asked
    assert abs(found.votes[0].agrees - found.votes[1].agrees) < 0.15


def test_equal_adapters_ship_as_their_average(find, world, pseudo):
    found = find(questions=pseudo * 10, scale=True)
    assert (found.outcome, found.weights()) == ("average", {"spirit": 0.5, "ingredient": 0.5})
    assert found.parent is None


def test_where_mixing_breaks_what_both_know_one_adapter_ships_and_it_is_said(find, world, monkeypatch):
    """Both adapters say the same; a mix of them says something else."""
    taste = np.random.default_rng(3).normal(size=(2, USERS, CANDIDATES))

    def parts(scorer, weights, questions, scores) -> list[ScoreParts]:
        row = weights[0]
        table = taste[0] if max(row) == 1.0 else taste[1]
        return [ScoreParts(tuple(own), tuple(0.0 for _ in own)) for own in table.tolist()]

    monkeypatch.setattr(MixtureScores, "parts", parts)
    found = find()
    assert (found.outcome, found.unanimous) == ("parent", 1.0)
    assert found.weights()[found.parent or ""] == 1.0
    assert "nothing is mixed" in found.warnings[1]


def test_a_neighbour_is_weighed_too(find, world, pseudo):
    world[:] = [1.0, 1.0, 0.1]
    found = find(count=3, questions=pseudo * 10)
    assert [rung.name for rung in found.rungs] == ["one λ", "with toys"]
    assert found.weights()["toys"] > 1 / 3
    assert [vote.role for vote in found.votes] == list(ROLES)


def test_an_adapter_alone_is_taken_as_it_is(find):
    found = find(count=1)
    assert (found.outcome, found.parent, found.weights(), found.asked) == ("parent", "spirit", {"spirit": 1.0}, 0)
    assert found.search == "none"


def test_an_adapter_whose_scores_say_nothing_is_named(find, world):
    world[1] = 0.0
    assert any("the ingredient alone gives all candidates the same score" in text for text in find().warnings)


def test_a_broken_adapter_and_too_little_memory_are_refused(find, world, monkeypatch):
    world[1] = float("nan")
    with pytest.raises(AdaptationError):
        find()
    monkeypatch.setattr(adaptive_module, "available", lambda device: 10_000)
    with pytest.raises(AdaptationError):
        find()


def test_ctrl_c_keeps_the_rungs_that_were_taken(find, world):
    def interrupt(done: int, total: int) -> None:
        if done == 4 * USERS + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(given={"progress": interrupt})
    found = find(given={"progress": interrupt, "keep_best": True})
    assert (found.outcome, found.rungs) == ("average", ())
    assert "interrupted" in found.warnings[0]
    assert UNMEASURED in found.warnings


def test_the_looks_are_plotted(find, world, tmp_path):
    assert plot_all(find(), tmp_path, title="beauty") == ["agreement.png"]
    assert (tmp_path / "agreement.png").read_bytes().startswith(b"\x89PNG")


# --- builds ---------------------------------------------------------------------------------------------------------


def agreeing(**options) -> Recipe:
    given = {"objective": "agreement", "template": "pick-one", "prompts": USERS, "negatives": 3, "scale": False}
    return Recipe(adaptive=Adaptive(**given | options))


def made(registry: Registry, recipe: Recipe, domain: str = "skin-care") -> Build:
    asked = request(registry, domain, recipe).build
    claimed = registry.builds.claim("tester", build_id=asked.id)
    assert claimed is not None
    return run(registry, claimed, RunOptions(worker="tester", device="cpu"), progress=lambda *_: None)


@pytest.fixture
def young(stocked, catalogue, tmp_path):
    """skin-care with a catalogue and no user."""
    write_domain(catalogue, tmp_path / "young")
    stocked.domains.add("skin-care", data=str(tmp_path / "young"))
    return stocked


def test_a_domain_without_any_user_is_mixed_by_its_catalogue(young):
    build = made(young, agreeing())
    assert build.inputs["pseudo_users"] == {"asked": USERS, "labelled": 0}
    assert label_note(build) is None
    report = build.report
    assert report["outcome"] in ("mixed", "average", "parent")
    assert (report["win"], report["score"]) == (False, "pmi")
    assert report["warnings"][0] == UNMEASURED
    found = report["adaptation"]
    assert (found["objective"], found["measured"], found["pseudo_users"]) == ("agreement", False, USERS)
    artifact = young.store.folder(report["artifact"])
    assert {path.name for path in artifact.iterdir()} == {"adaptation.json", "agreement.png"}
    with publishable(young, build) as package:
        card = (package.folder / "README.md").read_text()
        assert (package.folder / "agreement.png").exists()
    assert "agreement.png" in card
    assert "chosen without labels" in card
    assert "entropy" not in card
    assert "labelled users" not in card
    again = request(young, "skin-care", agreeing())
    assert again.build.id == build.id
    assert plan(young, "skin-care", agreeing(seed=43)).key != build.key


def test_a_new_shop_is_mixed_of_the_spirit_and_what_its_neighbours_have_learned(young, tmp_path):
    """It has a catalogue, and neither users nor an ingredient."""
    young.domains.add("toys", data=str(tmp_path / "young"))
    build = made(young, agreeing(neighbours=("skin-care",)), "toys")
    assert set(build.coefficients) == {"spirit", "skin-care"}
    assert [vote["role"] for vote in build.report["adaptation"]["votes"]] == ["spirit", "skin-care"]
    assert made(young, agreeing(), "toys").coefficients == {"spirit": 1.0}  # nothing to mix it with


@pytest.mark.parametrize("score", ["constrained", "hybrid:3"])
def test_a_score_gets_what_it_needs_of_the_catalogue(young, score):
    assert made(young, agreeing(score=score)).report["score"] == score


def test_users_that_could_judge_are_pointed_out(stocked, tmp_path):
    write_domain(generate("skin-care", users=60), tmp_path / "crowd")
    stocked.domains.add("skin-care", data=str(tmp_path / "crowd"))
    build = request(stocked, "skin-care", agreeing()).build
    assert "60 labelled users" in (label_note(build) or "")


def test_a_catalogue_that_cannot_do_is_refused_with_the_request(stocked, catalogue, tmp_path):
    stocked.domains.add("toys")
    with pytest.raises(UsageError):
        plan(stocked, "toys", agreeing(neighbours=("skin-care",)))
    few = DomainData.of("skin-care", list(catalogue.items.values())[:10], [])
    write_domain(few, tmp_path / "few")
    stocked.domains.add("skin-care", data=str(tmp_path / "few"))
    with pytest.raises(AdaptationError) as refused:
        request(stocked, "skin-care", agreeing())
    assert "10 titles" in str(refused.value)
    with pytest.raises(DataError):
        request(stocked, "skin-care", agreeing(negatives=9))
