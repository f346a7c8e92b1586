"""What can be evaluated, by whichever name it goes; and that nothing is measured twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from reccocktail.engine import evaluation, figures
from reccocktail.engine.building.execution import run
from reccocktail.engine.building.job import RunOptions
from reccocktail.engine.building.planning import request
from reccocktail.engine.errors import EvaluationError
from reccocktail.engine.evaluation import Evaluation, QuestionSet, evaluate, find_system
from reccocktail.engine.recipes import load_recipe
from reccocktail.registry.errors import InvalidArtifactError, NotFoundError
from reccocktail.tasks import (
    Score,
    generate,
    load_template,
    paired_difference,
    questions,
    rank_by_generation,
    rank_by_popularity,
    rank_by_sasrec,
    rank_by_tfidf,
    rank_candidates,
)
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def exam(shop):
    """The task and six test questions."""
    return questions(shop, "test", load_template("pick-one"), limit=6)


@pytest.fixture
def build(stocked):
    asked = request(stocked, "skin-care", load_recipe("average")).build
    claimed = stocked.builds.claim("tester", build_id=asked.id)
    return run(stocked, claimed, RunOptions(worker="tester", device="cpu"), progress=lambda *_: None)


def ranks_of(model, tokenizer, questions) -> tuple[int, ...]:
    return tuple(ranking.rank for ranking in rank_candidates(model.eval(), tokenizer, questions))


# --- finding --------------------------------------------------------------------------------------------------------


def test_a_base_an_adapter_a_build_and_a_folder_are_found_by_their_names(stocked, build, base, monkeypatch):
    tiny = stocked.bases.get("tiny")
    system = find_system(stocked, "tiny")
    assert (system.label, system.checkpoint, system.adapter) == ("tiny", stocked.bases.folder(tiny), None)

    for text in ("skin-care", "skin-care@v1"):
        system = find_system(stocked, text)
        assert system.label == "skin-care@v1"
        assert system.checkpoint == stocked.bases.folder(tiny)
        assert system.adapter.weight == 1.0
    assert find_system(stocked, "spirit").label == "spirit@v1"

    for text in (build.id, build.id[:10]):
        system = find_system(stocked, text)
        assert (system.label, system.digest, system.checkpoint) == (f"build {build.id}", build.digest, build.path)

    monkeypatch.chdir(base.parent)
    for text in (str(base), f"./{base.name}"):
        assert find_system(stocked, text).checkpoint == Path(text)


def test_an_adapters_folder_is_put_on_the_base_it_is_for(stocked, base, make_adapter):
    system = find_system(stocked, str(make_adapter(base, 2)))
    assert system.checkpoint == stocked.bases.folder(stocked.bases.get("tiny"))
    assert system.adapter.folder == make_adapter(base, 2)


def test_systems_with_other_weights_have_other_digests(stocked, build, base, make_adapter):
    texts = ["tiny", "skin-care", "spirit", build.id, str(make_adapter(base, 3))]
    assert len({system.digest for system in (find_system(stocked, text) for text in texts)}) == len(texts)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja", "tokenizer.json"])
def test_a_folder_in_which_a_file_changed_is_another_system(name, stocked, base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    before = find_system(stocked, str(copy)).digest
    assert find_system(stocked, str(copy)).digest == before
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1] + b" " if name == "model.safetensors" else data + b" ")
    assert find_system(stocked, str(copy)).digest != before


def test_an_exported_build_is_the_build(stocked, build, tmp_path):
    copy = shutil.copytree(build.path, tmp_path / "export")
    assert find_system(stocked, str(copy)).digest == build.digest


@pytest.mark.parametrize("text", ["martini", "skin-care@v7", "skin-care@champion", "No Such Thing", ""])
def test_what_is_not_there_is_not_found(text, stocked):
    with pytest.raises(NotFoundError, match="names no base model, adapter or build"):
        find_system(stocked, text)


def test_a_build_without_a_result_cannot_be_evaluated(stocked):
    queued = request(stocked, "skin-care", load_recipe("average")).build
    with pytest.raises(EvaluationError, match="is queued and has no checkpoint"):
        find_system(stocked, queued.id)


def test_a_folder_that_holds_no_model_is_refused(stocked, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArtifactError):
        find_system(stocked, str(tmp_path / "empty"))


# --- measuring ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("ref", ["skin-care", "spirit"])
def test_an_adapter_ranks_as_the_model_that_peft_loads(ref, stocked, base, make_adapter, tokenizer, exam):
    task, asked = exam
    found = evaluate(find_system(stocked, ref), QuestionSet(task, asked), device="cpu")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapter = make_adapter(base, 1 if ref == "spirit" else 2)
    assert found.ranks == ranks_of(PeftModel.from_pretrained(model, adapter), tokenizer, asked)
    assert found.dtype == "float32"


@pytest.mark.usefixtures("in_float32")
def test_a_build_ranks_as_its_checkpoint_does(stocked, build, tokenizer, exam):
    task, asked = exam
    told = []
    found = evaluate(
        find_system(stocked, build.id), QuestionSet(task, asked), device="cpu", progress=lambda *n: told.append(n)
    )
    model = AutoModelForCausalLM.from_pretrained(build.path, dtype=torch.float32)
    assert found.ranks == ranks_of(model, tokenizer, asked)
    assert told == [(number, 6) for number in range(1, 7)]


def test_a_second_evaluation_loads_no_model(stocked, exam, tmp_path, monkeypatch):
    task, asked = exam
    first = evaluate(find_system(stocked, "tiny"), QuestionSet(task, asked), device="cpu", kept_in=tmp_path / "kept")
    monkeypatch.setattr(figures, "load_model", lambda *_: pytest.fail("loaded"))
    assert (
        evaluate(find_system(stocked, "tiny"), QuestionSet(task, asked), device="cpu", kept_in=tmp_path / "kept")
        == first
    )
    assert {path.suffix for path in (tmp_path / "kept").rglob("*") if path.is_file()} == {".json"}


def test_another_system_task_or_precision_is_measured_anew(stocked, shop, exam, tmp_path, monkeypatch):
    task, asked = exam
    evaluate(find_system(stocked, "tiny"), QuestionSet(task, asked), device="cpu", kept_in=tmp_path)

    def loaded(*_):
        raise InterruptedError("loaded")

    monkeypatch.setattr(figures, "load_model", loaded)
    other_task, _ = questions(shop, "test", load_template("pick-one"), limit=5)
    for name, spec in (("spirit", task), ("tiny", other_task)):
        with pytest.raises(InterruptedError, match="loaded"):
            evaluate(find_system(stocked, name), QuestionSet(spec, asked), device="cpu", kept_in=tmp_path)
    for module in (evaluation, figures):
        monkeypatch.setattr(module, "compute_dtype", lambda device: torch.float64)
    with pytest.raises(InterruptedError, match="loaded"):
        evaluate(find_system(stocked, "tiny"), QuestionSet(task, asked), device="cpu", kept_in=tmp_path)


@pytest.mark.parametrize(
    ("name", "rank"), [("popularity", rank_by_popularity), ("tfidf", rank_by_tfidf), ("sasrec", rank_by_sasrec)]
)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_baseline_is_a_system_by_its_name_and_made_once(name, rank, split, stocked, shop, tmp_path, monkeypatch):
    task, asked = questions(shop, split, load_template("pick-one"), limit=6)
    system = find_system(stocked, name)
    found = evaluate(system, QuestionSet(task, asked, data=shop), device="cpu", kept_in=tmp_path)
    assert (found.label, found.mode, found.dtype) == (name, name, "float32")
    assert found.ranks == tuple(
        ranking.rank for ranking in (rank(shop, asked) if name == "tfidf" else rank(shop, asked, split))
    )
    assert list(found.metrics) == ["HR@1", "HR@3", "NDCG@3", "MRR", "AUC"]
    monkeypatch.setattr(evaluation, rank.__name__, lambda *_, **__: pytest.fail("made again"))
    assert evaluate(system, QuestionSet(task, asked, data=shop), device="cpu", kept_in=tmp_path) == found


def test_a_baseline_needs_the_data_of_the_questions(stocked, exam):
    for data in (None, generate("kitchen", users=12)):
        with pytest.raises(EvaluationError, match="popularity needs the data that the questions are about"):
            evaluate(find_system(stocked, "popularity"), QuestionSet(*exam, data=data), device="cpu")


@pytest.mark.usefixtures("in_float32")
def test_generated_lists_are_read_kept_apart_from_likelihoods_and_have_no_auc(stocked, shop, base, tokenizer, tmp_path):
    task, asked = questions(shop, "test", load_template("top-five"), limit=6)
    system = find_system(stocked, "tiny")
    likely = evaluate(system, QuestionSet(task, asked), score=Score("likelihood"), device="cpu", kept_in=tmp_path)
    found = evaluate(system, QuestionSet(task, asked), score="generate", device="cpu", kept_in=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    said = rank_by_generation(model, tokenizer, asked)
    assert found.ranks == tuple(naming.rank for naming in said)
    assert None in found.ranks, "a random model does not name every target"
    assert found.lists.entries == sum(len(naming.named) for naming in said)
    assert (found.lists.unknown, found.lists.duplicates) == (
        sum(naming.unknown for naming in said),
        sum(naming.duplicates for naming in said),
    )
    assert (found.mode, likely.mode, likely.lists) == ("generate", "likelihood", None)
    assert "AUC" in likely.metrics
    assert "AUC" not in found.metrics
    assert evaluate(system, QuestionSet(task, asked), score="generate", device="cpu", kept_in=tmp_path) == found
    assert found.minus(likely)["HR@1"] == paired_difference(found.ranks, likely.ranks, "HR@1")


def test_a_later_way_of_ranking_measures_anew(stocked, shop, exam, tmp_path, monkeypatch):
    system = find_system(stocked, "popularity")
    evaluate(system, QuestionSet(*exam, data=shop), device="cpu", kept_in=tmp_path)
    monkeypatch.setattr("reccocktail.engine.question_sets.RANKING_VERSION", -1)
    evaluate(system, QuestionSet(*exam, data=shop), device="cpu", kept_in=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_an_evaluation_says_what_it_measured_on_what(exam):
    task, _ = exam
    found = Evaluation("tiny", "sha256:0", task, "likelihood", "float32", (0, 0, 1, 9)).to_json()
    assert found["task"]["digest"] == task.digest
    assert found["ranks"] == [0, 0, 1, 9]
    assert found["metrics"]["HR@1"]["mean"] == 0.5


def test_a_split_without_questions_is_an_error(stocked, exam):
    with pytest.raises(EvaluationError, match="the test split has no questions"):
        evaluate(find_system(stocked, "tiny"), QuestionSet(exam[0], []), device="cpu")


def test_a_checkpoint_without_a_chat_template_is_refused(stocked, base, exam, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(EvaluationError, match="no chat template"):
        evaluate(find_system(stocked, str(copy)), QuestionSet(*exam), device="cpu")


def test_a_checkpoint_that_does_not_load_is_refused_by_name(stocked, base, exam, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    (copy / "config.json").write_text('{"model_type": "cocktail"}')
    with pytest.raises(EvaluationError, match="copy does not load as a causal language model"):
        evaluate(find_system(stocked, str(copy)), QuestionSet(*exam), device="cpu")
