"""Which score systems are compared by, and that it reaches the models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from reccocktail.engine import evaluation, figures
from reccocktail.engine.errors import EvaluationError
from reccocktail.engine.evaluation import DomainEvaluation, QuestionSet, evaluate, evaluate_domain, find_system
from reccocktail.engine.score_choice import best_score, common_score, read_score, score_of_report
from reccocktail.registry.errors import UsageError
from reccocktail.tasks import (
    SCORES,
    Likeness,
    Score,
    TaskError,
    examples,
    fit_temperature,
    generate,
    load_template,
    questions,
    rank_by_tfidf,
    rank_candidates,
    sample,
    write_domain,
)
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def exam(shop):
    return questions(shop, "test", load_template("next-title"), limit=5)


@pytest.fixture
def model(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@pytest.fixture
def many(stocked, tmp_path):
    """A domain of 30 users, each with a validation question."""
    data = generate("skin-care", users=30)
    write_domain(data, tmp_path / "many")
    stocked.domains.add("many", data=str(tmp_path / "many"))
    return data


# --- the common score -----------------------------------------------------------------------------------------------


def test_without_a_tuned_build_the_score_is_pmi():
    assert common_score([]).score == common_score([("tiny", None)]).score == Score("pmi", 1.0)


def test_a_tuned_build_says_the_score_of_all_and_two_have_to_agree():
    half, tight = Score("pmi", 0.5), Score("constrained")
    assert common_score([("tiny", None), ("build a", half)]).score == half
    assert common_score([("build a", tight), ("build b", tight)]).score == tight
    apart = common_score([("build a", half), ("build b", tight)])
    assert apart.score == Score()
    assert "build a with pmi:0.5" in apart.reason
    assert "build b with constrained" in apart.reason


def test_a_report_without_a_score_says_none():
    assert score_of_report({"score": "pmi:0.5"}) == Score("pmi", 0.5)
    assert score_of_report(None) is score_of_report({}) is score_of_report({"score": None}) is None
    with pytest.raises(TaskError):
        score_of_report({"score": "by feel"})


def test_what_is_asked_for_is_read_and_other_words_are_refused():
    assert [read_score(text) for text in (None, "auto", "hybrid", "generate", "pmi:2")] == [
        None,
        "auto",
        "hybrid",
        "generate",
        Score("pmi", 2),
    ]
    with pytest.raises(UsageError) as refused:
        read_score("best")
    assert "auto" in refused.value.hint


def test_the_best_score_has_the_least_mean_loss_over_the_systems():
    first, second = {str(score): 2.0 for score in SCORES}, {str(score): 2.0 for score in SCORES}
    first["likelihood"], second["likelihood"] = 1.0, 2.9
    first["pmi:0.5"], second["pmi:0.5"] = 1.9, 1.9
    chosen = best_score([first, second], 7)
    assert chosen.score == Score("pmi", 0.5)
    assert chosen.losses == pytest.approx({"likelihood": 1.95, "pmi:0.5": 1.9, "pmi": 2.0, "constrained": 2.0})
    assert best_score([second, first], 7) == chosen


# --- measuring ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("score", [*SCORES, None], ids=str)
def test_a_model_ranks_by_the_score_that_is_asked_for_with_its_log_loss(
    score, stocked, shop, exam, model, tokenizer, tmp_path
):
    task, asked = exam
    options = {"score": score} if score else {}
    system = find_system(stocked, "tiny")
    found = evaluate(system, QuestionSet(task, asked, shop), device="cpu", kept_in=tmp_path, **options)
    titles = [item.title for item in shop.items.values()]
    ranked = rank_candidates(model, tokenizer, asked, score or Score("pmi"), catalogue=titles)
    assert found.mode == str(score or "pmi")
    assert found.ranks == tuple(ranking.rank for ranking in ranked)
    tau, losses = fit_temperature([r.scores for r in ranked], [question.target_index for question in asked])
    shown = found.to_json()["log-loss"]
    assert shown["temperature"] == pytest.approx(tau)
    assert shown["losses"] == pytest.approx(losses.tolist())
    assert shown["mean"] == pytest.approx(losses.mean())
    assert shown["low"] <= shown["mean"] <= shown["high"]
    assert evaluate(system, QuestionSet(task, asked, shop), device="cpu", kept_in=tmp_path, **options) == found


def test_results_by_different_scores_are_kept_apart(stocked, shop, exam, tmp_path):
    system = find_system(stocked, "tiny")
    for score in (Score("pmi"), Score("pmi", 0.5), Score("constrained"), Score("pmi", 0.25)):
        evaluate(system, QuestionSet(*exam, shop), score=score, device="cpu", kept_in=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_constrained_needs_the_data(stocked, exam):
    with pytest.raises(TaskError, match="catalogue"):
        evaluate(find_system(stocked, "tiny"), QuestionSet(*exam), score=Score("constrained"), device="cpu")


def test_a_baseline_has_a_log_loss_of_its_own_scores(stocked, shop, exam):
    task, asked = exam
    found = evaluate(find_system(stocked, "tfidf"), QuestionSet(task, asked, shop), device="cpu")
    ranked = rank_by_tfidf(shop, asked)
    tau, losses = fit_temperature([r.scores for r in ranked], [question.target_index for question in asked])
    assert found.log_losses.temperature == pytest.approx(tau)
    assert found.log_losses.mean.mean == pytest.approx(losses.mean())


def test_a_model_with_an_infinite_score_has_ranks_and_no_log_loss(stocked, shop, exam, monkeypatch):
    task, asked = exam
    ranked = [replace(r, scores=(-np.inf, *r.scores[1:])) for r in rank_by_tfidf(shop, asked)]
    monkeypatch.setattr(evaluation, "rank_by_tfidf", lambda *_: ranked)
    found = evaluate(find_system(stocked, "tfidf"), QuestionSet(task, asked, shop), device="cpu")
    assert found.ranks == tuple(r.rank for r in ranked)
    assert found.to_json()["log-loss"] is None


# --- a table --------------------------------------------------------------------------------------------------------


def compare(registry, *systems, **options):
    return evaluate_domain(registry, DomainEvaluation("many", systems, limit=3, **options), device="cpu")


def test_all_models_of_a_table_are_ranked_by_one_score(stocked, many, monkeypatch):
    found = compare(stocked, "tfidf", "tiny", "skin-care")
    assert [result.mode for result in found.results] == ["tfidf", "pmi", "pmi"]
    assert found.chosen.score == Score("pmi")
    tuned = evaluation.find_system
    monkeypatch.setattr(
        evaluation,
        "find_system",
        lambda registry, text, base: replace(
            tuned(registry, text, base=base), score=Score("constrained") if text == "skin-care" else None
        ),
    )
    found = compare(stocked, "tfidf", "tiny", "skin-care")
    assert [result.mode for result in found.results] == ["tfidf", "constrained", "constrained"]
    assert compare(stocked, "skin-care", score=Score("likelihood")).results[0].mode == "likelihood"
    assert compare(stocked, "tfidf").chosen is None
    assert compare(stocked, "tiny", score="generate", template="top-five").chosen is None


@pytest.mark.usefixtures("in_float32")
def test_auto_takes_the_score_with_the_least_log_loss_on_validation_questions(
    stocked, many, model, tokenizer, monkeypatch
):
    _, asked = questions(many, "validation", load_template("next-title"), limit=3)
    titles = [item.title for item in many.items.values()]
    losses = {}
    for score in SCORES:
        ranked = rank_candidates(model, tokenizer, asked, score, catalogue=titles)
        losses[str(score)] = fit_temperature([r.scores for r in ranked], [q.target_index for q in asked])[1].mean()
    found = compare(stocked, "tiny", score="auto")
    assert dict(found.chosen.losses) == pytest.approx(losses)
    assert str(found.chosen.score) == min(losses, key=losses.__getitem__) == found.results[0].mode
    monkeypatch.setattr(figures, "load_model", lambda *_: pytest.fail("loaded again"))
    again = compare(stocked, "tiny", score="auto")
    assert (again.chosen, again.results) == (found.chosen, found.results)


@pytest.mark.usefixtures("in_float32")
def test_hybrid_takes_the_weight_of_least_log_loss_on_validation_questions(stocked, many, model, tokenizer):
    names = ("tiny", "tfidf")
    wanted = DomainEvaluation("many", names, score="hybrid", limit=12)
    found = evaluate_domain(stocked, wanted, device="cpu")
    score = found.chosen.score
    assert score.mode == "hybrid"
    _, validation = questions(many, "validation", load_template("next-title"), limit=12)
    pmi = [r.scores for r in rank_candidates(model, tokenizer, validation, Score("pmi"))]
    alike = [r.scores for r in rank_by_tfidf(many, validation)]
    targets = [question.target_index for question in validation]

    def loss(weight: float) -> float:
        mixed = np.array(pmi) + weight * np.array(alike)
        return float(fit_temperature(mixed, targets)[1].mean())

    assert found.chosen.losses == pytest.approx(
        {"pmi": loss(0), "tfidf": float(fit_temperature(alike, targets)[1].mean()), str(score): loss(score.gamma)},
        rel=1e-4,
    )
    assert loss(score.gamma) <= min(loss(weight) for weight in (0, *np.geomspace(0.01, 1e4, 200))) + 1e-4
    again = evaluate_domain(stocked, replace(wanted, score=score), device="cpu")
    assert again.results == found.results
    assert found.results[0].mode == str(score)


@pytest.mark.usefixtures("in_float32")
def test_another_score_of_kept_figures_needs_no_model(stocked, shop, exam, model, tokenizer, tmp_path, monkeypatch):
    system, asked = find_system(stocked, "tiny"), QuestionSet(*exam, shop)
    kept = {"device": "cpu", "kept_in": tmp_path}
    titles = [item.title for item in shop.items.values()]
    evaluate(system, asked, score=Score("constrained"), **kept)
    evaluate(system, asked, score=Score("pmi"), **kept)  # adds priors to what is kept
    monkeypatch.setattr(figures, "load_model", lambda *_: pytest.fail("loaded again"))
    for score in (*SCORES, Score("hybrid", 3.0)):
        found = evaluate(system, asked, score=score, **kept)
        alone = Likeness(shop).added(asked.questions) if score.mode == "hybrid" else asked.questions
        ranked = rank_candidates(model, tokenizer, alone, score, catalogue=titles)
        assert found.ranks == tuple(ranking.rank for ranking in ranked), score
    broken = next((tmp_path / "figures").iterdir())
    broken.write_text(broken.read_text()[:50])
    with pytest.raises(BaseException, match="loaded again"):
        evaluate(system, asked, score=Score("pmi", 0.25), **kept)


def test_hybrid_needs_the_data(stocked, exam):
    with pytest.raises(EvaluationError):
        evaluate(find_system(stocked, "tiny"), QuestionSet(*exam), score=Score("hybrid", 2.0), device="cpu")


def test_auto_never_looks_at_what_is_measured(stocked, many, monkeypatch):
    seen = []

    def parts(model, tokenizer, asked, *_, **__):
        seen.extend(question.example for question in asked)
        return real(model, tokenizer, asked, *_, **__)

    real = figures.score_parts
    monkeypatch.setattr(figures, "score_parts", parts)
    compare(stocked, "tiny", score="auto", split="validation")
    ordered = sample(examples(many, "validation"), 6, 42)
    assert seen == ordered[3:] + ordered[:3]  # what the choice is by, and then what is measured
    whole = DomainEvaluation("many", ("tiny",), split="validation", score="auto")
    for wanted in (whole, replace(whole, limit=1000)):
        with pytest.raises(UsageError, match="none are left") as refused:
            evaluate_domain(stocked, wanted, device="cpu")
        assert refused.value.hint


def test_a_choice_that_cannot_be_kept_is_said(stocked, many):
    (stocked.settings.own_folder("evaluations") / "figures").write_text("a file where a folder has to be")
    found = compare(stocked, "tiny", score="auto")
    assert "figures" in found.chosen.unkept


def test_a_build_says_its_score_by_its_report(stocked, base):
    from reccocktail.engine.building.execution import run
    from reccocktail.engine.building.job import RunOptions
    from reccocktail.engine.building.planning import request
    from reccocktail.engine.recipes import load_recipe

    asked = request(stocked, "skin-care", load_recipe("average")).build
    build = run(
        stocked,
        stocked.builds.claim("tester", build_id=asked.id),
        RunOptions(worker="tester", device="cpu"),
        progress=lambda *_: None,
    )
    assert find_system(stocked, build.id).score == score_of_report(build.report)
    told = replace(build, report={**json.loads(json.dumps(build.report or {})), "score": "pmi:0.5"})
    stocked.builds.get = lambda _: told
    assert find_system(stocked, build.id).score == Score("pmi", 0.5)


def test_a_copy_of_a_builds_result_carries_the_score_that_the_build_was_tuned_with(stocked, base, tmp_path):
    from reccocktail.engine.building.planning import request
    from reccocktail.engine.recipes import load_recipe

    def built(recipe: str, report: dict[str, str] | None) -> None:
        asked = request(stocked, "skin-care", load_recipe(recipe)).build
        stocked.builds.claim("tester", build_id=asked.id)
        stocked.builds.succeed(asked.id, "tester", digest, None, report)

    copy = tmp_path / "exported"
    shutil.copytree(base, copy)
    digest = stocked.store.add_folder(copy).digest
    assert find_system(stocked, str(copy)).score is None
    built("average", None)
    built("spirit-only", {"score": "pmi:0.5"})
    assert find_system(stocked, str(copy)).score == Score("pmi", 0.5)
    built("ingredient-only", {"score": "constrained"})
    assert find_system(stocked, str(copy)).score is None, "two builds that differ"
