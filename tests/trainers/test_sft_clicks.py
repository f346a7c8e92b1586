"""`sft` with task=clicks: TRL and PEFT on a tiny random model, on a shop where some brands are liked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from reccocktail.tasks import (
    DomainData,
    History,
    click_data,
    click_question,
    click_questions,
    fit_clicks,
    generate,
    load_click_template,
    roc_auc,
    sample,
    user_digest,
)
from reccocktail.tasks.click_scores import score_clicks
from reccocktail.trainers.plugin import TrainerError, TrainingJob, parse_options
from reccocktail.trainers.sft import trainer as sft
from reccocktail.trainers.sft import tuning
from reccocktail.trainers.sft.options import SftOptions
from reccocktail.trainers.sft.trainer import SftTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

LIKED = ("Luna", "Nova", "Aurora")
QUICK = {"examples": 48, "epochs": 20, "rank": 8, "dropout": 0.0, "learning_rate": 5e-3, "validation_examples": 6}


@pytest.fixture(scope="module")
def shop() -> DomainData:
    items = list(generate("skin-care", users=0).items.values())
    rng = random.Random(5)
    histories = []
    for user in range(12):
        taken = rng.sample(items, 16)
        ratings = [5.0 if item.title.startswith(LIKED) else 2.0 for item in taken]
        fields = {"ratings": ratings, "timestamps": [100 * user + place for place in range(16)]}
        histories.append(History(f"u{user}", tuple(item.item_id for item in taken), fields))
    return DomainData.of("shop", items, histories)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its answers are words of the tiny model's tokenizer."""
    path = tmp_path_factory.mktemp("templates") / "short.yaml"
    content = {
        "name": "short",
        "user": "{history} || {target}",
        "entry": "{title}",
        "positive": "user",
        "negative": "assistant",
    }
    path.write_text(yaml.safe_dump(content | {"history_limit": 2}))
    return path


@pytest.fixture
def make_job(base: Path, shop: DomainData, template: Path, tmp_path: Path) -> Any:
    def make(*, resume: bool = False, progress: Any = lambda *_: None, **options: Any) -> TrainingJob:
        given = {"task": "clicks", "split": "user", "template": str(template)} | QUICK | options
        (tmp_path / "run").mkdir(exist_ok=True)
        return TrainingJob(
            "ingredient",
            base,
            "tiny",
            (shop,),
            tmp_path / "run",
            SftOptions.model_validate(given),
            resume,
            "cpu",
            progress,
        )

    return make


def test_a_lora_learns_what_is_liked_from_a_sample_of_training_rows(
    make_job: Any, base: Path, shop: DomainData, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    run = tuning.run
    monkeypatch.setattr(tuning, "run", lambda trainer, job: (made.append(trainer), run(trainer, job)))
    monkeypatch.setattr(sft, "_precision", lambda device: (torch.float32, False))
    job = make_job(validate_every=60)
    result = SftTrainer().train(job)

    clicks, words = click_data(shop, job.options.clicks), load_click_template(template)
    drawn = sample(clicks.train, 48, job.options.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    dataset = made[0].train_dataset
    assert len(dataset) == len(drawn) == 48
    for row, question in zip(
        dataset, fit_clicks([click_question(each, shop.items, words) for each in drawn], tokenizer), strict=True
    ):
        ids, labels = row["input_ids"], row["labels"]
        prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids[: len(asked)] == asked
        assert set(labels[: len(asked)]) == {-100}
        assert labels[len(asked) :] == ids[len(asked) :]
        assert tokenizer.decode(ids[len(asked)]) == ("user" if question.row.label else "assistant")

    unseen = click_questions(clicks, "test", words)
    model = AutoModelForCausalLM.from_pretrained(base)
    before = roc_auc(unseen.scored(score_clicks(model, tokenizer, unseen.in_words())))
    tuned: Any = PeftModel.from_pretrained(model, str(result.adapter))
    after = roc_auc(unseen.scored(score_clicks(tuned, tokenizer, unseen.in_words())))
    assert after > 0.9 > before

    checked = sample(clicks.validation, 6, job.options.seed)
    (spec,), (learned,) = result.context["validation"], result.context["tasks"]
    assert spec["users"] == sorted({user_digest(row.user_id) for row in checked})
    assert (spec["split"], spec["examples"]) == ("clicks-user-validation", 6)
    assert (learned["kind"], learned["examples"], learned["distinct"]) == ("clicks", 48, 48)
    assert result.context["validate_by"] == "loss"
    assert result.context["template"] == {"name": "short", "digest": words.digest}
    assert "validation_loss" in result.metrics


def test_users_whose_ranking_labels_were_learned_are_named(make_job: Any, shop: DomainData, template: Path) -> None:
    """Split by time, whole users lie in the training part, their latest items too."""
    options = make_job(split="time", examples=None).options
    _, _, validation = sft._pools((shop,), options)
    clicks = click_data(shop, options.clicks)
    late = {row.user_id for row in clicks.train if row.position >= 14}
    checked = {row.user_id for row in sample(clicks.validation, 6, options.seed)}
    assert late
    assert not late <= checked
    assert validation.specs[0]["users"] == sorted(map(user_digest, late | checked))
    _, _, without = sft._pools((shop,), options.model_copy(update={"validation_examples": 0}))
    assert not without.questions
    assert without.specs[0]["users"] == sorted(map(user_digest, late))


def test_a_stopped_training_resumes_to_the_same_adapter(make_job: Any, tmp_path: Path) -> None:
    class Stopped(BaseException):
        pass

    def stop(done: int, total: int, figures: Any) -> None:
        if done >= 4:
            raise Stopped

    few = {"epochs": 1, "validate_every": 3}
    with pytest.raises(Stopped):
        SftTrainer().train(make_job(progress=stop, **few))
    steps: list[int] = []
    resumed = SftTrainer().train(make_job(resume=True, progress=lambda done, *_: steps.append(done), **few))
    assert steps[0] >= 3
    weights = (resumed.adapter / "adapter_model.safetensors").read_bytes()
    again = SftTrainer().train(make_job(**few))
    assert (again.adapter / "adapter_model.safetensors").read_bytes() == weights


def test_options_belong_to_their_task() -> None:
    options = parse_options(SftTrainer(), {"task": "clicks", "threshold": "3.5"})
    assert isinstance(options, SftOptions)
    assert (options.template, options.clicks.threshold, options.clicks.by) == ("yes-no", 3.5, "time")
    assert SftOptions.model_validate(options.model_dump(mode="json")) == options
    for wrong in (
        {"threshold": "3"},
        {"split": "user"},
        {"task": "clicks", "loss": "choice"},
        {"task": "clicks", "validate_by": "ranking"},
        {"task": "clicks", "split": "cold"},
    ):
        with pytest.raises(TrainerError):
            parse_options(SftTrainer(), wrong)
