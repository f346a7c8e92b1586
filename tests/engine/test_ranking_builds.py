"""Builds by `objective: ranking`: which labels they may use, what their rows keep, and what ships."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from reccocktail.engine.adapting.ranking import MixtureScores
from reccocktail.engine.adaptive import Adaptive
from reccocktail.engine.building.execution import run
from reccocktail.engine.building.job import RunOptions
from reccocktail.engine.building.labels import seen_by
from reccocktail.engine.building.planning import plan, request, result_folder
from reccocktail.engine.errors import AdaptationError, GuardError
from reccocktail.engine.recipes import SHIPPED, Recipe
from reccocktail.engine.recommending import RecommendationRequest, recommend
from reccocktail.engine.systems import find_system
from reccocktail.publishing.package import publishable
from reccocktail.registry import Build, Registry
from reccocktail.registry.catalog.registration import Labels
from reccocktail.registry.errors import UsageError
from reccocktail.tasks import Score, ScoreParts, examples, generate, read_questions, sample, user_digest, write_domain

USERS = 150


def ranking(**options) -> Recipe:
    return Recipe(adaptive=Adaptive(**{"objective": "ranking", "template": "pick-one", "labels": 100} | options))


def work(registry: Registry, build: Build) -> Build:
    claimed = registry.builds.claim("tester", build_id=build.id)
    assert claimed is not None
    return run(registry, claimed, RunOptions(worker="tester", device="cpu"), progress=lambda *_: None)


def made(registry: Registry, recipe: Recipe, **options) -> Build:
    return work(registry, request(registry, "skin-care", recipe, **options).build)


@pytest.fixture(scope="module")
def crowd():
    return generate("skin-care", users=USERS)


@pytest.fixture
def crowded(stocked, crowd, tmp_path):
    """skin-care with users enough; its adapters say nothing of how they were trained."""
    write_domain(crowd, tmp_path / "crowd")
    stocked.domains.add("skin-care", data=str(tmp_path / "crowd"))
    return stocked


@pytest.fixture
def helpful(monkeypatch):
    """(how much the right item gains by a mix): in place of what a model scores. An even mix gains all of it, an adapter alone nothing."""
    worth = {"mix": 6.0}

    def parts(scorer, weights, questions, scores):
        scorer.asked += len(questions)
        first, second = (sum(column) / len(weights) for column in zip(*weights, strict=True))
        found = []
        for question in questions:
            noise = [
                hashlib.sha256(f"{title}{question.history}".encode()).digest()[0] / 64 for title in question.titles
            ]
            noise[question.target_index] += 1 + worth["mix"] * first * second
            found.append(ScoreParts(tuple(noise), tuple(0.0 for _ in noise), tuple(noise)))
        return found

    monkeypatch.setattr(MixtureScores, "parts", parts)
    return worth


# --- what ships -----------------------------------------------------------------------------------------------------


def test_a_mix_that_helps_ships_and_its_row_says_why(crowded, helpful):
    build = made(crowded, ranking(scale=False))
    report = build.report
    assert (report["outcome"], report["win"]) == ("average", True)
    assert build.coefficients == {"spirit": 0.5, "ingredient": 0.5}
    assert report["score"] in ("likelihood", "pmi:0.5", "pmi", "constrained")
    found = report["adaptation"]
    assert found["objective"] == "ranking"
    assert (found["fit"], found["gate"]) == (60, 40)
    assert {bound["parent"] for bound in found["comparison"]["bounds"]} == {"spirit", "ingredient"}
    assert found["comparison"]["safe"]
    assert build.inputs["labels"]["fit"] == 60
    artifact = crowded.store.folder(report["artifact"])
    assert {path.name for path in artifact.iterdir()} == {"adaptation.json", "ranking.png"}
    assert "says nothing of what it was trained on" in " ".join(report["warnings"])
    assert len([text for text in report["warnings"] if "may have seen labels" in text]) == 2


def test_a_hybrid_score_is_fitted_on_the_users_that_choose_and_kept(crowded):
    """The model is a real one, the words of a title are what the questions can be answered by."""
    build = made(crowded, ranking(score="hybrid", scale=False, labels=40, template="next-title"))
    folder = crowded.store.folder(build.inputs["prompts"]["digest"])
    fit = read_questions(folder / "fit.json")
    assert all(question.likeness is not None for question in fit)
    score = Score.parse(build.report["score"])
    assert score.mode == "hybrid"
    losses = {each["score"]: each["loss"] for each in build.report["adaptation"]["scores"]}
    assert losses.keys() == {"pmi", "tfidf", str(score)}
    assert losses[str(score)] <= min(losses["pmi"], losses["tfidf"]) + 1e-3
    assert find_system(crowded, build.id).score == score
    wanted = RecommendationRequest("skin-care", history=["Aurora Retinol Cream"], build=build.id)
    found = recommend(crowded, wanted, device="cpu")
    assert found.score == score


def test_a_mix_that_helps_nobody_is_replaced_by_an_adapter_alone(crowded, helpful):
    helpful["mix"] = -4.0
    build = made(crowded, ranking())
    assert build.report["outcome"] == "parent"
    assert sorted(build.coefficients.values()) == [0.0, 1.0]
    parent = build.report["adaptation"]["parent"]
    assert build.coefficients[parent] == 1.0
    alone = made(crowded, SHIPPED[f"{parent}-only"][1])
    weights = [(result_folder(crowded, each) / "model.safetensors").read_bytes() for each in (build, alone)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("helps", [True, False])
def test_the_published_card_says_what_ships_and_why(helps, crowded, helpful):
    helpful["mix"] = 6.0 if helps else -4.0
    build = made(crowded, ranking())
    with publishable(crowded, build) as package:
        card = (package.folder / "README.md").read_text()
        assert (package.folder / "ranking.png").exists()
    assert "ranking.png" in card
    assert "entropy" not in card
    assert ("better than every adapter alone" in card) == helps
    assert ("It is the " in card) == (not helps)


# --- users that judge -----------------------------------------------------------------------------------------------


def test_every_other_build_on_the_same_users_halves_the_level(crowded, helpful):
    def looks(build: Build) -> tuple[int, float]:
        compared = build.report["adaptation"]["comparison"]
        return compared["looks"], compared["alpha"]

    first = made(crowded, ranking(scale=False))
    assert looks(first) == (0, 0.05)
    assert looks(made(crowded, ranking(scale=False), force=True)) == (0, 0.05)  # the same look again
    assert looks(made(crowded, ranking(scale=False, margin=0.03))) == (1, 0.025)
    assert looks(made(crowded, ranking(scale=False, margin=0.04))) == (2, 0.0125)
    assert looks(made(crowded, ranking(scale=False, labels=60))) == (3, 0.00625)  # some of the same users


def test_a_build_that_the_guard_failed_counts_as_a_look(crowded, helpful, monkeypatch):
    asked = request(crowded, "skin-care", ranking(scale=False, guard="fail")).build
    with monkeypatch.context() as patched:
        patched.setattr("reccocktail.engine.adapting.guard.FEWEST", 1000)
        with pytest.raises(GuardError):
            work(crowded, asked)
    failed = crowded.builds.get(asked.id)
    assert (failed.status, failed.error["code"]) == ("failed", "guard")
    after = made(crowded, ranking(scale=False))
    assert after.report["adaptation"]["comparison"]["looks"] == 1


# --- labels that were seen ------------------------------------------------------------------------------------------


def test_labels_that_chose_a_checkpoint_neither_choose_nor_judge(crowded, crowd, base, make_adapter):
    there = examples(crowd, "validation")
    drawn = [user_digest(example.user_id) for example in sample(there, 32, 7)]
    context = {
        "trainer": "sft",
        "data": [{"domain": "skin-care", "digest": crowd.digest}],
        "validation": [{"domain": "skin-care", "data": crowd.digest, "split": "leave-one-out", "users": drawn}],
    }
    row = crowded.bases.get("tiny")
    own = crowded.adapters.add(
        make_adapter(base, 7), base=row, role="ingredient", domain="skin-care", labels=Labels(context=context)
    )
    elsewhere = crowded.adapters.add(
        make_adapter(base, 8),
        base=row,
        role="spirit",
        labels=Labels(context={"data": [{"domain": "kitchen", "digest": "sha256:0"}]}),
    )
    seen = seen_by([own, elsewhere], crowd)
    assert (seen.users, seen.warnings) == (frozenset(drawn), ())
    build = request(crowded, "skin-care", ranking(labels=1000)).build
    labels = build.inputs["labels"]
    assert (labels["available"], labels["seen"], labels["warnings"]) == (len(there), 32, [])
    assert labels["fit"] + labels["gate"] == len(there) - 32
    folder = crowded.store.folder(build.inputs["prompts"]["digest"])
    hidden = {(e.target, len(e.history)) for e in there if user_digest(e.user_id) in drawn}
    shown = {
        (q.example.target, len(q.history)) for name in ("fit", "gate") for q in read_questions(folder / f"{name}.json")
    }
    assert len(hidden & shown) < len(hidden)


def test_what_a_context_says_decides_which_labels_are_trusted(crowded, crowd):
    adapter = crowded.adapters.resolve("skin-care")
    data = [{"domain": "skin-care", "digest": crowd.digest}]
    old = [{"domain": "skin-care", "digest": "sha256:0"}]
    users = sample(examples(crowd, "validation"), 5, 42)

    def seen(**context) -> tuple[int, int]:
        found = seen_by([replace(adapter, context=context)], crowd)
        return len(found.users), len(found.warnings)

    assert seen() == (0, 1)  # from outside
    assert seen(data=[{"domain": "toys", "digest": "sha256:1"}]) == (0, 0)
    assert seen(data=data) == (0, 1)  # a plugin's, which does not say what chose the checkpoint
    assert seen(data=data, validation=[{"domain": "skin-care", "data": crowd.digest, "users": []}]) == (0, 0)
    assert seen(data=old, validation=[{"domain": "skin-care", "data": "sha256:0", "users": ["a"]}]) == (1, 1)
    assert seen(data=data, validation="nonsense") == (0, 1)
    old_sft = seen_by(
        [replace(adapter, context={"trainer": "sft", "data": data, "options": {"validation_examples": 5, "seed": 42}})],
        crowd,
    )
    assert old_sft.users == {user_digest(example.user_id) for example in users}
    assert old_sft.warnings == ()


# --- too few, or none -----------------------------------------------------------------------------------------------


def test_few_users_make_the_average_or_a_failure_as_the_recipe_says(stocked):
    build = made(stocked, ranking())
    assert (build.report["outcome"], build.report["win"]) == ("average", False)
    assert build.coefficients == {"spirit": 0.5, "ingredient": 0.5}
    assert "the average is taken" in build.report["warnings"][0]
    with pytest.raises(AdaptationError):
        made(stocked, ranking(too_few_labels="fail"))


def test_a_domain_without_data_gets_the_average_and_is_stale_once_it_has_some(stocked, base, make_adapter, tmp_path):
    stocked.domains.add("toys")
    stocked.adapters.add(make_adapter(base, 9), base=stocked.bases.get("tiny"), role="ingredient", domain="toys")
    default = SHIPPED["default"][1]
    before = plan(stocked, "toys", default)
    build = work(stocked, request(stocked, "toys", default).build)
    assert (build.report["outcome"], build.coefficients) == ("average", {"spirit": 0.5, "ingredient": 0.5})
    with pytest.raises(UsageError):
        plan(stocked, "toys", ranking(too_few_labels="fail"))
    write_domain(generate("skin-care", users=12), tmp_path / "toys")
    stocked.domains.add("toys", data=str(tmp_path / "toys"))
    assert plan(stocked, "toys", default).key != before.key
